"""From graded rollouts to the teacher's prompts, one per row, within the model's positions.

`tasks.contexts` defines what a context shows, and `training.teachers` the teachers themselves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill import hosts
from jaxdistill.sampling.rollouts import Grade, Rollouts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import contexts
from jaxdistill.tasks.contexts import Attempt, Context, Shown, composed
from jaxdistill.tasks.demonstrations import (
    Group,
    choose_siblings,
    reads_verdicts,
    tells_wrong,
    votes_of,
)
from jaxdistill.tasks.questions import Question, messages
from jaxdistill.tasks.worked_examples import draw_examples
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.roles import teacher_ids

# ---------------------------------------------------------------------------- demonstrations


class Material(NamedTuple):
    """What demonstrations are made of besides the rollouts of the batch."""

    pool: Sequence[Question] = ()  # all questions of the run, for worked examples
    votes: Sequence[int | None] | None = None  # per row (`count_votes`); None: not counted


NOTHING = Material()


def count_votes(rollouts: Rollouts, grade: Grade) -> list[int | None]:
    """Each row's vote on its question's answer (`demonstrations.votes_of`).

    Each host counts those of its own questions and they are exchanged, as verdicts are: whether two
    answers are equal may depend on a time limit.
    """
    own = hosts.share_of(range(len(rollouts.questions)))
    first, last = (own[0], own[-1] + 1) if own else (0, 0)
    rows = slice(first * rollouts.rollouts, last * rollouts.rollouts)
    votes = votes_of(rollouts.questions[first:last], rollouts.responses[rows], grade)
    return hosts.gather_shares(votes, "votes")


def group_of(experience: OnPolicy, rollouts: Rollouts, material: Material, q: int) -> Group:
    """The responses to question q as `experience.choice` may see them.

    One cut at the token limit is not eligible, unless `experience.cut_demonstrations`. A choice
    without verdicts is given none.
    """
    rows = slice(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
    is_finished = rollouts.finished_B[rows].tolist()
    is_judged = reads_verdicts(experience.choice)
    return Group(
        is_eligible=[finished or experience.cut_demonstrations for finished in is_finished],
        lengths=rollouts.lengths_B[rows].tolist(),
        is_correct=[v.correct for v in rollouts.verdicts[rows]] if is_judged else None,
        votes=None if material.votes is None else material.votes[rows],
    )


def draw_siblings(
    experience: OnPolicy,
    rollouts: Rollouts,
    q: int,
    *,
    correct: bool = True,
    purpose: str = "demonstration",
    count: int = 1,
    material: Material = NOTHING,
) -> list[list[int]]:
    """Choose up to `count` siblings to show to each row of question q, as indices in its group.

    A sibling is another rollout of the same question, `correct` or incorrect as
    `experience.choice` tells. A random choice depends only on the rollouts' seed and step,
    `purpose` and the question's id.
    """
    # The reference demonstration shows the question's own solution and no correct sibling.
    if correct and experience.demonstration == "reference":
        return [[] for _ in range(rollouts.rollouts)]
    rng = addressed(rollouts, purpose, rollouts.questions[q])
    group = group_of(experience, rollouts, material, q)
    return choose_siblings(group, experience.choice, rng, correct=correct, count=count)


def addressed(rollouts: Rollouts, purpose: str, question: Question) -> np.random.Generator:
    """Randomness of a purpose, a step and a question, which nothing else of the batch changes."""
    name = f"{rollouts.address.seed}/{purpose}/{rollouts.address.step}/{question.id}"
    return np.random.default_rng(list(name.encode()))


def demonstrations(
    experience: OnPolicy,
    rollouts: Rollouts,
    *,
    correct: bool = True,
    purpose: str = "demonstration",
    count: int = 1,
    material: Material = NOTHING,
) -> list[str | None]:
    """The demonstrations' texts, `count` per row in the rows' order; None for a missing one."""
    uses_reference = correct and experience.demonstration != "sibling"
    found: list[str | None] = []
    if not (correct or tells_wrong(experience.choice)):
        return [None] * (count * len(rollouts.responses))
    choice: Any = {"correct": correct, "purpose": purpose, "count": count, "material": material}
    for q, question in enumerate(rollouts.questions):
        responses = rollouts.responses[q * rollouts.rollouts : (q + 1) * rollouts.rollouts]
        for siblings in draw_siblings(experience, rollouts, q, **choice):
            texts: list[str | None] = [responses[sibling] for sibling in siblings]
            if not texts and uses_reference:
                texts = [question.solution]
            found += texts + [None] * (count - len(texts))
    return found


def worked_examples(
    experience: OnPolicy,
    rollouts: Rollouts,
    *,
    purpose: str = "demonstration",
    count: int = 1,
    material: Material = NOTHING,
) -> list[str | None]:
    """Other problems with their solutions, `count` per row: the same ones for a question's rows.

    A solution is what `Solution` might show for that problem: the first of `experience.choice`
    among its rollouts in this batch, or the reference, as `experience.demonstration` says.
    """
    batch, kind = rollouts.questions, experience.demonstration
    pool = material.pool or batch

    def sampled(q: int) -> str | None:
        group = group_of(experience, rollouts, material, q)
        rows = experience.choice.candidates(group, correct=True)
        return rollouts.responses[q * rollouts.rollouts + rows[0]] if rows else None

    found: list[str | None] = []
    for question in batch:
        rng = addressed(rollouts, f"{purpose}/example", question)
        texts = [] if kind == "reference" else draw_examples(question, batch, sampled, rng, count)
        if kind != "sibling" and not texts:
            texts = draw_examples(question, pool, lambda i: pool[i].solution, rng, count)
        found += [*texts, *[None] * (count - len(texts))] * rollouts.rollouts
    return found


def attempts(
    experience: OnPolicy,
    rollouts: Rollouts,
    solutions: Sequence[str | None] | None = None,
    *,
    context: Context,
    purpose: str = "demonstration",
    count: int = 1,
    material: Material = NOTHING,
) -> list[Attempt]:
    """What a context may show for each row: `count` attempts per row, with other demonstrations.

    `solutions`, one per row, replace the correct demonstrations that would be drawn.
    """
    choice: Any = {"purpose": purpose, "count": count, "material": material}
    if solutions is None:
        solutions = demonstrations(experience, rollouts, **choice)
    wrong = demonstrations(experience, rollouts, correct=False, **choice)
    examples: Sequence[str | None] = [None] * len(wrong)
    if contexts.shows_example(context):
        examples = worked_examples(experience, rollouts, **choice)
    rows = row_of_each(wrong, rollouts)
    return [
        Attempt(rollouts.question_of(row), rollouts.responses[row], rollouts.verdicts[row], *texts)
        for row, *texts in zip(rows, solutions, wrong, examples, strict=True)
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
    material: Material = NOTHING,
) -> Prompts:
    """One prompt per row under `experience.context`; `regenerated` are the solutions to show.

    A prompt leaves positions for the row's completion, or for `new_tokens` that will be sampled.
    """
    context = experience.context
    assert (regenerated is not None) == contexts.regenerates(context)
    rows = attempts(experience, rollouts, regenerated, context=context, material=material)
    shown = [composed(context, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown, new_tokens)


def contrast_prompts(
    experience: OnPolicy,
    policy: Policy,
    rollouts: Rollouts,
    taught: Prompts,
    material: Material = NOTHING,
) -> Prompts:
    """J prompts per row under `experience.contrast`, in row order; `taught` are the teacher's."""
    contrast = experience.contrast
    if contexts.reuses_shown(contrast):
        shown = [None if x is None else x._replace(prompt="") for x in taught.shown]
    else:
        rows = attempts(
            experience,
            rollouts,
            context=contrast,
            purpose="contrast",
            count=experience.contrasts,
            material=material,
        )
        shown = [composed(contrast, row) for row in rows]
    return fit_prompts(experience, policy, rollouts, shown)


# Tokens kept free because a cut demonstration may take a few tokens more inside a prompt than
# alone: at either end a token may split, into at most as many tokens as it has bytes. 8 is chosen,
# not derived; a prompt that is still too long is found afterwards and dropped.
_RESERVED_TOKENS = 8
# If every prompt is shorter than its limit by more than this, its demonstration fits beside the
# reserve, although prompt and parts may differ by a few tokens where they join.
_CLOSE_TOKENS = 64


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
        # Rollouts of a question may be shown the same: each distinct chat is rendered once.
        pairs = list(zip(questions, turns))
        chats = {(id(question), turn): messages(question, turn) for question, turn in pairs}
        ids = dict(zip(chats, teacher_ids(experience, policy, list(chats.values()))))
        return turns, [ids[id(question), turn] for question, turn in pairs]

    whole = render(shown)
    demonstration_limits = [experience.max_demonstration_tokens] * len(shown)
    if any(len(row) > limit - _CLOSE_TOKENS for row, limit in zip(whole[1], limit_B)):
        # Rendered with empty demonstrations: the rest of the limit is the demonstration's.
        _, frames = render([x and x._replace(solution=x.solution and "") for x in shown])
        demonstration_limits = [
            min(most, limit - len(frame) - _RESERVED_TOKENS)
            for most, limit, frame in zip(demonstration_limits, limit_B, frames)
        ]
    fitted = shorten_demonstrations(experience, policy, shown, demonstration_limits)
    turns, ids = whole if fitted == list(shown) else render(fitted)
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
