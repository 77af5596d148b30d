"""Terms beside the divergence."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from distilled import FULL
from made_positions import (
    MEMBER,
    logp_of,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill import losses
from jaxdistill.objectives import (
    MassPenalty,
    ReferenceK3,
    ReferenceKL,
)

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
