"""Tiny decoders of every kind, and a batch for them."""

import dataclasses

import jax
import numpy as np

from jaxdistill.models import decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope, Yarn

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
)

CONFIGS = {
    "qwen3": CONFIG,
    "qwen2": dataclasses.replace(CONFIG, family="qwen2", qk_norm="none", qkv_bias=True),
    "olmo3": dataclasses.replace(
        CONFIG,
        family="olmo3",
        num_layers=4,
        rope=Rope(5e5, Yarn(4.0, 8, attention_factor=1.2)),
        sliding_rope=Rope(5e5),
        layer_pattern=("sliding", "full"),
        window=4,
        qk_norm="projection",
        post_norm=True,
        out_bias=True,
        qkv_bias=True,
    ),
}

init_params = jax.jit(parameters.init, static_argnums=0)

states_of = jax.jit(decoder.hidden_states, static_argnames=("config", "dtype", "remat"))


def random_batch(S=14, B=4, vocab_size=CONFIG.vocab_size):
    """Random tokens with left padding, right padding, both, and none."""
    tokens_BS = np.random.default_rng(0).integers(1, vocab_size, (B, S))
    mask_BS = np.ones((B, S), int)
    mask_BS[0, :5] = 0
    mask_BS[1, -4:] = 0
    mask_BS[2, :2] = mask_BS[2, -3:] = 0
    return np.where(mask_BS, tokens_BS, 0), mask_BS
