"""Importance weights of the sampler's tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from distilled import FULL, factor_of
from made_positions import (
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    RolloutCorrection,
)


def test_the_importance_weight_scales_the_loss_and_carries_no_gradient():
    ratio = np.exp(0.1)
    corrected = dataclasses.replace(FULL, importance_clip=2.0)
    for a, b in zip(value_and_gradient(corrected), value_and_gradient(FULL)):
        np.testing.assert_allclose(a, ratio * np.asarray(b), rtol=1e-4, atol=1e-6)
    capped = dataclasses.replace(FULL, importance_clip=1.05)
    loss, _ = value_and_gradient(capped)
    np.testing.assert_allclose(loss, 1.05 * value_and_gradient(FULL)[0], rtol=1e-5)


def test_a_rollout_correction_weights_by_the_ratio_to_the_samplers_probability():
    given = positions()
    offsets = jnp.array([[0.0, 0.4, 1.5], [0.0, -0.4, -1.5]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    ratio, base = np.exp(offsets), value_and_gradient(FULL, given)[0]
    expected = {False: np.minimum(ratio, 2.0), True: np.where(np.abs(offsets) < 0.7, ratio, 0)}
    for two_sided, weight in expected.items():
        correction = RolloutCorrection(2.0, two_sided=two_sided)
        objective = dataclasses.replace(FULL, importance_clip=2.0, rollout_correction=correction)
        # The policy ratio is one, because each batch has a single update.
        np.testing.assert_allclose(
            value_and_gradient(objective, given)[0], base * weight, rtol=1e-5
        )


def test_sequences_are_corrected_as_a_whole():
    given = positions()
    offsets = jnp.array([[0.1, 0.2, 9.0], [-0.3, 0.1, 0.4]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    counts = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # the 9 is padding
    objective = dataclasses.replace(FULL, rollout_correction=RolloutCorrection(2.0, "sequence"))
    expected = np.exp([[0.3], [0.2]]) * counts  # padding does not contribute
    np.testing.assert_allclose(factor_of(objective, counts, given), expected, rtol=1e-5)
