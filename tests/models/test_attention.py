import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import attention
from jaxdistill.sharding import MeshConfig

B, S, N, H = 2, 13, 4, 8
WINDOWS = [None, 1, 5, S, S + 4]


def _inputs(K, B=B, S=S, N=N, H=H, dtype=np.float32):
    """q, k, v and the cotangent of the output; scores spread over several units."""
    rng = np.random.default_rng(0)
    q_BSNH, g_BSNH = rng.normal(size=(2, B, S, N, H))
    k_BSKH, v_BSKH = rng.normal(size=(2, B, S, K, H))
    return [x.astype(dtype) for x in (2 * q_BSNH, k_BSKH, v_BSKH, g_BSNH)]


def _with_gradients(attend, q_BSNH, k_BSKH, v_BSKH, g_BSNH):
    """The output, and the gradients of sum(output * g) for q, k and v."""
    return [np.asarray(x) for x in _run(attend, q_BSNH, k_BSKH, v_BSKH, g_BSNH)]


@functools.partial(jax.jit, static_argnums=0)  # one program for each attend and each size
def _run(attend, q_BSNH, k_BSKH, v_BSKH, g_BSNH):
    out_BSNH, pull = jax.vjp(attend, q_BSNH, k_BSKH, v_BSKH)
    return out_BSNH, *pull(g_BSNH)


@functools.cache
def _xla(window=None):
    return functools.partial(attention.causal_attention, window=window, implementation="xla")


@functools.cache
def _splash(window=None):
    return functools.partial(attention.splash_attention, window=window, interpret=True)


def _formula(q_BSNH, k_BSKH, v_BSKH, g_BSNH, window):
    """softmax(q k / sqrt(H)) v and its gradients in float64, one query at a time."""
    q, k, v, g = (x.astype(np.float64) for x in (q_BSNH, k_BSKH, v_BSKH, g_BSNH))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    G = q.shape[2] // k.shape[2]
    for b, i, n in np.ndindex(q.shape[:3]):
        seen = np.s_[b, 0 if window is None else max(0, i - window + 1) : i + 1, n // G]
        scores = k[seen] @ q[b, i, n] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, i, n] = weights @ v[seen]
        dv[seen] += np.outer(weights, g[b, i, n])
        d_weights = v[seen] @ g[b, i, n]
        d_scores = weights * (d_weights - weights @ d_weights) / np.sqrt(q.shape[3])
        dq[b, i, n] = d_scores @ k[seen]
        dk[seen] += np.outer(d_scores, q[b, i, n])
    return out, dq, dk, dv


# ------------------------------------------------------------------------ the formula


@pytest.mark.parametrize(
    ("K", "window"),
    [
        pytest.param(K, window, marks=[] if K == 2 or window in (None, 5) else [pytest.mark.slow])
        for K in (1, 2, 4)
        for window in WINDOWS
    ],
    ids=lambda number: str(number),
)
def test_xla_is_the_formula_in_value_and_gradient(K, window):
    inputs = _inputs(K)
    actual = _with_gradients(_xla(window), *inputs)
    for x, expected in zip(actual, _formula(*inputs, window)):
        # float32 sums of a dozen terms of size 1 to 10.
        np.testing.assert_allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_xla_keeps_a_narrow_dtype_and_its_precision(dtype):
    inputs = [x.astype(dtype) for x in _inputs(2)]
    actual = _with_gradients(_xla(5), *inputs)
    for x, expected in zip(actual, _formula(*inputs, 5)):
        assert x.dtype == dtype
        # Eight bits of mantissa: weights, products and results are each rounded by 2^-9.
        error = np.linalg.norm(x.astype(np.float64) - expected) / np.linalg.norm(expected)
        assert error < 1e-2


# Lengths of a whole tile and of part of one, head widths other than a tile, and three blocks of
# which the window skips one.
SPLASH = {
    "one-tile": dict(K=2, S=128, H=16),
    "part-of-a-tile": dict(K=2, S=100, H=24, window=30),
    "one-kv-head": dict(K=1, S=200, H=8),
    "all-kv-heads": dict(K=4, S=200, H=8, window=1),
    "window-of-a-tile": dict(K=2, S=300, H=128, window=128),
    "window-beyond-the-end": dict(K=2, S=130, H=8, window=1000),
    "skipped-blocks": dict(K=1, B=1, N=1, S=2100, H=8, window=90),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.long)
        if case in ("part-of-a-tile", "one-kv-head", "window-beyond-the-end")
        else case
        for case in SPLASH
    ],
)
def test_splash_is_xla_in_value_and_gradient(case):
    sizes = dict(SPLASH[case])
    window = sizes.pop("window", None)
    inputs = _inputs(**sizes)
    actual = _with_gradients(_splash(window), *inputs)
    for x, expected in zip(actual, _with_gradients(_xla(window), *inputs)):
        # The same float32 sums, taken block by block.
        np.testing.assert_allclose(x, expected, atol=2e-5)


@given(st.integers(1, 40_000))
def test_splash_blocks_are_whole_tiles_and_waste_less_than_a_tile_each(S):
    block = attention._block(S)
    num_blocks = -(-S // block)
    assert block % 128 == 0
    assert block <= 1024
    assert num_blocks * block - S < 128 * num_blocks


# --------------------------------------------------------------- what must not have influence

# An implementation, and a length that fills neither its tile nor, for splash, its last block.
PATHS = {"xla": (_xla, 13), "splash": (_splash, 150)}


def _replace(inputs, index):
    """q, k and v with other numbers at `index`, large enough to dominate the result if seen."""
    changed = [x.copy() for x in inputs[:3]]
    for x in changed:
        x[index] = 7 * x[index][..., ::-1] + 50
    return changed


@pytest.mark.parametrize("path", PATHS)
def test_the_future_changes_no_bit_and_gets_no_gradient(path):
    make, S = PATHS[path]
    *inputs, g_BSNH = _inputs(2, S=S)
    t = S - 5
    attend = make()
    out_BSNH = _with_gradients(attend, *inputs, g_BSNH)[0]
    other_BSNH = _with_gradients(attend, *_replace(inputs, np.s_[:, t:]), g_BSNH)[0]
    np.testing.assert_array_equal(out_BSNH[:, :t], other_BSNH[:, :t])
    assert np.abs(out_BSNH[:, t:] - other_BSNH[:, t:]).min(axis=(0, 2, 3)).max() > 0.1
    g_BSNH[:, t:] = 0
    for gradient in _with_gradients(attend, *inputs, g_BSNH)[1:]:
        assert not gradient[:, t:].any()
        assert gradient[:, t - 1].any()


@pytest.mark.parametrize("path", PATHS)
def test_what_lies_beyond_the_window_changes_no_bit_and_gets_no_gradient(path):
    make, S = PATHS[path]
    *inputs, g_BSNH = _inputs(2, S=S)
    window, t = 4, S - 3
    attend = make(window)
    out_BSNH = _with_gradients(attend, *inputs, g_BSNH)[0]
    # Query t sees t - 3, t - 2, t - 1 and itself.
    others = _replace(inputs, np.s_[:, : t - window + 1])
    other_BSNH = _with_gradients(attend, *others, g_BSNH)[0]
    np.testing.assert_array_equal(out_BSNH[:, t:], other_BSNH[:, t:])
    assert (np.asarray(out_BSNH[:, t - 1]) != other_BSNH[:, t - 1]).all()
    g_BSNH[:, :t] = 0
    _, _, dk_BSKH, dv_BSKH = _with_gradients(attend, *inputs, g_BSNH)
    for gradient in (dk_BSKH, dv_BSKH):
        assert not gradient[:, : t - window + 1].any()
        assert gradient[:, t - window + 1].any()


@pytest.mark.parametrize("path", PATHS)
def test_the_neighbours_in_a_batch_change_no_bit(path):
    make, S = PATHS[path]
    *inputs, g_BSNH = _inputs(2, S=S)
    run = functools.partial(_with_gradients, make(6))
    for x, other in zip(run(*inputs, g_BSNH), run(*_replace(inputs, 1), g_BSNH)):
        np.testing.assert_array_equal(x[0], other[0])
        assert (x[1] != other[1]).any()


@pytest.mark.parametrize("path", PATHS)
def test_the_amount_of_padding_changes_nothing_before_it(path):
    make, S = PATHS[path]
    inputs = _inputs(2, S=S)
    padded = [np.pad(x, ((0, 0), (0, 9), (0, 0), (0, 0))) for x in inputs]
    pairs = zip(_with_gradients(make(6), *padded), _with_gradients(make(6), *inputs))
    for x, expected in pairs:
        assert np.isfinite(x).all()
        # Sums over other lengths may run in another order.
        np.testing.assert_allclose(x[:, :S], expected, atol=1e-5)


# ------------------------------------------------------------------------- packed rows

# Empty segments at either end and in the middle, a full row, and trailing padding; no length is a
# multiple of 128.
LENGTHS = {13: [[4, 0, 6, 1], [13, 0, 0, 0], [0, 5, 5, 0]],
           150: [[70, 0, 60, 9], [150, 0, 0, 0], [0, 1, 140, 0]]}  # fmt: skip


@functools.cache
def _packed(make, S, window=None):
    return functools.partial(make(window), lengths_BA=jnp.array(LENGTHS[S]))


def _segments(lengths_BA):
    """(row, slots) of each segment that is not empty."""
    for b, lengths_X in enumerate(lengths_BA):
        ends_X = np.cumsum(lengths_X)
        for end, length in zip(ends_X, lengths_X):
            if length:
                yield b, slice(end - length, end)


def test_segments_and_places_of_a_row_by_hand():
    segment_BS, index_BS = attention.segments_of(np.array([[2, 0, 1], [0, 0, 0]]), 5)
    assert segment_BS.tolist() == [[0, 0, 2, 3, 3], [3] * 5]
    assert index_BS.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("path", PATHS)
def test_a_segment_attends_as_a_row_of_its_own(path, window):
    make, S = PATHS[path]
    inputs = _inputs(2, B=3, S=S)
    actual = _with_gradients(_packed(make, S, window), *inputs)
    for b, slots in _segments(LENGTHS[S]):
        expected = _formula(*(x[b : b + 1, slots] for x in inputs), window)
        for x, y in zip(actual, expected):
            np.testing.assert_allclose(x[b, slots], y[0], atol=3e-5)


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_other_segments_and_padding_change_no_bit_of_a_segment(path):
    make, S = PATHS[path]
    *inputs, g_BSNH = _inputs(2, B=3, S=S)
    run = functools.partial(_with_gradients, _packed(make, S, 6))
    clean = run(*inputs, g_BSNH)
    for b, slots in _segments(LENGTHS[S]):
        others = np.ones(S, bool)
        others[slots] = False
        others = np.nonzero(others)[0]
        spoilt = run(*_replace(inputs, np.s_[b, others]), g_BSNH)
        for x, y in zip(clean, spoilt):
            np.testing.assert_array_equal(x[b, slots], y[b, slots])
            assert np.isfinite(y).all()


@pytest.mark.long
def test_cudnn_is_told_where_each_segment_lies(monkeypatch):
    """cuDNN's arguments, read as its documentation says, with two query heads per key head."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths_BA = np.array(LENGTHS[150])
    q_BSNH, k_BSKH, v_BSKH = (jnp.asarray(x) for x in _inputs(2, B=3, S=150, H=8)[:3])

    attend = jax.jit(attention.xla_attention, static_argnums=3)

    def read_as_cudnn_does(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, **rest):
        assert rest == {"mask_type": cudnn.MaskType.PADDING_CAUSAL, "sliding_window_length": 7}
        lengths, _, *offsets = cudnn._fix_seqlen_offsets(
            q_seqlen, kv_seqlen, q_offsets, kv_offsets, q, k
        )
        out = np.full(q.shape, np.nan, np.float32).reshape(-1, q.shape[3])
        flat = [np.asarray(x).reshape(-1, x.shape[3]) for x in (q, k, v)]
        for length, *starts in zip(*(np.ravel(x)[: lengths.size] for x in (lengths, *offsets))):
            if length:
                sizes = [x.shape[2] for x in (q, k, v)]
                firsts = [start // 8 for start in (*starts, starts[1])]
                rows = [
                    x[f : f + length * n].reshape(1, length, n, 8)
                    for x, f, n in zip(flat, firsts, sizes)
                ]
                attended = attend(*rows, 7)  # one program for each length
                out[firsts[0] : firsts[0] + length * sizes[0]] = attended.reshape(-1, 8)
        return jnp.asarray(out.reshape(q.shape))

    monkeypatch.setattr(cudnn, "dot_product_attention", read_as_cudnn_does)
    out_BSNH = attention.cudnn_attention(q_BSNH, k_BSKH, v_BSKH, 7, lengths_BA)
    expected = attention.xla_attention(q_BSNH, k_BSKH, v_BSKH, 7, lengths_BA)
    for b, slots in _segments(lengths_BA):
        np.testing.assert_allclose(out_BSNH[b, slots], expected[b, slots], atol=1e-5)
    for b, length in enumerate(lengths_BA.sum(axis=1)):  # the kernel leaves NaN there
        assert not np.asarray(out_BSNH)[b, length:].any()


# --------------------------------------------------------------------------------- meshes


@pytest.fixture
def as_on_tpu(monkeypatch):
    """`causal_attention` as it runs on a TPU, its kernel interpreted."""
    interpreted = functools.partial(attention.splash_attention, interpret=True)
    monkeypatch.setattr(attention, "splash_attention", interpreted)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")


@pytest.mark.long
@pytest.mark.parametrize(
    ("B", "sizes"), [(4, (2, 2, 2)), (3, (1, 2, 4))], ids=["split", "whole-where-indivisible"]
)
def test_a_mesh_changes_no_bit_of_splash_and_its_gradient(as_on_tpu, B, sizes):
    # 3 rows cannot be split over 2 devices, nor 2 key/value heads over 4.
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in _inputs(2, B=B, S=130)]
    attend = functools.partial(attention.causal_attention, window=40, implementation="splash")
    expected = _with_gradients(attend, *inputs)
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    axes = ("BSNH", "BSKH", "BSKH", "BSNH")
    placed = [
        jax.device_put(x, sharding.sharding_of(mesh, a, x.shape)) for x, a in zip(inputs, axes)
    ]
    with sharding.use_mesh(mesh):  # the same function by another name: traced anew on the mesh
        actual = _with_gradients(functools.partial(attend), *placed)
    for x, y in zip(actual, expected):
        np.testing.assert_array_equal(x, y)


@pytest.mark.long
def test_a_mesh_changes_no_bit_of_packed_splash_and_its_gradient(as_on_tpu):
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in _inputs(2, B=4, S=150)]
    lengths_BA = np.array([*LENGTHS[150], [0, 0, 0, 0]])
    attend = functools.partial(
        attention.causal_attention, lengths_BA=lengths_BA, window=40, implementation="splash"
    )
    expected = _with_gradients(attend, *inputs)
    with sharding.use_mesh(sharding.make_mesh(MeshConfig(2, 2, 2))):
        actual = _with_gradients(functools.partial(attend), *inputs)
    for x, y in zip(actual, expected):
        np.testing.assert_array_equal(x, y)


def test_devices_that_hold_whole_rows_and_heads_exchange_nothing(as_on_tpu):
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))

    def argument(axes, *shape):
        split = sharding.sharding_of(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

    q_BSNH, k_BSKH = argument("BSNH", 4, 130, 4, 8), argument("BSKH", 4, 130, 2, 8)
    with sharding.use_mesh(mesh):
        step = jax.jit(lambda *qkvg: jax.vjp(attention.causal_attention, *qkvg[:3])[1](qkvg[3]))
        compiled = step.lower(q_BSNH, k_BSKH, k_BSKH, q_BSNH).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


# --------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("platform", "dtype", "S", "H", "chosen"),
    [
        ("cpu", "float32", 4096, 128, "xla"),
        ("cpu", "bfloat16", 4096, 128, "xla"),
        ("gpu", "bfloat16", 4096, 128, "cudnn"),
        ("gpu", "float16", 4096, 80, "cudnn"),
        ("gpu", "float32", 4096, 128, "xla"),
        ("gpu", "bfloat16", 4096, 256, "xla"),
        ("gpu", "bfloat16", 100, 128, "xla"),
        ("tpu", "bfloat16", 4096, 128, "splash"),
        ("tpu", "bfloat16", 4096, 256, "splash"),
        ("tpu", "float32", 4096, 128, "xla"),
        ("tpu", "bfloat16", 100, 128, "xla"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_can(platform, dtype, S, H, chosen, monkeypatch):
    monkeypatch.setattr(attention, "is_ampere_or_newer", lambda: True)
    assert attention.choose("auto", platform, dtype, S, H) == chosen


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [("9.0", "cudnn"), ("8.0", "cudnn"), ("7.5", "xla"), ("gfx942", "xla")],
)
def test_auto_leaves_older_and_other_gpus_to_xla(capability, chosen, monkeypatch):
    device = type("Device", (), {"compute_capability": capability})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention.choose("auto", "gpu", "bfloat16", 4096, 128) == chosen


@pytest.mark.parametrize(("capability", "chosen"), [("9.0", "cudnn"), ("8.0", "xla")])
def test_auto_takes_cudnn_for_packed_rows_on_hopper_alone(capability, chosen, monkeypatch):
    device = type("Device", (), {"compute_capability": capability})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention.choose("auto", "gpu", "bfloat16", 4096, 128, is_packed=True) == chosen
    if chosen == "xla":
        with pytest.raises(UserError, match="'cudnn' supports packed rows only on Hopper or newer"):
            attention.choose("cudnn", "gpu", "bfloat16", 4096, 128, is_packed=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("flash", "gpu", "bfloat16", 512, 64), "'flash' is unknown; use one of auto, xla, cudnn"),
        (("cudnn", "cpu", "bfloat16", 512, 64), "'cudnn' needs an NVIDIA GPU.* on cpu; use 'auto'"),
        (("cudnn", "gpu", "float32", 512, 64), "'cudnn' computes in bfloat16 or .* float32; use"),
        (("cudnn", "gpu", "bfloat16", 512, 256), "'cudnn' takes head_dim up to 128, not 256; use"),
        (("splash", "cpu", "bfloat16", 512, 64), "'splash' needs a TPU.* this is cpu; use 'auto'"),
        (("splash", "tpu", "float32", 512, 64), "'splash' computes in bfloat16, not in float32"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_use(asked, message, monkeypatch):
    monkeypatch.setattr(attention, "is_ampere_or_newer", lambda: True)
    with pytest.raises(UserError, match=f"^attention {message}") as error:
        attention.choose(*asked)
    assert "\n" not in str(error.value)


def test_a_named_kernel_is_refused_here_before_anything_runs():
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in _inputs(2)[:3]]
    for name in ("cudnn", "splash"):
        with pytest.raises(UserError, match="use 'auto' or 'xla'"):
            attention.causal_attention(*inputs, implementation=name)


def test_splash_computes_no_block_that_lies_outside_of_the_window():
    """Of 4 x 4 blocks of 1,024: 10 of a causal layer, two per row with a window of 1,024."""
    kernels = [attention._splash_kernel(4096, 1, window, 1024, True) for window in (None, 1024)]
    computed = [int((np.asarray(kernel.fwd_mask_info.block_mask) > 0).sum()) for kernel in kernels]
    assert computed == [10, 7]
