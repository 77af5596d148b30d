"""Products with int8 weights by the kernel, interpreted, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import weights_kernel
from jaxdistill.models.layers import rms_norm
from jaxdistill.models.quantized import dequantize, quantize
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
    weights = jnp.asarray(values) if is_int8 else pair_halves(jnp.asarray(values))
    activations = jnp.asarray(x)
    if is_int8:
        activations = quantize(activations)
        x = np.asarray(dequantize(activations))
    kernel = functools.partial(
        product_of_few_rows, out_dtype=jnp.float32, splits=splits, block_m=block_m, block_n=32,
        block_c=32,
    )  # fmt: skip
    parts = jax.jit(kernel)(activations, weights, jnp.asarray(scale))
    assert parts.shape == (splits, M, 64)
    # Float32 sums of 256 numbers about 1 in another order.
    np.testing.assert_allclose(parts.sum(0), expected(x, values, scale), atol=1e-5, rtol=1e-5)


# 48 is no power of two.
@pytest.mark.parametrize("N", [64, 48])
@pytest.mark.parametrize("in_int8", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parts_are_added_and_normed_as_by_separate_operations(dtype, in_int8, N):
    rng = np.random.default_rng(0)
    parts, residual, scale = (jnp.asarray(rng.normal(size=x)) for x in ((3, 5, N), (5, N), N))
    residual, scale = residual.astype(dtype), scale.astype(dtype)
    after = residual + (parts[0] + parts[1] + parts[2]).astype(dtype)
    add = functools.partial(add_parts_and_norm, eps=1e-6, in_int8=in_int8)
    found_after, found_normed = jax.jit(add)(parts, residual, scale)
    # Both are rounded at the same places: they differ by the order of float32 sums, or by the last
    # bit of bfloat16.
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    normed = rms_norm(after, scale, 1e-6)
    assert found_after.dtype == dtype

    def compare(found, expected, atol):
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=atol)

    compare(found_after, after, tolerance)
    atol = tolerance
    if in_int8:
        assert found_normed.values.dtype == jnp.int8
        found_normed, normed = dequantize(found_normed), dequantize(quantize(normed))
        # A number in the middle of two steps, a 127th of the row's largest.
        atol = float(jnp.abs(normed).max()) / 126
    compare(found_normed, normed, atol)


def test_pairs_of_halves_are_two_bytes_of_a_word():
    values = given(1, 1, 4, 8)[1]
    low, high = (
        np.asarray(pair_halves(jnp.asarray(values)))[..., None].view(np.int8)[..., i]
        for i in (0, 1)
    )
    np.testing.assert_array_equal(np.concatenate([low, high], -1), values)


@pytest.mark.parametrize("rows", [1, 64, 65, 256, 1000])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 4096, 2048), (1, 2048, 6144), (2, 6144, 2048), (1, 151_936, 2048), (1, 128, 128),
              (1, 2560, 9728)]
)  # fmt: skip
def test_blocks_divide_a_weight_and_fit_into_the_memory_of_a_multiprocessor(shape, is_int8, rows):
    X, N, C = shape
    stored = C if is_int8 else C // 2
    found = weights_kernel._tiling(rows, (X, N, stored), is_int8)
    assert N % found["block_n"] == 0
    assert stored % (found["splits"] * found["block_c"]) == 0
    if X == 2:
        assert found["splits"] == 1
    # 128 bytes of each row of the weight; of each row of activations 128, or both halves' 128.
    of_block = 128 * (X * found["block_n"] + found["block_m"] * (1 if is_int8 else 2))
    assert found["stages"] * of_block <= 227 * 1024


@pytest.mark.parametrize("rows", [64, 256])
@pytest.mark.parametrize("is_int8", [False, True])
def test_the_kernels_are_lowered_for_a_gpu_that_is_not_here(is_int8, rows):
    def both(x, weights, scale, parts, residual, norm):
        hidden = product_of_few_rows(x, weights, scale)
        return hidden, add_parts_and_norm(parts, residual, norm, eps=1e-6, in_int8=is_int8)

    x = jnp.zeros((rows, 512), jnp.bfloat16)
    weights = jnp.zeros((2, 128, 512), jnp.int8)
    arguments = (
        quantize(x) if is_int8 else x,
        weights if is_int8 else pair_halves(weights),
        jnp.ones((2, 128)),
        jnp.zeros((4, rows, 512)),
        x,
        jnp.ones(512),
    )
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(both).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "product_of_few_rows" in text
    assert "add_parts_and_norm" in text
