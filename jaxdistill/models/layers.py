"""Pure functions of one position: norm, rotary embedding, gated feed-forward."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.precision import einsum


def rms_norm(
    x: Float[Array, "*rows D"], scale_D: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32, returned in x's dtype.

    >>> rms_norm(jnp.array([[1.0, 7.0]]), jnp.ones(2), 0.0)  # sqrt((1 + 49) / 2) = 5
    Array([[0.2, 1.4]], dtype=float32)

    Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    scale = scale_D.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 * jax.lax.rsqrt(variance + eps) * scale).astype(x.dtype)


def rope_angles(
    positions_BT: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of position * theta^(-2i/H), i < H/2, in float32.

    float32 because bfloat16 cannot represent position 257.

    Su et al. 2021, arXiv 2104.09864, equation 15.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions_BT.astype(jnp.float32)[:, :, None] * (theta**-exponents)[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x_BTNH: Float[Array, "B T N H"],
    cos_BTh: Float[Array, "B T half"],
    sin_BTh: Float[Array, "B T half"],
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (x_i, x_{i + H/2}) by their angles.

    Halves, not neighbours: the layout of Hugging Face checkpoints, whose projections are permuted
    accordingly.
    """
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)


def swiglu(
    x_BTD: Float[Array, "B T D"],
    gate_up_DXF: Float[Array, "D 2 F"],
    down_FD: Float[Array, "F D"],
) -> Float[Array, "B T D"]:
    """(silu(x W_gate) * (x W_up)) W_down; gate and up are read by one multiplication.

    Shazeer 2020, arXiv 2002.05202, equation 6.
    """
    gate_up_BTXF = einsum("BTD,DXF->BTXF", x_BTD, gate_up_DXF)
    hidden_BTF = jax.nn.silu(gate_up_BTXF[:, :, 0]) * gate_up_BTXF[:, :, 1]
    return einsum("BTF,FD->BTD", hidden_BTF, down_FD)
