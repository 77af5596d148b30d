"""How long a run's sequences are assumed to be: the longest, for memory, and the mean, for time."""

from dataclasses import dataclass

import numpy as np

from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import needs_contrast, needs_teacher
from jaxdistill.sampling.prompt_widths import width_of
from jaxdistill.tasks.contexts import Attempt, composed
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.traces import Traces

# The longest prompt where the recipe sets no limit, and the mean of all: problems in mathematics
# have 100 to 500 tokens (DAPO-Math-17k). Chosen, not measured.
UNLIMITED_PROMPT, MEAN_PROMPT = 2048, 256
# A context that shows no solution shows an answer or a verdict. Chosen, not measured.
SHORT_CONTEXT = 64
# Of the longest response, the mean: half, as recipes estimate it (10,000 of 20,480 tokens).
MEAN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a prompt, of what the teacher is shown besides, and of a response.

    has_teacher: whether the objective reads one; contrasts: further prompts of each row.
    """

    prompt: int
    shown: int
    new: int
    mean_prompt: float
    mean_shown: float
    mean_new: float
    has_teacher: bool
    contrasts: int
    most_positions: int

    def sizes(self, rows: int) -> np.ndarray:
        """`Batch.sizes_BX` of rows that are all as long as they may be."""
        student = self.prompt + self.new
        teacher = min(student + self.shown, self.most_positions)
        kinds = [self.new, student, *[teacher] * (self.has_teacher + self.contrasts)]
        return np.tile(np.array(kinds), (rows, 1))

    @property
    def mean_student(self) -> float:
        return self.mean_prompt + self.mean_new

    @property
    def mean_teacher(self) -> float:
        return min(self.mean_student + self.mean_shown, self.most_positions)


def lengths_of(
    config: RunConfig,
    model: ModelConfig,
    mean_new: float | None = None,
    longest_prompt: int | None = None,
) -> Lengths:
    """The lengths that a recipe allows; `longest_prompt` is that of the data, in tokens.

    Raises UserError for a mean or a prompt beyond what the recipe allows.
    """
    experience = config.experience
    shown, contrasts, has_teacher = 0, 0, needs_teacher(config.objective)
    if isinstance(experience, OnPolicy):
        new = experience.sampling.max_new_tokens
        room = model.max_positions - new
        if room < 1:
            raise UserError(
                f"nothing is left for a prompt: the model's {model.max_positions} positions less "
                f"`experience.sampling.max_new_tokens={new}`"
            )
        limit = experience.max_prompt_tokens or min(UNLIMITED_PROMPT, room)
        if longest_prompt is not None and not 1 <= longest_prompt <= limit:
            raise UserError(
                f"--prompt-tokens {longest_prompt} must lie between 1 and what the recipe allows, "
                f"{limit}"
            )
        prompt = max(experience.prompt_widths, default=width_of(longest_prompt or limit))
        if has_teacher:
            shown = shown_tokens(experience)
        if needs_contrast(config.objective):
            contrasts = experience.contrasts
    elif isinstance(experience, Traces):
        new = min(experience.max_tokens or model.max_positions, model.max_positions)
        prompt = 0
    else:
        new, prompt = experience.max_completion_tokens, experience.max_prompt_tokens
    if mean_new is not None and not 1 <= mean_new <= new:
        raise UserError(f"--mean-tokens {mean_new:g} must lie between 1 and the longest, {new}")
    mean = new * MEAN_SHARE if mean_new is None else mean_new
    return Lengths(
        prompt=prompt,
        shown=shown,
        new=new,
        mean_prompt=min(MEAN_PROMPT, prompt),
        # A demonstration is another response, or shorter.
        mean_shown=min(mean, shown),
        mean_new=mean,
        has_teacher=has_teacher,
        contrasts=contrasts,
        most_positions=model.max_positions,
    )


def shown_tokens(experience: OnPolicy) -> int:
    """The longest text that the teacher sees besides the question, in tokens."""
    solution, answer = "word " * 1000, "7"
    question = Question(id="0", prompt="?", answer=answer, solution=solution)
    attempt = Attempt(question, solution, Verdict(True, "right", answer), *[solution] * 3)
    shown = composed(experience.context, attempt)
    texts = [] if shown is None else [shown.solution or "", shown.feedback or ""]
    if max(map(len, texts), default=0) < len(solution) // 2:
        return SHORT_CONTEXT if any(texts) else 0
    longest = experience.max_demonstration_tokens
    is_response = experience.demonstration == "sibling"
    return min(longest, experience.sampling.max_new_tokens) if is_response else longest
