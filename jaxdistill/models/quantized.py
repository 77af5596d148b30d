"""Vectors in 8 bits with one float32 scale each: x is about values * scale.

In int8 the scale is the largest magnitude divided by 127, so each number is off by at most half a
step, |x - values * scale| <= scale / 2 = max|x| / 254, and an outlier coarsens only its own vector.
Per-vector absmax: Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339. For keys and values: Hooper
et al. 2024, KVQuant, arXiv 2401.18079, which goes below 8 bits and therefore needs scales per
channel for keys. At 8 bits a scale per position suffices; it is known when the position is written.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Shaped

from jaxdistill.errors import UserError

CacheDtype = Literal["auto", "int8"]  # of cached keys and values: compute dtype, or `Quantized`
CACHE_DTYPES: tuple[str, ...] = get_args(CacheDtype)

_SCALE_BYTES = 4  # float32


# The largest finite numbers. That of float8 is rounded to by all up to 464, and more is NaN.
_LARGEST = {"int8": 127, "float8_e4m3fn": 448}


class Quantized(NamedTuple):
    """Vectors and their scales, as a pytree; `shape` and `dtype` are those of the values."""

    values: Shaped[Array, "*N H"]  # int8 or float8_e4m3fn
    scale: Float32[Array, "*N"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> Any:
        return self.values.dtype


def quantize(x_NH: Float[Array, "*N H"], dtype: DTypeLike = jnp.int8) -> Quantized:
    """Round each vector (the last axis) to 255 steps of its own scale; zeros get scale 1.

    In float8_e4m3fn each number keeps four significant bits: it is off by at most a 16th of itself,
    or by 2^-10 of the scale if that is more.

    >>> values, scale = quantize(jnp.array([[2.54, -1.0, 0.0]]))
    >>> values.tolist(), round(float(scale[0]), 3)
    ([[127, -50, 0]], 0.02)
    """
    x_NH = x_NH.astype(jnp.float32)
    # Symmetric: -128 is not used.
    scale_N = jnp.max(jnp.abs(x_NH), axis=-1) / _LARGEST[jnp.dtype(dtype).name]
    # A subnormal scale has lost bits or is flushed to zero, and the quotient could be anything.
    scale_N = jnp.where(scale_N < jnp.finfo(jnp.float32).tiny, 1.0, scale_N)
    return Quantized(round_to_steps(x_NH / scale_N[..., None], dtype), scale_N)


def round_to_steps(x_NH: Float32[Array, "*N H"], dtype: DTypeLike) -> Shaped[Array, "*N H"]:
    """Numbers in units of their scale, rounded to `dtype`."""
    # Halves are rounded up, because floor is the only rounding that Pallas has on Triton.
    values_NH = jnp.floor(x_NH + 0.5) if dtype == jnp.int8 else x_NH
    return values_NH.astype(dtype)


def dequantize(x: Quantized) -> Float32[Array, "*N H"]:
    """values * scale, in float32."""
    return x.values.astype(jnp.float32) * x.scale[..., None]


def vector_bytes(head_dim: int, dtype: DTypeLike, cache_dtype: CacheDtype) -> int:
    """Bytes of one key, or of one value: one head at one position."""
    if cache_dtype == "int8":
        return head_dim + _SCALE_BYTES
    return head_dim * jnp.dtype(dtype).itemsize


def check_cache_dtype(name: str, field: str = "`cache_dtype`") -> None:
    """Raise UserError, naming the `field`, for a name that is not in CACHE_DTYPES."""
    if name not in CACHE_DTYPES:
        raise UserError(f"{field} must be one of {', '.join(CACHE_DTYPES)}, got {name!r}")
