"""A task is a set of questions with a grader, and optionally with measurements of responses.

It is a frozen dataclass with two methods, `questions()` and `grade(question, response)`. A recipe
may define its own (`OwnTask`).
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import Field, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line, require_choice
from jaxdistill.tasks import sources
from jaxdistill.tasks.grading.choice import grade_choice, grade_exact
from jaxdistill.tasks.grading.extract import THINKING_TAGS
from jaxdistill.tasks.grading.math import fault_in_gold, grade_math
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text, with_problems
from jaxdistill.tasks.sources.instruction import BOX, LETTER, RESPONSE, TAG, AnswerForm
from jaxdistill.tasks.sources.kinds import kind_of
from jaxdistill.tasks.toy import grader as toy_grader
from jaxdistill.tasks.toy import problems, traces
from jaxdistill.tasks.words.task import WordsTask


@runtime_checkable
class OwnTask(Protocol):
    """A recipe's own task: a frozen dataclass with these methods.

    `grade` runs in `grading_workers` separate processes (default: as the host's cores and memory
    allow, `grading.host`; 0 means this process, without a time limit). A response whose grading
    takes longer than `grading_timeout_s` seconds (default 5) gets the verdict "too slow". The
    processes import the recipe first, but imports inside `grade` count towards the time of its
    first response.

    Optionally, the class has a method `facts(question, response)` that returns further numbers
    about a response as {name: number, or None if not known}, for example `ToyTask.facts`. They are
    written to the response's record, and their means to an evaluation's summary. `facts` runs in
    this process. With a class attribute `grades_cuts = True` evaluations also grade each response
    cut at about ten lengths, which gives the accuracy by token budget.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def questions(self) -> list[Question]:
        """Return the same questions in the same order at every call, each with a unique id."""
        ...

    def grade(self, question: Question, response: str) -> Verdict:
        """Judge one response. An exception becomes the verdict "grader failed"."""
        ...


@dataclass(frozen=True)
class ToyTask:
    """The first `count` problems of a pool; a smaller count gives a subset of a larger one.

    `pool` is pretrain, train, validation or heldout. Problems of 3 numbers are in distribution;
    those of 4 or more are out of distribution. Raises UserError for any other pool, a count below
    1, or fewer than 3 or more than 6 numbers.
    """

    pool: str = "train"  # pretrain, train, validation or heldout
    numbers: int = 3  # of a problem: 3 to 6
    count: int = 512  # problems
    seed: int = 0  # of the order in which a pool's problems are drawn

    grading_workers: ClassVar = 0  # a verdict is a string comparison
    grade = staticmethod(toy_grader.grade)
    facts = staticmethod(toy_grader.facts)

    def __post_init__(self):
        problems.require_drawable(pool=self.pool, numbers=self.numbers, count=self.count)

    def questions(self) -> list[Question]:
        drawn = problems.draw_distinct(self.count, self.numbers, self.pool, self.seed)
        # The text serves as the id because the problems of a pool are distinct.
        return [Question(p.text, p.text, p.answer, solution=traces.concise(p)) for p in drawn]


@dataclass(frozen=True)
class SourceTask(sources.Reading):
    """A task on a data set (`sources.Reading` names its settings); its kinds differ in the grader.

    `form` is the form of answer that prompts ask for and the grader reads.
    """

    form: ClassVar[AnswerForm]
    # Pairs of an opening and a closing tag; the answer stands after the last closing tag.
    thinking_tags: tuple[tuple[str, str], ...] = THINKING_TAGS

    def __post_init__(self):
        super().__post_init__()
        pairs = self.thinking_tags
        is_valid = isinstance(pairs, tuple) and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(is_text(tag) and tag for tag in pair)
            for pair in pairs
        )
        if not is_valid:
            raise UserError(
                "`thinking_tags` must be pairs of an opening and a closing tag, such as "
                f'(("<think>", "</think>"),), got {pairs!r}'
            )

    def load(self, *, repeats: bool = True) -> sources.Loaded:
        """Read the data set, with notes on what was done."""
        return sources.read(self, self.form, repeats=repeats)

    def questions(self) -> list[Question]:
        return self.load().questions


@dataclass(frozen=True)
class MathTask(SourceTask):
    """Mathematics: the last box after the thinking, compared as mathematics.

    `MathTask("hub:HuggingFaceH4/MATH-500:test", limit=64)`. A gold answer with which nothing can be
    compared, such as a sentence, is a bad row.
    """

    form = replace(BOX, fault_in_gold=fault_in_gold)
    # How many characters at the response's end may hold the box; the paper's training takes 100.
    last_chars: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.last_chars is not None and self.last_chars < 1:
            raise UserError(f"`last_chars` must be at least 1 or None, got {self.last_chars}")

    @property
    def grade(self) -> Callable[[Question, str], Verdict]:
        # Not a method: a worker process that unpickles one would import this module's packages.
        return partial(grade_math, last_chars=self.last_chars, thinking_tags=self.thinking_tags)


@dataclass(frozen=True)
class ChoiceTask(SourceTask):
    """Multiple choice: the letter in the last `<answer>` tag of a response, as in SciKnowEval."""

    form = LETTER
    grading_workers: ClassVar = 0

    def grade(self, question: Question, response: str) -> Verdict:
        return grade_choice(question, response, thinking_tags=self.thinking_tags)


@dataclass(frozen=True)
class ExactTask(SourceTask):
    """Exact match: the text in the last `<answer>` tag is the gold answer, but for outer space.

    answer_in: where the answer is; "response" compares the whole response, and prompts ask for no
    tag.
    ignore_case: whether upper and lower case are the same.
    """

    answer_in: Literal["tag", "response"] = "tag"
    ignore_case: bool = False
    grading_workers: ClassVar = 0

    def __post_init__(self):
        super().__post_init__()
        if self.answer_in not in ("tag", "response"):
            raise UserError(f"`answer_in` must be tag or response, got {self.answer_in!r}")

    @property
    def form(self) -> AnswerForm:  # pyright: ignore[reportIncompatibleVariableOverride]
        return TAG if self.answer_in == "tag" else RESPONSE

    def grade(self, question: Question, response: str) -> Verdict:
        return grade_exact(
            question,
            response,
            in_tag=self.answer_in == "tag",
            ignore_case=self.ignore_case,
            thinking_tags=self.thinking_tags,
        )


Task = ToyTask | WordsTask | MathTask | ChoiceTask | ExactTask | OwnTask
KINDS: dict[str, type[MathTask] | type[ChoiceTask] | type[ExactTask]] = {
    "math": MathTask,
    "choice": ChoiceTask,
    "exact": ExactTask,
}


def recognised(source: str, **settings: Any) -> MathTask | ChoiceTask | ExactTask:
    """The task of the kind that a data set's rows are for (`sources.kinds`).

    settings: further fields of `sources.Reading`. Raises UserError if the rows do not tell.
    """
    return KINDS[kind_of(sources.Reading(source, **settings))](source, **settings)


# (task, repeats, its questions) of tasks that were read within `reading_once`; None outside of it.
_read: ContextVar[list[tuple[Task, bool, sources.Loaded]] | None] = ContextVar("read", default=None)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within this context `load` reads each task once: a run's data are those of its start."""
    token = _read.set([])
    try:
        yield
    finally:
        _read.reset(token)


def load(task: Task, *, repeats: bool = True) -> sources.Loaded:
    """The questions of a task, checked, with notes for a person on how they were read.

    repeats: False keeps one question of each prompt, which is what training draws from. Raises
    UserError naming file and row, or when a toy pool holds fewer problems; of an own task for what
    it raises, and for anything but a list of questions with different ids.
    """
    require_choice("task", task, Task)
    read = _read.get()
    for known, with_repeats, loaded in read or ():
        if (known, with_repeats) == (task, repeats):
            return loaded
    loaded = _load(task, repeats)
    if read is not None:
        read.append((task, repeats, loaded))
    return loaded


def _load(task: Task, repeats: bool) -> sources.Loaded:
    name = f"{type(task).__name__}.questions"
    if isinstance(task, SourceTask) and type(task).questions is SourceTask.questions:
        return task.load(repeats=repeats)
    try:
        questions = task.questions()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {in_one_line(error)}") from error
    if not (isinstance(questions, list) and all(isinstance(q, Question) for q in questions)):
        raise UserError(f"{name}: expected a list of Question, got {questions!r}"[:300])
    for index, question in enumerate(questions):
        for field in ("id", "prompt", "answer", "system", "solution", "problem"):
            text = getattr(question, field)
            may_be_none = field in ("system", "solution", "problem")
            if not (is_text(text) or (text is None and may_be_none)):
                raise UserError(f"{name}: {field} of question {index} must be text, got {text!r}")
    if not questions or len({question.id for question in questions}) < len(questions):
        raise UserError(f"{name}: expected at least one question, and a different id for each")
    clustered = with_problems(questions)
    different = [q for q in clustered if q.problem_id == q.id]
    return sources.Loaded(
        questions=clustered if repeats else different,
        notes=[],
        num_rows=len(questions),
        num_distinct=len(different),
        skipped=[],
    )


def questions_of(task: Task, *, repeats: bool = True) -> list[Question]:
    """`load(task).questions`: checked, since the task may be a recipe's own."""
    return load(task, repeats=repeats).questions


def facts_of(task: Task, question: Question, response: str) -> dict[str, float | None]:
    """Return the task's own numbers about a response, `task.facts`; {} if it has no such method.

    Raises UserError if `facts` raises, or returns anything other than {name: finite number or
    None}.
    """
    if not hasattr(task, "facts"):
        return {}
    name = f"{type(task).__name__}.facts on question {question.id!r}"
    try:
        facts = task.facts(question, response)  # pyright: ignore[reportAttributeAccessIssue]
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {in_one_line(error)}") from error
    is_valid = isinstance(facts, dict) and all(
        isinstance(key, str)
        and (value is None or (isinstance(value, int | float) and math.isfinite(value)))
        for key, value in facts.items()
    )
    if not is_valid:
        raise UserError(f"{name}: expected a dict of finite numbers or None, got {facts!r}"[:300])
    return facts


def example_text(world: str, seed: int, index: int) -> tuple[str, str]:
    """Return one pretraining text of the toy world `world` as (user turn, response)."""
    text = traces.example(traces.WORLDS[world], seed, index)
    return text.prompt, text.response


def probe_prefixes(task: ToyTask, seed: int) -> list[tuple[Question, str]]:
    """Pair each question with one unguided trace of the main world, for probing at its forks."""
    rng = random.Random(f"probe/{seed}")
    return [
        (question, traces.unguided(problems.parse(question.prompt), traces.MAIN, rng))
        for question in questions_of(task)
    ]
