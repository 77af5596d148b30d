"""One layer of a decode step with int8 weights by `weights_kernel`, apart from attention itself.

As `block`, for layers that neither norm nor add a bias after a product. Launches of a layer:

    q/k/v product | its parts added | attention | output product | residual, norm, rounding
    gate and up product, SiLU | down product | residual, the next layer's norm, rounding

Without the kernels XLA has as many with weights in bfloat16, and up to five more in 8 bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import rms_norm
from jaxdistill.models.parameters import Layer, Unstacked
from jaxdistill.models.quantized import Quantized, quantize
from jaxdistill.models.quantized_weights import DecodingWeight, kernel_product
from jaxdistill.models.weights_kernel import add_parts_and_norm


class Stream(NamedTuple):
    """The residual stream, and its norm as the next product reads it."""

    residual_BD: Float[Array, "B D"]
    normed_BD: Float[Array, "B D"] | Quantized


def has_kernel_weights(weights: Unstacked) -> bool:
    weight: Any = weights.layers[0].down_FD
    return isinstance(weight, DecodingWeight) and weight.by_kernel


def final_hidden(stream: Stream) -> Float[Array, "B D"]:
    """The hidden states after the last layer, whose kernel has normed them."""
    assert not isinstance(stream.normed_BD, Quantized)
    return stream.normed_BD


def start(layer: Layer, config: ModelConfig, x_BD: Float[Array, "B D"]) -> Stream:
    """The stream before the first layer."""
    normed_BD: Any = rms_norm(x_BD, layer.attention_norm_D, config.norm_eps)
    return Stream(x_BD, quantize(normed_BD) if _is_dynamic(layer.qkv_DKXH) else normed_BD)


def project(layer: Layer, stream: Stream) -> Float[Array, "B 1 K X H"]:
    """`block.project` of the stream."""
    weight: Any = layer.qkv_DKXH
    dtype = stream.residual_BD.dtype
    parts_OBN = kernel_product(stream.normed_BD, weight, dtype)
    qkv_BKXH = jnp.sum(parts_OBN.astype(jnp.float32), axis=0).astype(dtype)
    qkv_BKXH = qkv_BKXH.reshape(-1, *weight.scale.shape)
    if layer.qkv_bias_KXH is not None:
        qkv_BKXH += layer.qkv_bias_KXH[None].astype(dtype)
    return qkv_BKXH[:, None]


def add_attention_and_mlp(
    layer: Layer,
    config: ModelConfig,
    stream: Stream,
    attended_BNH: Float[Array, "B N H"],
    following: Layer | Float[Array, " D"],
) -> Stream:
    """`block.add_attention_and_mlp`, and the norm of the layer that follows, or the final one."""

    def added(parts_OBD: Array, residual_BD: Array, norm_D: Array, in_int8: bool) -> Stream:
        eps = config.norm_eps
        return Stream(*add_parts_and_norm(parts_OBD, residual_BD, norm_D, eps=eps, in_int8=in_int8))

    out, gate_up, down = (getattr(layer, name) for name in ("out_NHD", "gate_up_DXF", "down_FD"))
    x_BD, dtype = stream.residual_BD, stream.residual_BD.dtype
    with jax.named_scope("attention"):
        parts_OBD = kernel_product(attended_BNH.reshape(len(attended_BNH), -1), out, dtype)
        x_BD, normed_BD = added(parts_OBD, x_BD, layer.mlp_norm_D, _is_dynamic(gate_up))
    with jax.named_scope("mlp"):
        (hidden_BF,) = kernel_product(normed_BD, gate_up, dtype)
        parts_OBD = kernel_product(hidden_BF, down, dtype)
        if isinstance(following, Layer):
            norm_D, in_int8 = following.attention_norm_D, _is_dynamic(following.qkv_DKXH)
        else:
            norm_D, in_int8 = following, False
        return added(parts_OBD, x_BD, norm_D, in_int8)


def _is_dynamic(weight: Any) -> bool:
    return weight.is_dynamic
