"""A whole decode step by the kernels of int8 weights, beside XLA's products with the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.models import attention, decoder, kernel_block, parameters, quantized_weights
from jaxdistill.models.completions import logits_of
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized_weights import has_kernels
from jaxdistill.models.rope import Rope
from jaxdistill.sampling.weights import decoding_weights

# The smallest sizes that the kernels' blocks divide; q/k/v are 8 heads.
CONFIG = ModelConfig(
    vocab_size=256,
    hidden_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    rope=Rope(1e4),
    qk_norm="head",
    qkv_bias=True,
)


def logits_of_two_steps(config, weights_dtype, cache_dtype, rows, prompt):
    """[2, B, V] of two decode steps after random prompts, and whether kernels read the weights."""
    params = parameters.init(config, jax.random.key(0), jnp.bfloat16)
    tokens_BS = jax.random.randint(jax.random.key(1), (rows, prompt + 2), 0, config.vocab_size)
    is_by_kernel = []

    @jax.jit
    def run(params):
        weights, head_DV = decoding_weights(params, config, jnp.bfloat16, weights_dtype)
        is_by_kernel.append(kernel_block.has_kernel_weights(weights))
        mask_BP = jnp.ones((rows, prompt), jnp.int32)
        _, prompts = decoder.prefill(
            params, config, tokens_BS[:, :prompt], mask_BP, prompt + 2, dtype=jnp.bfloat16,
            cache_dtype=cache_dtype,
        )  # fmt: skip
        cache, found = prompts.as_cache(), []
        for i in range(2):
            hidden_BD, cache = decoder.decode_step(
                weights, config, tokens_BS[:, prompt + i], cache, dtype=jnp.bfloat16
            )
            found.append(logits_of(hidden_BD, head_DV))
        return jnp.stack(found)

    return np.asarray(run(params)), is_by_kernel[0]


def assert_close(found, expected):
    """Of logits about 1: the last bits of bfloat16, which may move a number in 8 bits by a step."""
    assert np.abs(found - expected).max() < 0.1
    assert np.abs(found - expected).mean() < 0.01
    # A wrong scale, place or layer would be as far off as other logits.
    assert np.abs(expected).mean() > 0.5


@pytest.mark.parametrize("weights_dtype", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=2,tensor=1"])
def test_the_kernels_give_the_logits_of_separate_operations(monkeypatch, weights_dtype, mesh):
    run = functools.partial(logits_of_two_steps, CONFIG, weights_dtype, "auto", 4, 5)
    expected, is_by_kernel = run()
    assert not is_by_kernel
    monkeypatch.setattr(quantized_weights, "has_kernels", lambda *given: True)
    with sharding.use_mesh(None if mesh is None else sharding.make_mesh(mesh, jax.devices()[:4])):
        found, is_by_kernel = run()
    assert is_by_kernel
    assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("weights_dtype", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("rows", [3, 64, 256])
def test_on_a_gpu_too_with_an_int8_cache(monkeypatch, weights_dtype, rows):
    if not attention.is_hopper_or_newer():
        pytest.skip("the kernels are for GPUs from Hopper on")
    run = functools.partial(logits_of_two_steps, CONFIG, weights_dtype, "int8", rows, 70)
    found, is_by_kernel = run()
    assert is_by_kernel
    monkeypatch.setattr(quantized_weights, "has_kernels", lambda *given: False)
    expected, is_by_kernel = run()
    assert not is_by_kernel
    assert_close(found, expected)


def test_kernels_are_for_sizes_families_and_meshes_that_they_can_read(monkeypatch):
    import dataclasses

    assert not has_kernels(CONFIG, jnp.bfloat16)  # on a CPU
    monkeypatch.setattr(quantized_weights, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_compute_capability", lambda: 9.0)
    other = functools.partial(dataclasses.replace, CONFIG)
    assert has_kernels(CONFIG, jnp.bfloat16)
    assert has_kernels(CONFIG, "bfloat16")
    assert not has_kernels(CONFIG, jnp.float32)
    for config in (
        other(intermediate_size=320),
        other(vocab_size=300),
        other(num_heads=6),
        other(post_norm=True),
        other(mlp_bias=True),
        other(out_bias=True),
    ):
        assert not has_kernels(config, jnp.bfloat16)
    with sharding.use_mesh(sharding.make_mesh("fsdp=4,tensor=2")):
        assert not has_kernels(CONFIG, jnp.bfloat16)
    with sharding.use_mesh(sharding.make_mesh("fsdp=8,tensor=1")):
        assert has_kernels(CONFIG, jnp.bfloat16)
    monkeypatch.setattr(attention, "_compute_capability", lambda: 8.0)
    assert not has_kernels(CONFIG, jnp.bfloat16)
