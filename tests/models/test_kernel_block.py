"""A decode step by the kernels of int8 weights, beside XLA's products with the same numbers."""

import dataclasses
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


def run(config, weights_dtype, cache_dtype, rows, prompt):
    """[B, V] of a decode step after random prompts, and whether kernels read the weights."""
    params = parameters.init(config, jax.random.key(0), jnp.bfloat16)
    tokens_BS = jax.random.randint(jax.random.key(1), (rows, prompt + 1), 0, config.vocab_size)
    is_by_kernel = []

    @jax.jit
    def step(params):
        weights, head_DV = decoding_weights(params, config, jnp.bfloat16, weights_dtype)
        is_by_kernel.append(kernel_block.has_kernel_weights(weights))
        mask_BP = jnp.ones((rows, prompt), jnp.int32)
        _, prompts = decoder.prefill(
            params, config, tokens_BS[:, :prompt], mask_BP, prompt + 1, dtype=jnp.bfloat16,
            cache_dtype=cache_dtype,
        )  # fmt: skip
        hidden_BD, _ = decoder.decode_step(
            weights, config, tokens_BS[:, -1], prompts.as_cache(), dtype=jnp.bfloat16
        )
        return logits_of(hidden_BD, head_DV)

    return np.asarray(step(params)), is_by_kernel[0]


# Of what does not depend on the kernels, once for several tests.
logits_of_a_step = functools.cache(run)


def assert_close(found, expected, exact):
    """The kernels round at the same places, so they differ by less than rounding itself does.

    The last bits of bfloat16 may move an activation by one of 127 steps, as rounding does.
    """
    rounding = np.abs(expected - exact)
    assert np.abs(found - expected).mean() < rounding.mean()
    assert np.abs(found - expected).max() < 2 * rounding.max()
    # And rounding is far less than the logits, from which a wrong scale or place would be as far.
    assert rounding.mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.long
@pytest.mark.parametrize(
    ("weights_dtype", "mesh"),
    [
        pytest.param("int8", None, marks=pytest.mark.long),
        ("int8_dynamic", "data=2,fsdp=2,tensor=1"),
    ],
)
def test_the_kernels_give_the_logits_of_separate_operations(monkeypatch, weights_dtype, mesh):
    given = CONFIG, weights_dtype, "auto", 4, 5
    exact, _ = logits_of_a_step(CONFIG, "auto", *given[2:])
    expected, is_by_kernel = logits_of_a_step(*given)
    assert not is_by_kernel
    monkeypatch.setattr(quantized_weights, "has_kernels", lambda *given: True)
    with sharding.use_mesh(None if mesh is None else sharding.make_mesh(mesh, jax.devices()[:4])):
        found, is_by_kernel = run(*given)
    assert is_by_kernel
    assert_close(found, expected, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("weights_dtype", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("rows", [3, 64, 256])
def test_on_a_gpu_too_with_an_int8_cache(monkeypatch, weights_dtype, rows):
    if not attention.is_hopper_or_newer():
        pytest.skip("the kernels are for GPUs from Hopper on")
    given = CONFIG, weights_dtype, "int8", rows, 70
    exact, _ = logits_of_a_step(CONFIG, "auto", *given[2:])
    found, is_by_kernel = run(*given)
    assert is_by_kernel
    monkeypatch.setattr(quantized_weights, "has_kernels", lambda *given: False)
    expected, is_by_kernel = run(*given)
    assert not is_by_kernel
    assert_close(found, expected, exact)


def test_kernels_are_for_sizes_families_and_meshes_that_they_can_read(monkeypatch):
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
