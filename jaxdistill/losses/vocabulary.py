"""Log-sum-exp over the vocabulary in one pass on a GPU, and a top-k that does not sort all of it.

Each pass is a kernel that reads 152k numbers per position, and XLA's own log-sum-exp takes one for
the maximum and one for the sum. On other platforms, and if the last axis is split over devices,
JAX's functions are used.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Shaped

from jaxdistill.sharding import constrain, num_parts, platform


def logsumexp(x: Float32[Array, "*batch V"]) -> Float32[Array, "*batch"]:
    """log sum_v exp(x_v). Not differentiable on a GPU; `log_softmax` is."""
    if not _in_one_pass(x):
        return jax.nn.logsumexp(x, axis=-1)
    largest, log_total = _largest_and_log_total(x)
    return jnp.where(largest == _LOWEST, -jnp.inf, largest + log_total)


def log_softmax(x: Float32[Array, "*batch V"]) -> Float32[Array, "*batch V"]:
    """x - log sum_v exp(x_v)."""
    return _log_softmax(x) if _in_one_pass(x) else jax.nn.log_softmax(x, axis=-1)


def normaliser(x: Float32[Array, "*batch V"]) -> tuple[Array, Array]:
    """(max_v x_v, log sum_v exp(x_v - max)) of each row, for `normalised`. Not differentiable."""
    if _in_one_pass(x):
        return _largest_and_log_total(x)
    largest = jnp.maximum(jnp.max(x, axis=-1), _LOWEST)
    return largest, jnp.log(jnp.sum(jnp.exp(x - largest[..., None]), axis=-1))


def normalised(x: Float32[Array, "*batch V"], of: tuple[Array, Array]) -> Float32[Array, "..."]:
    """`log_softmax` of x, elementwise, by its `normaliser`."""
    largest, log_total = of
    return (x - largest[..., None]) - log_total[..., None]


def _in_one_pass(x: Array) -> bool:
    # The custom reduction cannot be split: the compiler would gather V on every device first.
    return platform() == "gpu" and num_parts("V", x.shape[-1]) == 1


# The maximum of no numbers. Finite, so that the difference of two is 0 and not NaN.
_LOWEST = -1e30


def _largest_and_log_total(x: Array) -> tuple[Array, Array]:
    """max_v x_v, and log sum_v exp(x_v - max).

    Two sums, each relative to its own maximum, are joined relative to the larger maximum: Milakov
    and Gimelshein 2018, arXiv 1805.02867, algorithm 3.
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
    return normalised(x, _largest_and_log_total(x))


@_log_softmax.defjvp
def _log_softmax_jvp(primals, tangents):
    # d log_softmax(x) = dx - sum_v P_v dx_v: autodiff would differentiate the reduction instead.
    logp, (dx,) = _log_softmax(*primals), tangents
    return logp, dx - jnp.sum(jnp.exp(logp) * dx, axis=-1, keepdims=True)


def top_k(x: Shaped[Array, "*batch V"], k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k`: the k largest of the last axis and their indices, also if V is split.

    In this form, with two dimensions and whole results, the TPU compiler takes the largest of each
    part of V; otherwise it sorts the whole vocabulary.
    """
    rows_BV = constrain(x.reshape(-1, x.shape[-1]), "BV")
    found = _top_k_of_blocks(rows_BV, k) if platform() == "gpu" else jax.lax.top_k(rows_BV, k)
    values_BC, ids_BC = (constrain(y, "BC") for y in found)
    shape = (*x.shape[:-1], k)
    return values_BC.reshape(shape), ids_BC.reshape(shape)


def in_equal_parts(x: Shaped[Array, "*batch V"]) -> Shaped[Array, "*batch U"]:
    """x to gather from, filled up with zeros where the mesh splits V unevenly.

    That moves nothing: the last device's part is as large. From unequal parts the TPU compiler
    would gather numbers only after it has made, of several, equal ones.
    """
    missing = -x.shape[-1] % num_parts("V", x.shape[-1])
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _top_k_of_blocks(rows_BV: Shaped[Array, "B V"], k: int) -> tuple[Array, Array]:
    """Sort only the k blocks with the largest maxima: they contain the k largest numbers.

    On a GPU `jax.lax.top_k` sorts, which for 100 of 152k took a fifth of a training step. Ties go
    to the lowest index, as in `jax.lax.top_k`.
    """
    B, V = rows_BV.shape
    # A divisor of V, at or below sqrt(V / k), which makes the two sorts equally long.
    size = next(size for size in range(max(math.isqrt(V // k), 1), 0, -1) if V % size == 0)
    # Two sorts, of the maxima and of the candidates. If together they sort more than half of V,
    # there is too little to gain: chosen, not measured (100 of 152k sort a twentieth of it).
    if 2 * (V // size + k * size) > V:
        values_BC, ids_BC = jax.lax.top_k(rows_BV, k)
        return values_BC, ids_BC
    blocks_BXC = rows_BV.reshape(B, -1, size)
    # In ascending order, so that the candidates keep the order of their indices, which ties need.
    chosen_BX = jnp.sort(jax.lax.top_k(blocks_BXC.max(axis=-1), k)[1], axis=-1)
    candidates_BXC = jnp.take_along_axis(blocks_BXC, chosen_BX[:, :, None], axis=1)
    values_BC, at_BC = jax.lax.top_k(candidates_BXC.reshape(B, -1), k)
    block_BC = jnp.take_along_axis(chosen_BX, at_BC // size, axis=1)
    return values_BC, block_BC * size + at_BC % size
