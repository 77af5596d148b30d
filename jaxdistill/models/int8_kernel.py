"""Arithmetic of `decode_kernel` on an int8 cache that converts few of its numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int16

FINE = 254


def as_pairs(x: Int8[Array, "*N H"]) -> Int16[Array, "*N h"]:
    return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 2), jnp.int16)


def from_pairs(x: Int16[Array, "*N h"]) -> Int8[Array, "*N H"]:
    pairs = jax.lax.bitcast_convert_type(x, jnp.int8)
    return pairs.reshape(*x.shape[:-1], -1)


def pair(low: Int8[Array, "*N h"], high: Int8[Array, "*N h"]) -> Int16[Array, "*N h"]:
    return (low.astype(jnp.int16) & 255) | (high.astype(jnp.int16) << 8)


EVEN = """{
    .reg .b32 low, sign;
    lop3.b32 low, $1, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, $1, 0x00800080, 0x43004300, 0xEA;
    sub.rn.bf16x2 $0, low, sign;
}"""
ODD = """{
    .reg .b32 high, low, sign;
    shr.u32 high, $1, 8;
    lop3.b32 low, high, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, high, 0x00800080, 0x43004300, 0xEA;
    sub.rn.bf16x2 $0, low, sign;
}"""


def of_pairs(pairs, dtype, place, has_assembly):
    from jax.experimental.pallas import triton

    if has_assembly and dtype == jnp.bfloat16:
        shape = jax.ShapeDtypeStruct(pairs.shape, dtype)
        (x,) = triton.elementwise_inline_asm(
            (EVEN, ODD)[place], args=[pairs], constraints="=r,r", pack=2, result_shape_dtypes=[shape]
        )
        return x
    low = jax.lax.shift_left(pairs, jnp.int16(8)) if place == 0 else pairs
    return jax.lax.shift_right_arithmetic(low, jnp.int16(8)).astype(dtype)


def in_two_integers(q_GH: Float[Array, "G H"]) -> tuple[Array, Array, Array]:
    q_GH = q_GH.astype(jnp.float32)
    scale_G = jnp.max(jnp.abs(q_GH), axis=1) / 127
    scale_G1 = jnp.where(scale_G < jnp.finfo(jnp.float32).tiny, 1.0, scale_G)[:, None]
    steps_GH = q_GH / scale_G1
    coarse_GH = jnp.floor(steps_GH + 0.5)
    fine_GH = jnp.floor((steps_GH - coarse_GH) * FINE + 0.5)
    return coarse_GH.astype(jnp.int8), fine_GH.astype(jnp.int8), scale_G1 / FINE
