"""The decoding kernels against the reference: interpreted on a CPU, compiled on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.models import attention, cached_attention, decode_kernel
from jaxdistill.models.cached_attention import tpu_attention, xla_cached_attention
from jaxdistill.models.decode_kernel import kernel_attention
from jaxdistill.models.layers import rms_norm
from jaxdistill.models.quantized import Quantized, dequantize, quantize
from jaxdistill.models.rope import apply_rope

EPS = 1e-6


def random_arguments(B, K, G, S, H, dtype=jnp.float32, *, norms=True, rotary=True):
    """qkv, norms, rotary, k, v, lengths; the first row is empty and the second one full.

    NumPy makes the numbers, because it compiles nothing for each of the many sizes.
    """
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    scales = tuple(jnp.asarray(1 + 0.1 * rng.normal(size=H), dtype) for _ in range(2))
    angle_Bh = rng.uniform(high=6.3, size=(B, H // 2))
    turns = tuple(jnp.asarray(f(angle_Bh), jnp.float32) for f in (np.cos, np.sin))
    length_B = rng.integers(0, S, B)
    length_B[:2] = 0, S
    arrays = normal(1, K, B, S, H), normal(1, K, B, S, H), jnp.asarray(length_B, jnp.int32)
    return normal(B, K, G + 2, H), scales if norms else None, turns if rotary else None, *arrays


def in_shared_pages(k_WKMSH, v_WKMSH, length_B, page, seed=0):
    """The same rows in pages scattered over a pool; the pool's other pages are NaN."""
    _, K, B, S, H = k_WKMSH.shape
    num_pages = -(-S // page)
    place = np.random.default_rng(seed).permutation(B * num_pages + 3)[: B * num_pages]
    pages_BY = place.astype(np.int32).reshape(B, num_pages)

    def pool(x_WKMSH):
        x_KBSH = np.asarray(x_WKMSH)[0]
        x_KBSH = np.pad(x_KBSH, ((0, 0), (0, 0), (0, num_pages * page - S), (0, 0)))
        others = np.full((K, B * num_pages + 3, page, H), np.nan, x_KBSH.dtype)
        others[:, pages_BY] = x_KBSH.reshape(K, B, num_pages, page, H)
        return jnp.asarray(others[None])

    return pool(k_WKMSH), pool(v_WKMSH), length_B, jnp.asarray(pages_BY)


def from_shared_pages(x_WKMSH, pages_BY, S):
    _, K, _, _, H = x_WKMSH.shape
    rows_KBSH = np.asarray(x_WKMSH)[0][:, np.asarray(pages_BY)].reshape(K, len(pages_BY), -1, H)
    return jnp.asarray(rows_KBSH[None, :, :, :S])


@functools.partial(jax.jit, static_argnames="window")
def reference(qkv_BKXH, norms_H, rotary_Bh, k_WKMSH, v_WKMSH, length_B, *, window=None):
    B, K, X, H = qkv_BKXH.shape
    q_B1NH = qkv_BKXH[:, :, :-2].reshape(B, 1, K * (X - 2), H)
    k_B1KH = qkv_BKXH[:, None, :, -2]
    if norms_H is not None:
        q_B1NH, k_B1KH = (rms_norm(x, s, EPS) for x, s in zip((q_B1NH, k_B1KH), norms_H))
    if rotary_Bh is not None:
        turns = tuple(x[:, None] for x in rotary_Bh)
        q_B1NH, k_B1KH = apply_rope(q_B1NH, *turns), apply_rope(k_B1KH, *turns)
    return xla_cached_attention(
        q_B1NH[:, 0], k_B1KH[:, 0], qkv_BKXH[:, :, -1], k_WKMSH, v_WKMSH, length_B, window=window
    )


def assert_equal_but_for_the_full_row(found, expected, atol):
    """A full row drops its token, and its attention is undefined."""
    for x, y, rows in zip(found, expected, (0, 2, 2)):
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(np.delete(x, 1, rows), np.delete(y, 1, rows), atol=atol)
    for x, y in zip(found[1:], expected[1:]):
        np.testing.assert_array_equal(np.asarray(x[:, :, 1]), np.asarray(y[:, :, 1]))


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.long), 37])
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


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("chunk", [0, 64])
def test_the_kernel_finds_the_pages_of_its_row(window, chunk):
    """Rows of 256 positions, a multiple of the page, so that a full row is full in both layouts."""
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 256, 16)
    expected = reference(*before, k_WKMSH, v_WKMSH, length_B, window=window)
    paged = in_shared_pages(k_WKMSH, v_WKMSH, length_B, page=64)
    kernel = functools.partial(
        kernel_attention, eps=EPS, window=window, interpret=True, chunk=chunk
    )
    out_BNH, *pools = jax.jit(kernel)(*before, *paged)
    cache = [from_shared_pages(x, paged[-1], 256) for x in pools]
    assert_equal_but_for_the_full_row((out_BNH, *cache), expected, 2e-6)


# A program for a shape, where each of their operations would be one.
quantized, dequantized = jax.jit(quantize), jax.jit(dequantize)


def in_int8(k_WKMSH, v_WKMSH, *rest):
    return quantized(k_WKMSH), quantized(v_WKMSH), *rest


def in_shared_int8_pages(k_WKMSH, v_WKMSH, length_B, page):
    """As `in_shared_pages`: other pages have scales of NaN, since int8 has no NaN itself."""
    k, v = quantized(k_WKMSH), quantized(v_WKMSH)
    values = in_shared_pages(*(np.asarray(x.values, np.float32) for x in (k, v)), length_B, page)
    scales = in_shared_pages(*(np.asarray(x.scale)[..., None] for x in (k, v)), length_B, page)
    pools = (
        Quantized(
            jnp.asarray(np.nan_to_num(np.asarray(x), nan=99.0).astype(np.int8)),
            jnp.asarray(np.asarray(scale)[..., 0]),
        )
        for x, scale in zip(values[:2], scales[:2])
    )
    return *pools, length_B, values[-1]


def from_shared_int8_pages(x, pages_BY, S):
    scale_WKBS = np.asarray(from_shared_pages(np.asarray(x.scale)[..., None], pages_BY, S))[..., 0]
    return dequantized(Quantized(from_shared_pages(x.values, pages_BY, S), jnp.asarray(scale_WKBS)))


def read(found):
    """What attention returned, with its cache dequantised."""
    return found[0], *(dequantized(x) if isinstance(x, Quantized) else x for x in found[1:])


def assert_int8_equal_but_for_the_full_row(found, expected):
    # A query of at most 3.5 is off by 5e-5, a score of 16 products with keys about 1 by 5e-5 (a
    # quarter of the root of 16 such errors), and so is the output.
    assert_equal_but_for_the_full_row(found, expected, 5e-5)
    # The cache is the reference's. No number here lies so close to the middle of two steps that the
    # last bit of a norm decides its rounding.
    assert_equal_but_for_the_full_row((expected[0], *found[1:]), expected, 2e-6)


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.long), 37])
@pytest.mark.parametrize("chunk", [0, 64])
@pytest.mark.parametrize(("norms", "rotary"), [(True, True), (False, False)])
def test_the_kernel_on_int8_equals_the_reference_on_int8(window, chunk, norms, rotary):
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(
        4, 2, 3, 200, 16, norms=norms, rotary=rotary
    )
    cache = in_int8(k_WKMSH, v_WKMSH, length_B)
    kernel = functools.partial(
        kernel_attention, eps=EPS, window=window, interpret=True, chunk=chunk
    )
    found = jax.jit(kernel)(*before, *cache)
    assert found[1].dtype == found[2].dtype == jnp.int8
    expected = reference(*before, *cache, window=window)
    assert_int8_equal_but_for_the_full_row(read(found), read(expected))


@pytest.mark.long
@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("chunk", [0, 64])
def test_the_kernel_on_int8_finds_the_pages_of_its_row(window, chunk):
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 256, 16)
    expected = reference(*before, *in_int8(k_WKMSH, v_WKMSH, length_B), window=window)
    paged = in_shared_int8_pages(k_WKMSH, v_WKMSH, length_B, page=64)
    kernel = functools.partial(
        kernel_attention, eps=EPS, window=window, interpret=True, chunk=chunk
    )
    out_BNH, *pools = jax.jit(kernel)(*before, *paged)
    assert [x.dtype for x in pools] == [jnp.int8, jnp.int8]
    cache = [from_shared_int8_pages(x, paged[-1], 256) for x in pools]
    assert_int8_equal_but_for_the_full_row((out_BNH, *cache), read(expected))


@pytest.mark.parametrize("window", [None, 37])
def test_xla_on_int8_attends_to_what_the_numbers_stand_for(window):
    """Float32 attention to keys and values that were rounded first, including the new token's."""
    qkv_BKXH, _, _, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 256, 16)
    q_BNH, k_BKH, v_BKH = qkv_BKXH[:, :, :3].reshape(4, 6, 16), qkv_BKXH[:, :, 3], qkv_BKXH[:, :, 4]
    attend = functools.partial(
        jax.jit(xla_cached_attention, static_argnames="window"), window=window
    )
    found = attend(q_BNH, k_BKH, v_BKH, *in_int8(k_WKMSH, v_WKMSH), length_B)
    rounded = (dequantize(quantize(x)) for x in (k_BKH, v_BKH, k_WKMSH, v_WKMSH))
    expected = attend(q_BNH, *rounded, length_B)
    assert_equal_but_for_the_full_row(read(found), expected, 2e-6)
    paged = in_shared_int8_pages(k_WKMSH, v_WKMSH, length_B, page=16)
    # XLA multiplies what lies beyond a row's end by weights of 0.
    paged = jax.tree.map(lambda x: jnp.nan_to_num(x) if x.dtype == jnp.float32 else x, paged)
    out_BNH, *pools = attend(q_BNH, k_BKH, v_BKH, *paged)
    cache = [from_shared_int8_pages(x, paged[-1], 256) for x in pools]
    assert_equal_but_for_the_full_row((out_BNH, *cache), expected, 2e-6)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_a_mesh_splits_int8_numbers_and_their_scales_alike(shared):
    """Two parts of the rows, each with its pool, and two of the heads."""
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 256, 16)
    expected = read(reference(*before, *in_int8(k_WKMSH, v_WKMSH, length_B)))
    make = in_shared_int8_pages if shared else lambda *cache, page: in_int8(*cache)
    parts = [make(k_WKMSH[:, :, rows], v_WKMSH[:, :, rows], length_B[rows], page=64)
             for rows in (slice(0, 2), slice(2, 4))]  # fmt: skip
    k, v = (
        jax.tree.map(lambda *x: jnp.concatenate(x), *(part[i] for part in parts)) for i in (0, 1)
    )
    tables = [jnp.concatenate([part[3] for part in parts])] if shared else []
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=1, tensor=2))
    kernel = functools.partial(kernel_attention, eps=EPS, interpret=True)
    with sharding.use_mesh(mesh):
        out_BNH, *pools = jax.jit(kernel)(*before, k, v, length_B, *tables)
    of_part = lambda x, w: jax.tree.map(lambda y: y[w : w + 1], x)  # noqa: E731
    cache = [
        jnp.concatenate([from_shared_int8_pages(of_part(x, w), part[3], 256) if shared
                         else dequantize(of_part(x, w)) for w, part in enumerate(parts)], axis=2)
        for x in pools
    ]  # fmt: skip
    assert_int8_equal_but_for_the_full_row((out_BNH, *cache), expected)


def test_the_int8_kernel_reads_no_position_beyond_a_rows_end():
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 200, 16)
    unused_BS = np.arange(200)[None, :] > np.asarray(length_B)[:, None]
    spoil = lambda x: x._replace(  # noqa: E731
        scale=jnp.where(unused_BS[None, None], jnp.nan, x.scale)
    )
    k, v = quantize(k_WKMSH), quantize(v_WKMSH)
    run = jax.jit(functools.partial(kernel_attention, eps=EPS, interpret=True))
    clean, _, _ = run(*before, k, v, length_B)
    spoilt, _, _ = run(*before, spoil(k), spoil(v), length_B)
    np.testing.assert_array_equal(clean, spoilt)


@pytest.mark.parametrize("window", [None, 37, 64])
@pytest.mark.parametrize("page", [16, 64])
def test_xla_finds_the_pages_of_a_row(window, page):
    qkv_BKXH, _, _, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 256, 16)
    heads = qkv_BKXH[:, :, :3].reshape(4, 6, 16), qkv_BKXH[:, :, 3], qkv_BKXH[:, :, 4]
    attend = functools.partial(
        jax.jit(xla_cached_attention, static_argnames="window"), window=window
    )
    expected = attend(*heads, k_WKMSH, v_WKMSH, length_B)
    *paged, pages_BY = in_shared_pages(k_WKMSH, v_WKMSH, length_B, page)
    out_BNH, *pools = attend(*heads, *paged, pages_BY)
    cache = [from_shared_pages(x, pages_BY, 256) for x in pools]
    assert_equal_but_for_the_full_row((out_BNH, *cache), expected, 2e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("G", [2, 8])
def test_the_tpu_kernel_equals_the_reference(G, shared):
    from jax.experimental.pallas import tpu

    arguments = random_arguments(4, 2, G, 512, 128, jnp.bfloat16, norms=False, rotary=False)
    qkv_BKXH, _, _, *cache = arguments
    heads = qkv_BKXH[:, :, :G].reshape(4, 2 * G, 128), qkv_BKXH[:, :, G], qkv_BKXH[:, :, G + 1]
    expected = jax.jit(xla_cached_attention)(*heads, *cache)
    if shared:
        cache = [jnp.nan_to_num(x) for x in in_shared_pages(*cache, page=128)]
    with tpu.force_tpu_interpret_mode():
        out_BNH, *pools = jax.jit(tpu_attention)(*heads, *cache)
    if shared:
        pools = [from_shared_pages(x, cache[-1], 512) for x in pools]
    # The reference rounds its weights to bfloat16's eight bits; the results are about 1.
    assert_equal_but_for_the_full_row((out_BNH, *pools), expected, 1e-2)


def test_the_tpu_kernel_takes_as_many_pages_at_once_as_divide_a_row():
    found = [cached_attention.pages_at_a_time(n) for n in (1, 4, 7, 16, 21, 160, 11)]
    assert found == [1, 4, 7, 8, 7, 8, 1]


def test_the_kernel_reads_no_position_beyond_a_rows_end():
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(4, 2, 3, 200, 16)
    unused_BS = np.arange(200)[None, :] > np.asarray(length_B)[:, None]
    spoil = lambda x: jnp.where(unused_BS[None, None, :, :, None], jnp.nan, x)  # noqa: E731
    run = jax.jit(functools.partial(kernel_attention, eps=EPS, interpret=True))
    clean, _, _ = run(*before, k_WKMSH, v_WKMSH, length_B)
    spoilt, _, _ = run(*before, spoil(k_WKMSH), spoil(v_WKMSH), length_B)
    np.testing.assert_array_equal(clean, spoilt)


def test_the_kernel_is_for_heads_that_triton_can_multiply(monkeypatch):
    assert not decode_kernel.has_kernel(64, jnp.bfloat16)  # on a CPU
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_compute_capability", lambda: 8.0)
    widths = 8, 16, 32, 48, 64, 80, 128, 256, 512
    found = {
        dtype: [H for H in widths if decode_kernel.has_kernel(H, dtype)]
        for dtype in ("float32", "bfloat16", "int8")
    }
    # The instruction for int8 sums 32 places; Triton gives it 16 places twice.
    exact, int8 = [16, 32, 64, 128, 256], [32, 64, 128, 256]
    assert found == {"float32": exact, "bfloat16": exact, "int8": int8}
    monkeypatch.setattr(attention, "_compute_capability", lambda: 7.5)
    assert not decode_kernel.has_kernel(64, jnp.bfloat16)


@pytest.mark.parametrize(("heads", "S"), [(512, 768), (8, 100), (256, 8704), (4096, 20_480)])
def test_parts_are_whole_blocks_and_fill_a_gpu_where_they_can(heads, S):
    chunk = decode_kernel._chunk(heads, S, 64)
    assert chunk % 64 == 0
    assert chunk <= 1024
    assert heads * -(-S // chunk) >= 256 or chunk == 64


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("S", [300, 5000])
@pytest.mark.parametrize(("G", "H"), [(2, 128), (7, 64), (1, 16)])
@pytest.mark.parametrize("shared", [False, True])
def test_on_a_gpu_too(dtype, atol, S, G, H, shared):
    S = -(-S // 128) * 128 if shared else S  # so that a full row is full in both layouts
    arguments = random_arguments(8, 4, G, S, H, dtype)
    expected = jax.jit(reference)(*arguments)
    *before, k_WKMSH, v_WKMSH, length_B = arguments
    cache = k_WKMSH, v_WKMSH, length_B
    if shared:
        cache = in_shared_pages(*cache, page=128)
    found = jax.jit(functools.partial(kernel_attention, eps=EPS))(*before, *cache)
    if shared:
        found = found[0], *(from_shared_pages(x, cache[-1], S) for x in found[1:])
    # bfloat16 has 8 bits: a unit in the last place of a number near 2 is 0.016.
    assert_equal_but_for_the_full_row(found, expected, atol)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "mean"), [(jnp.float32, 1e-4), (jnp.bfloat16, 4e-3)])
@pytest.mark.parametrize("S", [300, 5000])
@pytest.mark.parametrize(("G", "H"), [(2, 128), (7, 64), (1, 32)])
@pytest.mark.parametrize("shared", [False, True])
def test_int8_on_a_gpu_too(dtype, mean, S, G, H, shared):
    S = -(-S // 128) * 128 if shared else S
    *before, k_WKMSH, v_WKMSH, length_B = random_arguments(8, 4, G, S, H, dtype)
    cache = in_int8(k_WKMSH, v_WKMSH, length_B)
    expected = read(jax.jit(reference)(*before, *cache))
    if shared:
        cache = in_shared_int8_pages(k_WKMSH, v_WKMSH, length_B, page=128)
    found = jax.jit(functools.partial(kernel_attention, eps=EPS))(*before, *cache)
    if shared:
        found = found[0], *(from_shared_int8_pages(x, cache[-1], S) for x in found[1:])
    found = read(found)
    # A different last bit of a new key may round it to the next int8 number; for the largest keys,
    # about 5, that is a step of 0.04. This is rare: most keys agree as closely as exact ones do.
    assert_equal_but_for_the_full_row(found, expected, 5e-2)
    out_BNH, expected_BNH = (
        np.delete(np.asarray(x[0], np.float32), 1, 0) for x in (found, expected)
    )
    assert np.abs(out_BNH - expected_BNH).mean() < mean


@pytest.mark.parametrize("capability", [8, 9])
@pytest.mark.parametrize(("shared", "int8"), [(False, False), (True, False), (True, True)])
def test_the_kernel_is_lowered_for_a_gpu_that_is_not_here(shared, int8, capability, monkeypatch):
    monkeypatch.setattr(attention, "_compute_capability", lambda: capability)
    arguments = random_arguments(4, 4, 7, 512, 128, jnp.bfloat16)
    *before, k_WKMSH, v_WKMSH, length_B = arguments
    cache = (k_WKMSH, v_WKMSH, length_B)
    if shared:
        cache = (in_shared_int8_pages if int8 else in_shared_pages)(*cache, page=128)
    elif int8:
        cache = in_int8(*cache)
    kernel = jax.jit(functools.partial(kernel_attention, eps=EPS))
    # Newer versions of JAX ask for the GPU's name, and there is none here.
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        text = kernel.trace(*before, *cache).lower(lowering_platforms=("cuda",)).as_text()
    assert "append_and_attend" in text
    # Two numbers are converted at a time by instructions that GPUs before Hopper lack.
    assert ("sub.rn.bf16x2" in text) == (int8 and capability >= 9)
