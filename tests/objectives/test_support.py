"""Supports: the whole vocabulary, or the top candidates with a tail."""

import dataclasses

import jax
import numpy as np
import pytest
from distilled import FULL, with_divergence
from made_positions import (
    MEMBER,
    V,
    assert_same,
    logits,
    loss_of_logits,
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    AnchorEpistemicMass,
    ForwardKL,
    FullVocabulary,
    TopC,
)


def test_a_support_of_c_at_least_v_is_the_full_vocabulary():
    for support in (TopC(V), TopC(V, support="teacher"), TopC(V, support="union"), TopC(V, False)):
        assert_same(dataclasses.replace(FULL, support=support), FULL)


@pytest.mark.long
def test_a_truncated_support_keeps_the_epistemic_ids_where_their_mass_is_learnt():
    # The student has lost them, and the target gives them mass.
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
