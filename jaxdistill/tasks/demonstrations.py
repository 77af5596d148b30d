"""Which response to a question is shown as its solution: by verdict, by length or by a vote.

A choice is a frozen dataclass with one method, `candidates(group, correct)`. Those that read no
verdict (`Majority`, and `Shortest` and `Longest` with `judged=False`) need no gold answer, but the
contexts `AnswerOnly`, `Feedback` and `Regenerated` read it all the same.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question


class Group(NamedTuple):
    """The R responses to one question. A choice that reads no verdict is given none."""

    is_eligible: Sequence[bool]  # may be shown: not cut, unless cut ones may be
    lengths: Sequence[int]  # in tokens
    is_correct: Sequence[bool] | None = None  # the grader's verdicts
    votes: Sequence[int | None] | None = None  # `votes_of`; None: not counted

    def where(self, is_wanted: Sequence[bool]) -> list[int]:
        """The eligible responses among those wanted, in their order."""
        pairs = zip(self.is_eligible, is_wanted, strict=True)
        return [row for row, (eligible, wanted) in enumerate(pairs) if eligible and wanted]

    def judged(self, correct: bool) -> list[int]:
        """The eligible responses with this verdict, in their order."""
        assert self.is_correct is not None, "this choice reads verdicts"
        return self.where([verdict == correct for verdict in self.is_correct])

    def by_length(self, rows: list[int], *, longest: bool = False) -> list[int]:
        """Sorted by length; of equal lengths the first response comes first."""
        sign = -1 if longest else 1
        return sorted(rows, key=lambda row: sign * self.lengths[row])


@dataclass(frozen=True)
class Random:
    """A correct sibling, drawn uniformly."""

    def candidates(self, group: Group, correct: bool) -> list[int]:
        return group.judged(correct)


@dataclass(frozen=True)
class First:
    """The first correct sibling, in the order in which they were sampled."""

    def candidates(self, group: Group, correct: bool) -> list[int]:
        return group.judged(correct)


@dataclass(frozen=True)
class Shortest:
    """The shortest correct sibling; with `judged=False` the shortest, right or wrong."""

    judged: bool = True

    def candidates(self, group: Group, correct: bool) -> list[int]:
        return group.by_length(_by_verdict(self.judged, group, correct))


@dataclass(frozen=True)
class Longest:
    """The longest correct sibling; with `judged=False` the longest, right or wrong."""

    judged: bool = True

    def candidates(self, group: Group, correct: bool) -> list[int]:
        return group.by_length(_by_verdict(self.judged, group, correct), longest=True)


@dataclass(frozen=True)
class Majority:
    """A sibling with the group's most frequent answer, right or wrong: a vote without gold answers.

    The task's grader decides which answers are equal; a response without an answer does not vote.
    Of equally frequent answers the one that was sampled first wins, which is unbiased, since the
    responses are independent draws. `min_share` is the least share of the group's responses that
    the answer must have; with fewer the question's rows are not distilled. `pick` is which of the
    siblings with that answer is shown. Wrong siblings are those with another answer.
    (U-OPSD, arXiv 2608.06296, CoDA, 2608.08764, and SSOPD, 2605.17497, all known from summaries.)
    """

    min_share: float = 0.0
    pick: Literal["random", "first", "shortest", "longest"] = "random"

    def __post_init__(self):
        if not 0.0 <= self.min_share <= 1.0:
            raise UserError(f"Majority.min_share must lie in [0, 1], got {self.min_share!r}")

    def candidates(self, group: Group, correct: bool) -> list[int]:
        assert group.votes is not None, "a majority needs votes"
        winner = winner_of(group.votes, self.min_share)
        if winner is None:
            return []
        votes = group.votes
        rows = group.where([vote is not None and (vote == winner) == correct for vote in votes])
        is_sorted = self.pick in ("shortest", "longest")
        return group.by_length(rows, longest=self.pick == "longest") if is_sorted else rows


Choice = Random | First | Shortest | Longest | Majority
# A choice by its name in lower case, as recipes wrote it when these three were all.
Named = Literal["random", "first", "shortest"]
BY_NAME: dict[str, Choice] = {"random": Random(), "first": First(), "shortest": Shortest()}


def reads_verdicts(choice: Choice) -> bool:
    """Whether what is shown depends on the grader's verdicts, and so on gold answers."""
    return not isinstance(choice, Majority) and getattr(choice, "judged", True)


def tells_wrong(choice: Choice) -> bool:
    """Whether the choice can say which siblings are incorrect."""
    return isinstance(choice, Majority) or reads_verdicts(choice)


def _by_verdict(judged: bool, group: Group, correct: bool) -> list[int]:
    if judged:
        return group.judged(correct)
    return group.where([True] * len(group.lengths)) if correct else []


def choose_siblings(
    group: Group,
    choice: Choice,
    rng: np.random.Generator,
    *,
    correct: bool = True,
    count: int = 1,
) -> list[list[int]]:
    """For each row of one question's group, choose up to `count` different siblings.

    A row is never its own sibling, so the only correct row of a group receives none, and the other
    rows receive that one. Returns, for each row, the indices of its siblings within the group.
    """
    candidates = choice.candidates(group, correct)
    draws = isinstance(choice, Random) or getattr(choice, "pick", None) == "random"
    chosen: list[list[int]] = []
    for row in range(len(group.lengths)):
        siblings = [other for other in candidates if other != row]
        picks = range(min(count, len(siblings)))
        if draws:
            chosen.append([siblings.pop(rng.integers(len(siblings))) for _ in picks])
        else:
            chosen.append([siblings[pick] for pick in picks])
    return chosen


# ----------------------------------------------------------------------------------- the vote


def winner_of(votes: Sequence[int | None], min_share: float = 0.0) -> int | None:
    """The most frequent vote; of equally frequent ones the lowest. None below `min_share`.

    The share is of all responses, those that do not vote included.

    >>> winner_of([0, 1, 1, None]), winner_of([0, 1, 1, None], 0.6), winner_of([2, 0])
    (1, None, 0)
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return None
    winner = min(counts, key=lambda vote: (-counts[vote], vote))
    # 1e-9: `min_share` may be a decimal fraction that a float cannot represent.
    return winner if counts[winner] >= min_share * len(votes) - 1e-9 else None


# In the place of the gold answer where an answer is only read. Any grader reads a number.
_NO_GOLD = "0"


def votes_of(
    questions: Sequence[Question],
    responses: Sequence[str],
    grade: Callable[[Sequence[Question], Sequence[str]], list[Verdict]],
) -> list[int | None]:
    """Each response's vote: the index, within its question's group, of the first equal answer.

    The responses to a question are adjacent, and as many for each. A response without an answer
    has None. `grade` is the task's grader: two answers are equal if it finds the second right where
    the first is the gold answer. It is never given the gold answer itself or the reference
    solution, so that no vote depends on them.
    """
    rollouts = len(responses) // max(len(questions), 1)
    asked = [_with_answer(question, _NO_GOLD) for question in questions for _ in range(rollouts)]
    answers = [verdict.answer for verdict in grade(asked, responses)]
    # {(question, text of an answer): the first response with it}, in the responses' order.
    firsts: dict[tuple[int, str], int] = {}
    for row, answer in enumerate(answers):
        if answer is not None and answer.strip():
            firsts.setdefault((row // rollouts, answer.strip()), row)
    # Question by question: all pairs of a batch would be hundreds of times as many.
    groups = [list(group) for _, group in itertools.groupby(firsts, key=lambda first: first[0])]
    both = itertools.combinations_with_replacement
    pairs = [pair for group in groups for pair in both(group, 2)]
    verdicts = grade(
        [_with_answer(questions[q], text) for (q, text), _ in pairs],
        [responses[firsts[other]] for _, other in pairs],
    )
    is_equal = {pair: verdict.correct for pair, verdict in zip(pairs, verdicts, strict=True)}
    # Equality need not be transitive: an answer joins the first one that it equals and that has
    # joined none itself. One that is not even equal to itself, as two letters of a choice, is none.
    joined: dict[tuple[int, str], tuple[int, str]] = {}
    for group in groups:
        for other in group:
            if not is_equal[other, other]:
                continue
            heads = (one for one in group if joined.get(one) == one and is_equal.get((one, other)))
            joined[other] = next(heads, other)
    heads_B = [joined.get((row // rollouts, (x or "").strip())) for row, x in enumerate(answers)]
    return [None if head is None else firsts[head] % rollouts for head in heads_B]


def _with_answer(question: Question, answer: str) -> Question:
    """The question with another gold answer, and without what could reveal its own."""
    return replace(question, answer=answer, alternatives=(), solution=None)
