"""Pure functions of one position: RMSNorm and the gated feed-forward network."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdistill.models.quantized_weights import DecodingWeight, Weight, product
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain, num_devices, num_parts, platform


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


def weighted(spec: str, x: Float[Array, "..."], weight: Weight) -> Float[Array, "..."]:
    """`einsum` of activations and a weight, which may have a wider dtype than they, or 8 bits.

    The product then reads the weight rounded to x's dtype, and its gradient, a sum over positions
    and devices, is not rounded before it is complete. In `spec` the weight's letters are its axes.

    >>> weighted("BTD,DF->BTF", jnp.ones((1, 1, 2), jnp.bfloat16), jnp.ones((2, 3))).dtype
    dtype(bfloat16)
    """
    if isinstance(weight, DecodingWeight):  # in decoding only: it has no gradient
        return product(spec, x, weight)
    return einsum(spec, x, weight) if weight.dtype == x.dtype else _weighted(spec, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(spec: str, x: Array, weight: Array) -> Array:
    return einsum(spec, x, _rounded(spec, x, weight))


def _rounded(spec: str, x: Array, weight: Array) -> Array:
    # Rounded where it is stored, so that devices gather it in the narrow dtype.
    return constrain(weight.astype(x.dtype), spec.split("->")[0].split(",")[1])


def _weighted_fwd(spec: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _weighted(spec, x, weight), (x, weight)


def _weighted_bwd(spec: str, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = kept
    inputs, result = spec.split("->")
    of_x, axes = inputs.split(",")
    dx = einsum(f"{result},{axes}->{of_x}", cotangent, _rounded(spec, x, weight))
    dw = einsum(f"{of_x},{result}->{axes}", x, cotangent, out_dtype=weight.dtype)
    return dx, constrain(dw, axes)


_weighted.defvjp(_weighted_fwd, _weighted_bwd)


def swiglu(
    x_BTD: Float[Array, "B T D"],
    gate_up_DXF: Float[Array, "D 2 F"] | DecodingWeight,
    down_FD: Float[Array, "F D"] | DecodingWeight,
    gate_up_bias_XF: Float[Array, "2 F"] | None = None,
    down_bias_D: Float[Array, " D"] | None = None,
) -> Float[Array, "B T D"]:
    """(silu(x W_gate) * (x W_up)) W_down; one product computes gate and up, or two on one GPU.

    Shazeer 2020, arXiv 2002.05202, equation 6. Each projection adds its bias if there is one.
    """
    # Not for one token of each row, and not yet on several devices, whose exchanges would change.
    is_apart = platform() == "gpu" and num_devices() == 1 and x_BTD.shape[1] > 1
    if is_apart and not isinstance(gate_up_DXF, DecodingWeight):
        halves_XBTF = []
        for i in range(2):
            half_BTF = weighted("BTD,DF->BTF", x_BTD, gate_up_DXF[:, i])
            if gate_up_bias_XF is not None:
                half_BTF += gate_up_bias_XF[i][None, None].astype(x_BTD.dtype)
            halves_XBTF.append(checkpoint_name(constrain(half_BTF, "BTF"), "gate_up"))
        out_BTD = _gated_product(*halves_XBTF, down_FD)
    else:
        gate_up_BTXF = weighted("BTD,DXF->BTXF", x_BTD, gate_up_DXF)
        if gate_up_bias_XF is not None:
            gate_up_BTXF += gate_up_bias_XF[None, None].astype(x_BTD.dtype)
        # Constrained, because the compiler may otherwise split the positions of these arrays in the
        # backward pass, and exchange positions for columns (all-to-all) before every product.
        gate_up_BTXF = checkpoint_name(constrain(gate_up_BTXF, "BTXF"), "gate_up")
        gate_BTF, up_BTF = (gate_up_BTXF[:, :, i] for i in range(2))
        out_BTD = _down(_gated(gate_BTF, up_BTF, x_BTD.dtype), down_FD)
    if down_bias_D is not None:
        out_BTD += down_bias_D[None, None].astype(x_BTD.dtype)
    return checkpoint_name(out_BTD, "down")


def _gated(
    gate_BTF: Float[Array, "B T F"], up_BTF: Float[Array, "B T F"], dtype: DTypeLike
) -> Float[Array, "B T F"]:
    # In float32 and rounded once: in bfloat16 every step would be rounded, also of the derivative.
    gate32_BTF, up32_BTF = (x.astype(jnp.float32) for x in (gate_BTF, up_BTF))
    return (jax.nn.silu(gate32_BTF) * up32_BTF).astype(dtype)


def _down(hidden_BTF: Float[Array, "B T F"], down_FD: Weight) -> Float[Array, "B T D"]:
    # A sum over tensor-parallel devices, which arrives split by positions (reduce-scatter).
    return constrain(weighted("BTF,FD->BTD", constrain(hidden_BTF, "BTF"), down_FD), "BZD")


@jax.custom_vjp
def _gated_product(gate_BTF: Array, up_BTF: Array, down_FD: Array) -> Array:
    """(silu(gate) * up) W_down, with all that is elementwise in the backward pass in one pass.

    XLA for GPUs computes silu(gate) * up again and both derivatives in one kernel if the three are
    arrays of one shape, and their inputs are behind one barrier. With gate and up in one array, as
    on other platforms, it takes two kernels, which load and store numbers one by one
    (docs/log.md, 2026-12-01).
    """
    return _down(_gated(gate_BTF, up_BTF, gate_BTF.dtype), down_FD)


def _gated_product_fwd(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _gated_product(*inputs), inputs


def _gated_product_bwd(inputs: tuple[Array, ...], cotangent_BTD: Array) -> tuple[Array, ...]:
    gate_BTF, up_BTF, down_FD = inputs
    # Linear, so that the cotangent does not depend on the point.
    of_hidden = jax.vjp(lambda h: _down(h, down_FD), gate_BTF)[1]
    (d_hidden_BTF,) = of_hidden(cotangent_BTD)
    gate_BTF, up_BTF, d_hidden_BTF = jax.lax.optimization_barrier((gate_BTF, up_BTF, d_hidden_BTF))
    gated = functools.partial(_gated, dtype=gate_BTF.dtype)
    hidden_BTF, of_halves = jax.vjp(gated, gate_BTF, up_BTF)
    of_weight = jax.vjp(lambda w: _down(hidden_BTF, w), down_FD)[1]
    return *of_halves(d_hidden_BTF), *of_weight(cotangent_BTD)


_gated_product.defvjp(_gated_product_fwd, _gated_product_bwd)


# Positions on a device whose feed-forward arrays are in memory at once where none is kept. Each
# block reads the weights again: with two operations per weight and position, 8,192 positions are 2
# to 3 % of the time of the products on devices of 170 (v5p) to 250 (H200) operations per byte. The
# arrays of 43,008 positions take 3 GiB for Qwen3-8B, those of 8,192 0.6 GiB.
BLOCK = 8192


def in_blocks(
    function: Callable[..., Array],
    x_BTD: Float[Array, "B T D"],
    *whole: Float[Array, "B T ..."],
    block: int,
) -> Float[Array, "B T D"]:
    """`function(x_BTD, *whole)`, position by position, in blocks of about `block` per device.

    `whole` are arrays of which every tensor-parallel device has all positions. Not for training:
    the backward pass would keep every block. The result takes the place of `x`. Rows that have no
    such blocks of equal size are not divided.
    """
    B, T, D = x_BTD.shape
    # Every block has the same share of each part of the positions, so that none is moved.
    parts = num_parts("Z", T)
    least = -(-B * T // num_parts("B", B) // block)
    # Up to twice as many blocks as needed, since smaller ones read the weights too often.
    counts = [n for n in range(least, 2 * least + 1) if T // parts % n == 0]
    if least < 2 or not counts:
        return function(x_BTD, *whole)
    size = T // parts // counts[0]
    whole_BZT = [x.reshape(B, parts, -1, *x.shape[2:]) for x in whole]

    def at(x_BZT: Array, i: Array) -> Array:
        block_BZT = jax.lax.dynamic_slice_in_dim(x_BZT, i * size, size, axis=2)
        return block_BZT.reshape(B, -1, *x_BZT.shape[3:])

    def one_block(i, x_BZTD):
        new_BTD = function(constrain(at(x_BZTD, i), "BZD"), *(at(x, i) for x in whole_BZT))
        new_BZTD = constrain(new_BTD.reshape(B, parts, size, D), "BZTD")
        return jax.lax.dynamic_update_slice_in_dim(x_BZTD, new_BZTD, i * size, axis=2)

    x_BZTD = constrain(x_BTD.reshape(B, parts, -1, D), "BZTD")
    return jax.lax.fori_loop(0, counts[0], one_block, x_BZTD).reshape(B, T, D)
