"""One layer of the decoder, apart from attention itself: projections, norms and feed-forward.

`models.decoder` runs it over whole sequences, over prompts and for one token of each row.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import in_blocks, rms_norm, swiglu, weighted
from jaxdistill.models.parameters import Layer
from jaxdistill.models.rope import apply_rope
from jaxdistill.sharding import constrain, num_parts


def project(
    layer: Layer, config: ModelConfig, x_BTD: Float[Array, "B T D"]
) -> Float[Array, "B T K X H"]:
    """Project to the G queries, the key and the value of each key/value head (X = G + 2)."""
    if not config.post_norm:
        x_BTD = rms_norm(x_BTD, layer.attention_norm_D, config.norm_eps)
    qkv_BTKXH = weighted("BTD,DKXH->BTKXH", _all_positions(x_BTD), layer.qkv_DKXH)
    if layer.qkv_bias_KXH is not None:
        qkv_BTKXH += layer.qkv_bias_KXH[None, None].astype(qkv_BTKXH.dtype)
    # `models.remat` chooses by these names which results the backward pass recomputes.
    return checkpoint_name(qkv_BTKXH, "qkv")


def _all_positions(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """A norm's result on every tensor-parallel device, from the part (Z) that each computed.

    Split by the first constraint, the result is what is gathered. Without it the compiler may
    gather what the norm rounds, in float32, which is twice as much.
    """
    return constrain(constrain(x_BTD, "BZD"), "BTD")


def heads(
    layer: Layer,
    config: ModelConfig,
    qkv_BTKXH: Float[Array, "B T K X H"],
    rotary: tuple[Float[Array, "#B T half"], Float[Array, "#B T half"]],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries and keys, normed if the family has such norms, and rotated; values as projected."""
    q_BTNH = qkv_BTKXH[:, :, :, :-2].reshape(*qkv_BTKXH.shape[:2], *config.shape("NH"))
    k_BTKH, v_BTKH = qkv_BTKXH[:, :, :, -2], qkv_BTKXH[:, :, :, -1]
    if layer.q_norm is not None and layer.k_norm is not None:
        q_BTNH = rms_norm(q_BTNH, layer.q_norm, config.norm_eps)
        k_BTKH = rms_norm(k_BTKH, layer.k_norm, config.norm_eps)
    q_BTNH, k_BTKH = apply_rope(q_BTNH, *rotary), apply_rope(k_BTKH, *rotary)
    return constrain(q_BTNH, "BTNH"), constrain(k_BTKH, "BTKH"), constrain(v_BTKH, "BTKH")


def gathered(layer: Layer) -> Layer:
    """The layer with its weights gathered over fsdp: once, where a loop would do it every time."""

    def whole(name: str, x: Array) -> Array:
        return constrain(x, name.rsplit("_", 1)[-1].replace("D", "X"))  # X is never split

    # Of the names without axes, a family lacks some (None), and norms of heads are small.
    named = {n: x for n, x in layer._asdict().items() if x is not None and n[-1].isupper()}
    return layer._replace(**{name: whole(name, x) for name, x in named.items()})


def add_attention_and_mlp(
    layer: Layer,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    attended_BTNH: Float[Array, "B T N H"],
    mlp_block: int | None = None,
) -> Float[Array, "B T D"]:
    """The block's two residual additions, each with its norm before or after.

    In the residual stream the positions (Z) are split over the mesh axis that splits heads and F
    inside the products: each tensor-parallel device then stores and norms only a part of the
    stream (sequence parallelism, Korthikanti et al. 2022, arXiv 2205.05198).
    """
    if mlp_block is None:
        return _add_both(layer, config, x_BTD, attended_BTNH)
    # Gathered over fsdp here, once, and not in every block.
    layer = layer._replace(
        gate_up_DXF=constrain(layer.gate_up_DXF, "XXF"), down_FD=constrain(layer.down_FD, "FX")
    )
    if num_parts("Z", x_BTD.shape[1]) == 1:  # attention's product is no sum over devices
        with jax.named_scope("attention"):
            x_BTD = _add_attention(layer, config, x_BTD, attended_BTNH)
        with jax.named_scope("mlp"):
            return in_blocks(functools.partial(_add_mlp, layer, config), x_BTD, block=mlp_block)
    # Its product in the blocks too. Of whole rows the sum of 84,480 positions of 4,096 numbers, a
    # teacher's row of Qwen3-8B, stays an all-reduce with libtpu 0.0.42.1: twice the traffic.
    layer = layer._replace(out_NHD=constrain(layer.out_NHD, "NHX"))
    both = functools.partial(_add_both, layer, config)
    return in_blocks(both, x_BTD, attended_BTNH, block=mlp_block)


def _add_both(
    layer: Layer,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    attended_BTNH: Float[Array, "B T N H"],
) -> Float[Array, "B T D"]:
    with jax.named_scope("attention"):
        x_BTD = _add_attention(layer, config, x_BTD, attended_BTNH)
    with jax.named_scope("mlp"):
        return _add_mlp(layer, config, x_BTD)


def _add_attention(
    layer: Layer,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    attended_BTNH: Float[Array, "B T N H"],
) -> Float[Array, "B T D"]:
    # The product is a sum over tensor-parallel devices. Asked for as "BZD", the sum arrives
    # already split (reduce-scatter), and each device norms, adds and keeps a part of it.
    out_BTD = constrain(weighted("BTNH,NHD->BTD", attended_BTNH, layer.out_NHD), "BZD")
    if layer.out_bias_D is not None:
        out_BTD += layer.out_bias_D[None, None].astype(out_BTD.dtype)
    out_BTD = checkpoint_name(out_BTD, "out")
    if config.post_norm:
        out_BTD = rms_norm(out_BTD, layer.attention_norm_D, config.norm_eps)
    return constrain(x_BTD + out_BTD, "BZD")


def _add_mlp(
    layer: Layer, config: ModelConfig, x_BTD: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    mlp_input_BTD = x_BTD
    if not config.post_norm:
        mlp_input_BTD = rms_norm(x_BTD, layer.mlp_norm_D, config.norm_eps)
    mlp_BTD = swiglu(
        _all_positions(mlp_input_BTD),
        layer.gate_up_DXF,
        layer.down_FD,
        layer.gate_up_bias_XF,
        layer.down_bias_D,
    )
    if config.post_norm:
        mlp_BTD = rms_norm(mlp_BTD, layer.mlp_norm_D, config.norm_eps)
    return constrain(x_BTD + mlp_BTD, "BZD")
