"""avg@k and pass@k with confidence intervals by the cluster bootstrap over problems.

The k answers to one problem are not independent: problems differ far more than samples do. Every
interval here therefore resamples *problems* with replacement, each with all its answers (the
cluster bootstrap). A comparison of two checkpoints resamples the problems that both have, because a
hard problem is hard for both. The intervals cover the choice of problems and the sampling of
answers. They do not cover the seed of the training run: two runs that differ only in their seed can
differ by more.

Axis Q: problems. The seed is an argument, so the same data give the same interval. Problems are
sorted by id, so the order of lines in a file does not matter.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import UserError

# With 2000 resamples the ends of a 95 % interval have a standard error of 1.5 % of its width.
NUM_RESAMPLES = 2000
LEVEL = 0.95
# Limits one block of drawn problems (resamples x problems, int64) to 16 MB. Chosen, not measured.
BLOCK_ENTRIES = 2_000_000


class Clusters(NamedTuple):
    """One measure of a checkpoint, summed per problem. Its mean is sum(total) / sum(weight)."""

    ids: tuple[str, ...]
    total_Q: np.ndarray
    weight_Q: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.total_Q.sum() / self.weight_Q.sum())


class Interval(NamedTuple):
    """A value and its bounds, which are nan if they are undefined, as for a single problem."""

    value: float
    low: float
    high: float
    num_problems: int

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def by_problem(
    question_ids: Iterable[object], values: Iterable[float | bool | np.bool | None]
) -> Clusters:
    """Sum a per-response measure per problem, leaving out None (not measured).

    Raises UserError if every value is None.

    >>> by_problem(["b", "a", "a"], [True, True, False]).mean
    0.6666666666666666
    """
    pairs = zip(question_ids, values, strict=True)
    found = clusters_of((i, float(value), 1.0) for i, value in pairs if value is not None)
    if found is None:
        raise UserError("an interval needs at least one measured answer, but there is none")
    return found


def clusters_of(parts: Iterable[tuple[object, float, float]]) -> Clusters | None:
    """Sum (problem, total, weight) of each response per problem. Returns None without responses."""
    totals: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for question_id, total, weight in parts:
        totals.setdefault(str(question_id), []).append(total)
        weights.setdefault(str(question_id), []).append(weight)
    if not totals:
        return None
    ids = tuple(sorted(totals))
    # `fsum` rounds only once, so the sums do not depend on the order of the responses.
    total_Q = np.array([math.fsum(totals[i]) for i in ids])
    return Clusters(ids, total_Q, np.array([math.fsum(weights[i]) for i in ids]))


def pass_at_k_unbiased(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of the n samples include a correct one: 1 - C(n-c,k) / C(n,k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises UserError unless 1 <= k <= n.

    >>> pass_at_k_unbiased(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num_samples:
        raise UserError(
            f"pass@{k} needs at least {k} answers to every problem (and k >= 1), "
            f"but one problem has {num_samples}; sample more or lower k"
        )
    assert 0 <= num_correct <= num_samples, (num_correct, num_samples)
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at_k_by_problem(
    question_ids: Iterable[object], correct: Iterable[bool | np.bool], k: int
) -> Clusters:
    """Return pass@k of each problem, with weight 1. Raises UserError as `pass_at_k_unbiased`."""
    counts = by_problem(question_ids, correct)
    value_Q = [
        pass_at_k_unbiased(int(n), int(c), k) for n, c in zip(counts.weight_Q, counts.total_Q)
    ]
    return Clusters(counts.ids, np.array(value_Q), np.ones(len(counts.ids)))


def avg_at_k(
    question_ids: Iterable[object], correct: Iterable[bool | np.bool], *, seed: int = 0
) -> Interval:
    """avg@k: the mean verdict over all answers to all problems, given one entry per response."""
    return interval(by_problem(question_ids, correct), seed=seed)


def pass_at_k(
    question_ids: Iterable[object], correct: Iterable[bool | np.bool], k: int, *, seed: int = 0
) -> Interval:
    """Unbiased pass@k, averaged over problems. Raises UserError if one has fewer than k answers."""
    return interval(pass_at_k_by_problem(question_ids, correct, k), seed=seed)


def interval(
    clusters: Clusters, *, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean and its percentile interval from the cluster bootstrap.

    If every problem has the same value (all correct or all wrong), the interval has zero width:
    the bootstrap cannot represent outcomes that are not in the data.
    """
    return bootstrap(
        [clusters], lambda mean: mean, level=level, num_resamples=num_resamples, seed=seed
    )


def paired_difference(
    first: Clusters,
    second: Clusters,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """first - second on the problems of both; each resample draws the same problems for both.

    Raises UserError if they have no problem in common.
    """
    return bootstrap(
        [first, second], lambda a, b: a - b, level=level, num_resamples=num_resamples, seed=seed
    )


def bootstrap(
    clusters: Sequence[Clusters],
    statistic: Callable[..., np.ndarray],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the interval of a statistic of several checkpoints' means on their common problems.

    `statistic` takes, for each of `clusters`, an array of its means in the resamples, and returns
    an array of the same length. Raises UserError if the checkpoints have no problem in common.
    """
    shared = on_shared_problems(clusters)
    num_problems = len(shared[0].ids)
    value = float(statistic(*(np.array([c.mean]) for c in shared))[0])
    # Every resample of a single problem is that problem: the interval would have no width.
    if num_problems < 2:
        return Interval(value, math.nan, math.nan, num_problems)
    # A denominator of the statistic may be zero in some resample; `bounds` then gives nan.
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = statistic(*resampled_means(shared, num_resamples=num_resamples, seed=seed))
    low, high = bounds(draws, level)
    return Interval(value, low, high, num_problems)


def difference_of_changes(
    first: tuple[Clusters, Clusters], second: tuple[Clusters, Clusters], *, seed: int = 0
) -> Interval:
    """(first[0] - first[1]) - (second[0] - second[1]), the difference between two changes.

    The two pairs are resampled jointly if they have the same problems, and independently otherwise.
    Raises UserError if the checkpoints of a pair have no problem in common.
    """
    pairs = [on_shared_problems(first), on_shared_problems(second)]
    if pairs[0][0].ids == pairs[1][0].ids:
        return bootstrap([*first, *second], lambda a, b, c, d: (a - b) - (c - d), seed=seed)
    value = (pairs[0][0].mean - pairs[0][1].mean) - (pairs[1][0].mean - pairs[1][1].mean)
    num_problems = min(len(pairs[0][0].ids), len(pairs[1][0].ids))
    if num_problems < 2:
        return Interval(value, math.nan, math.nan, num_problems)
    means = resampled_means(pairs[0], seed=seed)
    # Another seed, so that the two resamples are independent.
    other_means = resampled_means(pairs[1], seed=seed + 1)
    low, high = bounds((means[0] - means[1]) - (other_means[0] - other_means[1]))
    return Interval(value, low, high, num_problems)


def bounds(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the ends of the central fraction `level` of the draws, or nan if one is not finite."""
    # Dropping the draws that are not finite would make the interval too narrow.
    if not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    clusters: Sequence[Clusters], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[np.ndarray]:
    """Return, for each of `clusters`, an array of its means in the resamples.

    All must have the same ids; a resample draws the same problems for all.
    """
    num_problems = len(clusters[0].ids)
    assert all(c.ids == clusters[0].ids for c in clusters), "align with on_shared_problems first"
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ENTRIES // num_problems)
    means: list[list[np.ndarray]] = [[] for _ in clusters]
    for start in range(0, num_resamples, block):
        shape = (min(block, num_resamples - start), num_problems)
        drawn = rng.integers(num_problems, size=shape)
        for collected, c in zip(means, clusters):
            collected.append(c.total_Q[drawn].sum(axis=1) / c.weight_Q[drawn].sum(axis=1))
    return [np.concatenate(collected) for collected in means]


def on_shared_problems(clusters: Sequence[Clusters]) -> list[Clusters]:
    """Keep the problems common to all, in the same order. Raises UserError if there is none."""
    shared = set(clusters[0].ids).intersection(*(c.ids for c in clusters[1:]))
    if not shared:
        raise UserError(
            "cannot compare: the checkpoints share no problem id; "
            "evaluate them on the same questions"
        )
    kept = []
    for c in clusters:
        keep = [index for index, name in enumerate(c.ids) if name in shared]
        names = tuple(c.ids[index] for index in keep)
        kept.append(Clusters(names, c.total_Q[keep], c.weight_Q[keep]))
    return kept
