"""A task is a set of questions, a grader, and what its traces can be asked.

It is a frozen dataclass with two methods, `questions()` and `grade(question, response)`. A recipe
may bring its own (`OwnTask`).
"""

import math
import random
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line, require_choice
from jaxdistill.tasks import sources
from jaxdistill.tasks.grading.alternatives import grade_math_any
from jaxdistill.tasks.grading.choice import grade_choice, grade_exact
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text, with_problems
from jaxdistill.tasks.sources.instruction import BOX, LETTER, RESPONSE, TAG, AnswerForm
from jaxdistill.tasks.sources.kinds import kind_of
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
class SourceTask(sources.Reading):
    """A task on a data set (`sources.Reading` names its settings); its kinds differ in the grader.

    `form` is the form of answer that prompts ask for and the grader reads.
    """

    form: ClassVar[AnswerForm]

    def load(self, *, repeats: bool = True) -> sources.Loaded:
        """Read the data set, with notes on what was done."""
        return sources.read(self, self.form, repeats=repeats)

    def questions(self) -> list[Question]:
        return self.load().questions


@dataclass(frozen=True)
class MathTask(SourceTask):
    """Mathematics: the last box of a response, compared as mathematics.

    `MathTask("hub:HuggingFaceH4/MATH-500:test", limit=64)`
    """

    form = BOX
    grade = staticmethod(grade_math_any)


@dataclass(frozen=True)
class ChoiceTask(SourceTask):
    """Multiple choice: the letter in the last `<answer>` tag of a response, as in SciKnowEval."""

    form = LETTER
    grading_workers: ClassVar = 0
    grade = staticmethod(grade_choice)


@dataclass(frozen=True)
class ExactTask(SourceTask):
    """Exact match: the text in the last `<answer>` tag is the gold answer, but for outer space.

    answer_in="response" compares the whole response, and prompts ask for no tag.
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
            question, response, in_tag=self.answer_in == "tag", ignore_case=self.ignore_case
        )


Task = ToyTask | MathTask | ChoiceTask | ExactTask | OwnTask
KINDS: dict[str, type[MathTask] | type[ChoiceTask] | type[ExactTask]] = {
    "math": MathTask,
    "choice": ChoiceTask,
    "exact": ExactTask,
}


def recognised(source: str, **settings: Any) -> MathTask | ChoiceTask | ExactTask:
    """The task of the kind that a data set's rows are for (`sources.kinds`).

    settings: further fields of `sources.Reading`. Raises UserError where the rows do not tell.
    """
    return KINDS[kind_of(sources.Reading(source, **settings))](source, **settings)


def load(task: Task, *, repeats: bool = True) -> sources.Loaded:
    """The questions of a task, checked, with notes for a person on how they were read.

    repeats: False keeps one question of each prompt, which is what training draws from. Raises
    UserError naming file and row, or when a toy pool holds fewer problems; of an own task for what
    it raises, and for anything but a list of questions with different ids.
    """
    require_choice("task", task, Task)
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
        raise UserError(f"{name}: expected at least one question, and ids that differ")
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
    """What this task alone can tell of a response (`task.facts`); nothing of one without facts.

    Raises UserError for what an own task raises, and for anything but finite numbers by name.
    """
    if not hasattr(task, "facts"):
        return {}
    name = f"{type(task).__name__}.facts on question {question.id!r}"
    try:
        facts = task.facts(question, response)  # pyright: ignore[reportAttributeAccessIssue]
    except (Exception, SystemExit) as error:
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
