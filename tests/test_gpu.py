"""cuDNN's attention against the plain one, on a GPU: `pytest -n0 -m gpu tests/test_gpu.py`.

The reference reads the same bfloat16 numbers and computes in float32. NumPy makes the numbers and
compares them: on a GPU each operation on a new shape is a program, which takes longer to compile
than all of them to run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, parameters
from jaxdistill.models.attention import causal_attention
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import sdpo
from jaxdistill.sharding import MeshConfig
from jaxdistill.training import batch as batches
from jaxdistill.training import step as train
from jaxdistill.training.batch import Batch, Texts
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import Frozen

pytestmark = pytest.mark.gpu

# bfloat16 has eight bits: inputs agree exactly, but weights, products and results are rounded.
TOLERANCE = 1e-2


@pytest.fixture(scope="module", autouse=True)
def _on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip(f"no GPU here but {jax.devices()}")


BFLOAT16 = jnp.dtype(jnp.bfloat16)  # NumPy's, too


def _inputs(B=2, S=256, N=4, K=2, H=64):
    """q, k, v and the cotangent of the output, in bfloat16."""
    rng = np.random.default_rng(0)
    shapes = [(B, S, N, H), (B, S, K, H), (B, S, K, H), (B, S, N, H)]
    q, k, v, g = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return [x.astype(BFLOAT16) for x in (2 * q, k, v, g)]


@functools.partial(jax.jit, static_argnames=("window", "implementation"))
def _program(q_BSNH, k_BSKH, v_BSKH, g_BSNH, lengths_BA=None, window=None, implementation="cudnn"):
    """The output, and the gradients of sum(output * g) for q, k and v."""
    attend = functools.partial(
        causal_attention, lengths_BA=lengths_BA, window=window, implementation=implementation
    )
    out_BSNH, pull = jax.vjp(attend, q_BSNH, k_BSKH, v_BSKH)
    return out_BSNH, *pull(g_BSNH)


def _with_gradients(*arguments, **options):
    """`_program` in float32, in which every number of bfloat16 is itself."""
    return [np.asarray(x, np.float32) for x in _program(*arguments, **options)]


def _reference(inputs, window=None):
    """The same, computed in float32."""
    wide = (x.astype(np.float32) for x in inputs)
    return _with_gradients(*wide, window=window, implementation="xla")


def _size(x):
    return float(np.linalg.norm(np.asarray(x, np.float32).ravel()))


def _relative_error(actual, expected):
    return _size(np.asarray(actual, np.float32) - np.asarray(expected)) / _size(expected)


def _assert_near(actual, expected, tolerance=TOLERANCE):
    out_BSNH = expected[0]
    for x, y in zip(actual, expected):
        assert np.isfinite(x).all()
        # With a single key in sight q and k have no gradient; what is left is rounding's.
        scale = out_BSNH if _size(y) < 1e-4 * _size(out_BSNH) else y
        assert _size(x - y) <= tolerance * _size(scale)


# ------------------------------------------------------------------------------ attention

CASES = {
    "qwen3-8b-heads": dict(B=1, S=1024, N=32, K=8, H=128),
    "qwen3-8b-heads-and-a-window": dict(B=1, S=1024, N=32, K=8, H=128, window=256),
    "odd-length-and-one-kv-head": dict(S=777, K=1, H=128),
    "odd-length-window-and-all-kv-heads": dict(S=777, K=4, H=128, window=129),
    "half-a-tile": dict(S=192, H=80),  # of which cuDNN's backward pass had a fault
    "shorter-than-a-tile": dict(S=63, window=9),
    "one-token": dict(S=1),
    "seven-query-heads-a-kv-head-and-a-window-of-one": dict(S=300, N=14, K=2, window=1),
    "a-width-that-cudnn-has-not": dict(S=300, H=100, window=50),
}


@pytest.mark.parametrize("case", CASES)
def test_cudnn_is_near_float32_in_value_and_gradient(case):
    sizes = dict(CASES[case])
    window = sizes.pop("window", None)
    inputs = _inputs(**sizes)
    _assert_near(_with_gradients(*inputs, window=window), _reference(inputs, window))


def _with_low_scores(inputs):
    q_BSNH, k_BSKH, *others = inputs
    low = [(0.1 * x.astype(np.float32)).astype(BFLOAT16) for x in (q_BSNH, k_BSKH)]
    low[0][..., 0], low[1][..., 0] = 1, -120 * 8  # 8 = sqrt(H)
    return [*low, *others]


@pytest.mark.parametrize("S", [192, 777])
def test_scores_far_below_zero_make_no_nan(S):
    """exp(-score) of a key that is not there exceeds float32 where all real scores are this low."""
    inputs = _with_low_scores(_inputs(S=S))
    actual, expected = _with_gradients(*inputs), _reference(inputs)
    assert all(np.isfinite(x).all() for x in actual)
    _assert_near(actual[:1] + actual[3:], expected[:1] + expected[3:])


def _changed(inputs, index):
    """q, k and v with other numbers at an index, large enough to drown all else if seen."""
    return [_with(x, index, 50 - 7 * x[index][..., ::-1].astype(np.float32)) for x in inputs[:3]]


def _with(x, index, values):
    x = x.copy()
    x[index] = values
    return x


@pytest.mark.parametrize("window", [None, 100])
def test_what_follows_a_query_changes_no_bit_and_gets_no_gradient(window):
    *inputs, g_BSNH = _inputs(S=300)
    t = 170  # neither a tile's end nor its beginning
    run = functools.partial(_with_gradients, window=window)
    clean, *_ = run(*inputs, g_BSNH)
    spoilt, *_ = run(*_changed(inputs, np.s_[:, t:]), g_BSNH)
    np.testing.assert_array_equal(clean[:, :t], spoilt[:, :t])
    assert (clean[:, t:] != spoilt[:, t:]).any()
    for gradient in run(*inputs, _with(g_BSNH, np.s_[:, t:], 0))[1:]:
        assert not gradient[:, t:].any()
        assert gradient[:, t - 1].any()


def test_what_lies_beyond_the_window_changes_no_bit_and_gets_no_gradient():
    *inputs, g_BSNH = _inputs(S=400)
    window, t = 100, 310  # query t sees t - 99 and after
    run = functools.partial(_with_gradients, window=window)
    clean, *_ = run(*inputs, g_BSNH)
    spoilt, *_ = run(*_changed(inputs, np.s_[:, : t - window + 1]), g_BSNH)
    np.testing.assert_array_equal(clean[:, t:], spoilt[:, t:])
    assert (clean[:, t - 1] != spoilt[:, t - 1]).any()
    _, _, dk_BSKH, dv_BSKH = run(*inputs, _with(g_BSNH, np.s_[:, :t], 0))
    for gradient in (dk_BSKH, dv_BSKH):
        assert not gradient[:, : t - window + 1].any()
        assert gradient[:, t - window + 1].any()


def test_the_neighbours_in_a_batch_change_no_bit_forward_and_stay_out_of_the_gradient():
    *inputs, g_BSNH = _inputs(B=3, S=300)
    clean = _with_gradients(*inputs, g_BSNH)
    spoilt = _with_gradients(*_changed(inputs, np.s_[1:]), g_BSNH)
    np.testing.assert_array_equal(clean[0][0], spoilt[0][0])
    for x, y in zip(clean[1:], spoilt[1:]):
        # The backward pass adds up dq in no fixed order.
        assert _relative_error(x[0], y[0]) <= 1e-3


def test_long_rows_hold_no_array_of_all_scores():
    B, S, N, K, H = 1, 8192, 16, 8, 128
    q_BSNH = jax.ShapeDtypeStruct((B, S, N, H), jnp.bfloat16)
    k_BSKH = jax.ShapeDtypeStruct((B, S, K, H), jnp.bfloat16)
    compiled = _program.lower(q_BSNH, k_BSKH, k_BSKH, q_BSNH).compile()
    # The work space is a few times the size of q; the scores of one head alone are 64 MiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * N * S * S / 4
    assert f"{S},{S}" not in compiled.as_text()


def test_auto_is_cudnn_for_bfloat16_and_xla_for_float32():
    inputs = _inputs()
    text = _program.lower(*inputs, implementation="auto").compile().as_text()
    assert "__cudnn$fmha" in text
    wide = [x.astype(np.float32) for x in inputs]
    text = _program.lower(*wide, implementation="auto").compile().as_text()
    assert "__cudnn$fmha" not in text
    with pytest.raises(UserError, match="'cudnn' computes in bfloat16 or float16, not in float32"):
        _with_gradients(*wide)


# -------------------------------------------------------------------------- packed rows

# Rows of S slots: empty segments at either end and between, one of a single token, of no whole
# tiles, one that fills its row, and a row of none.
PACKS = {
    777: [
        [0, 300, 129, 0, 1, 200],
        [777, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [128, 64, 0, 63, 256, 2],
    ],
    1024: [[1000, 1, 20], [512, 512, 0]],
    63: [[20, 3, 40], [1, 0, 0]],
}
PACKED_CASES = {
    "qwen3-8b-heads": dict(S=1024, N=32, K=8, H=128),
    "qwen3-8b-heads-and-a-window": dict(S=1024, N=32, K=8, H=128, window=256),
    "one-kv-head": dict(S=777, K=1, H=128),
    "all-kv-heads-and-a-window": dict(S=777, K=4, H=128, window=129),
    "seven-query-heads-a-kv-head-and-a-window-of-one": dict(S=777, N=14, K=2, window=1),
    "a-width-that-cudnn-has-not": dict(S=777, H=100, window=50),
    "shorter-than-a-tile": dict(S=63, window=9),
}  # fmt: skip


def _packed_reference(inputs, lengths_BA, window=None):
    """The same in float32, and 0 at the padding."""
    wide = [x.astype(np.float32) for x in inputs]
    found = _with_gradients(*wide, lengths_BA, window=window, implementation="xla")
    real_BS = np.arange(inputs[0].shape[1])[None] < lengths_BA.sum(axis=1)[:, None]
    return [x * real_BS[:, :, None, None] for x in found]


def _pack_of(S, **sizes):
    lengths_BA = np.array(PACKS[S])
    return _inputs(B=len(lengths_BA), S=S, **sizes), lengths_BA


def _slots(lengths_BA):
    for b, lengths_X in enumerate(lengths_BA):
        for end, length in zip(np.cumsum(lengths_X), lengths_X):
            if length:
                yield b, slice(end - length, end)


@pytest.mark.parametrize("case", PACKED_CASES)
def test_packed_cudnn_is_near_float32_in_value_and_gradient(case):
    sizes = dict(PACKED_CASES[case])
    window = sizes.pop("window", None)
    inputs, lengths_BA = _pack_of(**sizes)
    actual = _with_gradients(*inputs, lengths_BA, window=window)
    expected = _packed_reference(inputs, lengths_BA, window)
    _assert_near(actual, expected)
    # A wrong short segment is lost in the norm of all. By itself it is a few rows, over which the
    # errors of rounding do not average (1.06 % seen); a wrong one is off by 100 %.
    for b, slots in _slots(lengths_BA):
        of_segment = ([x[b, slots] for x in arrays] for arrays in (actual, expected))
        _assert_near(*of_segment, tolerance=2 * TOLERANCE)
    for x in actual:
        for b, length in enumerate(lengths_BA.sum(axis=1)):
            assert not x[b, length:].any()


def test_thirty_two_segments_a_row_are_each_attended_alone():
    """As many as a packed row holds, most of them shorter than a tile."""
    S, lengths_BA = 4096, np.stack([np.arange(8, 248, 7)[:32], np.full(32, 128)])
    inputs = _inputs(B=2, S=S, N=8, K=2, H=128)
    actual = _with_gradients(*inputs, lengths_BA)
    expected = _packed_reference(inputs, lengths_BA)
    for b, slots in _slots(lengths_BA):
        of_segment = ([x[b, slots] for x in arrays] for arrays in (actual, expected))
        _assert_near(*of_segment, tolerance=2 * TOLERANCE)


def test_scores_far_below_zero_make_no_nan_in_a_pack():
    """Segments end within a tile, where the backward pass of single rows has had a fault."""
    inputs, lengths_BA = _pack_of(777)
    inputs = _with_low_scores(inputs)
    actual = _with_gradients(*inputs, lengths_BA)
    expected = _packed_reference(inputs, lengths_BA)
    assert all(np.isfinite(x).all() for x in actual)
    _assert_near([actual[0], actual[3]], [expected[0], expected[3]])


@pytest.mark.parametrize("window", [None, 100])
def test_other_segments_and_padding_change_no_bit_of_a_segment(window):
    (*inputs, g_BSNH), lengths_BA = _pack_of(777)
    run = functools.partial(_with_gradients, lengths_BA=lengths_BA, window=window)
    clean = run(*inputs, g_BSNH)
    for b, slots in _slots(lengths_BA):
        others = np.delete(np.arange(777), slots)
        for number in (50.0, float("inf"), float("nan")):  # not finite: in the padding alone
            if not np.isfinite(number):
                others = np.arange(lengths_BA[b].sum(), 777)
            at = np.s_[b, others]
            if np.isfinite(number):
                changed = _changed([*inputs, g_BSNH], at)
            else:
                changed = [_with(x, at, number) for x in inputs]
            spoilt = run(*changed, g_BSNH)
            np.testing.assert_array_equal(clean[0][b, slots], spoilt[0][b, slots])
            for x, y in zip(clean[1:], spoilt[1:]):
                # The backward pass adds up dq in no fixed order; a lone key's q has no gradient.
                gap = _size(x[b, slots] - y[b, slots])
                assert gap <= 1e-3 * _size(x[b]) + 1e-6


def test_what_another_segment_learns_gives_a_segment_no_gradient():
    (*inputs, g_BSNH), lengths_BA = _pack_of(777)
    for b, slots in _slots(lengths_BA):
        only_BSNH = _with(np.zeros_like(g_BSNH), np.s_[b, slots], g_BSNH[b, slots])
        for gradient in _with_gradients(*inputs, only_BSNH, lengths_BA)[1:]:
            rest = gradient.copy()
            rest[b, slots] = 0
            assert not rest.any()


def test_a_pack_of_long_rows_holds_no_array_of_all_scores():
    B, S, N, K, H, X = 1, 20_480, 16, 8, 128, 32
    q_BSNH = jax.ShapeDtypeStruct((B, S, N, H), jnp.bfloat16)
    k_BSKH = jax.ShapeDtypeStruct((B, S, K, H), jnp.bfloat16)
    lengths_BA = jax.ShapeDtypeStruct((B, X), jnp.int32)
    arguments = q_BSNH, k_BSKH, k_BSKH, q_BSNH, lengths_BA
    compiled = _program.lower(*arguments).compile()
    size = compiled.memory_analysis().temp_size_in_bytes
    print(f"\npacked attention of {S} positions, {X} segments: {size / 2**20:.0f} MiB temporary")
    assert "__cudnn$fmha" in compiled.as_text()
    assert f"{S},{S}" not in compiled.as_text()
    # To cuDNN each of X segments may be S long: it adds up q's gradient, in float32, and keeps
    # statistics for so many. Beside that a dozen arrays as large as q. All scores would be 13 GB.
    assert size < 4 * X * N * S * (H + 1) + 12 * 2 * S * N * H


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_a_mesh_changes_nothing_of_a_pack_and_exchanges_nothing(sizes):
    if int(np.prod(sizes)) > len(jax.devices()):
        pytest.skip(f"needs {np.prod(sizes)} GPUs")
    inputs, lengths_BA = _pack_of(777)
    expected = _packed_reference(inputs, lengths_BA, 100)
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    arrays = zip([*inputs, lengths_BA], ("BSNH", "BSKH", "BSKH", "BSNH", "BX"))
    placed = [jax.device_put(x, sharding.sharding_of(mesh, a, x.shape)) for x, a in arrays]
    with sharding.use_mesh(mesh):
        compiled = _program.lower(*placed, window=100).compile()
        _assert_near([np.asarray(x, np.float32) for x in compiled(*placed)], expected)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


# -------------------------------------------------------------------------------- meshes


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_a_mesh_changes_neither_value_nor_gradient_and_exchanges_nothing(sizes):
    if int(np.prod(sizes)) > len(jax.devices()):
        pytest.skip(f"needs {np.prod(sizes)} GPUs")
    inputs = _inputs(B=2, S=300)
    expected = _reference(inputs, 100)
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    axes = ("BSNH", "BSKH", "BSKH", "BSNH")
    placed = [
        jax.device_put(x, sharding.sharding_of(mesh, a, x.shape)) for x, a in zip(inputs, axes)
    ]
    with sharding.use_mesh(mesh):
        compiled = _program.lower(*placed, window=100).compile()
        _assert_near([np.asarray(x, np.float32) for x in compiled(*placed)], expected)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


# -------------------------------------------------------------------------- whole decoders

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    layer_pattern=("sliding", "full"),
    window=50,
)


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def params():
    return jax.jit(parameters.init, static_argnums=0)(CONFIG, jax.random.key(0))


def _logits(*arguments, **options):
    return np.asarray(_logits_program(*arguments, **options))


@functools.partial(jax.jit, static_argnames=("dtype", "attention"))
def _logits_program(params, tokens_BS, mask_BS, dtype=jnp.bfloat16, attention="cudnn"):
    hidden_BSD = decoder.hidden_states(
        params, CONFIG, tokens_BS, mask_BS, dtype=dtype, attention=attention
    )
    head_DV = parameters.head(params, CONFIG)
    return jnp.einsum("BSD,DV->BSV", hidden_BSD.astype(jnp.float32), head_DV, precision="highest")


def _batch(B=4, S=200):
    """Left padding, right padding, both, and none; the window of 50 is crossed everywhere."""
    tokens_BS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (B, S))
    mask_BS = np.ones((B, S), int)
    mask_BS[0, :71] = 0
    mask_BS[1, -60:] = 0
    mask_BS[2, :30] = mask_BS[2, -31:] = 0
    return tokens_BS, mask_BS


def test_logits_with_cudnn_are_near_those_of_float32(params, monkeypatch):
    """All but attention in float32, so that attention alone makes the difference."""
    batch = _batch()
    real = batch[1].astype(bool)
    exact = _logits(params, *batch, dtype=jnp.float32, attention="xla")[real]

    def in_bfloat16(*qkv, **options):
        return causal_attention(*(x.astype(jnp.bfloat16) for x in qkv), **options).astype("float32")

    monkeypatch.setattr(decoder, "causal_attention", in_bfloat16)
    again = jax.jit(_logits_program.__wrapped__, static_argnames=("dtype", "attention"))
    fused = np.asarray(again(params, *batch, dtype=jnp.float32))[real]
    assert 0 < _relative_error(fused, exact) <= TOLERANCE


def test_logits_in_bfloat16_are_as_near_to_float32_with_cudnn_as_without(params):
    batch = _batch()
    real = batch[1].astype(bool)
    exact = _logits(params, *batch, dtype=jnp.float32, attention="xla")[real]
    fused = _relative_error(_logits(params, *batch)[real], exact)
    plain = _relative_error(_logits(params, *batch, attention="xla")[real], exact)
    print(f"\nrelative error of bfloat16 logits: cudnn {fused:.4f}, xla {plain:.4f}")
    assert fused <= 1.2 * plain


def test_tokens_in_the_padding_change_no_bit_of_a_logit(params):
    tokens_BS, mask_BS = _batch()
    other_BS = np.where(mask_BS, tokens_BS, 17)
    clean, spoilt = (_logits(params, x, mask_BS) for x in (tokens_BS, other_BS))
    real = mask_BS.astype(bool)
    np.testing.assert_array_equal(clean[real], spoilt[real])


def test_neighbours_change_no_bit_of_a_logit(params):
    tokens_BS, mask_BS = _batch()
    other_BS = np.concatenate([tokens_BS[:1], 511 - tokens_BS[1:]])
    clean, spoilt = (_logits(params, x, mask_BS) for x in (tokens_BS, other_BS))
    real = mask_BS[0].astype(bool)
    np.testing.assert_array_equal(clean[0, real], spoilt[0, real])


@pytest.mark.parametrize(("left", "right"), [(57, 0), (20, 100)])
def test_the_amount_of_padding_changes_no_logit(params, left, right):
    tokens_BS = _batch()[0][3:]
    bare = _logits(params, tokens_BS, np.ones_like(tokens_BS))
    widths = ((0, 0), (left, right))
    padded = _logits(params, np.pad(tokens_BS, widths), np.pad(np.ones_like(tokens_BS), widths))
    inner = slice(left, left + tokens_BS.shape[1])
    # Other shapes may be multiplied by other kernels, whose sums bfloat16 rounds differently; this
    # decoder is itself 1.4e-2 from float32.
    assert _relative_error(padded[:, inner], bare) <= 1.4e-2


def test_gradients_in_bfloat16_are_as_near_to_float32_with_cudnn_as_without(params):
    tokens_BS, mask_BS = _batch()

    def total(params, dtype, attention):
        logits_BSV = _logits_program(params, tokens_BS, mask_BS, dtype=dtype, attention=attention)
        logp_BSV = jax.nn.log_softmax(logits_BSV)
        return -jnp.sum(jnp.where(mask_BS[:, :, None] == 1, logp_BSV[:, :, :5], 0))

    gradient = jax.jit(jax.grad(total), static_argnums=(1, 2))
    exact = _flat(gradient(params, jnp.float32, "xla"))
    fused = _relative_error(_flat(gradient(params, jnp.bfloat16, "cudnn")), exact)
    plain = _relative_error(_flat(gradient(params, jnp.bfloat16, "xla")), exact)
    print(f"\nrelative error of bfloat16 gradients: cudnn {fused:.4f}, xla {plain:.4f}")
    assert fused <= 1.2 * plain


# ---------------------------------------------------------------------------- packed steps


def _step_batch(rows=12):
    """Prompts of 3 to 40 tokens, completions of 1 to 250."""
    rng = np.random.default_rng(0)

    def texts(least, most):
        length_B = rng.integers(least, most + 1, rows)
        ids_BP = rng.integers(1, CONFIG.vocab_size, (rows, most)).astype(np.int32)
        return Texts(ids_BP, length_B)

    ones_B = np.ones(rows, np.float32)
    return Batch(
        prompt=texts(3, 40),
        teacher=texts(10, 90),
        completion=texts(1, 250),
        behaviour_logp_BT=-rng.uniform(5, 7, (rows, 250)).astype(np.float32),
        advantage_B=rng.normal(size=rows).astype(np.float32),
        row_weight_B=ones_B,
        correct_B=ones_B,
    )


def _step(params, dtype, pack, remat):
    """What a step moves, and its metrics. Descent at rate 1, so that what moves is the gradient."""
    descent = Optimizer(
        peak_lr=1e4, warmup_steps=0, b1=0.0, b2=0.0, eps=1e4, weight_decay=0.0, clip_norm=1e9
    )
    student = jax.jit(lambda tree: jax.tree.map(lambda x: 1.1 * x, tree))(params)
    compute = Compute(dtype=dtype, chunk=64, pack=pack, remat=remat)
    step = train.make_train_step(CONFIG, sdpo(), (3, 5), descent, Frozen(), compute, 10, 1.0, True)
    batch = batches.pack(_step_batch(), pack)[0] if pack else batches.pad(_step_batch())
    before = _flat(student)  # the step takes the state's memory
    state, metrics = step(init_state(student, descent, Frozen(), 10), params, jax.device_put(batch))
    return _flat(state.params) - before, metrics


@pytest.fixture(scope="module")
def exact_step(params):
    """In float32, where what is recomputed makes no difference to a tolerance of bfloat16."""
    return _step(params, "float32", 0, "none")


@pytest.mark.parametrize("remat", ["none", "elementwise", "all"])
def test_a_packed_step_is_a_padded_one_but_for_bfloat16(params, exact_step, remat):
    exact, exact_metrics = exact_step
    moved, metrics = _step(params, "bfloat16", 640, remat)
    padded = _relative_error(_step(params, "bfloat16", 0, remat)[0], exact)
    packed = _relative_error(moved, exact)
    print(f"\nrelative error of bfloat16 steps: padded {padded:.4f}, packed {packed:.4f}")
    assert packed <= 1.2 * padded
    for name in ("loss", "kl_teacher", "entropy_student", "epistemic_mass_reference"):
        np.testing.assert_allclose(metrics[name].mean, exact_metrics[name].mean, rtol=0.02)
