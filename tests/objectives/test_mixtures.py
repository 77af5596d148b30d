"""Rewards and a teacher in one loss: the mixture's limits, and the routing of rows."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from made_positions import IDS, assert_same, positions, value_and_gradient

from jaxdistill.objectives import (
    GRPO,
    Distill,
    EntropyWeight,
    Mixed,
    PerTokens,
    Routed,
    factors,
    make_objective,
    reduced,
)


def test_a_share_of_one_is_distillation_and_of_zero_grpo():
    assert_same(Mixed(share=1.0), Distill())
    assert_same(Mixed(share=0.0), GRPO())


def test_a_mixture_is_convex():
    first, second, mixed = (value_and_gradient(o) for o in (Distill(), GRPO(), Mixed(share=0.3)))
    for a, b, c in zip(first, second, mixed):
        np.testing.assert_allclose(c, 0.3 * np.asarray(a) + 0.7 * np.asarray(b), atol=2e-6)


def test_an_infinity_in_a_part_with_share_zero_does_not_reach_the_loss():
    impossible = positions(teacher_logp_BTV=jnp.full_like(positions().teacher, -jnp.inf))
    loss_BT, _ = make_objective(Mixed(share=0.0), IDS)(impossible)
    np.testing.assert_array_equal(loss_BT, make_objective(GRPO(), IDS)(impossible)[0])


def test_an_annealed_share_falls_to_zero_and_stays():
    annealed = Mixed(share=0.8, anneal_steps=10)
    for step, share in ((0, 0.8), (5, 0.4), (10, 0.0), (99, 0.0)):
        given = positions(step_BT=jnp.full(2, step))
        assert_same(annealed, Mixed(share=share), given)


def test_wrong_rows_with_a_demonstration_are_distilled_and_all_others_follow_their_reward():
    distilled, rewarded = value_and_gradient(Distill())[0], value_and_gradient(GRPO())[0]
    for correct, taught, goes in (
        ([1, 0], [1, 1], [0, 1]), ([0, 0], [1, 0], [1, 0]), ([1, 1], [1, 1], [0, 0]),
    ):  # fmt: skip
        given = positions(
            correct_BT=jnp.array(correct), distill_weight_BT=jnp.array(taught, jnp.float32)
        )
        loss_BT, metrics = make_objective(Routed(), IDS)(given)
        for row, is_distilled in enumerate(goes):
            np.testing.assert_array_equal(loss_BT[row], (rewarded, distilled)[is_distilled][row])
        np.testing.assert_array_equal(metrics["kept"].value_BT, 1)  # no token is lost


def test_a_weight_of_the_batch_is_normalised_over_the_rows_that_are_distilled():
    objective = Routed(distill=Distill(weights=(EntropyWeight(),)))
    given = positions()  # the second row is incorrect
    log_weights_BT = jnp.log(jnp.array([[9.0, 9, 9], [1, 2, 3]]))
    scores = {"distill": {"weights[0]": log_weights_BT, "position_weight": jnp.ones((2, 3))}}
    found = factors(objective, scores, jnp.ones((2, 3)), given.rows)
    np.testing.assert_allclose(found.distill_BT[1], [0.5, 1.0, 1.5], rtol=1e-6)
    assert found.gradient_BT is found.target_BT is None


@pytest.mark.parametrize("reduction", ["token", "sequence", PerTokens(10)], ids=str)
def test_either_part_of_a_mixture_has_the_mean_it_has_alone(reduction):
    mask_BT = jnp.array([[1, 1, 1], [1, 0, 0]])
    row_weight_B = jnp.array([0.0, 1.0])
    distill, grpo = Distill(reduction=reduction), GRPO(reduction=reduction)

    def mean(objective):
        weight_BT, denominator, distill_weight_B = reduced(objective, mask_BT, row_weight_B)
        loss_BT, _ = make_objective(objective, IDS)(positions(distill_weight_BT=distill_weight_B))
        return jnp.sum(loss_BT * weight_BT) / denominator

    for share in (0.0, 0.25, 1.0):
        mixed = Mixed(distill, grpo, share)
        expected = share * mean(distill) + (1 - share) * mean(grpo)
        np.testing.assert_allclose(mean(mixed), expected, rtol=1e-5)
    every_B = jnp.ones(2)
    assert reduced(dataclasses.replace(grpo), mask_BT, row_weight_B).denominator == (
        reduced(grpo, mask_BT, every_B).denominator
    )
