"""Qwen2 as data, including DeepSeek-R1-Distill-Qwen: config.json fields and tensor names.

Qwen Team 2024, arXiv 2407.10671: pre-norm, grouped queries with biases on queries, keys and values,
SwiGLU.
"""

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families.hf_fields import (
    Fields,
    TensorName,
    field,
    older_rope_scaling,
    read_layers,
    read_sizes,
    read_uniform_rope,
    write_rope,
    write_sizes,
)

MODEL_TYPE = "qwen2"

# Keyed by the parameter's path in `Decoder`.
TENSORS = {
    ("embed",): TensorName("model.embed_tokens.weight", "V D"),
    ("norm",): TensorName("model.norm.weight", "D"),
    ("head",): TensorName("lm_head.weight", "V D"),
    ("layers", "attention_norm"): TensorName("model.layers.{}.input_layernorm.weight", "D"),
    ("layers", "q"): TensorName("model.layers.{}.self_attn.q_proj.weight", "NH D"),
    ("layers", "k"): TensorName("model.layers.{}.self_attn.k_proj.weight", "KH D"),
    ("layers", "v"): TensorName("model.layers.{}.self_attn.v_proj.weight", "KH D"),
    ("layers", "q_bias"): TensorName("model.layers.{}.self_attn.q_proj.bias", "NH"),
    ("layers", "k_bias"): TensorName("model.layers.{}.self_attn.k_proj.bias", "KH"),
    ("layers", "v_bias"): TensorName("model.layers.{}.self_attn.v_proj.bias", "KH"),
    ("layers", "out"): TensorName("model.layers.{}.self_attn.o_proj.weight", "D NH"),
    ("layers", "mlp_norm"): TensorName("model.layers.{}.post_attention_layernorm.weight", "D"),
    ("layers", "gate"): TensorName("model.layers.{}.mlp.gate_proj.weight", "F D"),
    ("layers", "up"): TensorName("model.layers.{}.mlp.up_proj.weight", "F D"),
    ("layers", "down"): TensorName("model.layers.{}.mlp.down_proj.weight", "D F"),
}


def from_hf(fields: Fields) -> ModelConfig:
    """The config of a parsed config.json; fields that may be absent default as in transformers.

    Raises UserError naming the field that is missing, malformed or asks for something that is not
    implemented.
    """
    return ModelConfig(**read_qwen(fields), qk_norm="none", qkv_bias=True)


def to_hf(config: ModelConfig) -> Fields:
    """The architecture's fields of config.json, with RoPE in the older and the newer spelling."""
    return {"architectures": ["Qwen2ForCausalLM"]} | write_qwen(config)


# ---------------------------------------------------------------------------- also Qwen3's


def read_qwen(fields: Fields) -> dict:
    """The ModelConfig fields that Qwen2 and Qwen3 spell alike."""
    max_positions = field(fields, "max_position_embeddings", int, 32_768)
    pattern, window = read_layers(fields, *_default_layers(fields))
    return read_sizes(fields) | {
        "rope": read_uniform_rope(fields, max_positions),
        "layer_pattern": pattern,
        "window": window,
        "norm_eps": field(fields, "rms_norm_eps", float, 1e-6),
        "max_positions": max_positions,
    }


def _default_layers(fields: Fields) -> tuple[list[str], int | None]:
    """Kinds of layers, and the window: `use_sliding_window` sets it from `max_window_layers` on."""
    num_layers = field(fields, "num_hidden_layers", int)
    if not field(fields, "use_sliding_window", bool, False):
        return ["full_attention"] * num_layers, None
    # 28 full layers and a window of 4096 are Qwen2Config's defaults in transformers.
    full = min(field(fields, "max_window_layers", int, 28), num_layers)
    kinds = ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)
    if fields.get("sliding_window", 4096) is None:  # null is no window, absent is the default
        return ["full_attention"] * num_layers, None
    return kinds, field(fields, "sliding_window", int, 4096)


def write_qwen(config: ModelConfig) -> Fields:
    """The fields of config.json that Qwen2 and Qwen3 spell alike."""
    rope, sizes = write_rope(config.rope), write_sizes(config)
    return sizes | {
        # Older readers (vLLM, transformers 4) know only the next two.
        "rope_theta": config.rope.theta,
        "rope_scaling": older_rope_scaling(rope),
        "rope_parameters": rope,
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        # For readers that do not know layer_types.
        "max_window_layers": [*sizes["layer_types"], "sliding_attention"].index(
            "sliding_attention"
        ),
    }
