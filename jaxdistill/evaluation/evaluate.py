"""Sample K responses to each question of a task and record their verdicts and statistics."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.evaluation import intervals
from jaxdistill.evaluation.measures import MEASURES, problem_of, summarize
from jaxdistill.evaluation.records import response_record
from jaxdistill.files import is_file_name
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.keys import check_seed
from jaxdistill.sampling.prompt_widths import width_of
from jaxdistill.sampling.prompts import Thinking, prompt_lengths, thinking_of
from jaxdistill.sampling.rollouts import open_grading
from jaxdistill.storage.toy import toy_name
from jaxdistill.tasks.sources.names import parse
from jaxdistill.tasks.tasks import KINDS, Task, ToyTask, questions_of, recognised


@dataclass(frozen=True)
class Split:
    """One named set of questions in an evaluation.

    Raises UserError if the name cannot be a file name.
    """

    name: str  # of the split and of its file of records
    task: Task  # the questions and their grader

    def __post_init__(self):
        if not is_file_name(self.name):
            raise UserError(f"Split.name must be usable as a file name, got {self.name!r}")


# Responses per question: more than anyone needs, and few enough for the host's memory. Chosen.
MOST_SAMPLES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run evaluates, and how often.

    evaluation_thinking: the chat template's thinking mode in evaluations: true, false, None to
    leave it to the template, or `as_student` for the mode of training.

    Raises UserError if a number is out of range or two splits have the same name.
    """

    splits: tuple[Split, ...] = ()  # the sets of questions
    every: int = 0  # training steps; 0: only after the last step
    at_start: bool = True  # before the first step too, which later evaluations are compared with
    samples: int = 4  # K, per question
    sampling: Sampling = Sampling()  # of evaluations, apart from training's
    evaluation_thinking: Thinking = "as_student"
    # The size of a toy split, which is then one batch. Chosen; use fewer if memory is short.
    questions_per_batch: int = 128
    # Not the run's seed, so that runs with different seeds are evaluated with the same noise.
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.splits, tuple) or not all(
            isinstance(split, Split) for split in self.splits
        ):
            raise UserError(f"`splits` must be a tuple of Splits, got {self.splits!r:.80}")
        for name in ("samples", "questions_per_batch", "every"):
            if type(getattr(self, name)) is not int:
                raise UserError(f"`{name}` must be an integer, got {getattr(self, name)!r:.80}")
        if self.samples < 1 or self.questions_per_batch < 1 or self.every < 0:
            raise UserError(
                "`samples` and `questions_per_batch` must be at least 1 and `every` >= 0, got "
                f"{self.samples}, {self.questions_per_batch} and {self.every}"
            )
        if self.samples > MOST_SAMPLES:
            raise UserError(f"`samples` must be at most {MOST_SAMPLES:,}, got {self.samples}")
        check_seed("`seed`", self.seed)
        names = [split.name for split in self.splits]
        if len(set(names)) < len(names):
            raise UserError(f"`splits` must have different names, got {', '.join(names)}")

    def engine(self, student: Engine) -> Engine:
        """The student's engine, in the thinking mode of evaluations."""
        thinking = thinking_of(self.evaluation_thinking, student.enable_thinking)
        return replace(student, enable_thinking=thinking)


def evaluate_split(
    engine: Engine,
    params: Any,
    split: Split,
    config: Evaluation,
    *,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Return one record per response, K = config.samples for each question of the split.

    The randomness does not depend on the training step: two checkpoints are sampled with the same
    noise, so their differences are paired. All batches have the same size, so that only one shape
    is compiled; the last one is filled with repeated questions whose responses are discarded.
    Raises UserError as `questions_of` and `facts_of` do.
    """
    from tqdm import tqdm

    questions, engine = questions_of(split.task), config.engine(engine)
    size = min(config.questions_per_batch, len(questions))
    address = Address(seed=config.seed, purpose=f"eval/{split.name}")
    records = []
    widths = ()
    if size < len(questions):  # several batches, all padded to the longest prompt of the split
        lengths = prompt_lengths(engine.policy.tokenizer, questions, engine.enable_thinking)
        widths = (width_of(max(lengths)),)
    with contextlib.closing(open_grading(split.task)) as grading:
        starts = range(0, len(questions), size)
        for start in tqdm(starts, desc=split.name, disable=not show_progress):
            batch = questions[start : start + size]
            filled = batch + questions[: size - len(batch)]
            rollouts = engine.rollouts(
                params,
                filled,
                config.sampling,
                config.samples,
                address,
                grade=grading.grade,
                widths=widths,
            )
            rows = range(len(batch) * config.samples)
            records += [response_record(split.task, rollouts, row) for row in rows]
    return records


# {name: (pool, numbers)}. Out of distribution (ood) means four numbers; the others have three.
TOY_SPLITS = {"train": ("train", 3), "heldout": ("heldout", 3), "ood": ("heldout", 4)}


def data_name(task: Task) -> str | None:
    """The `--data` of a task's questions, without its limit; None if they have no such name."""
    if isinstance(task, ToyTask):
        names = {pool: f"toy:{name}" for name, pool in TOY_SPLITS.items()}
        return names.get((task.pool, task.numbers))
    source = getattr(task, "source", None)
    return source if isinstance(source, str) else None


def named_split(name: str, limit: int | None, kind: str = "auto", **reading: Any) -> Split:
    """Return the split for `toy:POOL` or the name of a data set (`tasks.sources.names`).

    kind: math, choice or exact, or auto to recognise it from the rows. reading: further fields of
    `tasks.sources.Reading`. Without a limit a toy split has 128 questions. Raises UserError for an
    unknown toy split, an invalid name or setting, and rows whose kind cannot be recognised.
    """
    toy = toy_name(name)
    if toy is None:
        make = recognised if kind == "auto" else KINDS[kind]
        return Split(re.sub(r"[/\\]+", "-", parse(name).label), make(name, limit=limit, **reading))
    if toy not in TOY_SPLITS:
        known = ", ".join(f"toy:{pool}" for pool in TOY_SPLITS)
        raise UserError(f"`--data` {name!r} is unknown; use {known}, or a data set's name")
    if reading:
        raise UserError(f"`--data` {name!r} is a toy's split; it has no {', '.join(reading)}")
    pool, numbers = TOY_SPLITS[toy]
    return Split(toy, ToyTask(pool, numbers, 128 if limit is None else limit))


def named_splits(
    names: Sequence[str], limit: int | None, kind: str = "auto", **reading: Any
) -> tuple[Split, ...]:
    """`named_split` of each name; files that are called alike are told apart by their folders.

    Raises UserError for a data set that is named twice.
    """
    splits = [named_split(name, limit, kind, **reading) for name in names]
    for index, split in enumerate(splits):
        if split.task in [other.task for other in splits[:index]]:
            raise UserError(f"--data {names[index]} is named twice")
    stems = [split.name for split in splits]
    folders = [() if toy_name(name) is not None else parse(name).folders for name in names]
    named = []
    for split, own in zip(splits, folders, strict=True):
        same = [other for other, stem in zip(folders, stems, strict=True) if stem == split.name]
        # As few folders as tell it from the others of its name.
        tails = (own[len(own) - depth :] for depth in range(len(own) + 1))
        tail = next((t for t in tails if sum(o[len(o) - len(t) :] == t for o in same) == 1), None)
        if tail is None and own == () and same.count(()) == 1:
            tail = ()  # the others are named with their folders
        if tail is None:
            raise UserError(f"--data: several data sets are called {split.name}; rename one")
        name = "-".join([*(re.sub(r"[^\w.-]+", "_", part) for part in tail), split.name])
        named.append(replace(split, name=name))
    return tuple(named)


def summary_lines(records: list[dict[str, Any]], k: int) -> Iterator[str]:
    """Format an evaluation as lines of text: accuracies with 95 % intervals, then means.

    Fractions are in percent, as everywhere in text for people; files hold the fractions.
    """
    ids = [problem_of(record) for record in records]
    correct = [record["correct"] for record in records]
    for name, found in (
        (f"avg@{k}", intervals.avg_at_k(ids, correct)),
        (f"pass@{k}", intervals.pass_at_k(ids, correct, k)),
    ):
        yield f"{name:<24}{found.value:.1%}  [{found.low:.1%}, {found.high:.1%}]"
    for name, value in summarize(records).items():
        if name != "accuracy" and value is not None:
            is_share = name in MEASURES and MEASURES[name].is_share
            form = ".1%" if is_share else ".4g" if isinstance(value, float) else ""
            yield f"{name:<24}{value:{form}}"
