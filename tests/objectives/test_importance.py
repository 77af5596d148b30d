"""Importance weights of the sampler's tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from distilled import FULL, factor_of
from made_positions import (
    B,
    T,
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    GRPO,
    RolloutCorrection,
)
from jaxdistill.objectives.importance import (
    GAP_EDGES,
    LARGEST_USUAL_GAP,
    UNMOVED,
    fork_rates,
    gap_quantiles,
    gap_warning,
    histogram,
    policy_ratio,
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
        # The policy ratio is one, because the student is the policy before the update.
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


# ------------------------------------------------------------------- several updates of one batch

CORRECTION = RolloutCorrection(2.0)
# log pi - log pi_old and log pi_old - log pi_rollout of each token.
MOVED = np.array([[0.0, 0.3, -0.4], [0.9, -0.1, 0.2]])
ROUNDED = np.array([[0.1, -0.2, 1.5], [0.0, -1.5, 0.4]])


def after_an_update():
    given = positions()
    old_BT = given.of_token(given.student_logp_BTV) - MOVED
    return positions(old_logp_BT=old_BT, behaviour_logp_BT=old_BT - ROUNDED)


def test_the_second_update_is_weighted_by_both_ratios_each_with_its_own_clip():
    given = after_an_update()
    objective = dataclasses.replace(FULL, importance_clip=1.2, rollout_correction=CORRECTION)
    weight = np.minimum(np.exp(MOVED), 1.2) * np.minimum(np.exp(ROUNDED), 2)
    for actual, base in zip(value_and_gradient(objective, given), value_and_gradient(FULL, given)):
        scale = weight.reshape(weight.shape + (1,) * (base.ndim - 2))
        np.testing.assert_allclose(actual, scale * base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("correction", [None, CORRECTION])
def test_the_policy_ratio_of_a_scored_batch_is_to_the_trainers_policy(correction):
    np.testing.assert_allclose(policy_ratio(after_an_update(), correction), np.exp(MOVED), 1e-5)
    # Without any scores a batch has one update, and its old policy is the sampler's.
    alone = after_an_update()
    alone = alone._replace(sampled=alone.sampled._replace(old_logp_BT=None))
    expected = np.exp(MOVED + ROUNDED) if correction is None else np.ones((B, T))
    np.testing.assert_allclose(policy_ratio(alone, correction), expected, 1e-5)


@pytest.mark.parametrize("objective", [GRPO(), GRPO(rollout_correction=CORRECTION)])
def test_the_first_update_of_a_scored_batch_has_ratios_of_exactly_one_and_a_gradient(objective):
    first = positions(old_logp_BT=jnp.full((B, T), UNMOVED))
    assert (policy_ratio(first, objective.rollout_correction) == 1).all()
    _, gradient = value_and_gradient(objective, first)
    assert np.abs(gradient).max() > 0.1


def test_in_a_single_update_the_papers_two_weights_are_one_importance_weight():
    """So that the presets, which have both, learn what either alone would."""
    given = positions()
    offsets = jnp.array([[0.0, 0.4, 1.5], [0.0, -0.4, -1.5]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    importance = dataclasses.replace(FULL, importance_clip=2.0)
    both = dataclasses.replace(importance, rollout_correction=CORRECTION)
    for a, b in zip(value_and_gradient(both, given), value_and_gradient(importance, given)):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------- the sampler and the trainer


def quantiles(gaps):
    gap_BT = jnp.asarray(gaps, jnp.float32)[None]
    count_K = histogram(gap_BT, jnp.ones_like(gap_BT))
    assert count_K.sum() == len(gaps)
    return {name: float(value) for name, value in gap_quantiles(count_K).items()}


def test_positions_outside_the_loss_mask_are_not_counted():
    gap_BT = jnp.array([[0.5, 4.0]])
    count_K = histogram(gap_BT, jnp.array([[1.0, 0.0]]))
    assert gap_quantiles(count_K)["sampler_gap_max"] == 0.5


def test_quantiles_of_the_samplers_gap_are_at_most_a_bin_too_large():
    gaps = np.random.default_rng(0).lognormal(-5, 1.5, 2000)
    found = quantiles(gaps)
    exact = np.quantile(gaps, 0.99, method="inverted_cdf"), gaps.max()
    for value, true in zip((found["sampler_gap_p99"], found["sampler_gap_max"]), exact):
        assert true <= value * (1 + 1e-6) <= true * 2 ** (1 / 8) * (1 + 1e-5)


@pytest.mark.parametrize(
    ("gaps", "largest"),
    [([0.0, 0.0], GAP_EDGES[0]), ([0.5], 0.5), ([1e9], 32), ([np.nan, 0], 32), ([np.inf], 32)],
)
def test_gaps_outside_the_bins_are_in_the_first_or_the_last(gaps, largest):
    assert quantiles(gaps)["sampler_gap_max"] == np.float32(largest)


def test_one_far_token_is_found_among_more_tokens_than_float32_can_count():
    count_K = np.zeros(len(GAP_EDGES), np.float32)
    count_K[10], count_K[-5] = 2.0**25, 1
    found = gap_quantiles(jnp.asarray(count_K))
    assert found["sampler_gap_max"] == np.float32(GAP_EDGES[-5])
    assert found["sampler_gap_p99"] == np.float32(GAP_EDGES[10])


def test_a_large_gap_is_warned_of_with_its_quantiles_and_what_to_compare():
    metrics = {"sampler_gap": 0.25, "sampler_gap_p99": 1.0, "sampler_gap_max": 4.0}
    warning = gap_warning(metrics)
    assert warning is not None
    assert "0.25 nats" in warning
    assert "compute.cache_dtype" in warning
    for usual in (LARGEST_USUAL_GAP, np.nan):  # NaN: a step without a token
        assert gap_warning(metrics | {"sampler_gap": usual}) is None
    assert gap_warning({"loss": 1.0}) is None  # supervised learning samples nothing


# ------------------------------------------------------------------------------------ fork rates


def counts_of(entropies):
    return histogram(jnp.float32(entropies)[None], jnp.ones((1, len(entropies))))


@pytest.mark.parametrize("seed", range(3))
def test_a_fork_by_the_references_measure_has_more_entropy_than_four_fifths_of_its_positions(seed):
    rng = np.random.default_rng(seed)
    reference, student = rng.gamma(0.5, 0.6, (2, 4000)) + np.array([[0], [0.1]])
    found = fork_rates(counts_of(student), counts_of(reference))
    threshold = np.quantile(reference, 0.8)
    # Eighths of an octave, within which the position is interpolated.
    np.testing.assert_allclose(found["fork_threshold_reference"], threshold, rtol=0.02)
    share = np.mean(student > threshold)
    np.testing.assert_allclose(found["fork_rate_reference"], share, atol=5e-3)


def test_a_network_has_a_fifth_of_forks_by_its_own_measure_also_where_all_entropies_are_equal():
    for entropies in (np.full(7, 0.3), np.zeros(5), np.linspace(0, 2, 50)):
        counts = counts_of(entropies)
        np.testing.assert_allclose(
            fork_rates(counts, counts)["fork_rate_reference"], 0.2, rtol=1e-5
        )
    nothing = counts_of(np.zeros(1)) * 0
    assert all(np.isfinite(x) for x in fork_rates(nothing, nothing).values())
