"""Divergences, edited targets, clips, terms and corrections as an objective composes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_positions import (
    IDS,
    MEMBER,
    B,
    T,
    V,
    assert_same,
    entropy,
    logits,
    logp_of,
    loss_of_logits,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill import losses
from jaxdistill.losses import edits as targets
from jaxdistill.objectives import (
    AmplifyEpistemic,
    AnchorEpistemicMass,
    Barycentre,
    Contrasted,
    Distill,
    DropEpistemicSlice,
    EntropySwitchedKL,
    EntropyWeight,
    FixedEpistemicMass,
    ForkingTokens,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    MassPenalty,
    Purified,
    ReferenceK3,
    ReferenceKL,
    ReverseKL,
    RolloutCorrection,
    SampledK3,
    SampledReverseKL,
    ScoreFunctionReverseKL,
    SkipFirst,
    TopC,
    make_objective,
)
from jaxdistill.objectives.distill import distill_factor, distill_scores
from jaxdistill.objectives.positions import epistemic_of
from jaxdistill.objectives.targets import edited

EPISTEMIC = epistemic_of(IDS, V)
FULL = Distill(support=FullVocabulary(), importance_clip=None)


def with_divergence(divergence, **changes):
    return dataclasses.replace(FULL, divergence=divergence, **changes)


def target_of(choice, given=None):
    return edited(choice, positions() if given is None else given, EPISTEMIC).target_logp_BTV


# ----------------------------------------------------------------------------------- divergences


def test_the_switched_divergence_adds_the_forward_one_where_the_teacher_is_undecided():
    assert_same(with_divergence(EntropySwitchedKL(99.0)), with_divergence(ReverseKL()))
    reverse, _ = value_and_gradient(with_divergence(ReverseKL()))
    forward, _ = value_and_gradient(with_divergence(ForwardKL()))
    threshold = float(np.median(entropy(logp_of(1)))) + 1e-4
    undecided = entropy(logp_of(1)) > threshold
    for tau, is_added in ((-1.0, np.ones((B, T))), (threshold, undecided)):
        switched, _ = value_and_gradient(with_divergence(EntropySwitchedKL(tau)))
        np.testing.assert_allclose(switched, reverse + is_added * forward, rtol=1e-5)


def test_the_score_function_over_the_whole_vocabulary_is_the_reverse_kl():
    assert_same(with_divergence(ScoreFunctionReverseKL()), with_divergence(ReverseKL()))


def test_the_sampled_loss_does_not_read_the_support():
    narrow = with_divergence(SampledReverseKL(), support=TopC(2))
    assert_same(narrow, with_divergence(SampledReverseKL()), exact=True)


def test_a_support_of_c_at_least_v_is_the_full_vocabulary():
    for support in (TopC(V), TopC(V, support="teacher"), TopC(V, support="union"), TopC(V, False)):
        assert_same(dataclasses.replace(FULL, support=support), FULL)


def test_a_truncated_support_keeps_the_epistemic_words_where_their_mass_is_learnt():
    # The student has lost them; the target wants them back.
    lost = logits(0).at[..., np.flatnonzero(MEMBER)].set(-9.0)

    def gradient(**changes):
        objective = with_divergence(ForwardKL(), target=AnchorEpistemicMass(), **changes)
        return jax.grad(loss_of_logits(objective, positions()))(lost)[..., MEMBER]

    full = gradient(support=FullVocabulary())
    np.testing.assert_allclose(gradient(support=TopC(2)), full, rtol=1e-4)
    assert (gradient(support=TopC(2)) < 0).all()  # descent raises each of them
    without = gradient(support=TopC(2, keep_epistemic=False))
    assert not np.allclose(without, full, rtol=0.1)
    plain = dataclasses.replace(FULL, support=TopC(2))
    kept = dataclasses.replace(FULL, support=TopC(2, keep_epistemic=True))
    assert not np.allclose(*(value_and_gradient(each)[0] for each in (plain, kept)))


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


def test_the_anchor_with_the_references_shape_wants_nothing_of_a_student_that_is_its_mixture():
    # S = R and T_nE = R_nE: the target is the reference itself.
    reference = logp_of(2)
    teacher = jax.nn.log_softmax(jnp.where(jnp.asarray(MEMBER), -3.0, reference))
    given = positions(student_logp_BTV=reference, teacher_logp_BTV=teacher)
    objective = with_divergence(ForwardKL(), target=AnchorEpistemicMass(shape="reference"))
    loss, gradient = value_and_gradient(objective, given)
    np.testing.assert_allclose(loss, 0, atol=2e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-6)


def test_a_dropped_slice_does_not_see_what_the_teacher_says_of_doubt():
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


def test_an_all_epistemic_vocabulary_leaves_a_dropped_slice_nothing():
    objective = with_divergence(JensenShannon(), target=DropEpistemicSlice())
    loss, gradient = value_and_gradient(objective, ids=tuple(range(V)))
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("divergence", [SampledReverseKL(), SampledK3()], ids=str)
def test_a_sampled_word_of_the_dropped_slice_says_nothing(divergence):
    objective = with_divergence(divergence, target=DropEpistemicSlice())
    loss, gradient = value_and_gradient(objective)
    is_epistemic = MEMBER[np.asarray(positions().sampled.tokens_BT)]
    np.testing.assert_array_equal(loss[is_epistemic], 0)
    np.testing.assert_array_equal(gradient[is_epistemic], 0)
    assert np.isfinite(loss).all()
    assert (np.asarray(loss)[~is_epistemic] != 0).all()


def test_a_vocabulary_of_nothing_but_doubt_keeps_its_teacher():
    everything = epistemic_of(tuple(range(V)), V)
    target = edited(FixedEpistemicMass(0.1), positions(), everything).target_logp_BTV
    np.testing.assert_allclose(target, logp_of(1), atol=1e-6)


def test_the_fixed_mass_is_the_mass():
    for wanted in (0.02, 0.5, 0.99):
        np.testing.assert_allclose(mass(target_of(FixedEpistemicMass(wanted))), wanted, atol=1e-6)


@pytest.mark.parametrize("where", ["entropy", "fork", "suppressed"])
def test_amplified_doubt_grows_with_the_strength_where_asked_and_never_past_its_cap(where):
    m_T, m_R = mass(logp_of(1)), mass(logp_of(2))
    H = entropy(logp_of(2))
    threshold = float(np.median(H)) + 1e-4
    u = {"entropy": H / np.log(V), "fork": threshold < H, "suppressed": m_R > m_T}[where]
    before = m_T
    for strength in (0.5, 1.0, 2.0, 1e3):
        target = target_of(AmplifyEpistemic(strength, where, threshold, max_mass=0.6))
        odds = np.log(m_T / (1 - m_T)) + strength * u
        expected = np.maximum(np.minimum(1 / (1 + np.exp(-odds)), 0.6), m_T)
        expected = np.where(u > 0, expected, m_T)
        np.testing.assert_allclose(mass(target), expected, atol=1e-5)
        assert (mass(target) >= before - 1e-6).all()
        before = mass(target)


def test_barycentres_end_at_the_base_and_the_teacher_and_are_the_reference_at_zero():
    np.testing.assert_allclose(target_of(Barycentre(0.0)), logp_of(2), atol=1e-6)
    np.testing.assert_allclose(target_of(Barycentre(1.0)), logp_of(1), atol=1e-6)
    own = with_divergence(ForwardKL(), target=Barycentre(0.0, "student"))
    _, gradient = value_and_gradient(own)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    far = target_of(Barycentre(1.0, decay=1e3))
    np.testing.assert_allclose(far, logp_of(2), atol=1e-4)


def test_a_barycentre_on_doubt_alone_keeps_the_teachers_other_ratios():
    target = np.asarray(target_of(Barycentre(0.0, only_epistemic=True)))
    np.testing.assert_allclose(
        np.diff(target[..., ~MEMBER]), np.diff(logp_of(1)[..., ~MEMBER]), atol=1e-5
    )
    np.testing.assert_allclose(
        np.diff(target[..., MEMBER]), np.diff(logp_of(2)[..., MEMBER]), atol=1e-5
    )


def test_a_purified_target_is_the_reference_where_the_context_says_it_all_by_itself():
    same = positions(teacher=1, contrast=1)
    np.testing.assert_allclose(target_of(Purified(), same), logp_of(2), atol=1e-6)
    np.testing.assert_allclose(target_of(Purified(0.0)), logp_of(2), atol=1e-6)
    raw = np.asarray(logp_of(2) + 0.5 * (logp_of(1) - logp_of(3)), np.float64)
    expected = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    np.testing.assert_allclose(target_of(Purified(0.5)), expected, atol=1e-5)


def test_a_contrasted_target_is_the_teacher_where_any_context_says_the_same():
    same = positions(teacher=1, contrast=1)
    np.testing.assert_allclose(target_of(Contrasted(2.0), same), logp_of(1), atol=1e-5)
    floored = targets.contrasted(logp_of(1), jnp.where(jnp.asarray(MEMBER), -1e4, logp_of(3)), 1.0)
    assert np.isfinite(floored).all()


# -------------------------------------------------------------------------------- terms and weights


def test_the_mass_penalty_is_the_bernoulli_divergence_and_pulls_towards_the_reference():
    base, with_term = FULL, dataclasses.replace(FULL, terms=(MassPenalty(2.0),))
    m_S, m_R = mass(logp_of(0)), mass(logp_of(2))
    by_hand = m_R * np.log(m_R / m_S) + (1 - m_R) * np.log((1 - m_R) / (1 - m_S))
    (first, g_first), (second, g_second) = map(value_and_gradient, (base, with_term))
    np.testing.assert_allclose(second - first, 2 * by_hand, rtol=1e-3, atol=1e-6)
    # d kl / d z_E = m_S - m_R in total: descent moves m_S towards m_R.
    pull = (g_second - g_first)[..., MEMBER].sum(-1)
    np.testing.assert_allclose(pull, 2 * (m_S - m_R), atol=2e-6)


def test_the_reference_terms_are_their_divergences_and_vanish_at_the_reference():
    given = positions()

    def added(term, given=given):
        loss, _ = value_and_gradient(dataclasses.replace(FULL, terms=(term,)), given)
        return loss - value_and_gradient(FULL, given)[0]

    S, R = logp_of(0), logp_of(2)
    np.testing.assert_allclose(added(ReferenceKL(0.5)), 0.5 * losses.reverse_kl(S, R), rtol=1e-4)
    np.testing.assert_allclose(
        added(ReferenceKL(0.5, "forward")), 0.5 * losses.forward_kl(S, R), rtol=1e-4
    )
    k3 = losses.k3(given.of_token(S), given.of_token(R))
    np.testing.assert_allclose(added(ReferenceK3(0.5)), 0.5 * k3, rtol=1e-3, atol=1e-6)
    at_reference = positions(student_logp_BTV=R)
    for term in (ReferenceKL(), ReferenceK3(), MassPenalty(), ReferenceKL(1.0, "forward", True)):
        np.testing.assert_allclose(added(term, at_reference), 0, atol=1e-6)


def test_an_anchor_on_epistemic_words_alone_ignores_how_the_rest_is_shared_out():
    term = ReferenceKL(1.0, "forward", only_epistemic=True)
    R = np.asarray(logp_of(2), np.float64)
    # A student with the reference's epistemic words and any others: no penalty.
    rest = np.asarray(logp_of(7), np.float64)
    rest = np.exp(rest) * ~MEMBER
    rest *= (1 - mass(R))[..., None] / rest.sum(-1, keepdims=True)
    student = jnp.asarray(np.log(np.where(MEMBER, np.exp(R), rest)), jnp.float32)
    objective = dataclasses.replace(FULL, terms=(term,))
    given = positions(student_logp_BTV=student)
    with_term, without = (value_and_gradient(o, given)[0] for o in (objective, FULL))
    np.testing.assert_allclose(with_term - without, 0, atol=1e-6)


def test_the_importance_weight_scales_the_loss_and_carries_no_gradient():
    ratio = np.exp(0.1)
    corrected = dataclasses.replace(FULL, importance_clip=2.0)
    for a, b in zip(value_and_gradient(corrected), value_and_gradient(FULL)):
        np.testing.assert_allclose(a, ratio * np.asarray(b), rtol=1e-4, atol=1e-6)
    capped = dataclasses.replace(FULL, importance_clip=1.05)
    loss, _ = value_and_gradient(capped)
    np.testing.assert_allclose(loss, 1.05 * value_and_gradient(FULL)[0], rtol=1e-5)


def test_a_rollout_correction_weighs_what_the_sampler_thought_otherwise():
    given = positions()
    offsets = jnp.array([[0.0, 0.4, 1.5], [0.0, -0.4, -1.5]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    ratio, base = np.exp(offsets), value_and_gradient(FULL, given)[0]
    expected = {False: np.minimum(ratio, 2.0), True: np.where(np.abs(offsets) < 0.7, ratio, 0)}
    for two_sided, weight in expected.items():
        correction = RolloutCorrection(2.0, two_sided=two_sided)
        objective = dataclasses.replace(FULL, importance_clip=2.0, rollout_correction=correction)
        # The policy ratio itself is one: this update is the batch's only one.
        np.testing.assert_allclose(
            value_and_gradient(objective, given)[0], base * weight, rtol=1e-5
        )


# ------------------------------------------------------------------------------ of the whole batch


def factor_of(objective, loss_weight_BT, given=None):
    given = positions() if given is None else given
    scores = distill_scores(objective, given, EPISTEMIC)
    return np.asarray(distill_factor(objective, scores, loss_weight_BT))


def test_sequences_are_corrected_as_a_whole():
    given = positions()
    offsets = jnp.array([[0.1, 0.2, 9.0], [-0.3, 0.1, 0.4]])
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV) - offsets)
    counts = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # the 9 is padding
    objective = dataclasses.replace(FULL, rollout_correction=RolloutCorrection(2.0, "sequence"))
    expected = np.exp([[0.3], [0.2]]) * np.ones((B, T))
    np.testing.assert_allclose(factor_of(objective, counts, given), expected, rtol=1e-5)


def test_kept_positions_take_the_place_of_all_in_the_row_or_in_the_batch():
    weight = jnp.array([[1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    kept = dataclasses.replace(FULL, weights=(SkipFirst(1),), normalizer="kept")
    by_row = factor_of(kept, weight)
    np.testing.assert_allclose(by_row, [[1.5] * 3, [2.0] * 3], rtol=1e-6)
    by_batch = factor_of(dataclasses.replace(kept, reduction="token"), jnp.ones((B, T)))
    np.testing.assert_allclose(by_batch, 1.5, rtol=1e-6)


def test_forks_and_mean_one_weights_are_taken_among_what_the_other_weights_leave():
    skip, every = SkipFirst(1), jnp.ones((B, T))
    forks = dataclasses.replace(FULL, weights=(skip, ForkingTokens(0.5)))
    kept = factor_of(forks, every) * np.array([0, 1, 1])
    assert kept.sum() == 2  # of the four that are left
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


def test_a_row_with_nothing_kept_counts_nothing():
    nothing = dataclasses.replace(FULL, weights=(SkipFirst(9),), normalizer="kept")
    np.testing.assert_array_equal(factor_of(nothing, jnp.ones((B, T))), 0)


def test_forks_of_the_batch_are_kept_and_given_the_weight_of_all():
    forks = dataclasses.replace(
        FULL, weights=(ForkingTokens(0.5),), normalizer="kept", reduction="token"
    )
    factor = factor_of(forks, jnp.ones((B, T)))
    assert sorted(factor.reshape(-1).tolist()) == [0, 0, 0, 2, 2, 2]
