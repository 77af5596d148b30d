"""The composed objectives: they reduce to their base, protect what they say, and match NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import losses, targets
from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    GRPO,
    AnchorEpistemicMass,
    CrossEntropy,
    Distill,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    MaskSampledEpistemic,
    Positions,
    ReverseKL,
    SuppressionGate,
    TopC,
    epi_anchor,
    epi_gate,
    epi_mask,
    grpo,
    make_objective,
    needs_reference,
    needs_teacher,
    sdpo,
)

B, T, V = 2, 3, 12
IDS = (2, 5, 7)
EPISTEMIC = [epi_mask(), epi_gate(), epi_anchor()]
DIVERGENCES = [ForwardKL(), ReverseKL(), JensenShannon()]
SUPPORTS = [FullVocabulary(), TopC(c=4), TopC(c=4, tail=False), TopC()]


def logits(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(scale=1.5, size=(B, T, V)), jnp.float32)


def positions(student=0, teacher=1, reference=2, **changes):
    student_logp, teacher_logp, reference_logp = (
        jax.nn.log_softmax(logits(seed)) for seed in (student, teacher, reference)
    )
    tokens = jnp.array([[2, 0, 1], [11, 7, 3]])
    made = Positions(
        student_logp_BTV=student_logp,
        teacher_logp_BTV=teacher_logp,
        reference_logp_BTV=reference_logp,
        tokens_BT=tokens,
        behaviour_logp_BT=losses.take_token(student_logp, tokens) - 0.1,
        advantage_B=jnp.array([0.5, -0.5]),
    )
    return made._replace(**changes)


def weighted_loss(objective, given, ids=IDS):
    """Sum over positions as a function of the student's logits."""
    evaluate = make_objective(objective, ids)

    def total(student_logits):
        loss_BT, weight_BT, _ = evaluate(
            given._replace(student_logp_BTV=jax.nn.log_softmax(student_logits))
        )
        return jnp.sum(loss_BT * weight_BT)

    return total


def assert_same(first, second, atol=2e-6):
    """Equal value and gradient in the student's logits."""
    for a, b in zip(jax.value_and_grad(first)(logits(0)), jax.value_and_grad(second)(logits(0))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def with_support(objective, support, divergence=None):
    return dataclasses.replace(
        objective, support=support, divergence=divergence or objective.divergence
    )


# ------------------------------------------------------------------------------------ reductions


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
@pytest.mark.parametrize("objective", EPISTEMIC, ids=["mask", "gate", "anchor"])
def test_with_no_epistemic_ids_every_variant_is_its_base(objective, support):
    variant = weighted_loss(with_support(objective, support), positions(), ids=())
    base = weighted_loss(with_support(sdpo(), support), positions(), ids=())
    assert_same(variant, base)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("objective", [epi_gate(), epi_anchor()], ids=["gate", "anchor"])
def test_a_teacher_that_doubts_as_the_reference_makes_gate_and_anchor_the_base(
    objective, divergence
):
    given = positions(teacher=1, reference=1)
    variant = with_support(objective, FullVocabulary(), divergence)
    base = with_support(sdpo(), FullVocabulary(), divergence)
    assert_same(weighted_loss(variant, given), weighted_loss(base, given))


def test_a_gate_that_never_closes_and_a_mix_of_zero_are_the_base():
    base = weighted_loss(with_support(sdpo(), FullVocabulary()), positions())
    for choice in (
        {"weight": SuppressionGate(threshold=1.0)},
        {"target": AnchorEpistemicMass(mode="mix", mix=0.0)},
    ):
        variant = dataclasses.replace(sdpo(), support=FullVocabulary(), **choice)
        assert_same(weighted_loss(variant, positions()), base)


def test_the_papers_objective_is_the_jensen_shannon_of_the_students_top_c_and_a_tail():
    given = positions(behaviour_logp_BT=losses.take_token(*positions()[0:4:3]))
    loss_BT, weight_BT, _ = make_objective(with_support(sdpo(), TopC(c=4)), IDS)(given)
    pair = losses.top_c(given.student_logp_BTV, given.teacher_logp_BTV, 4)
    np.testing.assert_array_equal(loss_BT, losses.jensen_shannon(*pair, 0.5))
    np.testing.assert_array_equal(weight_BT, 1)


def test_presets_are_what_the_paper_and_their_names_say():
    assert sdpo() == Distill(JensenShannon(0.5), TopC(100, tail=True), importance_clip=2.0)
    assert sdpo().reduction == grpo().reduction == "sequence"
    assert grpo() == GRPO(clip_low=0.2, clip_high=0.28, dual_clip=3.0, normalize_std=False)
    assert epi_mask() == dataclasses.replace(sdpo(), weight=MaskSampledEpistemic())
    assert epi_gate() == dataclasses.replace(sdpo(), weight=SuppressionGate(0.01))
    assert epi_anchor() == dataclasses.replace(sdpo(), target=AnchorEpistemicMass("ref"))


# ------------------------------------------------------------------------------ what they protect


def probabilities(mass, seed):
    """Random over V words, with `mass` on the epistemic ones."""
    p = np.random.default_rng(seed).dirichlet(np.ones(V))
    member = np.isin(np.arange(V), IDS)
    p[member] *= mass / p[member].sum()
    p[~member] *= (1 - mass) / p[~member].sum()
    return p


@pytest.mark.parametrize(("m_S", "m_T"), [(0.05, 0.002), (0.3, 0.02), (0.6, 0.1)])
def test_masking_sampled_doubt_keeps_one_minus_its_mass_of_the_suppression(m_S, m_T):
    # One position for each word that could be sampled, weighted by the chance of sampling it.
    S, teacher = probabilities(m_S, seed=0), probabilities(m_T, seed=1)
    chance = jnp.asarray(S, jnp.float32)
    given = Positions(
        student_logp_BTV=jnp.zeros((1, V, V)),
        teacher_logp_BTV=jnp.broadcast_to(jnp.log(jnp.asarray(teacher, jnp.float32)), (1, V, V)),
        reference_logp_BTV=None,
        tokens_BT=jnp.arange(V)[None],
        behaviour_logp_BT=jnp.log(chance)[None],
        advantage_B=jnp.zeros(1),
    )

    def suppression(objective):
        evaluate = make_objective(with_support(objective, FullVocabulary(), ReverseKL()), IDS)

        def expected_loss(student_logits):
            student_logp = jnp.broadcast_to(jax.nn.log_softmax(student_logits), (1, V, V))
            loss_BT, weight_BT, _ = evaluate(given._replace(student_logp_BTV=student_logp))
            return jnp.sum(chance * (loss_BT * weight_BT)[0])

        return jax.grad(expected_loss)(jnp.log(chance))[jnp.array(IDS)].sum()

    retained = suppression(epi_mask()) / suppression(sdpo())
    np.testing.assert_allclose(retained, 1 - m_S, rtol=1e-4)


def test_masked_and_gated_positions_have_exactly_no_gradient_and_the_others_all_of_it():
    given = positions()
    base = jax.grad(weighted_loss(with_support(sdpo(), FullVocabulary()), given))(logits(0))
    masses = [np.exp(p)[..., list(IDS)].sum(-1) for p in given[1:3]]
    keeps = {
        epi_mask(): ~np.isin(given.tokens_BT, IDS),
        epi_gate(): ~(masses[1] - masses[0] > 0.01),
    }
    for objective, keep_BT in keeps.items():
        assert 0 < keep_BT.sum() < keep_BT.size
        gradient = jax.grad(weighted_loss(with_support(objective, FullVocabulary()), given))(
            logits(0)
        )
        np.testing.assert_array_equal(gradient[~keep_BT], 0)
        np.testing.assert_allclose(gradient[keep_BT], base[keep_BT], rtol=1e-6, atol=1e-7)


def test_the_gate_keeps_more_positions_the_higher_its_threshold():
    def num_kept(threshold):
        gated = Distill(weight=SuppressionGate(threshold))
        _, _, metrics = make_objective(gated, IDS)(positions())
        return float(metrics["kept"].sum())

    kept = [num_kept(threshold) for threshold in (0.0, 0.01, 0.1, 0.3, 1.0)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == B * T


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("support", [FullVocabulary(), TopC(c=2)], ids=str)
def test_an_anchored_loss_is_zero_for_the_student_that_doubts_as_the_reference(divergence, support):
    given = positions()
    member_V = jnp.isin(jnp.arange(V), jnp.array(IDS))
    anchored = targets.anchor_mass(given.teacher_logp_BTV, given.reference_logp_BTV, member_V)
    objective = with_support(epi_anchor(), support, divergence)
    total = weighted_loss(objective, given)
    value, gradient = jax.value_and_grad(total)(anchored)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    np.testing.assert_allclose(
        np.exp(anchored)[..., list(IDS)].sum(-1),
        np.exp(given.reference_logp_BTV)[..., list(IDS)].sum(-1),
        atol=1e-6,
    )


def test_a_student_that_lost_all_its_doubt_is_still_told_to_recover_it():
    # The epistemic words are the student's last three; only the forced support sees them apart.
    lost = jnp.zeros((B, T, V)).at[..., jnp.array(IDS)].set(-8.0)

    def gradient_on_doubt(support):
        objective = with_support(epi_anchor(), support, ForwardKL())
        return jax.grad(weighted_loss(objective, positions()))(lost)[..., jnp.array(IDS)]

    restricted = gradient_on_doubt(TopC(c=2))
    assert (restricted < 0).all()  # descent raises each of them
    # Student minus target, exact on the forced ids whatever else is in the support.
    np.testing.assert_allclose(restricted, gradient_on_doubt(FullVocabulary()), rtol=1e-4)


# --------------------------------------------------------------------------- gradients and metrics


@pytest.mark.parametrize("objective", [sdpo(), *EPISTEMIC, grpo(), CrossEntropy()], ids=str)
def test_gradients_reach_the_student_alone(objective):
    def total(student, teacher, reference):
        given = positions()._replace(
            student_logp_BTV=student, teacher_logp_BTV=teacher, reference_logp_BTV=reference
        )
        loss_BT, weight_BT, metrics = make_objective(objective, IDS)(given)
        return jnp.sum(loss_BT * weight_BT) + sum(map(jnp.sum, metrics.values()))

    given = positions()
    gradients = jax.grad(total, argnums=(0, 1, 2))(*given[:3])
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)


def test_the_importance_weight_scales_the_loss_and_carries_no_gradient():
    given = positions()
    ratio = np.exp(0.1)
    for objective in (sdpo(), epi_anchor()):
        without = dataclasses.replace(objective, importance_clip=None)
        plain, weighted = (weighted_loss(each, given) for each in (without, objective))
        np.testing.assert_allclose(weighted(logits(0)), ratio * plain(logits(0)), rtol=1e-5)
        np.testing.assert_allclose(
            jax.grad(weighted)(logits(0)), ratio * jax.grad(plain)(logits(0)), rtol=1e-4, atol=1e-6
        )


def test_metrics_equal_a_float64_oracle():
    given = positions()
    _, _, metrics = make_objective(sdpo(), IDS)(given)
    S, teacher, R = (np.exp(np.asarray(p, np.float64)) for p in given[:3])
    m_S, m_T, m_R = (p[..., list(IDS)].sum(-1) for p in (S, teacher, R))
    expected = {
        "epistemic_mass_student": m_S,
        "epistemic_mass_teacher": m_T,
        "epistemic_mass_reference": m_R,
        "entropy_student": -(S * np.log(S)).sum(-1),
        "kl_teacher": (teacher * np.log(teacher / S)).sum(-1),
        "mass_kl": m_T * np.log(m_T / m_S) + (1 - m_T) * np.log((1 - m_T) / (1 - m_S)),
        "importance_ratio": np.full((B, T), np.exp(0.1)),
        "clipped": np.zeros((B, T)),
        "kept": np.ones((B, T)),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=2e-6, err_msg=name)


def test_metrics_of_what_is_not_given_are_left_out():
    given = positions()._replace(teacher_logp_BTV=None, reference_logp_BTV=None)
    _, _, metrics = make_objective(CrossEntropy(), IDS)(given)
    assert set(metrics) == {"epistemic_mass_student", "entropy_student", "kept"}
    _, _, metrics = make_objective(grpo(), ())(given)
    assert set(metrics) >= {"importance_ratio", "clipped"}
    np.testing.assert_array_equal(metrics["epistemic_mass_student"], 0)


@pytest.mark.parametrize("objective", [sdpo(), *EPISTEMIC, grpo(), CrossEntropy()], ids=str)
def test_every_objective_gives_the_same_under_jit(objective):
    evaluate = make_objective(objective, IDS)
    eager, jitted = evaluate(positions()), jax.jit(evaluate)(positions())
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted)):
        assert a.shape == (B, T)
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------- GRPO and the rest


def test_grpo_equals_numpy_in_value_gradient_and_statistics():
    given = positions()
    offsets = jnp.array(
        [[0.0, -0.4, 0.5], [0.0, -1.5, 0.5]]
    )  # ratios 1, .67, 1.65 and 1, .22, 1.65
    given = given._replace(
        behaviour_logp_BT=losses.take_token(given.student_logp_BTV, given.tokens_BT) - offsets
    )
    loss_BT, weight_BT, metrics = make_objective(grpo(), IDS)(given)
    ratio, A = np.exp(np.asarray(offsets, np.float64)), np.array([[0.5] * 3, [-0.5] * 3])
    unclipped, clipped = -A * ratio, -A * np.clip(ratio, 0.8, 1.28)
    expected = np.maximum(unclipped, clipped)
    np.testing.assert_allclose(loss_BT, expected, rtol=1e-5)
    np.testing.assert_array_equal(weight_BT, 1)
    np.testing.assert_allclose(metrics["importance_ratio"], ratio, rtol=1e-5)
    np.testing.assert_array_equal(metrics["clipped"], [[0, 0, 1], [0, 1, 0]])

    gradient = jax.grad(weighted_loss(grpo(), given))(logits(0))
    onehot = np.eye(V)[np.asarray(given.tokens_BT)]
    active = 1 - np.asarray(metrics["clipped"])
    by_hand = (active * -A * ratio)[..., None] * (onehot - np.exp(given.student_logp_BTV))
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_minus_the_log_probability_of_the_token():
    given = positions()
    loss_BT, weight_BT, _ = make_objective(CrossEntropy(), IDS)(given)
    expected = -np.asarray(given.student_logp_BTV)[
        np.arange(B)[:, None], np.arange(T), given.tokens_BT
    ]
    np.testing.assert_array_equal(loss_BT, expected)
    np.testing.assert_array_equal(weight_BT, 1)


def test_objectives_say_which_networks_they_need():
    needs = {
        objective: (needs_teacher(objective), needs_reference(objective))
        for objective in (sdpo(), *EPISTEMIC, grpo(), CrossEntropy())
    }
    assert list(needs.values()) == [
        (True, False), (True, False), (True, True), (True, True), (False, False), (False, False),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: JensenShannon(alpha=1.5), "JensenShannon.alpha"),
        (lambda: TopC(c=0), "TopC.c"),
        (lambda: AnchorEpistemicMass(mode="base"), "AnchorEpistemicMass.mode"),
        (lambda: AnchorEpistemicMass(mix=-0.1), "AnchorEpistemicMass.mix"),
        (lambda: SuppressionGate(threshold=-0.1), "SuppressionGate.threshold"),
        (lambda: Distill(importance_clip=0.0), "Distill.importance_clip"),
        (lambda: Distill(reduction="mean"), "Distill.reduction"),
        (lambda: GRPO(dual_clip=0.5), "GRPO.dual_clip"),
        (lambda: CrossEntropy(reduction="mean"), "CrossEntropy.reduction"),
    ],
)
def test_a_setting_out_of_range_is_named(make, field):
    with pytest.raises(UserError, match=field):
        make()


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(UserError, match=f"151000.*vocabulary of {V}"):
        make_objective(sdpo(), (2, 151000))(positions())


def test_a_padded_vocabulary_changes_nothing():
    # Rows of the embedding beyond the tokenizer: the model gives them no probability to speak of.
    def pad(logp):
        return jnp.pad(logp, ((0, 0), (0, 0), (0, 4)), constant_values=-np.inf)

    given = positions()
    padded = given._replace(
        student_logp_BTV=pad(given.student_logp_BTV),
        teacher_logp_BTV=pad(given.teacher_logp_BTV),
        reference_logp_BTV=pad(given.reference_logp_BTV),
    )
    for objective in (sdpo(), *EPISTEMIC):
        for support in (FullVocabulary(), TopC(c=4)):
            evaluate = make_objective(with_support(objective, support), IDS)
            for a, b in zip(*(jax.tree.leaves(evaluate(each)) for each in (given, padded))):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
