"""What the teacher's distribution is made into."""

import jax.numpy as jnp
import numpy as np
import pytest
from distilled import target_of, with_divergence
from made_positions import (
    MEMBER,
    V,
    entropy,
    logp_of,
    mass,
    positions,
    value_and_gradient,
)

from jaxdistill.losses import edits
from jaxdistill.objectives import (
    AmplifyEpistemic,
    Barycentre,
    Contrasted,
    FixedEpistemicMass,
    ForwardKL,
    Purified,
)
from jaxdistill.objectives.positions import epistemic_of
from jaxdistill.objectives.targets import edited


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
    floored = edits.contrasted(logp_of(1), jnp.where(jnp.asarray(MEMBER), -1e4, logp_of(3)), 1.0)
    assert np.isfinite(floored).all()
