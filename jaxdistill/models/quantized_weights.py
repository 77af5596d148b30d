"""Weights as decode steps read them, in 8 bits with one scale per output channel.

A decode step of few rows reads every weight once, so that half of the bytes should be nearly half
of the time of its products. With Qwen3-1.7B's sizes on an H200 it is not: at 64 rows every format
is slower than bfloat16, and at 256 rows `float8_dynamic` alone is faster, by 2 % (docs/log.md,
2026-12-01). TPUs were not timed. `sampling.weights` rounds, on the device and from the parameters
that it is given, the query, key, value, output, gate, up and down projections, and for some formats
the head. Embeddings, norms and biases stay as they are.

| `weights_dtype` | weights | activations of these products | head |
|---|---|---|---|
| `int8` | int8 | in the compute dtype | int8 |
| `int8_dynamic` | int8 | int8, one scale per row | in the compute dtype |
| `float8_dynamic` | float8_e4m3fn | float8_e4m3fn, one scale per row | in the compute dtype |

`int8` converts the weight where the product reads it, which the compiler fuses into the product: a
TPU's does, and a GPU's does with its Triton products only (`sampler.compiler_options`). The others
multiply in 8 bits and reach the matrix units at twice the rate: int8 on TPUs, float8 on Hopper GPUs
by cuBLASLt, which wants the summed axis last in both inputs, as it is stored here. A row's scale is
its own, so that its result does not depend on its neighbours; where tensor-parallel devices share
the summed axis (output and down projections), it is one more small exchange per product.

Weight-only and dynamic int8: Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339. E4M3: Micikevicius
et al. 2022, FP8 formats for deep learning, arXiv 2209.05433.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import quantize
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain

WeightsDtype = Literal["auto", "int8", "int8_dynamic", "float8_dynamic"]  # auto: the compute dtype
WEIGHTS_DTYPES: tuple[str, ...] = get_args(WeightsDtype)

_SCALE_BYTES = 4  # float32


@dataclass(frozen=True)
class Format:
    """The dtype of weights, whether activations are rounded to it too, and whether the head is."""

    dtype: DTypeLike
    is_dynamic: bool
    has_head: bool


# A head whose activations are rounded as well would add that error to every logit.
FORMATS: dict[str, Format] = {
    "int8": Format(jnp.int8, is_dynamic=False, has_head=True),
    "int8_dynamic": Format(jnp.int8, is_dynamic=True, has_head=False),
    "float8_dynamic": Format(jnp.float8_e4m3fn, is_dynamic=True, has_head=False),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodingWeight:
    """A weight as values * scale: `axes` are the letters of the outputs and, last, of the inputs.

    Inputs of several axes, such as the heads NH, are one axis with the first one's letter.
    """

    values: Any  # [*N, C], int8 or float8_e4m3fn
    scale: Any  # [*N], float32
    axes: str = dataclasses.field(metadata={"static": True})
    is_dynamic: bool = dataclasses.field(metadata={"static": True})

    def constrained(self, axes: str) -> "DecodingWeight":
        """The same, split over the mesh by other letters (`sharding.constrain`)."""
        scale, values = constrain(self.scale, axes[:-1]), constrain(self.values, axes)
        return dataclasses.replace(self, values=values, scale=scale)

    @property
    def gathered(self) -> "DecodingWeight":
        """Whole along D on every device: X has no sharding rule."""
        return self.constrained(self.axes.replace("D", "X"))


Weight = Float[Array, "..."] | DecodingWeight


def quantize_weight(
    weight: Float[Array, "..."], axes: str, summed: str, how: Format
) -> DecodingWeight:
    """Round a weight whose letters `summed` are those that its product sums over.

    A column of zeros has scale 1 and stays zero. Each device rounds its own part.
    """
    outputs = "".join(a for a in axes if a not in summed)
    last = jnp.transpose(weight, [axes.index(a) for a in outputs + summed])
    last = last.reshape(*last.shape[: len(outputs)], -1)
    found_axes = outputs + summed[0]
    values, scale = quantize(constrain(last, found_axes), how.dtype)
    return DecodingWeight(values, scale, found_axes, how.is_dynamic).constrained(found_axes)


def product(
    spec: str,
    x: Float[Array, "..."],
    weight: DecodingWeight,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """`einsum(spec, x, weight)` in x's dtype or `out_dtype`; the letters summed end those of x.

    >>> identity = quantize_weight(jnp.eye(2), "DF", "D", FORMATS["int8"])
    >>> product("BTD,DF->BTF", jnp.array([[[0.5, 3.0]]]), identity).round(3).tolist()
    [[[0.5, 3.0]]]
    """
    inputs, result = spec.split("->")
    of_x, axes = inputs.split(",")
    lead = [a for a in of_x if a not in axes]
    assert result == "".join(lead) + weight.axes[:-1], f"{spec} of a weight with {weight.axes}"
    x = x.reshape(*x.shape[: len(lead)], -1)
    # Lower case: the product's own letter of the inputs, whatever their axes were.
    plain = f"{''.join(lead)}c,{weight.axes[:-1]}c->{result}"
    row_scale = None
    if weight.is_dynamic:
        rounded, row_scale = quantize(x, weight.values.dtype)
        sums = jnp.int32 if weight.values.dtype == jnp.int8 else out_dtype or x.dtype
        out = einsum(plain, rounded, weight.values, out_dtype=sums)
    else:
        # Every int8 number is one of bfloat16 too, so that the conversion is exact.
        out = einsum(plain, x, weight.values.astype(x.dtype), out_dtype=out_dtype)
    out = out.astype(jnp.float32) * weight.scale.reshape((1,) * len(lead) + weight.scale.shape)
    if row_scale is not None:
        out *= row_scale.reshape(*row_scale.shape, *(1,) * weight.scale.ndim)
    return out.astype(out_dtype or x.dtype)


# ------------------------------------------------------------------------------------- the layers

# The fields of `parameters.Layer` that are products' weights, with the letters summed over.
PRODUCTS = {"qkv_DKXH": "D", "out_NHD": "NH", "gate_up_DXF": "D", "down_FD": "F"}


def decoding_layer(layer: Any, weights_dtype: WeightsDtype) -> Any:
    """A `parameters.Layer` with its products' weights rounded; unchanged for "auto"."""
    if weights_dtype == "auto":
        return layer
    found = {}
    for name, summed in PRODUCTS.items():
        weight, axes = getattr(layer, name), name.rsplit("_", 1)[-1]
        found[name] = quantize_weight(weight, axes, summed, FORMATS[weights_dtype])
    return layer._replace(**found)


def has_quantized_head(weights_dtype: WeightsDtype) -> bool:
    return weights_dtype != "auto" and FORMATS[weights_dtype].has_head


def check_weights_dtype(name: str, field: str = "`weights_dtype`") -> None:
    """Raise UserError, naming the `field`, for a name that is not in WEIGHTS_DTYPES."""
    if name not in WEIGHTS_DTYPES:
        raise UserError(f"{field} must be one of {', '.join(WEIGHTS_DTYPES)}, got {name!r}")


# ------------------------------------------------------------------------------------------ bytes


def decoding_bytes(
    config: ModelConfig, dtype: DTypeLike, weights_dtype: WeightsDtype, *, held: bool
) -> int:
    """Bytes of the weights that decode steps use: those `held` in memory, or those read per step.

    An untied embedding is not included: it is split like the parameters, and a step reads few of
    its rows. A tied one is held in `dtype` beside a head of 8 bits, which alone is read.
    """
    item = jnp.dtype(dtype).itemsize
    embedding = math.prod(config.shape("VD"))
    num = config.num_parameters - (0 if config.tie_embeddings else embedding)
    if weights_dtype == "auto":
        return num * item
    D, F, H, L, V = config.shape("DFHLV")
    heads = config.num_heads + 2 * config.num_kv_heads
    products = {heads * H: D, 2 * F: D}  # outputs -> inputs
    channels = sum(products) + 2 * D
    weights = sum(n * m for n, m in products.items()) + D * (config.num_heads * H + F)
    saved = L * (weights * (item - 1) - channels * _SCALE_BYTES)
    if has_quantized_head(weights_dtype):
        in_8_bits = embedding + V * _SCALE_BYTES
        saved += (0 if held and config.tie_embeddings else embedding * item) - in_8_bits
    return num * item - saved
