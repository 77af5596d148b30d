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
    AnchorForks,
    AntiSD,
    Barycentre,
    Contrasted,
    EntropySwitchedKL,
    FixedEpistemicMass,
    ForwardKL,
    MassPenalty,
    Mixed,
    OutcomeKL,
    Purified,
    ReferenceK3,
    ReferenceKL,
    ReverseKL,
    Routed,
    ScoreFunctionReverseKL,
    SuppressUnlikely,
    TopC,
    factors,
    make_objective,
    make_scores,
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


def forks_of(objective, given=None, loss_weight_BT=None):
    """The positions with the batch's factors, as a step makes them."""
    given = positions() if given is None else given
    weight_BT = jnp.ones((B, T)) if loss_weight_BT is None else loss_weight_BT
    scores = make_scores(objective, IDS)(given)
    found = factors(objective, scores, weight_BT, given.rows)
    return given._replace(sampled=found.added_to(given.sampled))


def test_forks_are_imitated_as_the_mixture_of_a_float64_oracle_and_all_else_as_the_teacher():
    chosen = AnchorForks(fraction=0.5, temperature=0.2)
    # The last position of the second row is padding: three of the other five are forks.
    given = forks_of(
        with_divergence(ForwardKL(), target=chosen), None, jnp.ones((B, T)).at[1, 2].set(0)
    )
    counted = np.where(np.arange(B * T) < 5, entropy(logp_of(0)).reshape(-1), -1)
    is_fork = np.zeros(B * T, bool)
    is_fork[np.argsort(-counted)[:3]] = True
    teacher, reference = (np.exp(np.asarray(logp_of(seed), np.float64)) for seed in (1, 2))
    S_y, T_y = (np.exp(token(seed)) for seed in (0, 1))
    U = 1 / (1 + np.exp(-S_y * np.log(S_y / T_y) / 0.2))
    mixed = U[..., None] * reference + (1 - U[..., None]) * teacher
    pair = chosen.edit(given, EPISTEMIC)
    target, is_fork = pair.target_logp_BTV, is_fork.reshape(B, T)
    np.testing.assert_allclose(np.exp(target)[is_fork], mixed[is_fork], atol=1e-6)
    np.testing.assert_array_equal(target[~is_fork], logp_of(1)[~is_fork])
    share = pair.metrics["reference_share"]
    np.testing.assert_allclose(share.value_BT, U, atol=1e-6)
    np.testing.assert_array_equal(share.weight_BT, is_fork)
    # On a support the tail is the exact remainder of the mixture.
    with_tail = losses.top_c(logp_of(0), target, 4)[1]
    ids = np.argsort(-np.asarray(logp_of(0)), axis=-1, kind="stable")[..., :4]
    rest = mixed.sum(-1) - np.take_along_axis(mixed, ids, -1).sum(-1)
    np.testing.assert_allclose(np.exp(with_tail[..., -1])[is_fork], rest[is_fork], atol=1e-6)


def test_an_anchored_fork_is_a_constant_target():
    """The gradient is S - target: none passes through U, which depends on the student."""
    objective = with_divergence(ForwardKL(), target=AnchorForks(1.0, 0.1))
    _, gradient = value_and_gradient(objective)
    expected = np.exp(logp_of(0)) - np.exp(target_of(AnchorForks(1.0, 0.1)))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_anchored_forks_end_at_the_teacher_and_at_the_reference():
    # A temperature near 0 makes the gate hard: U is 1 where T(y) < S(y) and 0 where T(y) > S(y).
    target = np.asarray(target_of(AnchorForks(1.0, 1e-6)))
    is_suppressed = token(1) < token(0)
    assert 0 < is_suppressed.sum() < B * T
    np.testing.assert_allclose(target[is_suppressed], logp_of(2)[is_suppressed], atol=1e-5)
    np.testing.assert_allclose(target[~is_suppressed], logp_of(1)[~is_suppressed], atol=1e-5)
    same = positions(teacher=1, reference=1)
    np.testing.assert_allclose(target_of(AnchorForks(1.0), same), logp_of(1), atol=1e-6)
    nowhere = AnchorForks(0.0)
    given = forks_of(with_divergence(ForwardKL(), target=nowhere))
    np.testing.assert_array_equal(target_of(nowhere, given), logp_of(1))


def test_the_metric_of_anchored_forks_is_of_distilled_rows_in_every_mixture():
    distill = with_divergence(ForwardKL(), target=AnchorForks(1.0), reduction="sequence")
    given = forks_of(distill, positions(distill_weight_BT=jnp.array([1.0, 0.0])))
    for objective in (distill, Mixed(distill), Routed(distill)):
        share = make_objective(objective, IDS)(given)[1]["reference_share"]
        np.testing.assert_array_equal(share.weight_BT, [[1] * T, [0] * T])


# -------------------------------------------------------------------------------------- divergences


def test_correct_completions_have_the_forward_divergence_and_all_others_the_reverse_one():
    """So that the two partition the rows, whatever the support and the clip of entries."""
    for changes in ({}, {"support": TopC(4)}):
        of_each = [
            value_and_gradient(with_divergence(divergence, **changes))
            for divergence in (OutcomeKL(), ForwardKL(), ReverseKL())
        ]
        for outcome, forward, reverse in zip(*of_each, strict=True):
            np.testing.assert_array_equal(outcome[0], forward[0])  # the first row is correct
            np.testing.assert_array_equal(outcome[1], reverse[1])
            assert np.abs(outcome[1] - forward[1]).max() > 1e-3
    assert_same(
        with_divergence(OutcomeKL(0.1)),
        with_divergence(ReverseKL(0.1)),
        positions(correct_BT=jnp.zeros(B)),
        exact=True,
    )


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
