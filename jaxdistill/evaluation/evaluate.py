"""Sample K responses to each question of a task, and record their verdicts and statistics.

Evaluations of a training run and of the verb `eval` are the same: `evaluate` answers what a folder
does not hold yet.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxdistill import hosts, sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.cuts import read_cuts
from jaxdistill.evaluation.folder import EvaluationFolder
from jaxdistill.evaluation.progress import Progress
from jaxdistill.evaluation.records import TokenCounter, evaluation_record
from jaxdistill.evaluation.revision import hash_params
from jaxdistill.files import is_file_name
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.keys import check_seed
from jaxdistill.sampling.prompt_widths import width_of
from jaxdistill.sampling.prompts import Thinking, prompt_lengths, thinking_of
from jaxdistill.sampling.rollouts import answers_to, open_grading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import toy_name
from jaxdistill.tasks.grading.extract import THINKING_TAGS
from jaxdistill.tasks.questions import Question, fingerprint, messages
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

    Raises UserError if a number is out of range, several samples are greedy, or two splits have the
    same name.
    """

    splits: tuple[Split, ...] = ()  # the sets of questions
    every: int = 0  # training steps; 0: only after the last step
    at_start: bool = True  # before the first step too, which later evaluations are compared with
    samples: int = 4  # K, per question
    sampling: Sampling = Sampling()  # of evaluations, apart from training's
    evaluation_thinking: Thinking = "as_student"
    # The size of a toy split, which is then one batch. Chosen; use fewer if memory is short.
    questions_per_batch: int = 128
    # Questions of the first split that the initial model answers once, `samples` times each; at
    # every evaluation KL(R||S) on these answers joins the step's metrics. 0: not measured.
    base_questions: int = 0
    # Not the run's seed, so that runs with different seeds are evaluated with the same noise.
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.splits, tuple) or not all(
            isinstance(split, Split) for split in self.splits
        ):
            raise UserError(f"`splits` must be a tuple of Splits, got {self.splits!r:.80}")
        for name in ("samples", "questions_per_batch", "every", "base_questions"):
            if type(getattr(self, name)) is not int:
                raise UserError(f"`{name}` must be an integer, got {getattr(self, name)!r:.80}")
        if self.samples < 1 or self.questions_per_batch < 1 or self.every < 0:
            raise UserError(
                "`samples` and `questions_per_batch` must be at least 1 and `every` >= 0, got "
                f"{self.samples}, {self.questions_per_batch} and {self.every}"
            )
        if self.base_questions < 0:
            raise UserError(f"`base_questions` must be at least 0, got {self.base_questions}")
        if self.base_questions and not self.splits:
            raise UserError(
                f"`base_questions={self.base_questions}` needs a split in `evaluation.splits`, "
                "whose questions the initial model answers"
            )
        if self.samples > MOST_SAMPLES:
            raise UserError(f"`samples` must be at most {MOST_SAMPLES:,}, got {self.samples}")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise UserError(
                f"`samples={self.samples}` with `sampling.temperature=0`: greedy decoding gives "
                f"{self.samples} equal responses; use 1, or a temperature above 0"
            )
        check_seed("`seed`", self.seed)
        names = [split.name for split in self.splits]
        if len(set(names)) < len(names):
            raise UserError(f"`splits` must have different names, got {', '.join(names)}")

    def engine(self, student: Engine) -> Engine:
        """The student's engine in the thinking mode of evaluations, with weights not rounded."""
        thinking = thinking_of(self.evaluation_thinking, student.enable_thinking)
        return replace(student, enable_thinking=thinking, weights_dtype="auto")


def evaluate_split(
    engine: Engine, params: Any, split: Split, config: Evaluation
) -> list[dict[str, Any]]:
    """Return one record per response, K = config.samples for each question of the split.

    Raises UserError as `questions_of` and `facts_of` do.
    """
    questions = questions_of(split.task)
    drawn = sample_questions(config.engine(engine), params, split, questions, config)
    return [record for records in drawn for record in records]


def sample_questions(
    engine: Engine,
    params: Any,
    split: Split,
    questions: Sequence[Question],
    config: Evaluation,
    *,
    start: int = 0,
    token_ids: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the K = config.samples records of each question from number `start` on.

    `engine` has the thinking mode of evaluations (`Evaluation.engine`). The randomness does not
    depend on the training step: two checkpoints are sampled with the same noise, so their
    differences are paired. All batches have the same size, so that only one shape is compiled; the
    last one is filled with repeated questions whose responses are discarded. Batches do not depend
    on `start`: an evaluation that resumes computes what an undisturbed one does, to the bit.
    """
    size, tokenizer = min(config.questions_per_batch, len(questions)), engine.policy.tokenizer
    address = Address(seed=config.seed, purpose=f"eval/{split.name}")
    widths = ()
    if size < len(questions):  # several batches, all padded to the longest prompt of the split
        lengths = prompt_lengths(tokenizer, questions, engine.enable_thinking)
        widths = (width_of(max(lengths)),)
    if start == len(questions):
        return
    counter = TokenCounter.of(tokenizer)
    is_open = opens_thinking(split.task, tokenizer, questions[0], engine.enable_thinking)
    with contextlib.closing(open_grading(split.task)) as grading:
        for first in range(start - start % size, len(questions), size):
            batch = questions[first : first + size]
            rollouts = engine.rollouts(
                params,
                [*batch, *questions[: size - len(batch)]],
                config.sampling,
                config.samples,
                address,
                grade=grading.grade,
                submit=grading.submit,
                slots=slots_of_evaluation(engine),
                widths=widths,
            )
            done = max(start - first, 0)
            rollouts = answers_to(rollouts, done, len(batch))
            cuts = read_cuts(split.task, rollouts, grading.grade, tokenizer, opens_thinking=is_open)
            records = [
                evaluation_record(
                    split.task, rollouts, row, cuts=cuts[row], counter=counter, token_ids=token_ids
                )
                for row in range(len(rollouts.responses))
            ]
            for row in range(0, len(records), config.samples):
                yield records[row : row + config.samples]


# Of the toy world's 256 rows of 41 tokens on average and at most 128, decoded on one core, a batch
# takes 2.3 s with all rows at once, 1.3 with 64 slots and as long with 32 (docs/log.md).
_SLOTS_ON_CPU = 64


def slots_of_evaluation(engine: Engine) -> int | None:
    """Rows that an evaluation decodes at a time (None: as many as memory allows).

    On a CPU the time of a step grows with the rows in it, those that have ended included: in fewer
    slots the rows that wait take the places of those that end. The tokens are the same, and nobody
    reads the last bits of an evaluation's log-probs.
    """
    with sharding.use_mesh(engine.mesh):
        is_even = _SLOTS_ON_CPU % sharding.num_parts("B") == 0
        return _SLOTS_ON_CPU if sharding.platform() == "cpu" and is_even else None


def opens_thinking(
    task: Task, tokenizer: Any, question: Question, enable_thinking: bool | None
) -> bool:
    """Whether the template itself opens the thinking, as that of the R1-Distills does."""
    tags = getattr(task, "thinking_tags", ()) or THINKING_TAGS
    # The whole prompt ends as the assistant's turn begins, whatever the template does before it.
    text = tokenizers.prompt_text(tokenizer, messages(question), enable_thinking)
    return any(text.rstrip().endswith(opening) for opening, _ in tags)


@dataclass(frozen=True)
class Asked:
    """The questions of a split, as they are asked."""

    split: Split
    questions: Sequence[Question]


def evaluate(
    folder: EvaluationFolder,
    engine: Engine,
    params: Any,
    asked: Sequence[Asked],
    config: Evaluation,
    *,
    token_ids: bool = False,
    show_progress: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Answer what the folder does not hold yet, question by question, and write its summary.

    `engine` has the thinking mode of evaluations. Returns the records of each split. On several
    hosts all of them sample, and the first one reads and writes the folder; the others return what
    was sampled now.
    """
    is_first = hosts.is_first()
    results, kept = {}, {}
    for each in asked:
        name = each.split.name
        results[name] = folder.kept(name, each.questions) if is_first else []
        kept[name] = hosts.broadcast(len(results[name]), f"kept records of {name}")
    total = sum(len(each.questions) for each in asked) * config.samples
    has_begun = False
    with Progress(total, sum(kept.values()), show_progress) as progress:
        for each in asked:
            name = each.split.name
            records = results[name]
            drawn = sample_questions(
                engine,
                params,
                each.split,
                each.questions,
                config,
                start=kept[name] // config.samples,
                token_ids=token_ids,
            )
            for new in drawn:
                if is_first:
                    if not has_begun:
                        folder.begin()
                        has_begun = True
                    folder.append(name, new)
                records += new
                progress.add(name, new)
            if is_first:
                folder.complete(name)
    if is_first:
        folder.finish(results)
    return results


def evaluate_run(
    engine: Engine, params: Any, config: Evaluation, path: Path, *, run: str, step: int
) -> None:
    """Evaluate the parameters of a training run at a step, into a folder of the run.

    An evaluation that was stopped continues if it was of the same parameters, to the bit: a run
    that was resumed from an earlier checkpoint may arrive at others.
    """
    engine = config.engine(engine)
    asked = [Asked(split, questions_of(split.task)) for split in config.splits]
    model = {"name": run, "revision": hash_params(params), "step": step, "commit": None}
    identity = identity_of(
        model,
        asked,
        config,
        thinking=engine.enable_thinking,
        dtype=engine.dtype,
        cache_dtype=engine.cache_dtype,
    )
    folder = EvaluationFolder(path=path, identity=identity)
    if hosts.is_first() and not folder.is_of(identity):
        folder.restart()
    evaluate(folder, engine, params, asked, config)


def identity_of(
    model: dict[str, Any],
    asked: Sequence[Asked],
    config: Evaluation,
    *,
    thinking: bool | None,
    dtype: str,
    cache_dtype: str,
    system: str | None = None,
    token_ids: bool = False,
) -> dict[str, Any]:
    """What decides the results of an evaluation, as it will be read from JSON."""
    found = {
        "model": model,
        "sampling": asdict(config.sampling),
        "k": config.samples,
        "seed": config.seed,
        "thinking": thinking,
        "system": system,
        "dtype": str(compute_dtype(dtype)),
        "cache_dtype": cache_dtype,
        "token_ids": token_ids,
        "data": {each.split.name: data_identity(each) for each in asked},
    }
    return json.loads(json.dumps(found))  # tuples as lists


def data_identity(asked: Asked) -> dict[str, Any]:
    """A data set's name, task and settings of grading, its number of questions, and their hash."""
    task = asked.split.task
    fields = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
    changed = {
        field.name: getattr(task, field.name)
        for field in fields
        if field.name not in ("source", "limit") and getattr(task, field.name) != field.default
    }
    return {
        "source": data_name(task),
        "task": type(task).__name__,
        "settings": json.loads(json.dumps(changed, default=repr)),
        "questions": len(asked.questions),
        "hash": fingerprint(asked.questions),
    }


# {name: (pool, numbers)}. Out of distribution (ood) means four numbers; the others have three.
TOY_SPLITS = {
    "train": ("train", 3),
    "heldout": ("heldout", 3),
    "ood": ("heldout", 4),
    "validation": ("validation", 3),
    "validation_ood": ("validation", 4),
}


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
