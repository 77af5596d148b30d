"""Choices beyond the presets: each equals its formula, and has the right limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distilled import FULL, target_of, with_divergence
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_positions import (
    IDS,
    MEMBER,
    B,
    T,
    V,
    assert_same,
    entropy,
    logp_of,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill import losses
from jaxdistill.losses import advantages, edits
from jaxdistill.objectives import (
    GRPO,
    AntiSD,
    Barycentre,
    Contrasted,
    EntropySwitchedKL,
    FixedEpistemicMass,
    ForwardKL,
    MassPenalty,
    Purified,
    ReferenceK3,
    ReferenceKL,
    ReverseKL,
    ScoreFunctionReverseKL,
    SuppressUnlikely,
)
from jaxdistill.objectives.positions import epistemic_of

TOKENS = np.array([[2, 0, 1], [11, 7, 3]])
EPISTEMIC = epistemic_of(IDS, V)
ADVANTAGE = np.array([[0.5] * T, [-0.5] * T])


def token(seed):
    return np.take_along_axis(np.asarray(logp_of(seed), np.float64), TOKENS[..., None], -1)[..., 0]


# ------------------------------------------------------------------------------------------ targets


def test_a_vocabulary_of_nothing_but_doubt_keeps_its_teacher():
    everything = epistemic_of(tuple(range(V)), V)
    target = FixedEpistemicMass(0.1).edit(positions(), everything)
    np.testing.assert_allclose(target, logp_of(1), atol=1e-6)


def test_the_fixed_mass_is_the_mass():
    for wanted in (0.02, 0.5, 0.99):
        np.testing.assert_allclose(mass(target_of(FixedEpistemicMass(wanted))), wanted, atol=1e-6)


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


def test_a_purified_target_is_the_reference_where_the_context_alone_predicts_the_same():
    same = positions(teacher=1, contrast=1)
    np.testing.assert_allclose(target_of(Purified(), same), logp_of(2), atol=1e-6)
    np.testing.assert_allclose(target_of(Purified(0.0)), logp_of(2), atol=1e-6)
    raw = np.asarray(logp_of(2) + 0.5 * (logp_of(1) - logp_of(3)), np.float64)
    expected = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    np.testing.assert_allclose(target_of(Purified(0.5)), expected, atol=1e-5)


def test_a_contrasted_target_is_the_teacher_where_the_contrast_equals_it():
    same = positions(teacher=1, contrast=1)
    np.testing.assert_allclose(target_of(Contrasted(2.0), same), logp_of(1), atol=1e-5)
    floored = edits.contrasted(logp_of(1), jnp.where(jnp.asarray(MEMBER), -1e4, logp_of(3)), 1.0)
    assert np.isfinite(floored).all()


# -------------------------------------------------------------------------------------- divergences


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


# -------------------------------------------------------------------------------------------- terms


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


def test_an_anchor_on_epistemic_tokens_ignores_the_distribution_of_the_others():
    term = ReferenceKL(1.0, "forward", only_epistemic=True)
    R = np.asarray(logp_of(2), np.float64)
    # A student with the reference's epistemic probabilities and any others: no penalty.
    rest = np.asarray(logp_of(7), np.float64)
    rest = np.exp(rest) * ~MEMBER
    rest *= (1 - mass(R))[..., None] / rest.sum(-1, keepdims=True)
    student = jnp.asarray(np.log(np.where(MEMBER, np.exp(R), rest)), jnp.float32)
    objective = dataclasses.replace(FULL, terms=(term,))
    given = positions(student_logp_BTV=student)
    with_term, without = (value_and_gradient(o, given)[0] for o in (objective, FULL))
    np.testing.assert_allclose(with_term - without, 0, atol=1e-6)


# ------------------------------------------------------------------------------------------ credits


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


def test_anti_credit_is_added_only_where_its_entropy_gate_and_token_set_apply():
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
            choice.advantage(positions(), EPISTEMIC), expected, rtol=1e-5, atol=1e-6
        )


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
            choice.advantage(given, EPISTEMIC), expected, rtol=1e-5, atol=1e-6
        )
    loss, _ = value_and_gradient(GRPO(credit=choice), alone)
    assert (np.asarray(loss) >= 0).all()  # the negative of a negative advantage
