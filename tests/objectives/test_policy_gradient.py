"""GRPO and its credit: against NumPy, by enumeration, and at the limits."""

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
    assert_same,
    entropy,
    logp_of,
    loss_of_logits,
    positions,
    value_and_gradient,
)

from jaxdistill import losses
from jaxdistill.losses import advantages
from jaxdistill.objectives import GRPO, RLCSD, RLSD, AntiSD, SuppressUnlikely, make_objective
from jaxdistill.objectives.policy_gradient import (
    advantage_of,
    apart,
    gradient_factor,
    gradient_scores,
)
from jaxdistill.objectives.positions import epistemic_of

TOKENS = np.array([[2, 0, 1], [11, 7, 3]])
EPISTEMIC = epistemic_of(IDS, V)
ADVANTAGE = np.array([[0.5] * T, [-0.5] * T])
numbers = st.floats(-6, 6, width=32)


def token(seed):
    return np.take_along_axis(np.asarray(logp_of(seed), np.float64), TOKENS[..., None], -1)[..., 0]


def test_grpo_equals_numpy_in_value_gradient_and_statistics():
    given = positions()
    # Ratios 1, .67, 1.65 and 1, .22, 1.65.
    offsets = jnp.array([[0.0, -0.4, 0.5], [0.0, -1.5, 0.5]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    loss_BT, metrics = make_objective(GRPO(), IDS)(given)
    ratio, A = np.exp(np.asarray(offsets, np.float64)), ADVANTAGE
    unclipped, clipped = -A * ratio, -A * np.clip(ratio, 0.8, 1.28)
    np.testing.assert_allclose(loss_BT, np.maximum(unclipped, clipped), rtol=1e-5)
    np.testing.assert_allclose(metrics["importance_ratio"].value_BT, ratio, rtol=1e-5)
    np.testing.assert_array_equal(metrics["clipped"].value_BT, [[0, 0, 1], [0, 1, 0]])

    gradient = jax.grad(loss_of_logits(GRPO(), given))(given.student_logp_BTV)
    onehot = np.eye(V)[TOKENS]
    active = 1 - np.asarray(metrics["clipped"].value_BT)
    by_hand = (active * -A * ratio)[..., None] * (onehot - np.exp(given.student_logp_BTV))
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)


def test_without_a_dual_clip_bad_samples_cost_as_much_as_their_ratio():
    ratio, A = jnp.array([9.0]), jnp.array([-1.0])
    assert losses.grpo_surrogate(ratio, A, 0.2, 0.28, None).tolist() == [9.0]
    assert losses.grpo_surrogate(ratio, A, 0.2, 0.28, 3.0).tolist() == [3.0]


# ------------------------------------------------------------------------------------------ RLSD


@settings(max_examples=60, deadline=None)
@drawn(
    A=st.floats(-2, 2, width=32, allow_subnormal=False),
    s=numbers,
    q=numbers,
    strength=st.floats(0, 1, allow_subnormal=False),
)
def test_rlsd_scales_the_advantage_and_never_turns_it(A, s, q, strength):
    shaped = float(advantages.rlsd(*map(jnp.float32, (A, s, q)), strength, 0.2))
    weight = np.clip(np.exp(np.sign(A) * (float(q) - float(s))), 0.8, 1.2)
    # Below 1.2e-38 a float32 is not a normal number, and may be flushed to zero.
    expected = A * ((1 - strength) + strength * weight)
    np.testing.assert_allclose(shaped, expected, rtol=1e-5, atol=1.2e-38)
    assert np.sign(shaped) == np.sign(np.float32(A)) or abs(A) < 1e-37


def test_rlsd_with_a_teacher_that_is_the_student_is_grpo():
    assert_same(GRPO(credit=RLSD()), GRPO(), positions(teacher=0))


def test_protected_doubt_keeps_the_verifiers_credit():
    given = positions()
    plain = advantage_of(RLSD(), given, EPISTEMIC)
    protected = advantage_of(RLSD(protect_epistemic=True), given, EPISTEMIC)
    is_epistemic = np.isin(TOKENS, IDS)
    np.testing.assert_allclose(protected, np.where(is_epistemic, ADVANTAGE, plain), rtol=1e-6)
    assert not np.allclose(plain[is_epistemic], ADVANTAGE[is_epistemic])


def test_a_row_whose_teacher_saw_nothing_follows_plain_grpo():
    given = positions(distill_weight_BT=jnp.array([1.0, 0.0]))
    for choice in (RLSD(), AntiSD(entropy_threshold=None), RLCSD()):
        shaped = advantage_of(choice, given, EPISTEMIC)
        np.testing.assert_array_equal(shaped[1], ADVANTAGE[1])
        assert not np.allclose(shaped[0], ADVANTAGE[0])


# ----------------------------------------------------------------------------------------- RLCSD


def test_rlcsd_is_its_formula():
    choice = RLCSD(temperature=2.0, strength=0.8, limit=0.6, select=0.3)
    e = token(1) - token(3)
    residual = np.clip(0.8 * np.tanh(e / 2.0), -0.6, 0.6)
    selected = np.abs(residual) > 0.3
    assert 0 < selected.sum() < selected.size
    added = ADVANTAGE + residual
    shaped = np.where(np.sign(added) == np.sign(ADVANTAGE), added, 0)
    expected = np.where(selected, shaped, ADVANTAGE)
    np.testing.assert_allclose(advantage_of(choice, positions(), EPISTEMIC), expected, rtol=1e-5)


def test_rlcsd_without_a_difference_of_contexts_or_an_advantage_is_grpo_bit_for_bit():
    same = positions(teacher=1, contrast=1)
    assert_same(GRPO(credit=RLCSD()), GRPO(), same, exact=True)
    (selected,) = gradient_scores(GRPO(credit=RLCSD()), same)
    weight = jnp.full((B, T), 1 / 7)
    factor = gradient_factor(GRPO(credit=RLCSD()), (selected,), weight)
    np.testing.assert_array_equal(factor, 1)
    undecided = positions(advantage_BT=jnp.zeros(B))
    np.testing.assert_array_equal(advantage_of(RLCSD(), undecided, EPISTEMIC), 0)


@settings(max_examples=60, deadline=None)
@drawn(A=st.floats(-2, 2, width=32), residual=st.floats(-2, 2, width=32))
def test_the_residual_never_turns_the_advantage(A, residual):
    shaped = float(advantages.keep_sign(jnp.float32(A + residual), jnp.float32(A)))
    assert shaped == 0 or np.sign(shaped) == np.sign(A)


def test_selected_and_other_tokens_are_averaged_apart():
    rng = np.random.default_rng(0)
    weight, loss = rng.uniform(size=(2, 4, 5))
    selected = rng.uniform(size=(4, 5)) < 0.3
    factor = apart(jnp.asarray(selected), jnp.asarray(weight), 0.7)
    mean = (loss * weight * factor).sum() / weight.sum()
    expected = np.average(loss[~selected], weights=weight[~selected])
    expected += 0.7 * np.average(loss[selected], weights=weight[selected])
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------- AntiSD


def test_the_anti_credit_ascends_the_jensen_shannon_in_expectation():
    """grad E_y[-A log S(y)] = -grad JSD_.5(S, T), by enumeration over every sample."""
    student, teacher = logp_of(0)[0, 0], logp_of(1)[0, 0]
    A = advantages.anti_jensen_shannon(student, teacher)

    def surrogate(logits):
        return -jnp.sum(jnp.exp(student) * A * jax.nn.log_softmax(logits))

    def divergence(logits):
        return losses.jensen_shannon(jax.nn.log_softmax(logits), teacher)

    np.testing.assert_allclose(
        jax.grad(surrogate)(student), -jax.grad(divergence)(student), atol=1e-6
    )


@settings(max_examples=60, deadline=None)
@drawn(s=st.floats(-80, 0, width=32), q=st.floats(-80, 0, width=32))
def test_the_anti_credit_is_bounded_above_and_vanishes_where_the_two_agree(s, q):
    A = float(advantages.anti_jensen_shannon(jnp.float32(s), jnp.float32(q)))
    assert 0.5 * np.log(2) + 1e-6 >= A
    assert abs(float(advantages.anti_jensen_shannon(jnp.float32(s), jnp.float32(s)))) < 1e-7
    expected = 0.5 * (np.log(2) - np.logaddexp(0, float(q) - float(s)))
    np.testing.assert_allclose(A, expected, rtol=1e-5, atol=1e-6)


def test_anti_credit_is_added_only_where_its_gate_and_its_words_say():
    plain = advantages.anti_jensen_shannon(*(jnp.asarray(token(s), jnp.float32) for s in (0, 1)))
    undecided = entropy(logp_of(1)) > 1.8
    is_epistemic = np.isin(TOKENS, IDS)
    assert 0 < undecided.sum() < undecided.size
    for choice, applies in (
        (AntiSD(2.0, None), np.ones((B, T), bool)),
        (AntiSD(2.0, 1.8), undecided),
        (AntiSD(2.0, None, only_epistemic=True), is_epistemic),
        (AntiSD(2.0, 1.8, only_epistemic=True), is_epistemic & undecided),
    ):
        expected = ADVANTAGE + 2 * np.where(applies, plain, 0)
        np.testing.assert_allclose(
            advantage_of(choice, positions(), EPISTEMIC), expected, rtol=1e-5, atol=1e-6
        )


# ----------------------------------------------------------------------------------- teacher-free


@pytest.mark.parametrize("adaptive", [False, True])
def test_suppressing_the_unlikely_needs_neither_teacher_nor_verdict(adaptive):
    choice = SuppressUnlikely(0.7, 0.06, adaptive)
    alone = positions(teacher_logp_BTV=None, reference_logp_BTV=None, contrast_logp_BTV=None)
    unlikely = np.exp(token(0)) < 0.06
    assert 0 < unlikely.sum() < unlikely.size
    confidence = 1 - entropy(logp_of(0)) / np.log(V) if adaptive else 1.0
    expected = -0.7 * unlikely * confidence
    for given in (alone, positions(advantage_BT=jnp.array([9.0, -9.0]))):
        np.testing.assert_allclose(
            advantage_of(choice, given, EPISTEMIC), expected, rtol=1e-5, atol=1e-6
        )
    loss, _ = value_and_gradient(GRPO(credit=choice), alone)
    assert (np.asarray(loss) >= 0).all()  # minus a negative advantage
