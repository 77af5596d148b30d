"""The configuration of learning from the student's own samples, and checks that it can work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.own_classes import require_choice
from jaxdistill.sampling import Sampling
from jaxdistill.sampling.prompts import Thinking, prompt_lengths, thinking_of
from jaxdistill.storage.loading import Policy
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
    shows_example,
)
from jaxdistill.tasks.demonstrations import (
    BY_NAME,
    Choice,
    Majority,
    Named,
    Random,
    tells_wrong,
)
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import Task
from jaxdistill.training.schedules import InTurn, Schedule


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """The student's own samples: Q questions per step, R rollouts each, and the teacher's context.

    task: the questions and their grader.
    questions, rollouts: Q distinct questions per step and R responses to each. The defaults are
    those of SDPO's published script (`run_sdpo_all.sh`).
    context: what the teacher is shown besides the question.
    demonstration: `sibling` shows another, correct rollout of the same question, and a row without
    one is not distilled; `reference` shows the question's own solution text; `sibling_or_reference`
    falls back to that text. A wrong solution is always another, incorrect rollout.
    demonstration_choice: which of several siblings is shown. `Majority()`, and `Shortest` and
    `Longest` with `judged=False`, choose without verdicts, and so without gold answers.
    cut_demonstrations: whether a sibling that was cut at `sampling.max_new_tokens` may be shown,
    correct or not: its text ends in the middle of a thought.
    cut_rows_in_loss: whether rows that were cut there are learned from; if not, none of their
    tokens is in any part of the loss.
    max_prompt_tokens: questions with a longer prompt are dropped before the first step and counted;
    None: the model's positions less `sampling.max_new_tokens`.
    max_demonstration_tokens: the longest demonstration, in tokens; the default is the paper's
    maximum response length.
    overlong: a demonstration is too long if it has more than `max_demonstration_tokens`, or if the
    teacher's prompt and the row's completion would exceed the model's positions. `cut` cuts off its
    end, `drop` does not distil the row; the metrics count both.
    template: the wording of the teacher's prompt.
    contrast, contrasts: the context that a contrastive objective compares with the teacher's, and
    the number of such prompts per row.
    updates: optimizer updates per step, each on as many whole questions, in their order. From the
    second on, the objective's importance ratios compare the student with the policy that it was
    before the first (`RolloutCorrection`). The paper's code makes two, of 128 questions each.
    schedule: when the rollouts are drawn: before the update, on all devices, or beside the update
    before, on devices of their own.
    student_thinking, teacher_thinking: the chat template's thinking mode in the prompts of samples
    and regenerated solutions, and in those of the teacher and the contrasts: true, false, None to
    leave it to the template, or for the teacher `as_student`.
    teacher_opening: how the assistant's turn begins in the prompts of teacher and contrasts, up to
    the response, where the two modes differ: `template` as the template begins it in the teacher's
    mode, `student` as in the student's prompt (`training.roles`).
    teacher_temperature: divides the logits of teacher and contrasts, in place of the temperature of
    sampling, which divides the student's and the reference's; None: that one. Metrics of the
    teacher, such as its epistemic mass, are at this temperature too.
    """

    task: Task
    questions: int = 32
    rollouts: int = 8
    updates: int = 1
    schedule: Schedule = InTurn()
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    demonstration: Literal["sibling", "reference", "sibling_or_reference"] = "sibling"
    demonstration_choice: Choice | Named = Random()
    cut_demonstrations: bool = False
    cut_rows_in_loss: bool = True
    max_prompt_tokens: int | None = None
    max_demonstration_tokens: int = 20480
    overlong: Literal["cut", "drop"] = "cut"
    template: Template = PAPER
    contrast: Context = WrongSolution()
    contrasts: int = 1
    # Widths in tokens, ascending, that the sampler's prompts are padded to: each is a compilation.
    # Empty: one or two, chosen by the lengths of all questions.
    prompt_widths: tuple[int, ...] = ()
    # Widths in tokens of teacher prompts in padded rows are rounded up to multiples of this. If it
    # and `completion_multiple` are None, padded rows keep the widths of earlier batches where they
    # fit (`training.shapes`), because each distinct width compiles the step anew. If both are set,
    # packed rows have sizes that follow from them and from `compute.pack` alone.
    teacher_prompt_multiple: int | None = None
    completion_multiple: int | None = None  # as `teacher_prompt_multiple`, of completions
    student_thinking: bool | None = None
    teacher_thinking: Thinking = "as_student"
    teacher_opening: Literal["template", "student"] = "template"
    teacher_temperature: float | None = None

    @property
    def keeps_widths(self) -> bool:
        """Whether padded rows keep the widths of earlier batches."""
        return self.completion_multiple is None and self.teacher_prompt_multiple is None

    @property
    def fixes_widths(self) -> bool:
        """Whether the settings alone determine the widths of padded rows, unless texts are long."""
        return self.completion_multiple is not None and self.teacher_prompt_multiple is not None

    def __post_init__(self):
        widths = self.prompt_widths
        if list(widths) != sorted(set(widths)) or any(width < 1 for width in widths):
            raise UserError(f"`prompt_widths` must be ascending and at least 1, got {widths}")
        for name in (
            "questions",
            "rollouts",
            "updates",
            "max_demonstration_tokens",
            "contrasts",
            "teacher_prompt_multiple",
            "completion_multiple",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"`{name}` must be at least 1, got {value}")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise UserError(
                f"`max_prompt_tokens` must be at least 1 or None, got {self.max_prompt_tokens}"
            )
        temperature = self.teacher_temperature
        if temperature is not None and not 0 < temperature < math.inf:
            raise UserError(f"`teacher_temperature` must be above 0 or None, got {temperature}")
        if self.questions % self.updates:
            raise UserError(
                f"`updates={self.updates}` must divide the {self.questions} `questions` of a step: "
                "each update learns from whole questions"
            )
        if isinstance(self.demonstration_choice, str):
            if self.demonstration_choice not in BY_NAME:
                got = repr(self.demonstration_choice)
                known = ", ".join(BY_NAME)
                raise UserError(f"`demonstration_choice` must be a choice or {known}, got {got}")
            object.__setattr__(self, "demonstration_choice", BY_NAME[self.demonstration_choice])
        require_choice("demonstration_choice", self.demonstration_choice, Choice)
        if isinstance(self.choice, Majority) and self.demonstration == "reference":
            raise UserError(
                "`demonstration_choice=Majority()` chooses among siblings, and "
                "`demonstration=reference` shows none; use `demonstration=sibling`"
            )
        require_choice("schedule", self.schedule, Schedule)
        require_choice("task", self.task, Task)
        require_choice("context", self.context, Context)
        require_choice("contrast", self.contrast, Context)

    @property
    def choice(self) -> Choice:
        """`demonstration_choice`, of which a name has become what it names."""
        assert not isinstance(self.demonstration_choice, str)
        return self.demonstration_choice

    @property
    def counts_votes(self) -> bool:
        """Whether the answers of each group are compared with each other."""
        return isinstance(self.choice, Majority)

    @property
    def teacher_mode(self) -> bool | None:
        """The `enable_thinking` of the teacher's and the contrasts' prompts."""
        return thinking_of(self.teacher_thinking, self.student_thinking)

    @property
    def modes_differ(self) -> bool:
        """Whether the teacher's thinking mode is another than the student's."""
        return self.teacher_mode != self.student_thinking


def within_limit(
    experience: OnPolicy, policy: Policy, questions: Sequence[Question]
) -> tuple[list[Question], list[int], dict[str, int]]:
    """The questions whose prompts are short enough, and the lengths of these prompts in tokens.

    The third is a fact to log, how many were dropped; if any were, one line on stderr says so.
    Raises UserError if the limit is beyond what the model's positions leave beside a response,
    and where no question is left.
    """
    positions, new = policy.config.max_positions, experience.sampling.max_new_tokens
    room, limit = positions - new, experience.max_prompt_tokens
    sizes = f"the model's {positions} positions less `experience.sampling.max_new_tokens={new}`"
    if room < 1:
        raise UserError(f"nothing is left for a prompt: {sizes}")
    if limit is None:
        limit = room
    elif limit > room:
        raise UserError(f"`experience.max_prompt_tokens={limit}` must be at most {room}: {sizes}")
    lengths = prompt_lengths(policy.tokenizer, questions, experience.student_thinking)
    pairs = zip(questions, lengths, strict=True)
    kept = [(question, length) for question, length in pairs if length <= limit]
    num_dropped = len(questions) - len(kept)
    text = (
        f"{num_dropped} of {len(questions)} questions have prompts of more than {limit} tokens "
        f"(the longest: {max(lengths)})"
    )
    if not kept:
        raise UserError(f"{text}, and none is left; the limit can be up to {room}: {sizes}")
    if num_dropped:
        hosts.say(f"{text}: they are dropped")
    short, lengths = (list(part) for part in zip(*kept))
    return short, lengths, {"questions_dropped": num_dropped}


def check_demonstrations(
    experience: OnPolicy, questions: Sequence[Question], field: str = "context"
) -> None:
    """Raise UserError if the teacher of a run could never be shown a demonstration.

    `field` is the context's field, "context" or "contrast". Nothing would be distilled.
    """
    context = getattr(experience, field)
    name = f"`{field}={type(context).__name__}()`"
    if shows_example(context):
        check_examples(experience, name, context, questions)
        return
    source = source_of(experience, context, questions[0])
    if source == "wrong sibling" and not tells_wrong(experience.choice):
        raise UserError(
            f"{name} shows an incorrect sibling, and `demonstration_choice="
            f"{experience.choice!r}` reads no verdicts; use Majority() or a judged choice"
        )
    if source is None or (source != "reference" and experience.rollouts >= 2):
        return
    if source in ("sibling", "wrong sibling"):
        raise UserError(f"{name} shows a sibling: `rollouts` must be at least 2, got 1")
    if not any(question.solution for question in questions):
        raise UserError(
            f"{name} with `demonstration={source}` shows solution texts, and no question of "
            "the task has one; use `demonstration=sibling` and at least 2 `rollouts`"
        )


def check_examples(
    experience: OnPolicy, name: str, context: Context, questions: Sequence[Question]
) -> None:
    """Raise UserError if there could never be another problem with a solution to show."""
    if possible(context, questions[0], solution=False, wrong=False):
        return  # it has a text of its own
    problems = {question.problem_id for question in questions}
    if len(problems) < 2:
        raise UserError(f"{name} shows another problem, and the task has only one")
    solved = {question.problem_id for question in questions if question.solution}
    source, has_siblings = experience.demonstration, experience.questions >= 2
    if source == "sibling" and not has_siblings:
        raise UserError(
            f"{name} with `demonstration=sibling` shows a correct rollout to another question of "
            "the batch: `questions` must be at least 2, got 1; or use `demonstration=reference`"
        )
    reads_texts = source == "reference" or (source != "sibling" and not has_siblings)
    if reads_texts and len(solved) < 2:
        raise UserError(
            f"{name} with `demonstration={source}` shows another problem's solution text, and "
            f"{len(solved)} of the task's {len(problems)} problems have one"
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
    if shows_example(contrast):
        return  # as many as there are other problems
    if J > 1 and (source in (None, "reference") or experience.rollouts <= J):
        raise UserError(
            f"`contrasts={J}` needs a `contrast` that shows siblings, such as WrongSolution(), and "
            f"at least {J + 1} `rollouts`; got {name} and {experience.rollouts}"
        )


def source_of(experience: OnPolicy, context: Context, question: Question) -> str | None:
    """The source of the demonstrations that a context requires; None if it requires none.

    It is "wrong sibling" for an incorrect response, which always comes from a sibling: a question
    has no incorrect reference text.
    """
    if possible(context, question, solution=False, wrong=False):
        return None
    needs_wrong = possible(context, question, solution=False, wrong=True)
    return "wrong sibling" if needs_wrong else experience.demonstration


def possible(context: Context, question: Question, *, solution: bool, wrong: bool) -> list[Shown]:
    """What the context shows for a question, after a correct and after an incorrect attempt.

    `solution` and `wrong` say whether a correct response (or a worked example) and an incorrect one
    are available to show. Raises UserError if a recipe's own context fails.
    """
    text = question.solution or question.answer
    verdicts = (Verdict(True, "right", question.answer), Verdict(False, "no answer", None))
    right, false = text if solution else None, text if wrong else None
    attempts = [
        Attempt(question, text, verdict, right, false, example=right) for verdict in verdicts
    ]
    return [shown for attempt in attempts if (shown := composed(context, attempt)) is not None]
