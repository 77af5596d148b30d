"""Weights as decode steps read them, in 8 bits with one scale per output channel.

A decode step of few rows reads every weight once, and half of the bytes can be nearly half of the
time of its products. `sampling.weights` rounds, on the device and from the parameters that it is
given, the query, key, value, output, gate, up and down projections, and for some formats the head.
Embeddings, norms and biases stay as they are.

| `weights_dtype` | weights | activations in 8 bits, one scale per row | head |
|---|---|---|---|
| `int8` | int8 | none | int8 |
| `int8_dynamic` | int8 | those of q/k/v and of gate and up, which a norm has made | int8 |
| `float8_dynamic` | float8_e4m3fn | all, in float8_e4m3fn | in the compute dtype |

A row's scale is its own, so that its result does not depend on its neighbours. On Hopper GPUs int8
weights are read by kernels of our own, if `has_kernels`. Elsewhere the compiler converts a weight
where its product reads it, if activations are not in 8 bits: a TPU's does, and a GPU's does with
its Triton products only (`sampler.compiler_options`). Products in 8 bits reach the matrix units at
twice the rate: int8 on TPUs, float8 on Hopper GPUs by cuBLASLt, which wants the summed axis last in
both inputs, as it is stored here. With the sizes of Qwen3-1.7B on an H200 all formats were slower
than bfloat16 without the kernels, but for float8 at 256 rows (docs/log.md, 2026-12-01). TPUs were
not timed.

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
from jaxdistill.models import attention, weights_kernel
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import Quantized, quantize
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain, num_parts, platform

WeightsDtype = Literal["auto", "int8", "int8_dynamic", "float8_dynamic"]  # auto: the compute dtype
WEIGHTS_DTYPES: tuple[str, ...] = get_args(WeightsDtype)

_SCALE_BYTES = 4  # float32


# The fields of `parameters.Layer` that are products' weights, with the letters summed over.
PRODUCTS = {"qkv_DKXH": "D", "out_NHD": "NH", "gate_up_DXF": "D", "down_FD": "F"}
HEAD = "head_DV"


@dataclass(frozen=True)
class Format:
    """The dtype of weights, in which products activations are rounded to it too, and of the head.

    A head is rounded but its activations are not: that would add their error to every logit.
    """

    dtype: DTypeLike
    dynamic: tuple[str, ...]  # of PRODUCTS
    has_head: bool


# Rounding attention's output and SiLU's too, with an exact head, puts log-probs 1.6 times as far
# off (benchmarks/weights_log_probs.py), and is a pass of its own on a GPU.
FORMATS: dict[str, Format] = {
    "int8": Format(jnp.int8, dynamic=(), has_head=True),
    "int8_dynamic": Format(jnp.int8, dynamic=("qkv_DKXH", "gate_up_DXF"), has_head=True),
    "float8_dynamic": Format(jnp.float8_e4m3fn, dynamic=tuple(PRODUCTS), has_head=False),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodingWeight:
    """A weight as values * scale: `axes` are the letters of the outputs and, last, of the inputs.

    Inputs of several axes, such as the heads NH, are one axis with the first one's letter.
    """

    values: Any  # [*N, C], int8 or float8_e4m3fn; or pairs of int8 (`weights_kernel.pair_halves`)
    scale: Any  # [*N], float32
    axes: str = dataclasses.field(metadata={"static": True})
    is_dynamic: bool = dataclasses.field(metadata={"static": True})
    by_kernel: bool = dataclasses.field(metadata={"static": True})

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
    weight: Float[Array, "..."], name: str, how: Format, *, by_kernel: bool = False
) -> DecodingWeight:
    """Round a weight with the `name` of one of PRODUCTS or of the head.

    A column of zeros has scale 1 and stays zero. Each device rounds its own part.
    """
    axes, summed = name.rsplit("_", 1)[-1], PRODUCTS.get(name, "D")
    outputs = "".join(a for a in axes if a not in summed)
    last = jnp.transpose(weight, [axes.index(a) for a in outputs + summed])
    last = last.reshape(*last.shape[: len(outputs)], -1)
    found_axes, is_dynamic = outputs + summed[0], name in how.dynamic
    values, scale = quantize(constrain(last, found_axes), how.dtype)
    if by_kernel and not is_dynamic:
        values = weights_kernel.pair_halves(values)
    found = DecodingWeight(values, scale, found_axes, is_dynamic, by_kernel)
    return found.constrained(found_axes)


def obstacle(config: ModelConfig, dtype: DTypeLike) -> str | None:
    """Why decode steps cannot read int8 weights by `weights_kernel`, for a person; None: they can.

    The kernels are for Hopper GPUs and bfloat16. Not where devices share a product (tensor
    parallelism), nor for families that norm or add a bias where the kernels add the residual.
    """
    if platform() != "gpu" or not attention.is_hopper_or_newer():
        return "kernels need a Hopper GPU"
    if num_parts("F") > 1:
        return "kernels need tensor=1"
    if config.post_norm or config.out_bias or config.mlp_bias:
        return "kernels need a family without norms or biases after products"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"kernels need bfloat16, not {jnp.dtype(dtype)}"
    N, K, H = config.shape("NKH")
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "num_heads * head_dim": N * H,
        "(num_heads + 2 * num_kv_heads) * head_dim": (N + 2 * K) * H,
    }
    odd = [f"{name}={n:,}" for name, n in sizes.items() if not weights_kernel.has_tiles(n)]
    return f"kernels need multiples of 128, not {', '.join(odd)}" if odd else None


def has_kernels(config: ModelConfig, dtype: DTypeLike) -> bool:
    return obstacle(config, dtype) is None


def kernel_product(
    x_MC: Float[Array, "M C"] | Quantized, weight: DecodingWeight, out_dtype: DTypeLike
) -> Float[Array, "O M N"]:
    """x times a weight `by_kernel`, in parts; of gate and up already silu(gate) * up."""
    num = 2 if weight.axes[0] == "X" else 1
    values_XNC = weight.values.reshape(num, -1, weight.values.shape[-1])
    scale_XN = weight.scale.reshape(num, -1)
    return weights_kernel.product_of_few_rows(x_MC, values_XNC, scale_XN, out_dtype=out_dtype)


def product(
    spec: str,
    x: Float[Array, "..."],
    weight: DecodingWeight,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """`einsum(spec, x, weight)` in x's dtype or `out_dtype`; the letters summed end those of x.

    >>> identity = quantize_weight(jnp.eye(2), "head_DV", FORMATS["int8"])
    >>> product("BTD,DV->BTV", jnp.array([[[0.5, 3.0]]]), identity).round(3).tolist()
    [[[0.5, 3.0]]]
    """
    inputs, result = spec.split("->")
    of_x, axes = inputs.split(",")
    lead = [a for a in of_x if a not in axes]
    assert result == "".join(lead) + weight.axes[:-1], f"{spec} of a weight with {weight.axes}"
    out_dtype = out_dtype or x.dtype
    x = x.reshape(*x.shape[: len(lead)], -1)
    if weight.by_kernel:  # the head alone: `kernel_block` has the layers' products
        assert not weight.is_dynamic, "only a norm's kernel rounds activations"
        parts = kernel_product(x.reshape(-1, x.shape[-1]), weight, out_dtype)
        out = jnp.sum(parts, axis=0) if len(parts) > 1 else parts[0]
        return out.astype(out_dtype).reshape(*x.shape[:-1], *weight.scale.shape)
    # Lower case: the product's own letter of the inputs, whatever their axes were.
    plain = f"{''.join(lead)}c,{weight.axes[:-1]}c->{result}"
    row_scale = None
    if weight.is_dynamic:
        rounded, row_scale = quantize(x, weight.values.dtype)
        sums = jnp.int32 if weight.values.dtype == jnp.int8 else out_dtype
        out = einsum(plain, rounded, weight.values, out_dtype=sums)
    else:
        # Every int8 number is one of bfloat16 too, so that the conversion is exact.
        out = einsum(plain, x, weight.values.astype(x.dtype), out_dtype=out_dtype)
    out = out.astype(jnp.float32) * weight.scale.reshape((1,) * len(lead) + weight.scale.shape)
    if row_scale is not None:
        out *= row_scale.reshape(*row_scale.shape, *(1,) * weight.scale.ndim)
    return out.astype(out_dtype)


# ------------------------------------------------------------------------------------- the layers


def decoding_layer(layer: Any, weights_dtype: WeightsDtype, *, by_kernel: bool = False) -> Any:
    """A `parameters.Layer` with its products' weights rounded; unchanged for "auto"."""
    if weights_dtype == "auto":
        return layer
    how = FORMATS[weights_dtype]
    rounded = {
        name: quantize_weight(getattr(layer, name), name, how, by_kernel=by_kernel)
        for name in PRODUCTS
    }
    return layer._replace(**rounded)


def is_int8(weights_dtype: WeightsDtype) -> bool:
    return weights_dtype != "auto" and FORMATS[weights_dtype].dtype == jnp.int8


def is_read_by_kernels(weights_dtype: WeightsDtype, config: ModelConfig, dtype: DTypeLike) -> bool:
    return is_int8(weights_dtype) and has_kernels(config, dtype)


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
