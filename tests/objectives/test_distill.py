"""Divergences, edited targets, clips, terms and corrections as an objective composes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distilled import FULL, factor_of, target_of, with_divergence
from made_positions import (
    IDS,
    MEMBER,
    B,
    T,
    V,
    logp_of,
    loss_of_logits,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    AnchorEpistemicMass,
    DropEpistemicSlice,
    EntropyWeight,
    ForkingTokens,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    ReverseKL,
    SampledK3,
    SampledReverseKL,
    SkipFirst,
    TopC,
    make_objective,
)

# ----------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JensenShannon()], ids=str)
@pytest.mark.parametrize("support", [FullVocabulary(), TopC(c=2)], ids=str)
def test_an_anchored_loss_is_zero_for_the_student_that_doubts_as_the_reference(divergence, support):
    anchored = target_of(AnchorEpistemicMass())
    objective = with_divergence(divergence, target=AnchorEpistemicMass(), support=support)
    value, gradient = jax.value_and_grad(loss_of_logits(objective, positions()))(anchored)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    np.testing.assert_allclose(mass(anchored), mass(logp_of(2)), atol=1e-6)


def test_the_forward_gradient_under_an_anchor_is_student_minus_target():
    objective = with_divergence(ForwardKL(), target=AnchorEpistemicMass())
    _, gradient = value_and_gradient(objective)
    expected = np.exp(logp_of(0)) - np.exp(target_of(AnchorEpistemicMass()))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_anchor_with_the_references_shape_is_zero_for_a_student_equal_to_its_mixture():
    # S = R and T_nE = R_nE: the target is the reference itself.
    reference = logp_of(2)
    teacher = jax.nn.log_softmax(jnp.where(jnp.asarray(MEMBER), -3.0, reference))
    given = positions(student_logp_BTV=reference, teacher_logp_BTV=teacher)
    objective = with_divergence(ForwardKL(), target=AnchorEpistemicMass(shape="reference"))
    loss, gradient = value_and_gradient(objective, given)
    np.testing.assert_allclose(loss, 0, atol=2e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-6)


def test_a_dropped_slice_does_not_depend_on_the_teachers_epistemic_probabilities():
    def loss(teacher, weighted=False):
        given = positions(teacher_logp_BTV=jax.nn.log_softmax(teacher))
        target = DropEpistemicSlice(weighted)
        return value_and_gradient(with_divergence(JensenShannon(), target=target), given)

    teacher = logp_of(1)
    other = jnp.where(jnp.asarray(MEMBER), logp_of(9) + 1.0, teacher)
    for a, b in zip(loss(teacher), loss(other)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    weighted, _ = loss(teacher, weighted=True)
    np.testing.assert_allclose(weighted, (1 - mass(teacher)) * loss(teacher)[0], rtol=1e-5)


def test_a_dropped_slice_of_an_all_epistemic_vocabulary_has_no_loss():
    objective = with_divergence(JensenShannon(), target=DropEpistemicSlice())
    loss, gradient = value_and_gradient(objective, ids=tuple(range(V)))
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("divergence", [SampledReverseKL(), SampledK3()], ids=str)
def test_a_sampled_token_of_the_dropped_slice_has_no_loss(divergence):
    objective = with_divergence(divergence, target=DropEpistemicSlice())
    loss, gradient = value_and_gradient(objective)
    is_epistemic = MEMBER[np.asarray(positions().sampled.tokens_BT)]
    np.testing.assert_array_equal(loss[is_epistemic], 0)
    np.testing.assert_array_equal(gradient[is_epistemic], 0)
    assert np.isfinite(loss).all()
    assert (np.asarray(loss)[~is_epistemic] != 0).all()


def test_kept_positions_have_the_weight_of_all_in_the_row_or_in_the_batch():
    weight = jnp.array([[1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    kept = dataclasses.replace(FULL, weights=(SkipFirst(1),), normalizer="kept")
    by_row = factor_of(kept, weight)
    np.testing.assert_allclose(by_row, [[1.5] * 3, [2.0, 2.0, 0.0]], rtol=1e-6)
    by_batch = factor_of(dataclasses.replace(kept, reduction="token"), jnp.ones((B, T)))
    np.testing.assert_allclose(by_batch, 1.5, rtol=1e-6)


def test_batch_wide_weights_are_computed_over_what_the_other_weights_keep():
    skip, every = SkipFirst(1), jnp.ones((B, T))
    forks = dataclasses.replace(FULL, weights=(skip, ForkingTokens(0.5)))
    kept = factor_of(forks, every) * np.array([0, 1, 1])
    assert kept.sum() == 2  # of the four that remain
    entropies = dataclasses.replace(FULL, weights=(skip, EntropyWeight("teacher", 3.0)))
    np.testing.assert_allclose(factor_of(entropies, every)[:, 1:].mean(), 1, rtol=1e-5)
    huge = dataclasses.replace(FULL, weights=(EntropyWeight("teacher", 1e4),))
    np.testing.assert_allclose(factor_of(huge, every).mean(), 1, rtol=1e-5)


def test_only_rows_that_are_distilled_count_as_kept_or_not():
    given = positions(distill_weight_BT=jnp.array([1.0, 0.0]))
    metrics = make_objective(dataclasses.replace(FULL, weights=(SkipFirst(1),)), IDS)(given)[1]
    kept = metrics["kept"]
    assert (kept.value_BT * kept.weight_BT).sum() / kept.weight_BT.sum() == pytest.approx(2 / 3)


def test_the_share_of_the_loss_on_doubt_is_that_of_the_reduced_loss():
    lengths = jnp.array([3, 1])
    given = positions(length_BT=lengths)
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    for reduction in ("sequence", "token"):
        objective = dataclasses.replace(FULL, reduction=reduction)
        loss, metrics = make_objective(objective, IDS)(given)
        weight = mask / np.asarray(lengths)[:, None] if reduction == "sequence" else mask
        size = np.abs(loss) * weight
        is_epistemic = MEMBER[np.asarray(given.sampled.tokens_BT)]
        share = metrics["loss_share_epistemic"]
        found = (share.value_BT * share.weight_BT * mask).sum() / (share.weight_BT * mask).sum()
        np.testing.assert_allclose(found, (size * is_epistemic).sum() / size.sum(), rtol=1e-5)


def test_a_row_with_no_kept_position_has_no_loss():
    nothing = dataclasses.replace(FULL, weights=(SkipFirst(9),), normalizer="kept")
    np.testing.assert_array_equal(factor_of(nothing, jnp.ones((B, T))), 0)


def test_forks_of_the_batch_are_kept_and_given_the_weight_of_all():
    forks = dataclasses.replace(
        FULL, weights=(ForkingTokens(0.5),), normalizer="kept", reduction="token"
    )
    factor = factor_of(forks, jnp.ones((B, T)))
    assert sorted(factor.reshape(-1).tolist()) == [0, 0, 0, 2, 2, 2]
