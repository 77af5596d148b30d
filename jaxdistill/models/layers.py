"""Pure functions of one position: RMSNorm and the gated feed-forward network."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxdistill.precision import einsum


def rms_norm(x: Float[Array, "..."], scale: Float[Array, "..."], eps: float) -> Float[Array, "..."]:
    """x / sqrt(mean(x^2) + eps) * scale, in float32, returned in x's dtype.

    The mean is over the last `scale.ndim` axes: D, H of each head, or N and H.

    >>> rms_norm(jnp.array([[1.0, 7.0]]), jnp.ones(2), 0.0)  # sqrt((1 + 49) / 2) = 5
    Array([[0.2, 1.4]], dtype=float32)

    Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    # float32: with bfloat16's 8 bits, a sum of D squares would lose the small ones.
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(x32 * x32, axis=tuple(range(-scale.ndim, 0)), keepdims=True)
    scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
    return (x32 * jax.lax.rsqrt(variance + eps) * scale).astype(x.dtype)


def swiglu(
    x_BTD: Float[Array, "B T D"],
    gate_up_DXF: Float[Array, "D 2 F"],
    down_FD: Float[Array, "F D"],
    gate_up_bias_XF: Float[Array, "2 F"] | None = None,
    down_bias_D: Float[Array, " D"] | None = None,
) -> Float[Array, "B T D"]:
    """(silu(x W_gate) * (x W_up)) W_down; one product computes gate and up.

    Shazeer 2020, arXiv 2002.05202, equation 6. Each projection adds its bias if there is one.
    """
    gate_up_BTXF = einsum("BTD,DXF->BTXF", x_BTD, gate_up_DXF)
    if gate_up_bias_XF is not None:
        gate_up_BTXF += gate_up_bias_XF[None, None]
    gate_up_BTXF = checkpoint_name(gate_up_BTXF, "gate_up")
    gate_BTF, up_BTF = (gate_up_BTXF[:, :, i].astype(jnp.float32) for i in range(2))
    # In float32 and rounded once: in bfloat16 every step would be rounded, also of the derivative.
    hidden_BTF = (jax.nn.silu(gate_BTF) * up_BTF).astype(x_BTD.dtype)
    out_BTD = einsum("BTF,FD->BTD", hidden_BTF, down_FD)
    if down_bias_D is not None:
        out_BTD += down_bias_D[None, None]
    return checkpoint_name(out_BTD, "down")
