"""The divergence, its support, and how the two are compared."""

import dataclasses

import jax
import numpy as np
from distilled import FULL, with_divergence
from made_positions import (
    MEMBER,
    B,
    T,
    V,
    assert_same,
    entropy,
    logits,
    logp_of,
    loss_of_logits,
    positions,
    value_and_gradient,
)

from jaxdistill.objectives import (
    AnchorEpistemicMass,
    EntropySwitchedKL,
    ForwardKL,
    FullVocabulary,
    ReverseKL,
    SampledReverseKL,
    ScoreFunctionReverseKL,
    TopC,
)

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
