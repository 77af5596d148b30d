"""Guided generation: one model answers the same problems under contexts that reveal more or less.

Section 3 of arXiv 2603.24472. Problems are chosen by the accuracy of plain samples. Each context
shows something made of these samples, such as a correct one; the model answers again, and length,
score and epistemic counts are compared with the plain samples (`evaluation.guided_table`).

The folder of a run holds `settings.json`, `base.jsonl` (every plain sample, also of problems that
were not chosen), a CONTEXT.jsonl per context and `summary.json`. A file is replaced as a whole
after each batch. Samples are addressed by seed, context, question and number, so a run that was
stopped draws its unfinished batch again and ends with the same files.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.evaluation.folder import difference
from jaxdistill.evaluation.guided_contexts import Asked, Chosen, Guided, compose
from jaxdistill.evaluation.pair_scoring import Row, score_pairs
from jaxdistill.evaluation.records import TokenCounter, modes_of, response_record
from jaxdistill.files import parse_json, require_writable, write_whole
from jaxdistill.sampling import Address
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompt_widths import choose_widths
from jaxdistill.sampling.prompts import encode_prompts, prompt_lengths
from jaxdistill.sampling.rollouts import Grading, Rollouts, open_grading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import Task


class Prepared(NamedTuple):
    """The problems that a context is sampled for, and the ids of the others by reason."""

    asked: list[Asked]
    dropped: dict[str, list[str]]


TOO_LONG = "prompt too long"
NOTHING = "nothing to show"


@dataclass(frozen=True, eq=False, kw_only=True)
class Generation:
    """A run: its settings, its problems, its folder, and the model, opened where it is needed.

    `facts` are what else decides the results (model, data, dtype); with the settings they are
    written to settings.json, and a folder with others is refused.
    """

    settings: Guided
    task: Task
    questions: Sequence[Question]
    folder: Path
    facts: dict[str, Any]
    tokenizer: Any
    max_positions: int
    thinking: bool | None
    open_engine: Callable[[], Engine]
    opened: list[Engine] = field(default_factory=list)  # at most one

    @property
    def engine(self) -> Engine:
        if not self.opened:
            self.opened.append(self.open_engine())
        return self.opened[0]

    # -------------------------------------------------------------------------------- the folder

    @property
    def described(self) -> dict[str, Any]:
        """The contents of settings.json."""
        written = self.facts | asdict(self.settings) | {"thinking": self.thinking}
        return json.loads(json.dumps(written))  # tuples as lists, as they will be read

    def check_folder(self) -> None:
        """Raise UserError unless the folder is new, empty, or of a run with these settings."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--out {self.folder} is a file; name a folder")
        require_writable(self.folder, "--out")  # also where it is the default
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        try:
            before = parse_json((self.folder / "settings.json").read_bytes())
            if not isinstance(before, dict):
                raise ValueError
        except (OSError, ValueError):
            raise UserError(
                f"--out {self.folder} holds other files; name a new or empty folder"
            ) from None
        found = difference(before, self.described)
        if found is not None:
            raise UserError(f"--out {self.folder} was sampled with {found}; name another folder")

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def append(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        """Add records to a file by replacing it as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.json"
        if not settings.exists():
            write_whole(settings, json.dumps(self.described, indent=1) + "\n")
        path = self.path(name)
        before = path.read_bytes() if path.exists() else b""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_whole(path, before + lines.encode("utf-8", errors="backslashreplace"))

    def read(self, name: str, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The records that a file has already: of the first problems of `asked`, in their order.

        Raises UserError for a file that holds anything else.
        """
        path, samples = self.path(name), self.settings.samples
        if not path.exists():
            return []
        # Not `str.splitlines`: a response may contain U+2028, which it takes for a line break.
        try:
            records = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
            found = [record["question_id"] for record in records]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: damaged; remove it, and it is sampled again") from None
        expected = [each.question.id for each in asked for _ in range(samples)]
        if len(found) % samples or found != expected[: len(found)]:
            raise UserError(f"{path}: holds other problems; remove it, and it is sampled again")
        return records


# ------------------------------------------------------------------------------------ the run


class Drawing(NamedTuple):
    """What the batches of one context share."""

    engine: Engine
    grading: Grading
    widths: Sequence[int]  # of padded prompts


class Outcome(NamedTuple):
    """What a run has sampled: plain samples of every question tried, and those per context."""

    base: list[dict[str, Any]]
    records: dict[str, list[dict[str, Any]]]
    dropped: dict[str, dict[str, list[str]]]  # per context, the ids by reason


def generate(run: Generation, names: Sequence[str]) -> Outcome:
    """Sample what is not in the folder yet: the plain samples, then each context (`ordered`).

    Raises UserError if no problem's accuracy is in the range.
    """
    with contextlib.closing(open_grading(run.task)) as grading:
        base = sample_base(run, grading)
        chosen = choose(run, base)
        outcome = Outcome(base, {"none": [r for each in chosen for r in each.records]}, {})
        if not run.read("none", [plain(each.question) for each in chosen]):
            run.append("none", outcome.records["none"])
        for name in names:
            if name != "none":
                prepared = prepare(run, name, chosen, outcome.records.get("solution", []))
                outcome.dropped[name] = prepared.dropped
                outcome.records[name] = sample_context(run, name, prepared.asked, grading)
    return outcome


def plain(question: Question) -> Asked:
    return Asked(question, question.prompt)


def sample_base(run: Generation, grading: Grading) -> list[dict[str, Any]]:
    """Sample questions in their order, a batch at a time, until enough are in the range."""
    from tqdm import tqdm

    settings, asked = run.settings, [plain(question) for question in run.questions]
    records = run.read("base", asked)
    found = num_in_range(settings, records)
    lengths = prompt_lengths(run.tokenizer, run.questions, run.thinking)
    widths = choose_widths(lengths, settings.batch)
    starts = range(len(records) // settings.samples, len(asked), settings.batch)
    if found >= settings.problems or not starts:
        return records
    drawing = Drawing(run.engine, grading, widths)
    with tqdm(total=settings.problems, initial=found, desc="none", unit="problem") as bar:
        for start in starts:
            batch = asked[start : start + settings.batch]
            new = sample_batch(run, "none", batch, drawing)
            run.append("base", new)
            records += new
            bar.update(min(num_in_range(settings, new), settings.problems - bar.n))
            if bar.n >= settings.problems:
                break
    return records


def grouped(settings: Guided, records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The records of each problem."""
    for start in range(0, len(records), settings.samples):
        yield records[start : start + settings.samples]


def num_in_range(settings: Guided, records: list[dict[str, Any]]) -> int:
    return sum(map(settings.is_in_range, grouped(settings, records)))


def choose(run: Generation, base: list[dict[str, Any]]) -> list[Chosen]:
    """The first problems in the range, as many as wanted. Raises UserError if there is none."""
    settings, groups = run.settings, list(grouped(run.settings, base))
    found = [
        Chosen(question, records)
        for question, records in zip(run.questions, groups)
        if settings.is_in_range(records)
    ]
    low, high = settings.accuracy
    told = f"of {len(groups)} questions had {low:g} to {high:g} of {settings.samples} samples right"
    if not found:
        never = sum(not any(record["correct"] for record in group) for group in groups)
        always = sum(all(record["correct"] for record in group) for group in groups)
        raise UserError(
            f"none {told} ({never} were never solved, {always} always), so there is no problem to "
            f"show a solution to; see {run.path('base')}, or try other --data, --accuracy or "
            "--samples"
        )
    if len(found) < settings.problems:
        print(f"{len(found)} {told}; --problems {settings.problems} asks for more", file=sys.stderr)
    return found[: settings.problems]


def sample_context(
    run: Generation, name: str, asked: Sequence[Asked], grading: Grading
) -> list[dict[str, Any]]:
    """Sample every problem under one context, in batches of nearly equal size."""
    from tqdm import tqdm

    records = run.read(name, asked)
    done = len(records) // run.settings.samples
    if done == len(asked):
        return records
    # Equal sizes, since every size is another program to compile.
    size = -(-len(asked) // -(-len(asked) // run.settings.batch))
    lengths = prompt_lengths(run.tokenizer, [each.guided for each in asked], run.thinking)
    drawing = Drawing(run.engine, grading, choose_widths(lengths, size))
    with tqdm(total=len(asked), initial=done, desc=name, unit="problem") as bar:
        for start in range(done, len(asked), size):
            new = sample_batch(run, name, asked[start : start + size], drawing)
            run.append(name, new)
            records += new
            bar.update(len(new) // run.settings.samples)
    return records


# ------------------------------------------------------------------------------- what is shown


def prepare(
    run: Generation, name: str, chosen: Sequence[Chosen], solved: list[dict[str, Any]]
) -> Prepared:
    """Compose a context for each problem. `solved` are the records under the solution.

    A problem without anything to show, and one whose prompt leaves too few positions for a
    response, are dropped; a line on stderr says how many.
    """
    under_solution: dict[str, list[dict[str, Any]]] = {}
    for record in solved:
        under_solution.setdefault(record["question_id"], []).append(record)
    asked, dropped = [], {}
    for problem in chosen:
        own = under_solution.get(problem.question.id, [])
        each = compose(run.settings, name, problem, own, chosen)
        if each is None:
            dropped.setdefault(NOTHING, []).append(problem.question.id)
        else:
            asked.append(each)
    limit = run.max_positions - run.settings.sampling.max_new_tokens
    lengths = prompt_lengths(run.tokenizer, [each.guided for each in asked], run.thinking)
    is_over = [length > limit for length in lengths]
    if any(is_over):
        over = [each.question.id for each, long in zip(asked, is_over) if long]
        dropped[TOO_LONG] = over
        asked = [each for each, long in zip(asked, is_over) if not long]
    for reason, ids in dropped.items():
        print(f"{name}: {len(ids)} of {len(chosen)} problems dropped, {reason}", file=sys.stderr)
    return Prepared(asked, dropped)


# ----------------------------------------------------------------------------------- one batch


def sample_batch(
    run: Generation, name: str, asked: Sequence[Asked], drawing: Drawing
) -> list[dict[str, Any]]:
    """Sample, grade and score a batch of problems under one context, as records."""
    settings, engine = run.settings, drawing.engine
    plain_of = {each.question.id: each.question for each in asked}

    def grade(questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        return drawing.grading.grade([plain_of[question.id] for question in questions], responses)

    rollouts = engine.rollouts(
        engine.policy.params,
        [each.guided for each in asked],
        settings.sampling,
        settings.samples,
        Address(seed=settings.seed, purpose=f"guide/{name}"),
        grade=grade,
        widths=drawing.widths,
    )
    # From here on with the plain questions: records and the task's facts are about these.
    rollouts = replace(rollouts, questions=[each.question for each in asked])
    gains_B = np.zeros(len(rollouts.responses)) if name == "none" else gains(engine, rollouts)
    shown = [each.shown or "" for each in asked]
    sizes = [len(ids) for ids in tokenizers.encode(run.tokenizer, shown)]
    counter = TokenCounter.of(run.tokenizer)
    records = []
    for row, gain in enumerate(gains_B):
        ids = rollouts.tokens_BT[row][rollouts.mask_BT[row] > 0].tolist()
        each = asked[row // settings.samples]
        record = response_record(run.task, rollouts, row)
        own = {
            "context": name,
            "shown": each.shown,
            "shown_from": each.shown_from,
            "shown_correct": each.shown_correct,
            "shown_tokens": sizes[row // settings.samples],
            **modes_of(record["response"], ids, counter),
            "richness": float(gain) / record["num_tokens"],
            "richness_sum": float(gain),
        }
        if taken := record.keys() & own.keys():
            task = type(run.task).__name__
            raise UserError(f"{task}.facts: {min(taken)!r} is a field of guided generation")
        records.append(record | own)
    return records


def gains(engine: Engine, rollouts: Rollouts) -> np.ndarray:
    """sum_t log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t) of each row, in nats.

    `rollouts` have the tokens of guided prompts, and the plain questions. Prompts of the same
    tokens give exactly 0.
    """
    policy = engine.policy
    plain_ids = encode_prompts(policy.tokenizer, rollouts.questions, engine.enable_thinking)
    rows = [
        Row(
            response=rollouts.tokens_BT[row][rollouts.mask_BT[row] > 0].tolist(),
            plain=plain_ids[row // rollouts.rollouts],
            informed=rollouts.prompt_ids_BP[row][rollouts.prompt_mask_BP[row] > 0].tolist(),
        )
        for row in range(len(rollouts.responses))
    ]
    gains_B = np.zeros(len(rows))
    for scored in score_pairs(policy, rows, engine.dtype, engine.attention, engine.mesh):
        gains_B[scored.rows] = scored.gains_B
    return gains_B
