"""Qwen3 as data: its fields in config.json and the names of its tensors.

Qwen Team 2025, arXiv 2505.09388: Qwen2 with RMSNorm on every head's queries and keys, and no biases
unless `attention_bias` asks for them.
"""

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families import qwen2
from jaxdistill.models.families.hf_fields import Fields, TensorName, field

MODEL_TYPE = "qwen3"

TENSORS = qwen2.TENSORS | {
    ("layers", "out_bias"): TensorName("model.layers.{}.self_attn.o_proj.bias", "D"),
    ("layers", "q_norm"): TensorName("model.layers.{}.self_attn.q_norm.weight", "H"),
    ("layers", "k_norm"): TensorName("model.layers.{}.self_attn.k_norm.weight", "H"),
}


def from_hf(fields: Fields) -> ModelConfig:
    """The config of a parsed config.json; fields that may be absent default as in transformers.

    Raises UserError naming the field that is missing, malformed or asks for something that is not
    implemented.
    """
    has_bias = field(fields, "attention_bias", bool, False)
    # An absent head_dim means 128, Qwen3Config's default, not hidden_size / num_attention_heads.
    fields = fields | {"head_dim": field(fields, "head_dim", int, 128)}
    return ModelConfig(
        **qwen2.read_qwen(fields), qk_norm="head", qkv_bias=has_bias, out_bias=has_bias
    )


def to_hf(config: ModelConfig) -> Fields:
    """The architecture's fields of config.json, with RoPE in the older and the newer spelling."""
    own = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": config.qkv_bias}
    return own | qwen2.write_qwen(config)
