"""Weights beyond the presets: each against its formula in float64, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_positions import (
    IDS,
    B,
    T,
    V,
    entropy,
    logp_of,
    positions,
    value_and_gradient,
)

from jaxdistill.losses import group_advantage
from jaxdistill.objectives import (
    AmplifySampledEpistemic,
    ContrastMask,
    DirectionAdaptive,
    Distill,
    EntropyGate,
    ForkingTokens,
    MaskSampledEpistemic,
    MeanEntropyBelow,
    PositionSlope,
    SampledReverseKL,
    SampledSuppressionGate,
    ShareOfEntropy,
    ShareOfPositions,
    SkipFirst,
    StudentTeacherRatio,
    TokenImportance,
    UnsolvedGroups,
    WrongPrefix,
)
from jaxdistill.objectives.literature_weights import top_fraction
from jaxdistill.objectives.positions import epistemic_of

EPISTEMIC = epistemic_of(IDS, V)
IS_SAMPLED = np.isin(np.array([[2, 0, 1], [11, 7, 3]]), IDS)


def weight_of(choice, given=None):
    return np.asarray(choice.factor(positions() if given is None else given, EPISTEMIC))


def token(logp):
    tokens = np.array([[2, 0, 1], [11, 7, 3]])
    return np.take_along_axis(np.asarray(logp, np.float64), tokens[..., None], -1)[..., 0]


def test_amplifying_is_linear_in_its_strength_and_at_minus_one_the_mask():
    def weight(strength):
        return weight_of(AmplifySampledEpistemic(strength, if_teacher_agrees=False))

    np.testing.assert_array_equal(weight(-1.0), weight_of(MaskSampledEpistemic()))
    np.testing.assert_allclose(weight(4.0) - weight(0.0), 4 * (weight(1.0) - weight(0.0)))


@pytest.mark.parametrize("seed", range(5))
def test_amplifying_applies_only_where_the_teacher_agrees(seed):
    given = positions(teacher=seed, reference=seed + 10)
    agrees = token(logp_of(seed)) >= token(logp_of(seed + 10))
    expected = 1 + 0.5 * (IS_SAMPLED & agrees)
    np.testing.assert_array_equal(weight_of(AmplifySampledEpistemic(0.5), given), expected)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_sampled_gate_drops_sampled_doubt_that_the_teacher_finds_less_likely(threshold):
    for seed in range(4):
        given = positions(teacher=seed, reference=seed + 10)
        suppressed = token(logp_of(seed)) < token(logp_of(seed + 10)) - threshold
        weight = weight_of(SampledSuppressionGate(threshold), given)
        np.testing.assert_array_equal(weight, 1.0 - (IS_SAMPLED & suppressed))


@pytest.mark.parametrize("of", ["student", "teacher", "reference"])
def test_the_entropy_gate_looks_at_the_network_it_names(of):
    H = entropy(logp_of({"student": 0, "teacher": 1, "reference": 2}[of]))
    threshold = float(np.median(H)) + 1e-4
    below = weight_of(EntropyGate(of, "below", threshold, 0.25))
    np.testing.assert_allclose(below, np.where(threshold > H, 1, 0.25))
    above = weight_of(EntropyGate(of, "above", threshold))
    np.testing.assert_array_equal(above, threshold <= H)


def test_direction_adaptive_pulls_where_the_student_is_certain_and_pushes_elsewhere():
    H = entropy(logp_of(0))
    threshold = float(np.median(H)) + 1e-4
    sure = threshold > H
    np.testing.assert_array_equal(weight_of(DirectionAdaptive(threshold)), np.where(sure, 1, -1))
    np.testing.assert_array_equal(weight_of(DirectionAdaptive(threshold, drop=True)), sure)
    np.testing.assert_array_equal(weight_of(DirectionAdaptive(-1.0)), -1)


def test_turning_everywhere_is_minus_the_sampled_loss_and_nowhere_is_the_sampled_loss():
    base = value_and_gradient(Distill(divergence=SampledReverseKL()))
    for threshold, sign in ((99.0, 1), (-1.0, -1)):
        choice = Distill(divergence=SampledReverseKL(), weights=(DirectionAdaptive(threshold),))
        for a, b in zip(value_and_gradient(choice), base):
            np.testing.assert_array_equal(a, sign * b)


def test_token_importance_is_its_formula():
    S, P = (np.exp(np.asarray(logp_of(seed), np.float64)) for seed in (0, 1))
    M = (S + P) / 2
    divergence = 0.5 * ((S * np.log(S / M)).sum(-1) + (P * np.log(P / M)).sum(-1))
    expected = (entropy(logp_of(0)) / np.log(V)) ** 2 * (divergence / np.log(2)) ** 0.5
    np.testing.assert_allclose(weight_of(TokenImportance(2.0, 0.5)), expected, rtol=1e-4)


def test_a_position_slope_has_mean_one_over_each_completion_whatever_its_length():
    for slope in (-1.0, 0.3, 1.0):
        for length in (1, 2, 3):
            given = positions(length_BT=jnp.full(B, length))
            weight = weight_of(PositionSlope(slope), given)[:, :length]
            np.testing.assert_allclose(weight.mean(1), 1, rtol=1e-6)
            assert (weight >= 0).all()
    late = weight_of(PositionSlope(1.0))[0]
    np.testing.assert_allclose(late, [1 / 3, 1, 5 / 3], rtol=1e-6)


def test_the_first_tokens_are_skipped_by_their_place_in_the_completion():
    np.testing.assert_array_equal(weight_of(SkipFirst(2)), [[0, 0, 1]] * B)
    later = positions(index_BT=jnp.array([[0, 1, 2], [3, 4, 5]]))  # the second row's later chunk
    np.testing.assert_array_equal(weight_of(SkipFirst(2), later), [[0, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(weight_of(SkipFirst(0)), 1)


def test_the_contrast_mask_is_zero_where_the_contrast_equals_the_teacher():
    np.testing.assert_array_equal(weight_of(ContrastMask(), positions(teacher=1, contrast=1)), 0)
    P, C = (np.exp(np.asarray(logp_of(seed), np.float64)) for seed in (1, 3))
    d = (P * np.log(P / C)).sum(-1)
    np.testing.assert_allclose(weight_of(ContrastMask(0.2)), d / (d + 0.2), rtol=1e-5)
    np.testing.assert_array_equal(weight_of(ContrastMask(0.0)), 1)


def test_forking_tokens_keeps_the_undecided_positions_or_the_others():
    every = jnp.ones((B, T))
    H = entropy(logp_of(0))
    order = np.argsort(-H.reshape(-1))
    for keep, chosen in (("high", order[:2]), ("low", order[::-1][:2])):
        weight = factor(ForkingTokens(1 / 3, keep), every).reshape(-1)
        assert set(np.flatnonzero(weight)) == set(chosen)
    np.testing.assert_array_equal(factor(ForkingTokens(1.0), every), 1)


jitted_top = jax.jit(top_fraction)


@settings(max_examples=50, deadline=None)
@drawn(
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    counts=st.lists(st.booleans(), min_size=12, max_size=12),
    fraction=st.sampled_from([0.01, 0.2, 1 / 3, 0.5, 0.999, 1.0]),
)
def test_forks_are_exactly_the_given_fraction_of_what_counts_with_ties_to_the_earlier(
    scores, counts, fraction
):
    # Padded to one shape, so that it is compiled once; positions that do not count are ignored.
    counts = np.array(counts) & (np.arange(12) < len(scores))
    scores = np.pad(np.asarray(scores, np.float32), (0, 12 - len(scores)), constant_values=9)
    kept = jitted_top(scores[None], counts[None], fraction)[0]
    number = int(np.ceil(fraction * counts.sum() - 1e-6))
    order = sorted(np.flatnonzero(counts), key=lambda i: (-scores[i], i))
    assert set(np.flatnonzero(kept)) == set(order[:number])


# -------------------------------------------------------------------- by outcome, and by completion


def longer(seed, rows=3, tokens=9):
    """Amounts [B, T], and which positions count: each row has its own length and a dropped one."""
    rng = np.random.default_rng(seed)
    counts = np.arange(tokens) < rng.integers(1, tokens + 1, rows)[:, None]
    counts[:, 1] = False
    return rng.gamma(1.0, 0.5, (rows, tokens)), counts


def shortest_share(amount, counts, share):
    """By trying the prefixes one after the other, in float64."""
    for end in range(len(amount) + 1):
        if amount[:end][counts[:end]].sum() >= share * amount[counts].sum() - 1e-9:
            return np.arange(len(amount)) < end
    raise AssertionError


def longest_mean(amount, counts, limit):
    ends = [0]
    for end in np.flatnonzero(counts) + 1:
        if amount[:end][counts[:end]].mean() <= limit:
            ends.append(end)
    return np.arange(len(amount)) < max(ends)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("until", "oracle", "number"),
    [
        (ShareOfEntropy(0.4), shortest_share, 0.4),
        (ShareOfPositions(0.4), shortest_share, 0.4),
        (MeanEntropyBelow(0.5), longest_mean, 0.5),
    ],
    ids=["entropy", "positions", "mean"],
)
def test_a_prefix_of_an_incorrect_completion_ends_where_trying_all_prefixes_ends_it(
    until, oracle, number, seed
):
    amount, counts = longer(seed)
    if isinstance(until, ShareOfPositions):
        amount = np.ones_like(amount)
    # The first row is correct. In a step the score of a position that does not count is 0.
    score = np.where(counts, np.where(np.arange(len(amount))[:, None] == 0, -1.0, amount), 0.0)
    kept = np.asarray(WrongPrefix(until).over_batch(jnp.float32(score), jnp.float32(counts)))
    np.testing.assert_array_equal(kept[0][counts[0]], 1)
    for row in (1, 2):
        expected = oracle(amount[row], counts[row], number)
        np.testing.assert_array_equal(kept[row][counts[row]], expected[counts[row]])


def test_the_amounts_of_a_prefix_are_of_incorrect_rows_and_the_whole_one_keeps_them():
    given = positions()  # the first row is correct
    for until, amount in {
        ShareOfEntropy(): entropy(logp_of(1)),
        ShareOfEntropy(of="student"): entropy(logp_of(0)),
        MeanEntropyBelow(of="reference"): entropy(logp_of(2)),
        ShareOfPositions(): np.ones((B, T)),
    }.items():
        score = WrongPrefix(until).score(given, EPISTEMIC)
        np.testing.assert_array_equal(score[0], -1)
        np.testing.assert_allclose(score[1], amount[1], rtol=1e-5)
    every = jnp.ones((B, T))
    for whole in (ShareOfEntropy(1.0), ShareOfPositions(1.0), MeanEntropyBelow(99.0)):
        np.testing.assert_array_equal(factor(WrongPrefix(whole), every), 1)
    certain = jnp.zeros((B, T))  # no entropy anywhere
    np.testing.assert_array_equal(WrongPrefix().over_batch(certain, every), 1)


def test_only_completions_of_groups_without_a_success_are_kept():
    """By hand: two groups of four, rewards 0 0 0 0 and 0 1 0 0, and one where all are right."""
    rewards_QR = jnp.array([[0.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    for normalize_std in (False, True):
        advantage_QR = group_advantage(rewards_QR, normalize_std)
        given = positions()
        rows = given.rows._replace(
            advantage_BT=advantage_QR.reshape(-1, 1), correct_BT=rewards_QR.reshape(-1, 1)
        )
        weight = weight_of(UnsolvedGroups(), given._replace(rows=rows))
        np.testing.assert_array_equal(weight[:, 0], [1] * 4 + [0] * 8)


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_completions_weight_is_the_likelihood_ratio_of_a_float64_oracle_with_mean_1(threshold):
    choice = StudentTeacherRatio(threshold, clip=0.8, temperature=0.5)
    loss_weight = np.array([[1, 1, 1], [1, 1, 0]]) / np.array([[3], [2]])
    ratio = np.clip(token(logp_of(0)) - token(logp_of(1)), -0.8, 0.8)
    expected = []
    for row, counts in zip(ratio, loss_weight > 0, strict=True):
        taken = row[counts & (True if threshold is None else row >= threshold)]
        expected.append(np.exp((taken.mean() if len(taken) else 0) / 0.5))
    expected = np.array(expected)[:, None] * (loss_weight > 0)
    expected /= (expected * loss_weight).sum() / loss_weight.sum()
    assert len(set(expected[:, 0].round(3))) == 2
    weight = factor(choice, jnp.float32(loss_weight))
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    np.testing.assert_allclose((weight * loss_weight).sum(), loss_weight.sum(), rtol=1e-6)


def test_equal_networks_give_every_completion_the_weight_1_and_no_counted_position_gives_none():
    choice, every = StudentTeacherRatio(), jnp.ones((B, T))
    same = choice.over_batch(choice.score(positions(teacher=0), EPISTEMIC), every)
    np.testing.assert_allclose(same, 1, rtol=1e-6)
    np.testing.assert_array_equal(factor(choice, 0 * every), 0)


def factor(choice, loss_weight_BT):
    return np.asarray(choice.over_batch(choice.score(positions(), EPISTEMIC), loss_weight_BT))
