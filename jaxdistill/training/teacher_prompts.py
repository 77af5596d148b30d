"""From graded rollouts to the teacher's prompts, one per row, within the model's positions.

`tasks.contexts` defines what a context shows, and `training.teachers` the teachers themselves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import contexts
from jaxdistill.tasks.contexts import Attempt, Shown, composed
from jaxdistill.tasks.questions import messages
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.roles import teacher_ids

# ---------------------------------------------------------------------------- demonstrations


def draw_siblings(
    experience: OnPolicy,
    rollouts: Rollouts,
    q: int,
    *,
    correct: bool = True,
    purpose: str = "demonstration",
    count: int = 1,
) -> list[list[int]]:
    """Choose up to `count` siblings to show to each row of question q, as indices in its group.

    A sibling is another rollout of the same question, `correct` or incorrect, and not cut at the
    token limit unless `experience.cut_demonstrations`. A random choice
    depends only on the rollouts' seed and step, `purpose` and the question's id.
    """
    # The reference demonstration shows the question's own solution and no correct sibling.
    if correct and experience.demonstration == "reference":
        return [[] for _ in range(rollouts.rollouts)]
    rows = slice(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
    seed, step = rollouts.address.seed, rollouts.address.step
    name = f"{seed}/{purpose}/{step}/{rollouts.questions[q].id}"
    rng = np.random.default_rng(list(name.encode()))
    is_eligible = [
        verdict.correct == correct and (is_finished or experience.cut_demonstrations)
        for verdict, is_finished in zip(
            rollouts.verdicts[rows], rollouts.finished_B[rows].tolist(), strict=True
        )
    ]
    lengths = rollouts.lengths_B[rows].tolist()
    choice = experience.demonstration_choice
    return contexts.choose_siblings(is_eligible, rng, choice, lengths, count)


def demonstrations(
    experience: OnPolicy,
    rollouts: Rollouts,
    *,
    correct: bool = True,
    purpose: str = "demonstration",
    count: int = 1,
) -> list[str | None]:
    """The demonstrations' texts, `count` per row in the rows' order; None for a missing one."""
    uses_reference = correct and experience.demonstration != "sibling"
    found: list[str | None] = []
    for q, question in enumerate(rollouts.questions):
        responses = rollouts.responses[q * rollouts.rollouts : (q + 1) * rollouts.rollouts]
        drawn = draw_siblings(
            experience, rollouts, q, correct=correct, purpose=purpose, count=count
        )
        for siblings in drawn:
            texts: list[str | None] = [responses[sibling] for sibling in siblings]
            if not texts and uses_reference:
                texts = [question.solution]
            found += texts + [None] * (count - len(texts))
    return found


def attempts(
    experience: OnPolicy,
    rollouts: Rollouts,
    solutions: Sequence[str | None] | None = None,
    *,
    purpose: str = "demonstration",
    count: int = 1,
) -> list[Attempt]:
    """What a context may show for each row: `count` attempts per row, with other demonstrations.

    `solutions`, one per row, replace the correct demonstrations that would be drawn.
    """
    choice = {"purpose": purpose, "count": count}
    if solutions is None:
        solutions = demonstrations(experience, rollouts, **choice)
    wrong = demonstrations(experience, rollouts, correct=False, **choice)
    return [
        Attempt(rollouts.question_of(row), rollouts.responses[row], rollouts.verdicts[row], *texts)
        for row, *texts in zip(row_of_each(wrong, rollouts), solutions, wrong, strict=True)
    ]


def row_of_each(items: Sequence[Any], rollouts: Rollouts) -> list[int]:
    """The row of each item, for items in the rows' order with the same number per row."""
    per_row = len(items) // len(rollouts.responses)
    return [i // per_row for i in range(len(items))]


# ------------------------------------------------------------------------------------- prompts


class Prompts(NamedTuple):
    """The prompts that the teacher sees; a row whose context shows nothing has the plain prompt.

    The contrasts' prompts have this form too, with J entries per row.
    """

    shown: list[Shown | None]  # after cutting; None: nothing is shown
    turns: list[str]  # the user's turns, as text
    ids: list[list[int]]  # token ids of the whole chat
    is_cut_B: np.ndarray
    is_dropped_B: np.ndarray

    @property
    def weight_B(self) -> np.ndarray:
        """1 where the context shows something, else 0: such a row is not distilled."""
        return np.array([shown is not None for shown in self.shown], np.float32)


def teacher_prompts(
    experience: OnPolicy,
    policy: Policy,
    rollouts: Rollouts,
    regenerated: Sequence[str | None] | None = None,
    *,
    new_tokens: int | None = None,
) -> Prompts:
    """One prompt per row under `experience.context`; `regenerated` are the solutions to show.

    A prompt leaves positions for the row's completion, or for `new_tokens` that will be sampled.
    """
    context = experience.context
    assert (regenerated is not None) == contexts.regenerates(context)
    rows = attempts(experience, rollouts, regenerated)
    shown = [composed(context, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown, new_tokens)


def contrast_prompts(
    experience: OnPolicy, policy: Policy, rollouts: Rollouts, taught: Prompts
) -> Prompts:
    """J prompts per row under `experience.contrast`, in row order; `taught` are the teacher's."""
    contrast = experience.contrast
    if contexts.reuses_shown(contrast):
        shown = [None if x is None else x._replace(prompt="") for x in taught.shown]
    else:
        rows = attempts(experience, rollouts, purpose="contrast", count=experience.contrasts)
        shown = [composed(contrast, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown)


# Tokens kept free because a cut demonstration may take a few tokens more inside a prompt than
# alone: at either end a token may split, into at most as many tokens as it has bytes. 8 is chosen,
# not derived; a prompt that is still too long is found afterwards and dropped.
_RESERVED_TOKENS = 8


def fit_prompts(
    experience: OnPolicy,
    policy: Policy,
    rollouts: Rollouts,
    shown: Sequence[Shown | None],
    new_tokens: int | None = None,
) -> Prompts:
    """Render prompts that leave enough of the model's positions for the row's completion.

    `new_tokens` replaces the completion's length where another completion will be sampled.

    A prompt that is too long has its demonstration cut, or dropped altogether: question,
    instruction and generation prompt stay whole. A plain prompt, the student's own, stays as it is;
    in another thinking mode than the student's it may be too long, and its row is then dropped.
    """
    rows = row_of_each(shown, rollouts)
    lengths_B = rollouts.lengths_B[rows]
    taken_B = lengths_B if new_tokens is None else np.full_like(lengths_B, new_tokens)
    limit_B = policy.config.max_positions - taken_B  # tokens of the whole prompt
    questions = [rollouts.question_of(row) for row in rows]

    def render(shown: Sequence[Shown | None]) -> tuple[list[str], list[list[int]]]:
        turns = [
            question.prompt if x is None else x.turn(experience.template)
            for question, x in zip(questions, shown, strict=True)
        ]
        chats = [messages(question, turn) for question, turn in zip(questions, turns)]
        return turns, teacher_ids(experience, policy, chats)

    # Rendered with empty demonstrations first: the rest of the limit is the demonstration's.
    _, frames = render([x and x._replace(solution=x.solution and "") for x in shown])
    demonstration_limits = [
        min(experience.max_demonstration_tokens, limit - len(frame) - _RESERVED_TOKENS)
        for limit, frame in zip(limit_B, frames)
    ]
    fitted = shorten_demonstrations(experience, policy, shown, demonstration_limits)
    turns, ids = render(fitted)
    is_over = [
        (turn != question.prompt or experience.modes_differ) and len(row) > limit
        for question, turn, row, limit in zip(questions, turns, ids, limit_B)
    ]
    # These are too long even with a cut demonstration: the context around it does not fit.
    if any(is_over):
        fitted = [None if over else x for x, over in zip(fitted, is_over)]
        turns, ids = render(fitted)
    is_dropped_B = np.array([x is not None and y is None for x, y in zip(shown, fitted)])
    is_cut_B = np.array([x != y for x, y in zip(shown, fitted)]) & ~is_dropped_B
    return Prompts(shown=fitted, turns=turns, ids=ids, is_cut_B=is_cut_B, is_dropped_B=is_dropped_B)


def shorten_demonstrations(
    experience: OnPolicy, policy: Policy, shown: Sequence[Shown | None], limits: Sequence[int]
) -> list[Shown | None]:
    """Cut or drop (`experience.overlong`) each demonstration that exceeds its limit in tokens."""
    tokenizer = policy.tokenizer
    # Siblings share demonstrations and most of them fit, so each distinct text is tokenized once,
    # all in one call.
    texts = list(dict.fromkeys(x.solution for x in shown if x is not None and x.solution))
    sizes = dict(zip(texts, map(len, tokenizers.encode(tokenizer, texts))))

    def within(x: Shown | None, limit: int) -> Shown | None:
        if x is None or x.solution is None or sizes[x.solution] <= limit:
            return x
        if experience.overlong == "drop":
            return None
        # Cut by whole tokens, decoded and encoded again until the text itself is within the limit.
        text, _ = contexts.shorten(
            x.solution,
            lambda t: tokenizers.encode(tokenizer, [t])[0],
            lambda ids: tokenizers.decode(tokenizer, ids),
            limit,
        )
        return x._replace(solution=text) if text.strip() else None

    return [within(x, limit) for x, limit in zip(shown, limits, strict=True)]
