"""The teacher's prompts of a step: from graded rollouts to prompts that fit, row by row.

What a context shows is in `tasks.contexts`; who the teacher is, in `training.teachers`.
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

# ------------------------------------------------------------------------- who is shown what


def draw_siblings(
    experience: OnPolicy,
    rollouts: Rollouts,
    q: int,
    *,
    correct: bool = True,
    purpose: str = "demonstration",
    count: int = 1,
) -> list[list[int]]:
    """Up to `count` siblings for each row of question q to be shown: indices inside its group.

    Chosen by randomness that depends on the rollouts' seed and step, `purpose` and question alone.
    """
    if correct and experience.demonstration == "reference":
        return [[] for _ in range(rollouts.rollouts)]
    rows = slice(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
    seed, step = rollouts.address.seed, rollouts.address.step
    name = f"{seed}/{purpose}/{step}/{rollouts.questions[q].id}"
    rng = np.random.default_rng(list(name.encode()))
    is_eligible = [verdict.correct == correct for verdict in rollouts.verdicts[rows]]
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
    """The texts to make contexts of, `count` a row; None for one that is not there."""
    may_refer = correct and experience.demonstration != "sibling"
    found: list[str | None] = []
    for q, question in enumerate(rollouts.questions):
        responses = rollouts.responses[q * rollouts.rollouts : (q + 1) * rollouts.rollouts]
        drawn = draw_siblings(
            experience, rollouts, q, correct=correct, purpose=purpose, count=count
        )
        for siblings in drawn:
            texts: list[str | None] = [responses[sibling] for sibling in siblings]
            if not texts and may_refer:
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
    """What a context may show of each row, `count` times with other demonstrations, row by row.

    `solutions`, one a row, stand in the place of those that would be drawn.
    """
    address = {"purpose": purpose, "count": count}
    if solutions is None:
        solutions = demonstrations(experience, rollouts, **address)
    wrong = demonstrations(experience, rollouts, correct=False, **address)
    return [
        Attempt(rollouts.question_of(row), rollouts.responses[row], rollouts.verdicts[row], *texts)
        for row, *texts in zip(row_of_each(wrong, rollouts), solutions, wrong, strict=True)
    ]


def row_of_each(items: Sequence[Any], rollouts: Rollouts) -> list[int]:
    """Items stand row by row, equally many a row."""
    per_row = len(items) // len(rollouts.responses)
    return [i // per_row for i in range(len(items))]


# ------------------------------------------------------------------------------------- prompts


class Prompts(NamedTuple):
    """Prompts as the teacher gets them; where nothing is shown, the plain one."""

    shown: list[Shown | None]  # after the cut
    turns: list[str]  # the user's
    ids: list[list[int]]
    is_cut_B: np.ndarray
    is_dropped_B: np.ndarray

    @property
    def weight_B(self) -> np.ndarray:
        """0 where the context had nothing to show."""
        return np.array([shown is not None for shown in self.shown], np.float32)


def teacher_prompts(
    experience: OnPolicy,
    policy: Policy,
    rollouts: Rollouts,
    regenerated: Sequence[str | None] | None = None,
    *,
    new_tokens: int | None = None,
) -> Prompts:
    """One prompt a row under `experience.context`; `regenerated`: the solutions to show.

    A prompt leaves positions for the row's completion, or for `new_tokens` to be sampled.
    """
    context = experience.context
    assert (regenerated is not None) == contexts.regenerates(context)
    rows = attempts(experience, rollouts, regenerated)
    shown = [composed(context, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown, new_tokens)


def contrast_prompts(
    experience: OnPolicy, policy: Policy, rollouts: Rollouts, taught: Prompts
) -> Prompts:
    """J prompts a row under `experience.contrast`, row by row; `taught` are the teacher's."""
    contrast = experience.contrast
    if contexts.reuses_shown(contrast):
        shown = [None if x is None else x._replace(prompt="") for x in taught.shown]
    else:
        rows = attempts(experience, rollouts, purpose="contrast", count=experience.contrasts)
        shown = [composed(contrast, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown)


# Text that is cut out and put between other texts may come out as a few tokens more: a token may
# break at either end, into at most as many tokens as it has bytes. 8 is chosen, not derived; a
# prompt that is still too long is found afterwards and dropped.
_SLACK = 8


def fit_prompts(
    experience: OnPolicy,
    policy: Policy,
    rollouts: Rollouts,
    shown: Sequence[Shown | None],
    new_tokens: int | None = None,
) -> Prompts:
    """Render what is shown so that a prompt and its row's completion fit the model's positions.

    `new_tokens` stand in the place of the completion where another one is sampled.

    What is too long is cut inside the demonstration, or dropped: question, instruction and
    generation prompt stay whole. A plain prompt, the student's own, is left as it is.
    """
    rows = row_of_each(shown, rollouts)
    lengths_B = rollouts.lengths_B[rows]
    taken_B = lengths_B if new_tokens is None else np.full_like(lengths_B, new_tokens)
    room_B = policy.config.max_positions - taken_B
    questions = [rollouts.question_of(row) for row in rows]

    def render(shown: Sequence[Shown | None]) -> tuple[list[str], list[list[int]]]:
        turns = [
            question.prompt if x is None else x.turn(experience.template)
            for question, x in zip(questions, shown, strict=True)
        ]
        chats = [messages(question, turn) for question, turn in zip(questions, turns)]
        return turns, tokenizers.prompt_ids(policy.tokenizer, chats, experience.enable_thinking)

    _, frames = render([x and x._replace(solution=x.solution and "") for x in shown])
    limits = [
        min(experience.max_demonstration_tokens, room - len(frame) - _SLACK)
        for room, frame in zip(room_B, frames)
    ]
    fitted = shorten_demonstrations(experience, policy, shown, limits)
    turns, ids = render(fitted)
    is_over = [
        turn != question.prompt and len(row) > room
        for question, turn, row, room in zip(questions, turns, ids, room_B)
    ]
    if any(is_over):  # not for the demonstration, but for what stands around it
        fitted = [None if over else x for x, over in zip(fitted, is_over)]
        turns, ids = render(fitted)
    is_dropped_B = np.array([x is not None and y is None for x, y in zip(shown, fitted)])
    is_cut_B = np.array([x != y for x, y in zip(shown, fitted)]) & ~is_dropped_B
    return Prompts(shown=fitted, turns=turns, ids=ids, is_cut_B=is_cut_B, is_dropped_B=is_dropped_B)


def shorten_demonstrations(
    experience: OnPolicy, policy: Policy, shown: Sequence[Shown | None], limits: Sequence[int]
) -> list[Shown | None]:
    """Hold each demonstration to its limit of tokens, as `experience.overlong` says."""
    tokenizer = policy.tokenizer
    # Siblings share demonstrations, most of which fit: one batch tells which.
    texts = list(dict.fromkeys(x.solution for x in shown if x is not None and x.solution))
    sizes = dict(zip(texts, map(len, tokenizers.encode(tokenizer, texts))))

    def within(x: Shown | None, limit: int) -> Shown | None:
        if x is None or x.solution is None or sizes[x.solution] <= limit:
            return x
        if experience.overlong == "drop":
            return None
        text, _ = contexts.shorten(
            x.solution,
            lambda t: tokenizers.encode(tokenizer, [t])[0],
            lambda ids: tokenizers.decode(tokenizer, ids),
            limit,
        )
        return x._replace(solution=text) if text.strip() else None

    return [within(x, limit) for x, limit in zip(shown, limits, strict=True)]
