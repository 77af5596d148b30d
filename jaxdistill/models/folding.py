"""Norms of the residual stream folded into the product after them, for decoding on a GPU.

(x / rms(x) * scale) W = x (scale W) / rms(x), where rms(x) = sqrt(mean(x^2) + eps): the scale goes
into the weights once a policy, and whoever reads the product's result divides by rms(x). A product
of few rows then waits for no norm, which is a launch of its own; its few microseconds would be half
of what the product takes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import sharding
from jaxdistill.precision import einsum


def fold(scale_D: Float[Array, " D"], weight: Float[Array, "D ..."]) -> Float[Array, "D ..."]:
    """scale W, in float32."""
    scale = scale_D.astype(jnp.float32).reshape(-1, *(1,) * (weight.ndim - 1))
    return scale * weight.astype(jnp.float32)


def inverse_rms(stream_ref: Any, eps: float) -> Float[Array, ""]:
    """1 / rms of the row that a kernel's program is given: [D], D any number."""
    from jax.experimental.pallas import triton

    (D,) = stream_ref.shape
    column_Y = jnp.arange(1 << (D - 1).bit_length())  # registers come in powers of two
    x_Y = triton.load(stream_ref.at[column_Y], mask=column_Y < D, other=0.0).astype(jnp.float32)
    return jax.lax.rsqrt(jnp.sum(x_Y * x_Y) / D + eps)


def swiglu_of_stream(
    stream_BD: Float[Array, "B D"],
    gate_up_DXF: Float[Array, "D 2 F"],
    down_FD: Float[Array, "F D"],
    eps: float,
    interpret: bool = False,
) -> Float[Array, "B D"]:
    """`layers.swiglu` of the normed stream, the norm's scale being in gate_up_DXF."""
    gate_up_BXF = einsum("BD,DXF->BXF", stream_BD, gate_up_DXF)
    gated = sharding.on_shards(
        functools.partial(_gated, eps=eps, interpret=interpret), ("BXF", "BX"), "BF"
    )
    return einsum("BF,FD->BD", gated(gate_up_BXF, stream_BD), down_FD)


def _gated(gate_up_BXF: Array, stream_BD: Array, *, eps: float, interpret: bool) -> Array:
    """silu(gate / rms) * up / rms, by a program for each row and block of F."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (B, _, F), block = gate_up_BXF.shape, 1024

    def kernel(gate_up_ref, stream_ref, out_ref):
        column_C = pl.program_id(1) * block + jnp.arange(block)
        is_real_C, inverse = column_C < F, inverse_rms(stream_ref, eps)
        gate_C, up_C = (
            triton.load(gate_up_ref.at[i, column_C], mask=is_real_C, other=0.0).astype(jnp.float32)
            for i in range(2)
        )
        gate_C *= inverse
        out_C = gate_C * jax.nn.sigmoid(gate_C) * up_C * inverse
        triton.store(out_ref.at[column_C], out_C.astype(out_ref.dtype), mask=is_real_C)

    row = lambda *sizes: pl.BlockSpec((None, *sizes), lambda b, _: (b,) + (0,) * len(sizes))  # noqa: E731
    return pl.pallas_call(
        kernel,
        grid=(B, pl.cdiv(F, block)),
        in_specs=[row(2, F), row(stream_BD.shape[1])],
        out_specs=row(F),
        out_shape=jax.ShapeDtypeStruct((B, F), gate_up_BXF.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="gated",
    )(gate_up_BXF, stream_BD)
