"""Divergences as choices of an objective."""

import numpy as np
from distilled import with_divergence
from made_positions import (
    B,
    T,
    assert_same,
    entropy,
    logp_of,
    value_and_gradient,
)

from jaxdistill.objectives import (
    EntropySwitchedKL,
    ForwardKL,
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
