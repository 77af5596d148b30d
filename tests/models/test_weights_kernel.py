"""Products with int8 weights by the kernel, interpreted, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models.layers import rms_norm
from jaxdistill.models.weights_kernel import (
    add_parts_and_norm,
    pair_halves,
    product_of_few_rows,
)


def given(M, X, N, C):
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (X, N, C)).astype(np.int8)
    scale = (rng.uniform(0.5, 1, (X, N)) / (73 * C**0.5)).astype(np.float32)
    return rng.normal(size=(M, C)).astype(np.float32), values, scale


def expected(x, values, scale):
    sums = [np.asarray(x, np.float64) @ w.T.astype(np.float64) * s for w, s in zip(values, scale)]
    return sums[0] if len(sums) == 1 else sums[0] / (1 + np.exp(-sums[0])) * sums[1]


# Five rows are padded to 16; 40 rows are three blocks of 16, the last of them half empty.
@pytest.mark.parametrize(
    ("M", "X", "splits", "block_m"), [(5, 1, 1, 64), (16, 1, 2, 64), (40, 1, 2, 16), (16, 2, 1, 64)]
)
@pytest.mark.parametrize("is_int8", [False, True])
def test_the_kernel_is_the_product(M, X, splits, block_m, is_int8):
    x, values, scale = given(M, X, 64, 256)
    weights = values if is_int8 else pair_halves(jnp.asarray(values))
    if is_int8:
        x, scale = np.floor(40 * x + 0.5).clip(-127, 127).astype(np.int8), scale / 40
    kernel = functools.partial(
        product_of_few_rows, out_dtype=jnp.float32, splits=splits, block_m=block_m, block_n=32,
        block_c=32, interpret=True,
    )  # fmt: skip
    parts = jax.jit(kernel)(jnp.asarray(x), jnp.asarray(weights), jnp.asarray(scale))
    assert parts.shape == (splits, M, 64)
    # Float32 sums of 256 numbers about 1 in another order.
    np.testing.assert_allclose(parts.sum(0), expected(x, values, scale), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parts_are_added_and_normed_as_by_separate_operations(dtype):
    rng = np.random.default_rng(0)
    parts, residual, scale = (jnp.asarray(rng.normal(size=x)) for x in ((3, 5, 64), (5, 64), 64))
    residual, scale = residual.astype(dtype), scale.astype(dtype)
    after = residual + (parts[0] + parts[1] + parts[2]).astype(dtype)
    add = functools.partial(add_parts_and_norm, eps=1e-6, interpret=True)
    found = jax.jit(add)(parts, residual, scale)
    # Both are rounded at the same places: they differ by the order of float32 sums, or by the last
    # bit of bfloat16.
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    for x, y in zip(found, (after, rms_norm(after, scale, 1e-6))):
        assert x.dtype == dtype
        np.testing.assert_allclose(
            *(np.asarray(z, np.float32) for z in (x, y)), rtol=tolerance, atol=tolerance
        )


def test_pairs_of_halves_are_two_bytes_of_a_word():
    values = given(1, 1, 4, 8)[1]
    low, high = (
        np.asarray(pair_halves(jnp.asarray(values)))[..., None].view(np.int8)[..., i]
        for i in (0, 1)
    )
    np.testing.assert_array_equal(np.concatenate([low, high], -1), values)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_the_kernel_is_lowered_for_a_gpu_that_is_not_here(dtype):
    C = 512 if dtype == jnp.int8 else 256
    weights = jnp.zeros((2, 64, C), jnp.int8 if dtype == jnp.int8 else jnp.int16)
    arguments = jnp.zeros((64, 512), dtype), weights, jnp.ones((2, 64))
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(product_of_few_rows).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "product_of_few_rows" in text
