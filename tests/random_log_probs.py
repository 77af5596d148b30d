"""Random distributions over a small vocabulary, and float64 references of their gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdistill import losses

VOCAB = 8

DIVERGENCES = [
    pytest.param(losses.forward_kl, id="forward_kl"),
    pytest.param(losses.reverse_kl, id="reverse_kl"),
    pytest.param(losses.jensen_shannon, id="jensen_shannon"),
    pytest.param(lambda s, t: losses.jensen_shannon(s, t, alpha=0.2), id="jensen_shannon_0.2"),
]

# Float32 sums of VOCAB terms of size up to ~10: 10 * 2^-24 * a few operations.
ATOL = 5e-6

logits_pairs = hnp.arrays(
    np.float32, (2, VOCAB), elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


def random_logits(seed, *shape):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype(np.float32)


def logp(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probabilities, np.float32)))


def numeric_gradient(f, x, step=1e-5):
    """Central differences in float64; error about step^2 = 1e-10."""
    x = np.asarray(x, np.float64)
    moves = step * np.eye(x.size)
    return np.array([(f(x + move) - f(x - move)) / (2 * step) for move in moves])
