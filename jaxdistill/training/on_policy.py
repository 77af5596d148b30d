"""Learning from the student's own samples: what a run may choose, and what cannot work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxdistill.errors import UserError
from jaxdistill.sampling import Sampling
from jaxdistill.tasks import contexts
from jaxdistill.tasks.contexts import (
    PAPER,
    Context,
    ContextOnly,
    InstructionOnly,
    NoContext,
    Regenerated,
    Template,
    WrongSolution,
)
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import Task


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """The student's own samples: Q questions a step, R rollouts each, and what the teacher sees.

    demonstration: `sibling` takes a correct other rollout of the same question, and a row without
    one is not distilled; `reference` takes the question's own solution text; `sibling_or_reference`
    falls back to it. WrongSolution takes an incorrect other rollout always.
    overlong: a demonstration is too long beyond `max_demonstration_tokens`, or where the teacher's
    prompt and the row's completion would leave the model's positions. Its end is cut off, or its
    row dropped (not distilled); both are counted in the metrics.
    contrast, contrasts: what an objective that asks for it sets the teacher's context against, and
    how many such prompts a row.
    """

    task: Task
    questions: int = 32  # these two as in SDPO's published script (`run_sdpo_all.sh`)
    rollouts: int = 8
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    demonstration: Literal["sibling", "reference", "sibling_or_reference"] = "sibling"
    demonstration_choice: Literal["random", "first", "shortest"] = "random"
    max_demonstration_tokens: int = 20480  # the longest response of the paper's runs
    overlong: Literal["cut", "drop"] = "cut"
    template: Template = PAPER
    contrast: Context = WrongSolution()
    contrasts: int = 1
    # Teacher prompts and completions are padded to multiples of these: each distinct length is a
    # compilation of the step. 64 is chosen, not measured.
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


def check_demonstrations(
    experience: OnPolicy, questions: Sequence[Question], field: str = "context"
) -> None:
    """Refuse a run whose teacher could never be shown anything, and so would teach nothing."""
    context = getattr(experience, field)
    if not contexts.needs_demonstration(context):
        return
    name, source = f"`{field}={type(context).__name__}()`", source_of(experience, context)
    if source != "reference" and experience.rollouts >= 2:
        return
    if source == "sibling":
        raise UserError(f"{name} shows a sibling: `rollouts` must be at least 2, got 1")
    if not any(question.solution for question in questions):
        raise UserError(
            f"{name} with `demonstration={source}` shows solution texts, and no question of "
            "the task has one; use `demonstration=sibling` and at least 2 `rollouts`"
        )


def check_contrast(experience: OnPolicy, questions: Sequence[Question]) -> None:
    """Refuse contrasts that could never be made."""
    contrast, context, J = experience.contrast, experience.context, experience.contrasts
    name = f"`contrast={type(contrast).__name__}()`"
    if isinstance(contrast, Regenerated):
        raise UserError(f"{name} would need samples of its own; use Solution() or WrongSolution()")
    is_teachers = isinstance(contrast, ContextOnly)
    if is_teachers and isinstance(context, NoContext | InstructionOnly):
        raise UserError(
            f"{name} shows what the teacher is shown less the question, and "
            f"`context={type(context).__name__}()` shows nothing else"
        )
    if not is_teachers:
        check_demonstrations(experience, questions, "contrast")
    shows_siblings = (
        contexts.needs_demonstration(contrast)
        and not is_teachers
        and source_of(experience, contrast) != "reference"
    )
    if J > 1 and not (shows_siblings and experience.rollouts > J):
        raise UserError(
            f"`contrasts={J}` needs a `contrast` that shows siblings, such as WrongSolution(), and "
            f"at least {J + 1} `rollouts`; got {name} and {experience.rollouts}"
        )


def source_of(experience: OnPolicy, context: Context) -> str:
    """Where the demonstrations of a context come from. Nobody refers to a wrong solution."""
    return "sibling" if isinstance(context, WrongSolution) else experience.demonstration
