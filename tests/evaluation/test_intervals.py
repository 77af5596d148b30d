"""avg@k, pass@k and the intervals, against enumeration, formulas and simulated coverage."""

import itertools
import math

import numpy as np
import pytest

from jaxdistill.errors import UserError
from jaxdistill.evaluation.intervals import (
    avg_at_k,
    bootstrap,
    by_problem,
    difference_of_changes,
    interval,
    paired_difference,
    pass_at_k,
    pass_at_k_unbiased,
)


def simulated(seed, num_problems=60, num_samples=8, shift=0.0):
    """Correctness [Q, R] of problems whose difficulty varies widely, and the flat ids."""
    rng = np.random.default_rng(seed)
    chance_Q = np.clip(rng.beta(0.8, 0.8, num_problems) + shift, 0, 1)
    correct_QR = rng.random((num_problems, num_samples)) < chance_Q[:, None]
    ids = np.repeat([f"q{i:03d}" for i in range(num_problems)], num_samples)
    return ids, correct_QR


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 2, 3), (6, 1, 1), (6, 4, 3), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_answer(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    expected = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k_unbiased(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_1_is_avg_at_k_and_pass_at_k_never_falls_with_k():
    ids, correct_QR = simulated(0)
    values = [pass_at_k(ids, correct_QR.ravel(), k).value for k in range(1, 9)]
    assert values[0] == pytest.approx(avg_at_k(ids, correct_QR.ravel()).value)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(correct_QR.any(axis=1).mean())


def test_pass_at_k_with_too_few_answers_is_the_users_error_in_one_line():
    with pytest.raises(UserError, match="pass@4 needs at least 4 answers") as caught:
        pass_at_k(["a", "a"], [True, False], 4)
    assert "\n" not in str(caught.value)


def test_the_mean_weighs_every_answer_once_also_when_problems_have_unequal_numbers():
    # a has 1 of 1 and b 0 of 3: the pooled mean is 1/4, the mean of means would be 1/2.
    assert by_problem(["a", "b", "b", "b"], [True, False, False, False]).mean == 0.25


def test_an_answer_without_a_measurement_counts_nowhere():
    clusters = by_problem(["a", "a", "b", "c"], [1, None, 0, None])
    assert clusters.ids == ("a", "b")
    assert clusters.mean == 0.5


def test_no_measured_answer_at_all_is_the_users_error():
    with pytest.raises(UserError, match="at least one measured answer"):
        by_problem(["a"], [None])


def test_the_order_of_lines_changes_nothing_and_neither_does_running_twice():
    ids, correct_QR = simulated(1)
    order = np.random.default_rng(0).permutation(ids.size)
    first = avg_at_k(ids, correct_QR.ravel())
    assert first == avg_at_k(ids, correct_QR.ravel())
    assert first == avg_at_k(ids[order], correct_QR.ravel()[order])
    assert first != avg_at_k(ids, correct_QR.ravel(), seed=1)


def test_the_interval_has_the_width_of_the_between_problem_standard_error():
    """SE = sd of the problems' means / sqrt(Q); with 2000 resamples the width has 4 % noise."""
    ids, correct_QR = simulated(2, num_problems=200)
    got = avg_at_k(ids, correct_QR.ravel())
    half_width = 1.96 * correct_QR.mean(axis=1).std(ddof=1) / math.sqrt(200)
    assert (got.high - got.low) / 2 == pytest.approx(half_width, rel=0.12)


def test_ten_copies_of_every_answer_do_not_narrow_the_interval():
    ids, correct_QR = simulated(3)
    once = avg_at_k(ids, correct_QR.ravel())
    many = avg_at_k(np.tile(ids, 10), np.tile(correct_QR.ravel(), 10))
    assert many == pytest.approx(once)


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100():
    """The true mean is 0.5 by symmetry. Over 300 trials the coverage has a binomial sd of 1.3
    points, and with 40 problems the percentile bootstrap undercovers by one or two points, so a
    correct method gives 90 to 99 %.
    """
    covered = 0
    for trial in range(300):
        ids, correct_QR = simulated(1000 + trial, num_problems=40, num_samples=4)
        got = interval(by_problem(ids, correct_QR.ravel()), num_resamples=400)
        covered += got.low <= 0.5 <= got.high
    assert 0.90 <= covered / 300 <= 0.99


def test_pairing_sees_a_small_change_that_two_separate_intervals_cannot():
    ids, before_QR = simulated(4, num_problems=100)
    after_QR = before_QR.copy()
    after_QR[::4, 0] = False  # a few answers become wrong; the difficulty is otherwise identical
    before, after = by_problem(ids, before_QR.ravel()), by_problem(ids, after_QR.ravel())
    change = paired_difference(after, before)
    assert change.value == pytest.approx(after.mean - before.mean)
    assert change.high < 0
    assert interval(after).high > interval(before).low


def test_a_checkpoint_compared_with_itself_differs_by_exactly_nothing():
    ids, correct_QR = simulated(5)
    clusters = by_problem(ids, correct_QR.ravel())
    assert paired_difference(clusters, clusters)[:3] == (0.0, 0.0, 0.0)


def test_the_difference_uses_only_problems_that_both_answered():
    first = by_problem(["a", "b", "c"], [1, 1, 0])
    second = by_problem(["b", "c", "d"], [0, 0, 1])
    assert paired_difference(first, second).value == 0.5
    assert paired_difference(first, second).num_problems == 2


def test_checkpoints_without_a_shared_problem_are_the_users_error():
    with pytest.raises(UserError, match="share no problem id"):
        paired_difference(by_problem(["a"], [1]), by_problem(["b"], [1]))


def test_one_problem_has_a_value_but_no_bounds():
    got = avg_at_k(["a", "a"], [True, False])
    assert got.value == 0.5
    assert not got.is_bounded


def test_a_ratio_whose_denominator_can_vanish_gets_no_bounds_instead_of_wild_ones():
    zero = by_problem(["a", "b"], [0, 1])
    got = bootstrap([zero], lambda mean: 1 / mean)
    assert got.value == 2.0
    assert not got.is_bounded


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    ids, correct_QR = simulated(6)
    whole = avg_at_k(ids, correct_QR.ravel())
    monkeypatch.setattr("jaxdistill.evaluation.intervals.BLOCK_ENTRIES", 700)
    assert avg_at_k(ids, correct_QR.ravel()) == whole


@pytest.mark.parametrize("prefix", ["q", "other"])
def test_a_change_against_a_change_is_the_difference_of_the_two_paired_differences(prefix):
    """With the same problems or others the data are independent, so the variances add."""
    ids, before_QR = simulated(7, num_problems=200)
    _, after_QR = simulated(8, num_problems=200, shift=-0.2)
    other_ids = [prefix + name[1:] for name in ids]
    _, there_before_QR = simulated(9, num_problems=200)
    _, there_after_QR = simulated(10, num_problems=200)
    here = (by_problem(ids, after_QR.ravel()), by_problem(ids, before_QR.ravel()))
    there = (
        by_problem(other_ids, there_after_QR.ravel()),
        by_problem(other_ids, there_before_QR.ravel()),
    )
    got = difference_of_changes(here, there)
    one, two = paired_difference(*here), paired_difference(*there)
    assert got.value == pytest.approx(one.value - two.value)
    width = math.hypot(one.high - one.low, two.high - two.low)
    assert got.high - got.low == pytest.approx(width, rel=0.15)
