"""Divergences as choices of an objective."""

from distilled import with_divergence
from made_positions import (
    assert_same,
)

from jaxdistill.objectives import (
    SampledReverseKL,
    TopC,
)

# ----------------------------------------------------------------------------------- divergences


def test_the_sampled_loss_does_not_read_the_support():
    narrow = with_divergence(SampledReverseKL(), support=TopC(2))
    assert_same(narrow, with_divergence(SampledReverseKL()), exact=True)
