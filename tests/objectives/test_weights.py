"""Weights: each against its formula in float64, and its limits."""

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
    Distill,
    EntropyWeight,
    FlipSampledEpistemic,
    FullVocabulary,
    JensenShannon,
    MaskSampledEpistemic,
    SampledReverseKL,
    SkipFirst,
    SuppressionGate,
)
from jaxdistill.objectives.positions import epistemic_of

EPISTEMIC = epistemic_of(IDS, V)
IS_SAMPLED = np.isin(np.array([[2, 0, 1], [11, 7, 3]]), IDS)


def weight_of(choice, given=None):
    return np.asarray(choice.factor(positions() if given is None else given, EPISTEMIC))


def token(logp):
    tokens = np.array([[2, 0, 1], [11, 7, 3]])
    return np.take_along_axis(np.asarray(logp, np.float64), tokens[..., None], -1)[..., 0]


# -------------------------------------------------------------------------- by epistemic tokens


def test_weights_of_the_sampled_token_by_hand():
    np.testing.assert_array_equal(weight_of(MaskSampledEpistemic()), [[0, 1, 1], [1, 0, 1]])
    np.testing.assert_array_equal(weight_of(FlipSampledEpistemic()), [[-1, 1, 1], [1, -1, 1]])
    amplified = weight_of(AmplifySampledEpistemic(2.0, if_teacher_agrees=False))
    np.testing.assert_array_equal(amplified, [[3, 1, 1], [1, 3, 1]])


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
        return  # too near the threshold: float32 may round to the other side
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


@pytest.mark.parametrize(
    "weight", [MaskSampledEpistemic(), SuppressionGate(0.05), SkipFirst(2)], ids=str
)
def test_dropped_positions_have_no_gradient_and_the_others_an_unchanged_one(weight):
    base = Distill(support=FullVocabulary())
    keep = weight_of(weight) > 0
    assert 0 < keep.sum() < keep.size
    loss, gradient = value_and_gradient(Distill(support=FullVocabulary(), weights=(weight,)))
    _, base_gradient = value_and_gradient(base)
    np.testing.assert_array_equal(gradient[~keep], 0)
    np.testing.assert_array_equal(loss[~keep], 0)
    np.testing.assert_allclose(gradient[keep], base_gradient[keep], rtol=1e-6, atol=1e-7)


def test_a_full_vocabulary_loss_ignores_which_token_was_sampled_and_a_sampled_one_does_not():
    """The cause of R1: what a mask by the sampled token drops is learnt from other samples."""
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


# ------------------------------------------------------------------- by position, and by contrast


# ------------------------------------------------------------------------------ of the whole batch


def factor(choice, loss_weight_BT):
    return np.asarray(choice.over_batch(choice.score(positions(), EPISTEMIC), loss_weight_BT))


def test_the_entropy_weight_falls_with_entropy_and_has_mean_one_where_the_loss_counts():
    counts = np.array([[1, 1, 0], [1, 1, 1]])
    weight = factor(EntropyWeight("teacher", 2.0), jnp.asarray(counts, jnp.float32))
    expected = np.exp(-2 * entropy(logp_of(1)))
    expected *= counts / expected[counts > 0].mean()
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
