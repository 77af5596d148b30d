"""GRPO and its credit: against NumPy, by enumeration, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from made_positions import (
    IDS,
    T,
    V,
    logp_of,
    loss_of_logits,
    positions,
)

from jaxdistill import losses
from jaxdistill.objectives import GRPO, make_objective
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


# ----------------------------------------------------------------------------------------- RLCSD


# ---------------------------------------------------------------------------------------- AntiSD


# ----------------------------------------------------------------------------------- teacher-free
