"""Rematerialisation changes memory and time, and nothing else."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from tiny_decoder import init_params

from jaxdistill import sharding
from jaxdistill.models import attention, decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.remat import REMATS
from jaxdistill.models.rope import Rope

QWEN3 = ModelConfig(
    vocab_size=32, hidden_size=16, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=48,
)  # fmt: skip
FAMILIES = {
    "qwen3": QWEN3,
    "qwen2": dataclasses.replace(QWEN3, family="qwen2", qk_norm="none", qkv_bias=True),
    "olmo3": dataclasses.replace(
        QWEN3, family="olmo3", qk_norm="projection", post_norm=True, rope=Rope(5e5),
        layer_pattern=("sliding", "sliding", "full"), window=4,
    ),
}  # fmt: skip

LARGEST = ("olmo3", "projections")


def gradient(config, remat, dtype=jnp.float32, attention="auto"):
    def total(params, tokens_BS, mask_BS=None):
        mask_BS = jnp.ones_like(tokens_BS) if mask_BS is None else mask_BS
        hidden_BSD = decoder.hidden_states(
            params, config, tokens_BS, mask_BS, dtype=dtype, remat=remat, attention=attention
        )
        return jnp.sum(hidden_BSD.astype(jnp.float32) ** 3)

    return jax.jit(jax.value_and_grad(total))


@functools.cache
def of_family(family, remat):
    config = FAMILIES[family]
    params = init_params(config, jax.random.key(0))
    tokens_BS = np.random.default_rng(0).integers(0, 32, (2, 12))
    mask_BS = np.ones((2, 12), int)
    mask_BS[0, :3] = mask_BS[1, -4:] = 0
    return jax.device_get(gradient(config, remat)(params, tokens_BS, mask_BS))


def _mark(family, remat):
    is_long = family == "qwen3" or (family, remat) == LARGEST
    return pytest.mark.long if is_long else pytest.mark.slow


# What a policy keeps has the same names in every family; Olmo's layers have the most parts.
@pytest.mark.parametrize(
    ("family", "remat"),
    [
        pytest.param(
            family,
            remat,
            marks=[] if (family, remat) == ("qwen3", "all") else _mark(family, remat),
        )
        for family in FAMILIES
        for remat in REMATS[1:]
    ],
)
def test_value_and_gradients_are_those_of_keeping_everything(family, remat):
    (value, grads), (expected, expected_grads) = of_family(family, remat), of_family(family, "none")
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected_grads))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * scale)
    jax.tree.map(close, grads, expected_grads)


# A layer's parts have the proportions of Qwen3-1.7B's: D = N H = 2 K H, F = 3 D.
WIDE = dataclasses.replace(
    QWEN3, hidden_size=64, num_heads=8, num_kv_heads=4, head_dim=8, intermediate_size=192,
    num_layers=24,
)  # fmt: skip


@pytest.mark.slow  # ten programs; the last test counts the products that each policy computes again
def test_memory_falls_from_one_to_the_next_by_what_the_table_says():
    """Numbers kept per token and layer, in multiples of D: 11, 5, 2 and 1."""
    tokens = jax.ShapeDtypeStruct((16, 32), jnp.int32)

    def of_a_layer(remat):
        """Temporary numbers per additional layer: whatever else is held at the peak cancels."""
        sizes = []
        for num_layers in (24, 48):
            config = dataclasses.replace(WIDE, num_layers=num_layers)
            params = parameters.abstract_params(config)
            compiled = gradient(config, remat).lower(params, tokens).compile()
            sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        return (sizes[1] - sizes[0]) / (24 * 16 * 32 * WIDE.hidden_size * 4)

    kept, elementwise, mlp, projections, whole = map(of_a_layer, REMATS)
    near = functools.partial(pytest.approx, abs=0.1)
    assert kept > elementwise
    assert elementwise - mlp == near(6)  # gate and up
    assert mlp - projections == near(3)  # q/k/v, and attention's projection
    assert projections - whole == near(1)


# ------------------------------------------------------------------------- the kernel of attention


@pytest.fixture
def cuda(monkeypatch):
    """Lower programs for an NVIDIA GPU without having one; nothing is compiled."""
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "is_ampere_or_newer", lambda: True)
    for name, answer in [
        ("check_compute_capability", True), ("check_cudnn_version", 91_000),
        ("is_cuda_compute_capability_equal", False),
    ]:  # fmt: skip
        monkeypatch.setattr(cudnn, name, lambda *_, answer=answer: answer)


PRODUCTS = {"none": 0, "elementwise": 0, "mlp": 1, "projections": 3, "all": 3}


@pytest.mark.parametrize("remat", REMATS)
def test_the_gpus_attention_runs_forward_once_and_products_as_often_as_documented(cuda, remat):
    config = dataclasses.replace(QWEN3, head_dim=64)
    tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    traced = gradient(config, remat, jnp.bfloat16, "cudnn").trace(
        parameters.abstract_params(config), tokens
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = collections.Counter(re.findall(r"__cudnn\$fmha\w+", text))
    assert calls["__cudnn$fmhaSoftmax"] == (2 if remat == "all" else 1)
    assert calls["__cudnn$fmhaSoftmaxBackward"] == 1
    # Four products in the forward pass, and two for each of them in the backward pass.
    assert text.count("stablehlo.dot_general") == 12 + PRODUCTS[remat]
