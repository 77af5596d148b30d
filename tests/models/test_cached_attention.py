"""The kernel for one new token against the reference, interpreted here and real on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import cached_attention
from jaxdistill.models.cached_attention import kernel_attention, xla_attention
from jaxdistill.models.layers import rms_norm
from jaxdistill.models.rope import apply_rope

EPS = 1e-6


def random_arguments(B, K, G, S, H, dtype=jnp.float32, *, norms=True, rotary=True):
    """qkv, norms, rotary, k, v, lengths: the first row empty, the second full."""
    keys = jax.random.split(jax.random.key(0), 7)
    normal = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)  # noqa: E731
    scales = tuple(1 + 0.1 * normal(key, H) for key in keys[:2]) if norms else None
    angle_Bh = jax.random.uniform(keys[2], (B, H // 2), maxval=6.3)
    turns = (jnp.cos(angle_Bh), jnp.sin(angle_Bh)) if rotary else None
    length_B = jax.random.randint(keys[3], (B,), 0, S + 1).at[0].set(0).at[1].set(S)
    cache = normal(keys[4], B, K, S, H), normal(keys[5], B, K, S, H)
    return normal(keys[6], B, K, G + 2, H), scales, turns, *cache, length_B


def reference(qkv_BKXH, norms_H, rotary_Bh, k_BKSH, v_BKSH, length_B, *, window=None):
    B, K, X, H = qkv_BKXH.shape
    q_B1NH = qkv_BKXH[:, :, :-2].reshape(B, 1, K * (X - 2), H)
    k_B1KH = qkv_BKXH[:, None, :, -2]
    if norms_H is not None:
        q_B1NH, k_B1KH = (rms_norm(x, s, EPS) for x, s in zip((q_B1NH, k_B1KH), norms_H))
    if rotary_Bh is not None:
        turns = tuple(x[:, None] for x in rotary_Bh)
        q_B1NH, k_B1KH = apply_rope(q_B1NH, *turns), apply_rope(k_B1KH, *turns)
    return xla_attention(
        q_B1NH[:, 0], k_B1KH[:, 0], qkv_BKXH[:, :, -1], k_BKSH, v_BKSH, length_B, window=window
    )


def assert_equal_but_for_the_full_row(found, expected, atol):
    """A full row loses its token; what it is then told to attend to is nobody's concern."""
    for x, y in zip(found, expected):
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(np.delete(x, 1, 0), np.delete(y, 1, 0), atol=atol)
    for x, y in zip(found[1:], expected[1:]):
        np.testing.assert_array_equal(np.asarray(x[1]), np.asarray(y[1]))


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("chunk", [0, 64])
@pytest.mark.parametrize(("norms", "rotary"), [(True, True), (False, True), (False, False)])
def test_the_kernel_equals_the_reference(window, chunk, norms, rotary):
    arguments = random_arguments(4, 2, 3, 200, 16, norms=norms, rotary=rotary)
    kernel = functools.partial(
        kernel_attention, eps=EPS, window=window, interpret=True, chunk=chunk
    )
    found = jax.jit(kernel)(*arguments)
    # float32 sums over 200 positions in another order, of numbers about 1.
    expected = reference(*arguments, window=window)
    assert_equal_but_for_the_full_row(found, expected, 2e-6)


def test_the_kernel_reads_no_position_beyond_a_rows_end():
    *before, k_BKSH, v_BKSH, length_B = random_arguments(4, 2, 3, 200, 16)
    unused_BS = np.arange(200)[None, :] > np.asarray(length_B)[:, None]
    spoil = lambda x: jnp.where(unused_BS[:, None, :, None], jnp.nan, x)  # noqa: E731
    run = jax.jit(functools.partial(kernel_attention, eps=EPS, interpret=True))
    clean, _, _ = run(*before, k_BKSH, v_BKSH, length_B)
    spoilt, _, _ = run(*before, spoil(k_BKSH), spoil(v_BKSH), length_B)
    np.testing.assert_array_equal(clean, spoilt)


@pytest.mark.parametrize(("heads", "S"), [(512, 768), (8, 100), (256, 8704), (4096, 20_480)])
def test_parts_are_whole_blocks_and_fill_a_gpu_where_they_can(heads, S):
    chunk = cached_attention._chunk(heads, S, 64)
    assert chunk % 64 == 0
    assert chunk <= 2048
    assert heads * -(-S // chunk) >= 256 or chunk == 64


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("S", [300, 5000])
@pytest.mark.parametrize(("G", "H"), [(2, 128), (7, 64)])
def test_on_a_gpu_too(dtype, atol, S, G, H):
    arguments = random_arguments(8, 4, G, S, H, dtype)
    found = jax.jit(functools.partial(kernel_attention, eps=EPS))(*arguments)
    # bfloat16 has 8 bits: a unit in the last place of a number about 2 is 0.016.
    assert_equal_but_for_the_full_row(found, jax.jit(reference)(*arguments), atol)
