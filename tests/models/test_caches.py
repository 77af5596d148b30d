"""Sliding layers' rings against caches of all positions: by XLA and by both kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import caches
from jaxdistill.models.cached_attention import (
    has_tpu_kernel,
    ring_positions,
    tpu_attention,
    xla_cached_attention,
)
from jaxdistill.models.decode_kernel import kernel_attention
from jaxdistill.models.quantized import Quantized, dequantize, quantize

S = 512  # positions of the caches that keep all
# An empty row, rows within the first window, at its end, one beyond it, and after several turns.
LENGTHS = np.array([0, 1, 5, 127, 128, 129, 200, 255, 256, 257, 400, 511], np.int32)


def heads(K=2, G=3, H=16, dtype=jnp.float32):
    """(q_BNH, k_BKH, v_BKH) of new tokens, and (k, v) [W K B S H] of all before."""
    rng = np.random.default_rng(0)
    B = len(LENGTHS)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    new = normal(B, K * G, H), normal(B, K, H), normal(B, K, H)
    return new, (normal(1, K, B, S, H), normal(1, K, B, S, H))


def in_ring(x_WKBSH, ring):
    """Position t at t % ring; the place of the oldest, which the new token takes, is spoilt."""
    x_WKBSH = np.asarray(x_WKBSH)  # not a program for every position
    _, K, B, _, H = x_WKBSH.shape
    found = np.full((1, K, B, ring, H), 77.0, np.float32)
    for b, length in enumerate(LENGTHS):
        for t in range(max(length - ring + 1, 0), length):
            found[:, :, b, t % ring] = x_WKBSH[:, :, b, t]
    return jnp.asarray(found, x_WKBSH.dtype)


def in_pages(x_WKBCH, page):
    """The rows' rings in pages scattered over a pool with others, and the table of the pages."""
    _, K, B, C, H = x_WKBCH.shape
    table_BY = np.random.default_rng(1).permutation(B * C // page).reshape(B, -1)
    pool = np.zeros((1, K, B * C // page + 1, page, H), np.float32)
    pool[:, :, table_BY] = np.asarray(x_WKBCH, np.float32).reshape(1, K, B, C // page, page, H)
    return jnp.asarray(pool, x_WKBCH.dtype), jnp.asarray(table_BY, jnp.int32)


attend = jax.jit(xla_cached_attention, static_argnames="window")


def expected_of(new, cache, window):
    return attend(*new, *cache, jnp.asarray(LENGTHS), window=window)[0]


def assert_written(pool, pages_BY, new_BKH, ring):
    """The new token took its place in the ring."""
    pool, new_BKH = np.asarray(pool), np.asarray(new_BKH)
    for b, length in enumerate(LENGTHS):
        at = length % ring
        page = b if pages_BY is None else pages_BY[b, at // pool.shape[3]]
        np.testing.assert_array_equal(pool[0, :, page, at % pool.shape[3]], new_BKH[b])


@pytest.mark.parametrize("by", ["xla", "kernel"])
@pytest.mark.parametrize(
    ("page", "window", "ring"), [(None, 128, 128), (64, 100, 128), (64, 37, 192)]
)
def test_a_ring_gives_what_all_positions_give_under_the_mask(by, page, window, ring):
    new, cache = heads()
    (q_BNH, k_BKH, v_BKH), table = new, []
    expected_BNH = expected_of(new, cache, window)
    rings = [in_ring(x, ring) for x in cache]
    if page is not None:
        (k, pages_BY), (v, _) = (in_pages(x, page) for x in rings)
        rings, table = [k, v], [pages_BY]
    arguments = *rings, jnp.asarray(LENGTHS), *table
    if by == "xla":
        run = jax.jit(functools.partial(xla_cached_attention, window=window))
        out_BNH, k, v = run(q_BNH, k_BKH, v_BKH, *arguments)
    else:
        B, K, H = k_BKH.shape
        qkv_BKXH = jnp.concatenate(
            [q_BNH.reshape(B, K, -1, H), k_BKH[:, :, None], v_BKH[:, :, None]], axis=2
        )
        run = functools.partial(kernel_attention, eps=1e-6, window=window, interpret=True, chunk=64)
        out_BNH, k, v = jax.jit(run)(qkv_BKXH, None, None, *arguments)
    # The keys come in another order: float32 sums of 128 numbers about 1.
    np.testing.assert_allclose(out_BNH, expected_BNH, atol=2e-6)
    assert_written(k, *(table or [None]), k_BKH, ring)
    assert_written(v, *(table or [None]), v_BKH, ring)


@pytest.mark.long
@pytest.mark.parametrize("by", ["xla", "kernel"])
def test_a_ring_in_int8_gives_what_int8_gives_for_all_positions(by):
    (q_BNH, k_BKH, v_BKH), cache = heads()
    rounded = [dequantize(quantize(x)) for x in (k_BKH, v_BKH, *cache)]
    expected_BNH = expected_of((q_BNH, *rounded[:2]), rounded[2:], 100)
    rings = [quantize(in_ring(x, 128)) for x in cache]
    rest = *rings, jnp.asarray(LENGTHS)
    if by == "xla":
        run = jax.jit(functools.partial(xla_cached_attention, window=100))
        out_BNH, k, _ = run(q_BNH, k_BKH, v_BKH, *rest)
    else:
        B, K, H = k_BKH.shape
        qkv_BKXH = jnp.concatenate(
            [q_BNH.reshape(B, K, -1, H), k_BKH[:, :, None], v_BKH[:, :, None]], axis=2
        )
        run = functools.partial(kernel_attention, eps=1e-6, window=100, interpret=True)
        out_BNH, k, _ = jax.jit(run)(qkv_BKXH, None, None, *rest)
    assert isinstance(k, Quantized)
    # The kernel rounds queries to two integers (`test_cached_attention`).
    np.testing.assert_allclose(out_BNH, expected_BNH, atol=5e-5 if by == "kernel" else 2e-6)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_a_ring_as_long_as_the_window_needs_no_mask_in_the_tpu_kernel(shared):
    from jax.experimental.pallas import tpu

    new, cache = heads(G=2, H=128, dtype=jnp.bfloat16)
    exact = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))
    expected_BNH = expected_of(exact(new), exact(cache), 256)
    rings, table = [in_ring(x, 256) for x in cache], []
    if shared:
        (k, pages_BY), (v, _) = (in_pages(x, 128) for x in rings)
        rings, table = [k, v], [pages_BY]
    with tpu.force_tpu_interpret_mode():
        run = jax.jit(functools.partial(tpu_attention, window=256))
        out_BNH, k, v = run(*new, *rings, jnp.asarray(LENGTHS), *table)
    # bfloat16 has eight bits: the result is rounded to half a unit in the last place, 2**-9 of
    # itself, and the scaled query to as much before, which moves the softmax's weights.
    out_BNH = np.asarray(out_BNH, np.float32)
    np.testing.assert_allclose(out_BNH, expected_BNH, rtol=2**-8, atol=1e-3)
    assert_written(k, *(table or [None]), new[1], 256)
    assert_written(v, *(table or [None]), new[2], 256)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize(("page", "window", "ring"), [(None, 100, 112), (128, 200, 256)])
@pytest.mark.parametrize("int8", [False, True])
def test_rings_on_a_gpu_too(dtype, tolerance, page, window, ring, int8):
    if jax.default_backend() != "gpu":
        pytest.skip(f"no GPU here but {jax.devices()}")
    new, cache = heads(K=4, G=4, H=128, dtype=dtype)
    (q_BNH, k_BKH, v_BKH), table, exact = new, [], (*new[1:], *cache)
    if int8:
        exact = [dequantize(quantize(x)) for x in exact]
    q, k, v, *whole = (x.astype(jnp.float32) for x in (q_BNH, *exact))
    expected_BNH = expected_of((q, k, v), whole, window)
    rings = [in_ring(x, ring) for x in cache]
    if page is not None:
        (k, pages_BY), (v, _) = (in_pages(x, page) for x in rings)
        rings, table = [k, v], [pages_BY]
    if int8:
        rings = [quantize(x) for x in rings]
    B, K, H = k_BKH.shape
    qkv_BKXH = jnp.concatenate(
        [q_BNH.reshape(B, K, -1, H), k_BKH[:, :, None], v_BKH[:, :, None]], axis=2
    )
    run = jax.jit(functools.partial(kernel_attention, eps=1e-6, window=window))
    out_BNH, k, v = run(qkv_BKXH, None, None, *rings, jnp.asarray(LENGTHS), *table)
    # Of bfloat16 the weights too are rounded: by half a unit each, and the result by another.
    out_BNH = np.asarray(out_BNH, np.float32)
    np.testing.assert_allclose(out_BNH, expected_BNH, rtol=tolerance, atol=2 * tolerance)
    if not int8:
        assert_written(k, *(table or [None]), k_BKH, ring)
        assert_written(v, *(table or [None]), v_BKH, ring)


def test_the_tpu_kernel_is_for_rings_without_a_mask(monkeypatch):
    from jaxdistill import sharding

    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    pool = jnp.zeros((1, 1, 1, 128, 128), jnp.bfloat16)
    table = jnp.zeros((2, 32), jnp.int32)
    found = [has_tpu_kernel(pool, table, window) for window in (None, 4096, 5000, 4095)]
    assert found == [True, True, True, False]


def test_rings_are_whole_units_and_only_kept_where_they_are_shorter():
    found = [ring_positions(*each) for each in
             [(4096, 21_504, 128), (4000, 21_504, 128), (4096, 4096, 128), (100, 101, 16),
              (None, 100, 16)]]  # fmt: skip
    assert found == [4096, 4096, None, None, None]


def test_a_long_prompt_leaves_the_last_position_of_each_place():
    x_BPKH = jnp.arange(2 * 10).reshape(2, 10, 1, 1) * jnp.ones((1, 1, 2, 4))
    length_B = jnp.array([10, 3])
    pool_WMKSH = caches.pool_of(x_BPKH, length_B, 4, "auto")
    assert pool_WMKSH.shape == (1, 2, 2, 4, 4)
    assert pool_WMKSH[0, 0, 1, :, 0].tolist() == [8, 9, 6, 7]
    assert pool_WMKSH[0, 1, 0, :3, 0].tolist() == [10, 11, 12]
