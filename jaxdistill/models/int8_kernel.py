"""Arithmetic of Triton kernels on int8 numbers that converts few of them, or cheaply.

Triton converts an int8 operand of a bfloat16 product element by element, and where the summed axis
is not the last one it even loads it byte by byte: the loop of `decode_kernel` had 923 instructions
for an int8 block so, and 394 for a bfloat16 one. Two ways around it:

- A product of integers: the other operand is rounded to two int8 numbers, a coarse one and a fine
  one, whose int32 products with the int8 numbers are exact.
- Pairs: two int8 numbers are loaded as one int16. The hardware moves and transposes words of 16
  bits as it does those of bfloat16, and a word's two numbers become operands of two products.

A number from -128 to 127 is bfloat16(128 + its low 7 bits) - bfloat16(128 + its sign bit), exactly:
bfloat16 keeps 7 bits after the leading one, so that the numbers of [128, 256) are 0x4300 + 0 to
127, and 0x4380 is 256. `_EVEN` and `_ODD` compute this for two numbers at a time.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int16

from jaxdistill.models.quantized import quantize, round_to_steps

# Fine steps in a coarse one. A remainder is at most half a coarse step, so 127 fine ones.
FINE = 254

# In PTX, $1 is two pairs and $0 two bfloat16. 0xEA is the truth table of (a & b) | c.
_EVEN = """{
    .reg .b32 low, sign;
    lop3.b32 low, $1, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, $1, 0x00800080, 0x43004300, 0xEA;
    sub.rn.bf16x2 $0, low, sign;
}"""
_ODD = """{
    .reg .b32 high, low, sign;
    shr.u32 high, $1, 8;
    lop3.b32 low, high, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, high, 0x00800080, 0x43004300, 0xEA;
    sub.rn.bf16x2 $0, low, sign;
}"""


def as_pairs(x: Int8[Array, "*N H"]) -> Int16[Array, "*N half"]:
    """The same bytes, two neighbours in one number: XLA moves none."""
    return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 2), jnp.int16)


def from_pairs(x: Int16[Array, "*N half"]) -> Int8[Array, "*N H"]:
    """The inverse of `as_pairs`."""
    return jax.lax.bitcast_convert_type(x, jnp.int8).reshape(*x.shape[:-1], -1)


def pair(even: Int8[Array, "*N"], odd: Int8[Array, "*N"]) -> Int16[Array, "*N"]:
    """Pairs of the numbers at even and at odd places, for little-endian bytes."""
    return (even.astype(jnp.int16) & 255) | (odd.astype(jnp.int16) << 8)


def one_of_pairs(
    pairs: Int16[Array, "*N"], place: int, dtype: DTypeLike, *, has_assembly: bool
) -> Float[Array, "*N"]:
    """The number at `place`, 0 or 1, of each pair; `has_assembly` in kernels for Hopper GPUs."""
    if has_assembly and dtype == jnp.bfloat16:
        from jax.experimental.pallas import triton

        (x,) = triton.elementwise_inline_asm(
            (_EVEN, _ODD)[place],
            args=[pairs],
            constraints="=r,r",
            pack=2,
            result_shape_dtypes=[jax.ShapeDtypeStruct(pairs.shape, dtype)],
        )
        return x
    low = pairs << 8 if place == 0 else pairs
    return jax.lax.shift_right_arithmetic(low, jnp.full_like(low, 8)).astype(dtype)


def in_two_integers(
    x_GH: Float[Array, "G H"],
) -> tuple[Int8[Array, "G H"], Int8[Array, "G H"], Float32[Array, "G 1"]]:
    """(coarse, fine, step) of each row: x is about (FINE * coarse + fine) * step.

    Off by half a step, max|x| / 64,516: less than a hundredth of bfloat16's own rounding of the
    largest numbers. A product over up to 256 places with int8 numbers stays below 2^31.

    >>> coarse, fine, step = in_two_integers(jnp.array([[1.0, -0.3]]))
    >>> coarse.tolist(), fine.tolist()
    ([[127, -38]], [[0, -25]])
    """
    x_GH = x_GH.astype(jnp.float32)
    coarse_GH, scale_G = quantize(x_GH)
    rest_GH = x_GH / scale_G[:, None] - coarse_GH.astype(jnp.float32)
    return coarse_GH, round_to_steps(rest_GH * FINE, jnp.int8), scale_G[:, None] / FINE
