"""Llama as data, including SmolLM2 and DeepSeek-R1-Distill-Llama: config.json and tensor names.

Llama Team 2024, arXiv 2407.21783: Qwen2's layout without biases, unless `attention_bias` (queries,
keys, values and output) or `mlp_bias` (gate, up and down) asks for them.
"""

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families import qwen2
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

MODEL_TYPE = "llama"

TENSORS = qwen2.TENSORS | {
    ("layers", "out_bias"): TensorName("model.layers.{}.self_attn.o_proj.bias", "D"),
    ("layers", "gate_bias"): TensorName("model.layers.{}.mlp.gate_proj.bias", "F"),
    ("layers", "up_bias"): TensorName("model.layers.{}.mlp.up_proj.bias", "F"),
    ("layers", "down_bias"): TensorName("model.layers.{}.mlp.down_proj.bias", "D"),
}

# Llama has neither windows nor, in transformers 5, the split products of Llama 2's pretraining.
_ONLY = {"sliding_window": None, "pretraining_tp": 1}


def from_hf(fields: Fields) -> ModelConfig:
    """The config of a parsed config.json; fields that may be absent default as in transformers.

    Raises UserError naming the field that is missing, malformed or asks for something that is not
    implemented.
    """
    for name, value in _ONLY.items():
        if fields.get(name) not in (value, None):
            raise UserError(f"{name}={fields[name]!r} is not supported for llama; only {value!r}")
    # Absent fields default as in transformers' LlamaConfig: 2048 positions, as many key/value heads
    # as query heads (also where null), eps 1e-6.
    max_positions = field(fields, "max_position_embeddings", int, 2048)
    num_layers = field(fields, "num_hidden_layers", int)
    read_layers(fields, ["full_attention"] * num_layers, None)  # refuses windows
    num_heads = field(fields, "num_attention_heads", int)
    has_bias = field(fields, "attention_bias", bool, False)
    num_kv_heads = field(fields, "num_key_value_heads", int, num_heads)
    return ModelConfig(
        **read_sizes(fields | {"num_key_value_heads": num_kv_heads}),
        rope=read_uniform_rope(fields, max_positions),
        qk_norm="none",
        qkv_bias=has_bias,
        out_bias=has_bias,
        mlp_bias=field(fields, "mlp_bias", bool, False),
        norm_eps=field(fields, "rms_norm_eps", float, 1e-6),
        max_positions=max_positions,
    )


def to_hf(config: ModelConfig) -> Fields:
    """The architecture's fields of config.json, with RoPE in the older and the newer spelling."""
    rope, sizes = write_rope(config.rope), write_sizes(config)
    del sizes["layer_types"]  # not a field of LlamaConfig: every layer attends to all positions
    return sizes | {
        "architectures": ["LlamaForCausalLM"],
        # Older readers (vLLM, transformers 4) know only the next two.
        "rope_theta": config.rope.theta,
        "rope_scaling": older_rope_scaling(rope),
        "rope_parameters": rope,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "pretraining_tp": 1,
    }
