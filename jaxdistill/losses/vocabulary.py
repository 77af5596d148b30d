"""Log-sums over the vocabulary, which on a GPU take one pass over it and not two.

There each pass is a kernel that reads 152k numbers a position; XLA's own makes one for the maximum
and one for the sum. Elsewhere, and where the last axis is split over devices, these are JAX's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxdistill.sharding import num_parts, platform


def logsumexp(x: Float32[Array, "*batch V"]) -> Float32[Array, "*batch"]:
    """log sum_v exp(x_v). Not differentiable on a GPU; `log_softmax` is."""
    if not _in_one_pass(x):
        return jax.nn.logsumexp(x, axis=-1)
    largest, log_total = _largest_and_log_total(x)
    return jnp.where(largest == _LOWEST, -jnp.inf, largest + log_total)


def log_softmax(x: Float32[Array, "*batch V"]) -> Float32[Array, "*batch V"]:
    """x - log sum_v exp(x_v)."""
    return _log_softmax(x) if _in_one_pass(x) else jax.nn.log_softmax(x, axis=-1)


def _in_one_pass(x: Array) -> bool:
    return platform() == "gpu" and num_parts("V", x.shape[-1]) == 1


# Finite where there is nothing: a difference of two of them is 0 and not NaN.
_LOWEST = -1e30


def _largest_and_log_total(x: Array) -> tuple[Array, Array]:
    """max_v x_v, and log sum_v exp(x_v - max).

    Two sums, each relative to its own maximum, are joined relative to the larger one: arXiv
    1805.02867, algorithm 3.
    """

    def join(one, other):
        (a_max, a_sum), (b_max, b_sum) = one, other
        is_a = a_max >= b_max
        smaller, larger = jnp.where(is_a, b_sum, a_sum), jnp.where(is_a, a_sum, b_sum)
        return jnp.maximum(a_max, b_max), larger + smaller * jnp.exp(-jnp.abs(a_max - b_max))

    lowest = jnp.array(_LOWEST, x.dtype)
    seen = jnp.maximum(x, lowest), jnp.ones_like(x)
    largest, total = jax.lax.reduce(seen, (lowest, jnp.zeros_like(lowest)), join, (x.ndim - 1,))
    return largest, jnp.log(total)


@jax.custom_jvp
def _log_softmax(x: Array) -> Array:
    largest, log_total = _largest_and_log_total(x)
    return (x - largest[..., None]) - log_total[..., None]


@_log_softmax.defjvp
def _log_softmax_jvp(primals, tangents):
    logp, (dx,) = _log_softmax(*primals), tangents
    return logp, dx - jnp.sum(jnp.exp(logp) * dx, axis=-1, keepdims=True)
