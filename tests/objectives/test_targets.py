"""Targets: edits of the teacher's distribution."""

import numpy as np
import pytest
from distilled import target_of
from made_positions import (
    V,
    entropy,
    logp_of,
    mass,
)

from jaxdistill.objectives import (
    AmplifyEpistemic,
)


@pytest.mark.parametrize("where", ["entropy", "fork", "suppressed"])
def test_amplified_doubt_grows_with_the_strength_up_to_its_cap(where):
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
