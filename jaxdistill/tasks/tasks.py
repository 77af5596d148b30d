"""A task is a set of questions with a grader, and optionally with measurements of responses.

It is a frozen dataclass with two methods, `questions()` and `grade(question, response)`. A recipe
may define its own (`OwnTask`).
"""

import math
import random
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line, require_choice
from jaxdistill.tasks import sources
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text
from jaxdistill.tasks.toy import grader as toy_grader
from jaxdistill.tasks.toy import problems, traces


@runtime_checkable
class OwnTask(Protocol):
    """A recipe's own task: a frozen dataclass with these methods.

    `grade` runs in `grading_workers` separate processes (default 2; 0 means this process, without
    a time limit). A response whose grading takes longer than `grading_timeout_s` seconds
    (default 5) gets the verdict "too slow". The processes import the recipe first, but imports
    inside `grade` count towards the time of its first response.

    Optionally, the class has a method `facts(question, response)` that returns further numbers
    about a response as {name: number, or None if not known}, for example `ToyTask.facts`. They are
    written to the response's record, and their means to an evaluation's summary. `facts` runs in
    this process.
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

    `pool` is pretrain, train or heldout. Problems of 3 numbers are in distribution; those of 4 or
    more are out of distribution. Raises UserError for any other pool, a count below 1, or fewer
    than 3 or more than 6 numbers.
    """

    pool: str = "train"
    numbers: int = 3
    count: int = 512
    seed: int = 0

    grading_workers: ClassVar = 0  # a verdict is a string comparison
    grade = staticmethod(toy_grader.grade)
    facts = staticmethod(toy_grader.facts)

    def __post_init__(self):
        if self.pool not in problems.POOLS:
            raise UserError(f"`pool` must be one of {', '.join(problems.POOLS)}, got {self.pool!r}")
        if self.count < 1:
            raise UserError(f"`count` must be at least 1, got {self.count}")
        # With fewer than three numbers there is nothing to search; six have up to 3^5 = 243 chains,
        # all of which are enumerated for each problem drawn. Chosen, not measured.
        if not 3 <= self.numbers <= 6:
            raise UserError(f"`numbers` must lie in 3..6, got {self.numbers}")

    def questions(self) -> list[Question]:
        drawn = problems.draw_distinct(self.count, self.numbers, self.pool, self.seed)
        # The text serves as the id because the problems of a pool are distinct.
        return [Question(p.text, p.text, p.answer, solution=traces.concise(p)) for p in drawn]


@dataclass(frozen=True)
class MathTask:
    """Questions with boxed answers in a .parquet (DAPO, AIME, AMC layouts) or .jsonl file.

    Raises UserError for a limit below 1.
    """

    path: str
    limit: int | None = None  # read at most this many questions, from the start of the file

    grade = staticmethod(grade_math)

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` must be at least 1, got {self.limit}")

    def questions(self) -> list[Question]:
        return sources.read(self.path)[: self.limit]


Task = ToyTask | MathTask | OwnTask


def questions_of(task: Task) -> list[Question]:
    """Return `task.questions()` after checking it, since a recipe may define the task.

    Raises UserError naming file and row for invalid data, and for a toy pool that holds too few
    problems. For a recipe's own task it raises UserError if the method raises or returns anything
    other than a non-empty list of questions with different ids.
    """
    require_choice("task", task, Task)
    name = f"{type(task).__name__}.questions"
    try:
        questions = task.questions()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {in_one_line(error)}") from error
    if not (isinstance(questions, list) and all(isinstance(q, Question) for q in questions)):
        raise UserError(f"{name}: expected a list of Question, got {questions!r}"[:300])
    for index, question in enumerate(questions):
        for field in ("id", "prompt", "answer", "system", "solution"):
            text, may_be_none = getattr(question, field), field in ("system", "solution")
            if not (is_text(text) or (text is None and may_be_none)):
                raise UserError(f"{name}: {field} of question {index} must be text, got {text!r}")
    if not questions or len({question.id for question in questions}) < len(questions):
        raise UserError(f"{name}: expected at least one question, and a different id for each")
    return questions


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
