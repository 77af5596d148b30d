"""Where the student learns: each weight against its formula in float64, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_positions import (
    IDS,
    MEMBER,
    B,
    T,
    V,
    entropy,
    logp_of,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    AmplifySampledEpistemic,
    ContrastMask,
    DirectionAdaptive,
    Distill,
    EntropyGate,
    EntropyWeight,
    FlipSampledEpistemic,
    ForkingTokens,
    FullVocabulary,
    JensenShannon,
    MaskSampledEpistemic,
    PositionSlope,
    SampledReverseKL,
    SampledSuppressionGate,
    SkipFirst,
    SuppressionGate,
    TokenImportance,
)
from jaxdistill.objectives.positions import epistemic_of
from jaxdistill.objectives.weights import batch_factor, batch_score, exactly_top, one_weight

EPISTEMIC = epistemic_of(IDS, V)
IS_SAMPLED = np.isin(np.array([[2, 0, 1], [11, 7, 3]]), IDS)


def weight_of(choice, given=None):
    return np.asarray(one_weight(choice, positions() if given is None else given, EPISTEMIC))


def token(logp):
    tokens = np.array([[2, 0, 1], [11, 7, 3]])
    return np.take_along_axis(np.asarray(logp, np.float64), tokens[..., None], -1)[..., 0]


# -------------------------------------------------------------------------- by epistemic tokens


def test_weights_of_the_sampled_token_by_hand():
    np.testing.assert_array_equal(weight_of(MaskSampledEpistemic()), [[0, 1, 1], [1, 0, 1]])
    np.testing.assert_array_equal(weight_of(FlipSampledEpistemic()), [[-1, 1, 1], [1, -1, 1]])
    amplified = weight_of(AmplifySampledEpistemic(2.0, if_teacher_agrees=False))
    np.testing.assert_array_equal(amplified, [[3, 1, 1], [1, 3, 1]])


def test_amplifying_is_linear_in_its_strength_and_at_minus_one_the_mask():
    def weight(strength):
        return weight_of(AmplifySampledEpistemic(strength, if_teacher_agrees=False))

    np.testing.assert_array_equal(weight(-1.0), weight_of(MaskSampledEpistemic()))
    np.testing.assert_allclose(weight(4.0) - weight(0.0), 4 * (weight(1.0) - weight(0.0)))


@pytest.mark.parametrize("seed", range(5))
def test_amplifying_heeds_whether_the_teacher_agrees(seed):
    given = positions(teacher=seed, reference=seed + 10)
    agrees = token(logp_of(seed)) >= token(logp_of(seed + 10))
    expected = 1 + 0.5 * (IS_SAMPLED & agrees)
    np.testing.assert_array_equal(weight_of(AmplifySampledEpistemic(0.5), given), expected)


@settings(max_examples=25, deadline=None)
@drawn(
    seed=st.integers(0, 99), threshold=st.floats(0, 0.5), relative=st.booleans(),
    softness=st.sampled_from([0.0, 1e-4, 0.1]),
)  # fmt: skip
def test_the_suppression_gate_is_its_formula(seed, threshold, relative, softness):
    given = positions(teacher=seed, reference=seed + 100)
    m_T, m_R = mass(logp_of(seed)), mass(logp_of(seed + 100))
    gap = np.log(m_R) - np.log(m_T) if relative else m_R - m_T
    if np.abs(gap - threshold).min() < 1e-5:
        return  # float32 may see it on the other side
    weight = weight_of(SuppressionGate(threshold, relative, softness), given)
    if softness == 0:
        np.testing.assert_array_equal(weight, gap <= threshold)
    else:
        with np.errstate(over="ignore"):
            expected = 1 / (1 + np.exp((gap - threshold) / softness))
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-3)


def test_the_soft_gate_tends_to_the_hard_one():
    hard = weight_of(SuppressionGate(0.05))
    assert 0 < hard.sum() < B * T
    for softness, distance in ((1e-2, 0.5), (1e-3, 1e-2), (1e-5, 1e-6)):
        soft = weight_of(SuppressionGate(0.05, softness=softness))
        assert np.abs(soft - hard).max() <= distance


def test_the_gate_keeps_more_positions_the_higher_its_threshold():
    for relative in (False, True):
        kept = [
            weight_of(SuppressionGate(threshold, relative)).sum()
            for threshold in (0.0, 0.01, 0.1, 0.3, 9.0)
        ]
        assert kept == sorted(kept)
        assert kept[0] < kept[-1] == B * T


def test_a_teacher_with_no_doubt_at_all_is_gated_wherever_the_reference_has_some():
    silent = jnp.where(MEMBER, -jnp.inf, logp_of(1))
    given = positions(teacher_logp_BTV=jax.nn.log_softmax(silent))
    for gate in (SuppressionGate(0.0), SuppressionGate(5.0, relative=True)):
        np.testing.assert_array_equal(weight_of(gate, given), 0)
    both = given._replace(reference_logp_BTV=given.teacher_logp_BTV)
    np.testing.assert_array_equal(weight_of(SuppressionGate(0.0, relative=True), both), 1)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_sampled_gate_drops_sampled_doubt_that_the_teacher_finds_less_likely(threshold):
    for seed in range(4):
        given = positions(teacher=seed, reference=seed + 10)
        suppressed = token(logp_of(seed)) < token(logp_of(seed + 10)) - threshold
        weight = weight_of(SampledSuppressionGate(threshold), given)
        np.testing.assert_array_equal(weight, 1.0 - (IS_SAMPLED & suppressed))


@pytest.mark.parametrize(
    "weight", [MaskSampledEpistemic(), SuppressionGate(0.05), SkipFirst(2)], ids=str
)
def test_dropped_positions_have_exactly_no_gradient_and_the_others_all_of_it(weight):
    base = Distill(support=FullVocabulary())
    keep = weight_of(weight) > 0
    assert 0 < keep.sum() < keep.size
    loss, gradient = value_and_gradient(Distill(support=FullVocabulary(), weights=(weight,)))
    _, base_gradient = value_and_gradient(base)
    np.testing.assert_array_equal(gradient[~keep], 0)
    np.testing.assert_array_equal(loss[~keep], 0)
    np.testing.assert_allclose(gradient[keep], base_gradient[keep], rtol=1e-6, atol=1e-7)


def test_a_full_vocabulary_loss_ignores_which_token_was_sampled_and_a_sampled_one_does_not():
    """R1's cause: what a mask by the sampled token drops, other samples' positions teach anew."""
    other = jnp.array([[0, 2, 5], [7, 1, 2]])
    for divergence, is_same in ((JensenShannon(), True), (SampledReverseKL(), False)):
        objective = Distill(divergence, FullVocabulary(), importance_clip=None)
        first = value_and_gradient(objective)
        second = value_and_gradient(objective, positions(tokens_BT=other))
        for a, b in zip(first, second):
            assert np.array_equal(a, b) == is_same


def test_flipping_every_token_is_minus_the_sampled_token_loss():
    base = Distill(divergence=SampledReverseKL())
    flipped = Distill(divergence=SampledReverseKL(), weights=(FlipSampledEpistemic(),))
    everything = tuple(range(V))
    for a, b in zip(value_and_gradient(flipped, ids=everything), value_and_gradient(base)):
        np.testing.assert_array_equal(a, -b)


# ------------------------------------------------------------------------------------ by entropy


@pytest.mark.parametrize("of", ["student", "teacher", "reference"])
def test_the_entropy_gate_looks_at_the_network_it_names(of):
    H = entropy(logp_of({"student": 0, "teacher": 1, "reference": 2}[of]))
    threshold = float(np.median(H)) + 1e-4
    below = weight_of(EntropyGate(of, "below", threshold, 0.25))
    np.testing.assert_allclose(below, np.where(threshold > H, 1, 0.25))
    above = weight_of(EntropyGate(of, "above", threshold))
    np.testing.assert_array_equal(above, threshold <= H)


def test_direction_adaptive_pulls_where_the_student_is_sure_and_pushes_elsewhere():
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


# ------------------------------------------------------------------- by position, and by contrast


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


def test_the_contrast_mask_is_silent_where_any_context_says_the_same():
    np.testing.assert_array_equal(weight_of(ContrastMask(), positions(teacher=1, contrast=1)), 0)
    P, C = (np.exp(np.asarray(logp_of(seed), np.float64)) for seed in (1, 3))
    d = (P * np.log(P / C)).sum(-1)
    np.testing.assert_allclose(weight_of(ContrastMask(0.2)), d / (d + 0.2), rtol=1e-5)
    np.testing.assert_array_equal(weight_of(ContrastMask(0.0)), 1)


# ------------------------------------------------------------------------------ of the whole batch


def factor(choice, loss_weight_BT):
    return np.asarray(batch_factor(choice, batch_score(choice, positions()), loss_weight_BT))


def test_the_entropy_weight_falls_with_entropy_and_has_mean_one_where_the_loss_counts():
    counts = np.array([[1, 1, 0], [1, 1, 1]])
    weight = factor(EntropyWeight("teacher", 2.0), jnp.asarray(counts, jnp.float32))
    expected = np.exp(-2 * entropy(logp_of(1)))
    expected *= counts / expected[counts > 0].mean()
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


jitted_top = jax.jit(exactly_top)


@settings(max_examples=50, deadline=None)
@drawn(
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    counts=st.lists(st.booleans(), min_size=12, max_size=12),
    fraction=st.sampled_from([0.01, 0.2, 1 / 3, 0.5, 0.999, 1.0]),
)
def test_forks_are_exactly_the_asked_share_of_what_counts_ties_to_the_earlier(
    scores, counts, fraction
):
    # Padded to one shape, and so compiled once: what does not count takes no part.
    counts = np.array(counts) & (np.arange(12) < len(scores))
    scores = np.pad(np.asarray(scores, np.float32), (0, 12 - len(scores)), constant_values=9)
    kept = jitted_top(scores[None], counts[None], fraction)[0]
    number = int(np.ceil(fraction * counts.sum() - 1e-6))
    order = sorted(np.flatnonzero(counts), key=lambda i: (-scores[i], i))
    assert set(np.flatnonzero(kept)) == set(order[:number])


def test_forking_tokens_keeps_the_undecided_positions_or_the_others():
    every = jnp.ones((B, T))
    H = entropy(logp_of(0))
    order = np.argsort(-H.reshape(-1))
    for keep, chosen in (("high", order[:2]), ("low", order[::-1][:2])):
        weight = factor(ForkingTokens(1 / 3, keep), every).reshape(-1)
        assert set(np.flatnonzero(weight)) == set(chosen)
    np.testing.assert_array_equal(factor(ForkingTokens(1.0), every), 1)
