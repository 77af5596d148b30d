"""A task is a set of questions, a grader, and what its traces can be asked.

It is a frozen dataclass with two methods, `questions()` and `grade(question, response)`. A recipe
may bring its own (`OwnTask`).
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

    `grade` runs in processes of its own, `grading_workers` of them (2 unless the class says
    otherwise; 0: in this process, without a time limit), and a response that takes longer than
    `grading_timeout_s` (5) is "too slow". They import the recipe; what `grade` itself imports is
    charged to its first response.

    Beside them a class may have `facts(question, response)`, which gives further numbers on a
    response by name, None for one that it does not tell: `ToyTask.facts`, say. They stand in the
    response's record, and their means in the summary of an evaluation. It runs in this process.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def questions(self) -> list[Question]:
        """The same questions in the same order at each call, each with an id of its own."""
        ...

    def grade(self, question: Question, response: str) -> Verdict: ...


@dataclass(frozen=True)
class ToyTask:
    """The first `count` problems of a pool; smaller counts are subsets of larger ones.

    pool: pretrain, train or heldout; numbers: 3 in distribution, 4 and more beyond it.
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
        # Fewer than three leave no search; six have up to 3^5 = 243 chains. Chosen.
        if not 3 <= self.numbers <= 6:
            raise UserError(f"`numbers` must lie in 3..6, got {self.numbers}")

    def questions(self) -> list[Question]:
        drawn = problems.draw_distinct(self.count, self.numbers, self.pool, self.seed)
        # A toy problem is its own id: all of a pool are distinct.
        return [Question(p.text, p.text, p.answer, solution=traces.concise(p)) for p in drawn]


@dataclass(frozen=True)
class MathTask:
    """Questions with boxed answers in a .parquet (DAPO, AIME, AMC layouts) or .jsonl file."""

    path: str
    limit: int | None = None  # the first so many questions only

    grade = staticmethod(grade_math)

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` must be at least 1, got {self.limit}")

    def questions(self) -> list[Question]:
        return sources.read(self.path)[: self.limit]


Task = ToyTask | MathTask | OwnTask


def questions_of(task: Task) -> list[Question]:
    """`task.questions()`, checked: the task may be a recipe's own.

    Raises UserError naming file and row, or when a toy pool holds fewer problems; of an own task
    for what it raises, and for anything but a list of questions with different ids.
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
        raise UserError(f"{name}: expected at least one question, and ids that differ")
    return questions


def facts_of(task: Task, question: Question, response: str) -> dict[str, float | None]:
    """What this task alone can tell of a response (`task.facts`); nothing of one without facts.

    Raises UserError for what an own task raises, and for anything but finite numbers by name.
    """
    if not hasattr(task, "facts"):
        return {}
    name = f"{type(task).__name__}.facts on question {question.id!r}"
    try:
        facts = task.facts(question, response)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:
        raise UserError(f"{name}: {in_one_line(error)}") from error
    is_right = isinstance(facts, dict) and all(
        isinstance(key, str)
        and (value is None or (isinstance(value, int | float) and math.isfinite(value)))
        for key, value in facts.items()
    )
    if not is_right:
        raise UserError(f"{name}: expected a dict of finite numbers or None, got {facts!r}"[:300])
    return facts


def example_text(world: str, seed: int, index: int) -> tuple[str, str]:
    """A pretraining text of the toy world: (user turn, response)."""
    text = traces.example(traces.WORLDS[world], seed, index)
    return text.prompt, text.response


def probe_prefixes(task: ToyTask, seed: int) -> list[tuple[Question, str]]:
    """Each question with one unguided trace of the main world, to be cut at its forks."""
    rng = random.Random(f"probe/{seed}")
    return [
        (question, traces.unguided(problems.parse(question.prompt), traces.MAIN, rng))
        for question in questions_of(task)
    ]
