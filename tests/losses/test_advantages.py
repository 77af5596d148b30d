"""Credit against its formulas in float64, from agreement to complete disagreement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import (
    assert_close,
)
from random_log_probs import numeric_gradient

from jaxdistill import losses
from jaxdistill.losses import advantages

RNG = np.random.default_rng(0)
# Log-probabilities of one token: student, teacher, contrast; then pairs that agree, and extremes.
TOKENS = np.concatenate(
    [
        -RNG.exponential(3.0, size=(3, 200)),
        np.tile(-RNG.exponential(3.0, size=50), (3, 1)),
        np.array([[0, -120, 0], [-120, 0, -1], [0, 0, -120], [-120, -120, 0]]).T,
    ],
    axis=1,
)
ADVANTAGE = np.concatenate([RNG.choice([-1.5, -0.5, 0.0, 0.5, 1.0], size=250), [1, -1, 0, 1]])
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def rounded(dtype):
    """(s, q, c) as the functions receive them, and the same in float64."""
    given = jnp.asarray(TOKENS, dtype)
    return given, np.asarray(given, np.float64)


def check(measured, expected, *gaps):
    # exp and tanh receive an argument of size x with an error of x 2^-24; the result is float32.
    assert measured.dtype == jnp.float32
    size = 1 + sum(np.minimum(abs(gap), 20) for gap in gaps)
    assert_close(measured, expected, 4 * 2**-24 * size * (1 + abs(ADVANTAGE)), "credit")


@dtypes
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [0.0, 0.2, 0.9])
def test_rlsd_is_its_formula_and_keeps_the_verifiers_sign(dtype, strength, clip):
    (s, q, _), (S, Q, _) = rounded(dtype)
    A = jnp.asarray(ADVANTAGE, jnp.float32)
    shaped = advantages.rlsd(A, s, q, strength, clip)
    with np.errstate(over="ignore"):
        weight = np.clip(np.exp(np.sign(ADVANTAGE) * (Q - S)), 1 - clip, 1 + clip)
    check(shaped, ADVANTAGE * ((1 - strength) + strength * weight), Q - S)
    np.testing.assert_array_equal(np.sign(shaped), np.sign(ADVANTAGE))
    unmoved = shaped if strength == 0 or clip == 0 else advantages.rlsd(A, s, s, strength, clip)
    np.testing.assert_allclose(unmoved, ADVANTAGE, rtol=1e-6)  # teacher = student, or no strength


@dtypes
@pytest.mark.parametrize(("temperature", "strength", "limit"), [(0.02, 0.5, 2.0), (2.0, 1.0, 0.6)])
def test_the_contrastive_residual_is_its_formula_odd_and_zero_where_contexts_agree(
    dtype, temperature, strength, limit
):
    (_, q, c), (_, Q, C) = rounded(dtype)
    choice = (temperature, strength, limit)
    residual = advantages.contrastive_residual(q, c, *choice)
    expected = np.clip(strength * np.tanh((Q - C) / temperature), -limit, limit)
    check(residual, expected, (Q - C) / temperature)
    np.testing.assert_array_equal(residual, -advantages.contrastive_residual(c, q, *choice))
    np.testing.assert_array_equal(advantages.contrastive_residual(q, q, *choice), 0)


def test_a_shaped_advantage_keeps_its_sign_or_is_zero():
    A, shaped = np.meshgrid([-1.0, -0.5, 0.0, 0.5], np.linspace(-2, 2, 41))
    kept = np.asarray(advantages.keep_sign(jnp.asarray(shaped), jnp.asarray(A)))
    agrees = np.sign(shaped) * np.sign(A) > 0
    np.testing.assert_array_equal(kept, np.where(agrees, np.float32(shaped), 0))


@dtypes
def test_the_anti_credit_is_its_formula_bounded_and_zero_where_the_two_agree(dtype):
    (s, q, _), (S, Q, _) = rounded(dtype)
    A = advantages.anti_jensen_shannon(s, q)
    check(A, 0.5 * (np.log(2) - np.logaddexp(0, Q - S)), Q - S)
    assert float(A.max()) <= 0.5 * np.log(2) + 2**-24
    np.testing.assert_allclose(A[S == Q], 0, atol=2**-24)
    assert (np.sign(A[S != Q]) == np.sign((S - Q)[S != Q])).all()  # A > 0 where the teacher doubts


@dtypes
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_unlikely_are_discouraged_by_confidence_and_no_teacher_is_asked(dtype, adaptive):
    (s, _, _), (S, _, _) = rounded(dtype)
    entropy = np.linspace(0, np.log(50), S.size) if adaptive else None
    given = None if entropy is None else jnp.asarray(entropy, jnp.float32)
    threshold = float(np.exp(S[0]))  # the first token is exactly at the threshold, not below it
    measured = advantages.unlikely(s, given, 50, 0.7, threshold)
    confidence = 1 - entropy / np.log(50) if adaptive else 1.0
    is_unlikely = S[0] > S
    assert 0 < is_unlikely.sum() < S.size
    np.testing.assert_allclose(measured, -0.7 * is_unlikely * confidence, rtol=1e-5, atol=1e-6)
    assert measured.dtype == jnp.float32


# -------------------------------------------------------------------------------- policy gradients


def grpo_oracle(ratio, advantage):
    """PPO's branches written out: pessimistic clipping, and dual clipping of bad actions."""
    if advantage >= 0:
        return -advantage * min(ratio, 1.28)
    return -advantage * min(max(ratio, 0.8), 3.0)


@pytest.mark.parametrize("advantage", [1.5, 0.0, -0.7])
@pytest.mark.parametrize("ratio", [0.1, 0.79, 0.9, 1.0, 1.2, 1.4, 2.9, 5.0])
def test_the_grpo_surrogate_equals_its_branches_in_value_and_gradient(ratio, advantage):
    value, slope = jax.value_and_grad(losses.grpo_surrogate)(
        jnp.float32(ratio), jnp.float32(advantage), 0.2, 0.28, 3.0
    )
    expected = numeric_gradient(lambda x: grpo_oracle(x[0], advantage), np.array([ratio]))
    np.testing.assert_allclose(value, grpo_oracle(ratio, advantage), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, expected[0], rtol=1e-6, atol=1e-7)


def test_importance_ratios_are_one_on_policy_and_clamped():
    token = jnp.array([-1.0, -3.0, -0.1, -0.1])
    behaviour = jnp.array([-1.0, -0.7, -3.0, -90.0])
    expected = [1, np.exp(-2.3), np.exp(2.9), np.exp(20)]
    np.testing.assert_allclose(losses.importance_ratio(token, behaviour), expected, rtol=1e-5)


def test_group_advantages_are_centred_and_divided_only_on_request():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    expected = np.asarray(rewards, np.float64)
    expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(losses.group_advantage(rewards), expected, atol=1e-7)
    deviation = np.asarray(rewards, np.float64).std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        losses.group_advantage(rewards, normalize_std=True),
        expected / (deviation + 1e-6),
        rtol=1e-5,
    )


def test_a_group_of_one_keeps_its_reward():
    np.testing.assert_array_equal(losses.group_advantage(jnp.ones((3, 1))), 1)
