"""Olmo3 as data: its fields in config.json and the names of its tensors.

Olmo Team 2025, arXiv 2512.13961: norms after attention and MLP, RMSNorm over the whole projection
of queries and keys, three sliding-window layers for every full one.

RoPE is read as transformers 5.23 reads it: `rope_scaling` (YaRN) applies to the full layers, and
the sliding layers have no scaling. Before version 5, transformers applied the one YaRN to every
layer, as some ports still do; their logits differ even within the original context length.
"""

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families.hf_fields import (
    Fields,
    TensorName,
    field,
    older_rope_scaling,
    read_layers,
    read_rope,
    read_sizes,
    write_rope,
    write_sizes,
)
from jaxdistill.models.families.qwen3 import TENSORS as _QWEN3
from jaxdistill.models.rope import Rope

MODEL_TYPE = "olmo3"

TENSORS = _QWEN3 | {
    ("layers", "attention_norm"): TensorName(
        "model.layers.{}.post_attention_layernorm.weight", "D"
    ),
    ("layers", "mlp_norm"): TensorName("model.layers.{}.post_feedforward_layernorm.weight", "D"),
    ("layers", "q_norm"): TensorName("model.layers.{}.self_attn.q_norm.weight", "NH"),
    ("layers", "k_norm"): TensorName("model.layers.{}.self_attn.k_norm.weight", "KH"),
}

_THETA = 500_000.0  # Olmo3Config's default in transformers 5.23


def from_hf(fields: Fields) -> ModelConfig:
    """The config of a parsed config.json; fields that may be absent default as in transformers.

    Raises UserError naming the field that is missing, malformed or asks for something that is not
    implemented.
    """
    # Absent fields default as in transformers' Olmo3Config: 2048 positions, every fourth layer
    # full, a window of 4096, eps 1e-5.
    max_positions = field(fields, "max_position_embeddings", int, 2048)
    num_layers = field(fields, "num_hidden_layers", int)
    default = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(num_layers)]
    pattern, window = read_layers(fields, default, field(fields, "sliding_window", int, 4096))
    full, sliding = _read_ropes(fields, max_positions)
    # num_key_value_heads defaults to num_attention_heads, also where it is null.
    heads = {"num_key_value_heads": field(fields, "num_attention_heads", int)}
    given = {name: value for name, value in fields.items() if value is not None}
    has_bias = field(fields, "attention_bias", bool, False)
    return ModelConfig(
        **read_sizes(heads | given),
        rope=full if "full" in pattern else sliding,
        sliding_rope=sliding if {*pattern} == {"full", "sliding"} and sliding != full else None,
        layer_pattern=pattern,
        window=window,
        qk_norm="projection",
        post_norm=True,
        qkv_bias=has_bias,
        out_bias=has_bias,
        norm_eps=field(fields, "rms_norm_eps", float, 1e-5),
        max_positions=max_positions,
    )


def _read_ropes(fields: Fields, max_positions: int) -> tuple[Rope, Rope]:
    """RoPE of the full and of the sliding layers.

    A top-level `rope_theta` applies only to the full layers, as in transformers 5.23; the default
    of both is Olmo3's.
    """
    nested = fields.get("rope_parameters") or {}
    if not isinstance(nested, dict) or nested.keys() - {"full_attention", "sliding_attention"}:
        raise UserError(
            "rope_parameters of olmo3 must be an object with 'full_attention' and "
            f"'sliding_attention', not {nested!r}; transformers ignores any other form"
        )
    scaling = fields.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"rope_scaling must be an object or null, not {scaling!r}")
    for kind, parameters in nested.items():
        if not isinstance(parameters or {}, dict):
            raise UserError(f"rope_parameters.{kind} must be an object, not {parameters!r}")
        _refuse_truncate(parameters or {})
    _refuse_truncate(scaling)
    full = (nested.get("full_attention") or {}) | scaling
    theta = field(fields, "rope_theta", float, _THETA)
    return (
        read_rope(full, theta, max_positions),
        read_rope(nested.get("sliding_attention"), _THETA, max_positions),
    )


def _refuse_truncate(parameters: Fields) -> None:
    if parameters.get("truncate", True) is not True:
        raise UserError("truncate=false is not supported for olmo3; transformers ignores it there")


def to_hf(config: ModelConfig) -> Fields:
    """The architecture's fields of config.json, with RoPE in the older and the newer spelling."""
    full, sliding = write_rope(config.ropes["full"]), write_rope(config.ropes["sliding"])
    return write_sizes(config) | {
        "architectures": ["Olmo3ForCausalLM"],
        # Older readers (vLLM, transformers 4) know only the next two.
        "rope_theta": config.ropes["full"].theta,
        "rope_scaling": older_rope_scaling(full),
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window or 4096,  # must be a number even if no layer slides
    }
