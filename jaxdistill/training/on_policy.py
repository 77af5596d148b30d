"""The configuration of learning from the student's own samples, and checks that it can work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxdistill.errors import UserError
from jaxdistill.own_classes import require_choice
from jaxdistill.sampling import Sampling
from jaxdistill.tasks.contexts import (
    PAPER,
    Attempt,
    Context,
    NoContext,
    Shown,
    Template,
    WrongSolution,
    composed,
    regenerates,
    reuses_shown,
)
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import Task


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """The student's own samples: Q questions per step, R rollouts each, and the teacher's context.

    demonstration: `sibling` shows another, correct rollout of the same question, and a row without
    one is not distilled; `reference` shows the question's own solution text; `sibling_or_reference`
    falls back to that text. A wrong solution is always another, incorrect rollout.
    overlong: a demonstration is too long if it has more than `max_demonstration_tokens`, or if the
    teacher's prompt and the row's completion would exceed the model's positions. `cut` cuts off its
    end, `drop` does not distil the row; the metrics count both.
    contrast, contrasts: the context that a contrastive objective compares with the teacher's, and
    the number of such prompts per row.
    """

    task: Task
    questions: int = 32  # these two as in SDPO's published script (`run_sdpo_all.sh`)
    rollouts: int = 8
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    demonstration: Literal["sibling", "reference", "sibling_or_reference"] = "sibling"
    demonstration_choice: Literal["random", "first", "shortest"] = "random"
    max_demonstration_tokens: int = 20480  # the paper's maximum response length
    overlong: Literal["cut", "drop"] = "cut"
    template: Template = PAPER
    contrast: Context = WrongSolution()
    contrasts: int = 1
    # Widths of teacher prompts and completions are rounded up to multiples of these, because each
    # distinct width compiles the step anew. 64 is chosen, not measured.
    teacher_prompt_multiple: int = 64
    completion_multiple: int = 64
    enable_thinking: bool | None = None

    def __post_init__(self):
        for name in (
            "questions",
            "rollouts",
            "max_demonstration_tokens",
            "contrasts",
            "teacher_prompt_multiple",
            "completion_multiple",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        require_choice("task", self.task, Task)
        require_choice("context", self.context, Context)
        require_choice("contrast", self.contrast, Context)


def check_demonstrations(
    experience: OnPolicy, questions: Sequence[Question], field: str = "context"
) -> None:
    """Raise UserError if the teacher of a run could never be shown a demonstration.

    `field` is the context's field, "context" or "contrast". Nothing would be distilled.
    """
    context = getattr(experience, field)
    source = source_of(experience, context, questions[0])
    if source is None or (source != "reference" and experience.rollouts >= 2):
        return
    name = f"`{field}={type(context).__name__}()`"
    if source == "sibling":
        raise UserError(f"{name} shows a sibling: `rollouts` must be at least 2, got 1")
    if not any(question.solution for question in questions):
        raise UserError(
            f"{name} with `demonstration={source}` shows solution texts, and no question of "
            "the task has one; use `demonstration=sibling` and at least 2 `rollouts`"
        )


def check_contrast(experience: OnPolicy, questions: Sequence[Question]) -> None:
    """Raise UserError if the contrasts' prompts could never be made."""
    contrast, context, J = experience.contrast, experience.context, experience.contrasts
    name = f"`contrast={type(contrast).__name__}()`"
    if regenerates(contrast):
        raise UserError(
            f"{name} regenerates solutions, which a contrast cannot do; use Solution() or "
            "WrongSolution()"
        )
    source = None
    if reuses_shown(contrast):
        seen = possible(context, questions[0], solution=True, wrong=True)
        if not any(shown.solution or shown.feedback for shown in seen):
            raise UserError(
                f"{name} shows the teacher's context without the question, and "
                f"`context={type(context).__name__}()` shows nothing but the question"
            )
    else:
        check_demonstrations(experience, questions, "contrast")
        source = source_of(experience, contrast, questions[0])
    if J > 1 and (source in (None, "reference") or experience.rollouts <= J):
        raise UserError(
            f"`contrasts={J}` needs a `contrast` that shows siblings, such as WrongSolution(), and "
            f"at least {J + 1} `rollouts`; got {name} and {experience.rollouts}"
        )


def source_of(experience: OnPolicy, context: Context, question: Question) -> str | None:
    """The source of the demonstrations that a context requires; None if it requires none.

    A wrong solution always comes from a sibling: a question has no incorrect reference text.
    """
    if possible(context, question, solution=False, wrong=False):
        return None
    needs_wrong = possible(context, question, solution=False, wrong=True)
    return "sibling" if needs_wrong else experience.demonstration


def possible(context: Context, question: Question, *, solution: bool, wrong: bool) -> list[Shown]:
    """What the context shows for a question, after a correct and after an incorrect attempt.

    `solution` and `wrong` say whether a correct and an incorrect response are available to show.
    Raises UserError if a recipe's own context fails.
    """
    text = question.solution or question.answer
    verdicts = (Verdict(True, "right", question.answer), Verdict(False, "no answer", None))
    attempts = [
        Attempt(question, text, verdict, text if solution else None, text if wrong else None)
        for verdict in verdicts
    ]
    return [shown for attempt in attempts if (shown := composed(context, attempt)) is not None]
