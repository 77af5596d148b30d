"""The weights as decode steps read them: fused, gathered over fsdp, and rounded if asked for."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized_weights import (
    FORMATS,
    HEAD,
    DecodingWeight,
    WeightsDtype,
    decoding_layer,
    has_quantized_head,
    is_read_by_kernels,
    quantize_weight,
)
from jaxdistill.sampling.drawing import columns_of
from jaxdistill.sharding import constrain, num_parts


def decoding_weights(
    params: Any, config: ModelConfig, dtype: Any, weights_dtype: WeightsDtype = "auto"
) -> tuple[parameters.Unstacked, Float[Array, "D V"] | DecodingWeight]:
    """The layers and head_DV in the form that decoding reads: fused, in `dtype`, unsharded along D.

    Sharding D (fsdp) saves memory in training, but decoding would gather every weight again for
    every token, so only the tensor-parallel sharding remains. The embedding alone stays as it is
    unless it is the head too: a step looks up one row per slot. Without a mesh nothing is gathered.
    A head that a mesh splits has columns of zeros up to `drawing.columns_of`. Each device rounds
    its own part of the weights to `weights_dtype` before any is gathered.
    """

    def gather(name: str, x: Any) -> Any:
        if isinstance(x, DecodingWeight):
            return x.gathered
        # X has no sharding rule, so the axis is whole on every device.
        return constrain(x, name.rsplit("_", 1)[-1].replace("D", "X"))

    def gather_layer(layer: parameters.Layer) -> parameters.Layer:
        # Skip fields that the family lacks (None), and the query and key norms, whose axes vary by
        # family and which are small.
        named = {n: x for n, x in layer._asdict().items() if x is not None and n[-1].isupper()}
        return layer._replace(**{name: gather(name, x) for name, x in named.items()})

    def filled(x: Array, axis: int) -> Array:
        missing = columns_of(config.vocab_size, num_parts("V")) - x.shape[axis]
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(2)]) if missing else x

    weights = parameters.unstack(params, config, dtype=dtype)
    by_kernel = is_read_by_kernels(weights_dtype, config, dtype)
    layers = [
        gather_layer(decoding_layer(layer, weights_dtype, by_kernel=by_kernel))
        for layer in weights.layers
    ]
    embed_VD = weights.embed_VD.astype(dtype)
    if config.tie_embeddings:
        embed_VD = gather("VD", filled(embed_VD, 0))
    else:
        embed_VD = constrain(embed_VD, "VD")
    weights = parameters.Unstacked(embed_VD, tuple(layers), gather("D", weights.norm_D))
    if config.tie_embeddings and not has_quantized_head(weights_dtype):
        return weights, embed_VD.T  # one gathered copy serves as embedding and head
    head_DV: Any = filled(parameters.head(params, config).astype(dtype), 1)
    if has_quantized_head(weights_dtype):
        head_DV = quantize_weight(head_DV, HEAD, FORMATS[weights_dtype], by_kernel=by_kernel)
    return weights, gather("DV", head_DV)
