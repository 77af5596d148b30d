"""Qwen3 as data: its fields in config.json and the names of its tensors.

Qwen Team 2025, arXiv 2505.09388: pre-norm, grouped queries, RMSNorm on every head's queries and
keys, SwiGLU, no biases.
"""

from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig

MODEL_TYPE = "qwen3"


class TensorName(NamedTuple):
    """A tensor's name in a checkpoint and its dimensions there, e.g. "NH D" = [N*H, D]."""

    name: str  # {} stands for the layer
    axes: str


# From the parameter's path in `Decoder`.
TENSORS = {
    ("embed",): TensorName("model.embed_tokens.weight", "V D"),
    ("norm",): TensorName("model.norm.weight", "D"),
    ("head",): TensorName("lm_head.weight", "V D"),
    ("layers", "attention_norm"): TensorName("model.layers.{}.input_layernorm.weight", "D"),
    ("layers", "q"): TensorName("model.layers.{}.self_attn.q_proj.weight", "NH D"),
    ("layers", "k"): TensorName("model.layers.{}.self_attn.k_proj.weight", "KH D"),
    ("layers", "v"): TensorName("model.layers.{}.self_attn.v_proj.weight", "KH D"),
    ("layers", "q_norm"): TensorName("model.layers.{}.self_attn.q_norm.weight", "H"),
    ("layers", "k_norm"): TensorName("model.layers.{}.self_attn.k_norm.weight", "H"),
    ("layers", "out"): TensorName("model.layers.{}.self_attn.o_proj.weight", "D NH"),
    ("layers", "mlp_norm"): TensorName("model.layers.{}.post_attention_layernorm.weight", "D"),
    ("layers", "gate"): TensorName("model.layers.{}.mlp.gate_proj.weight", "F D"),
    ("layers", "up"): TensorName("model.layers.{}.mlp.up_proj.weight", "F D"),
    ("layers", "down"): TensorName("model.layers.{}.mlp.down_proj.weight", "D F"),
}

# What other values of these fields would mean is not implemented, so they are refused.
_REQUIRED_VALUES = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}


def from_hf(fields: dict[str, Any]) -> ModelConfig:
    """The config of a parsed config.json; fields that may be absent default as in transformers.

    Raises UserError naming the field that is missing, malformed or asks for what is not built.
    """
    for name, value in _REQUIRED_VALUES.items():
        if fields.get(name, value) != value:
            raise UserError(f"{name}={fields[name]!r} is not supported for qwen3; only {value!r}")
    if set(fields.get("layer_types") or []) - {"full_attention"}:
        raise UserError("layer_types other than full_attention are not supported for qwen3")
    return ModelConfig(
        family=MODEL_TYPE,
        vocab_size=_field(fields, "vocab_size", int),
        hidden_size=_field(fields, "hidden_size", int),
        num_layers=_field(fields, "num_hidden_layers", int),
        num_heads=_field(fields, "num_attention_heads", int),
        num_kv_heads=_field(fields, "num_key_value_heads", int),
        head_dim=_field(fields, "head_dim", int, 128),
        intermediate_size=_field(fields, "intermediate_size", int),
        rope_theta=_rope_theta(fields),
        norm_eps=_field(fields, "rms_norm_eps", float, 1e-6),
        tie_embeddings=_field(fields, "tie_word_embeddings", bool, False),
        max_positions=_field(fields, "max_position_embeddings", int, 32_768),
    )


def _field(fields: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = fields.get(name, default)
    if value is None:
        raise UserError(f"field '{name}' is missing")
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"field '{name}' must be of type {kind.__name__}, not {value!r}")
    return kind(value)


def _rope_theta(fields: dict[str, Any]) -> float:
    """`rope_theta`, or transformers 5's `rope_parameters`; any scaling of RoPE is refused."""
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_parameters must be an object or null, not {rope!r}")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default" or set(rope) - {"rope_type", "type", "rope_theta"}:
        raise UserError(f"RoPE of type {rope_type!r} is not supported for qwen3; only 'default'")
    thetas = [place["rope_theta"] for place in (rope, fields) if place.get("rope_theta")]
    if len(set(thetas)) > 1:
        raise UserError(f"rope_parameters and rope_theta disagree: {thetas[0]} and {thetas[1]}")
    return _field({"rope_theta": thetas[0] if thetas else 10_000.0}, "rope_theta", float)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's fields of config.json, RoPE in both spellings."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # Older readers (vLLM, transformers 4) know only the first spelling.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "use_cache": True,
    }
