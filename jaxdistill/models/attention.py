"""Causal scaled dot-product attention over whole rows, with grouped queries.

There is a reference in two einsums, a fused kernel for GPUs and one for TPUs. A row holds one
sequence, or several packed segments that do not see each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError
from jaxdistill.precision import einsum

# Finite instead of -inf: a query that sees no key then gives a harmless mean and not NaN, which
# would spread to every row through the gradient. exp(-1e30 - max) is 0 in float32 for real scores.
_UNSEEN = -1e30

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# The tile of both fused kernels, cuDNN and splash; shorter rows would be mostly padding.
_TILE = 128


def segments_of(
    lengths_BA: Int[AnyArray, "B A"], S: int
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Segment index, and position within that segment, of each slot of packed rows.

    The segments follow one another from slot 0. Padding after the last one counts as segment A.

    >>> [x.tolist() for x in segments_of(jnp.array([[2, 0, 1]]), 5)]
    [[[0, 0, 2, 3, 3]], [[0, 1, 0, 0, 1]]]
    """
    ends_BA = jnp.cumsum(jnp.asarray(lengths_BA), axis=1, dtype=jnp.int32)
    slot_S = jnp.arange(S, dtype=jnp.int32)
    segment_BS = jnp.sum(ends_BA[:, None, :] <= slot_S[None, :, None], axis=2, dtype=jnp.int32)
    starts_BA = jnp.pad(ends_BA, ((0, 0), (1, 0)))
    return segment_BS, slot_S[None, :] - jnp.take_along_axis(starts_BA, segment_BS, axis=1)


def causal_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    lengths_BA: Int[AnyArray, "B A"] | None = None,
    window: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "B S N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys j <= i, with a window only i - j < window.

    Query head n reads key/value head n // G. No mask is needed: real tokens come first in their
    row, so causality hides the padding from them. Softmax in float32; the result has v's dtype.

    With `lengths_BA` a row holds up to A segments, one after another, and a query sees only keys
    of its own segment. Results at the padding after the last segment are finite and unused.

    `implementation`: "xla" is the reference, "cudnn" the flash attention of NVIDIA GPUs, "splash"
    that of TPUs; "auto" picks the fused kernel if platform, dtype, head width and length allow it.
    The fused kernels never materialise the S x S scores. Under a mesh each device computes its own
    rows and key/value heads; if the mesh does not divide K, all of "tensor" repeat the same heads
    (`models.placement` refuses such a mesh, or has given every device a head of its own).

    Raises UserError for an unknown implementation, and for one that cannot run with these inputs.

    Vaswani et al. 2017, arXiv 1706.03762, equation 1; Ainslie et al. 2023, arXiv 2305.13245.
    """
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    assert window is None or window >= 1, f"window must be at least 1, got {window}"
    if window is not None and window >= S:
        window = None  # it hides nothing, and the plain causal kernel is simpler
    is_packed = lengths_BA is not None
    name = choose(
        implementation,
        platform=sharding.platform(),
        dtype=v_BSKH.dtype,
        sequence_length=S,
        head_dim=H,
        is_packed=is_packed,
    )
    if name == "xla":
        return xla_attention(q_BSNH, k_BSKH, v_BSKH, window, lengths_BA)
    kernel = cudnn_attention if name == "cudnn" else splash_attention

    def attend(q_BSKGH, k_BSKH, v_BSKH, lengths_BA=None) -> Array:
        q_BSNH = q_BSKGH.reshape(*q_BSKGH.shape[:2], -1, H)
        return kernel(q_BSNH, k_BSKH, v_BSKH, window, lengths_BA).reshape(q_BSKGH.shape)

    # Group queries by key/value head, so that a mesh splits both at the same heads or neither.
    arrays = [q_BSNH.reshape(B, S, K, N // K, H), k_BSKH, v_BSKH]
    axes = ["BSKGH", "BSKH", "BSKH"]
    if is_packed:
        arrays, axes = [*arrays, jnp.asarray(lengths_BA)], [*axes, "BX"]
    out_BSKGH = sharding.on_shards(attend, axes, "BSKGH")(*arrays)
    return out_BSKGH.reshape(B, S, N, H)


def choose(
    implementation: str,
    platform: str,
    dtype: DTypeLike,
    sequence_length: int,
    head_dim: int,
    is_packed: bool = False,
) -> str:
    """Return which of "xla", "cudnn" and "splash" runs; UserError as in `causal_attention`."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"attention '{implementation}' is unknown; use one of {known}")
    if implementation == "auto":
        fused = {"gpu": "cudnn", "tpu": "splash"}.get(platform)
        if fused is None or sequence_length < _TILE:
            return "xla"
        return "xla" if _obstacle(fused, platform, dtype, head_dim, is_packed) else fused
    if obstacle := _obstacle(implementation, platform, dtype, head_dim, is_packed):
        raise UserError(f"attention '{implementation}' {obstacle}; use 'auto' or 'xla'")
    return implementation


def _obstacle(
    name: str, platform: str, dtype: DTypeLike, head_dim: int, is_packed: bool
) -> str | None:
    """Return the reason why an implementation cannot be used, or None."""
    dtype = jnp.dtype(dtype)
    if name == "cudnn":
        if platform != "gpu" or not is_ampere_or_newer():
            return f"needs an NVIDIA GPU, Ampere or newer, but this runs on {platform}"
        if is_packed and _compute_capability() < 9:
            return "supports packed rows only on Hopper or newer"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"computes in bfloat16 or float16, not in {dtype}"
        # cuDNN supports wider heads on some GPU generations only.
        return None if head_dim <= 128 else f"takes head_dim up to 128, not {head_dim}"
    if name == "splash":
        if platform != "tpu":
            return f"needs a TPU, or a TPU slice's mesh to compile for, but this is {platform}"
        # Its products need not keep float32's precision, which a user who chose float32 expects.
        return None if dtype == jnp.bfloat16 else f"computes in bfloat16, not in {dtype}"
    return None


def is_ampere_or_newer() -> bool:
    return _compute_capability() >= 8


def is_hopper_or_newer() -> bool:
    return _compute_capability() >= 9


def _compute_capability() -> float:
    # "9.0" on an NVIDIA GPU, "gfx942" on an AMD one; a CPU has no such attribute.
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    return float(capability) if capability[0].isdigit() else 0.0


# ---------------------------------------------------------------------------- implementations


def xla_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
    lengths_BA: Int[AnyArray, "B A"] | None = None,
) -> Float[Array, "B S N H"]:
    """The reference: two batched products with all S x S scores between them, in any dtype."""
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    # The queries of a group are rows (X = G S) of one matrix per key/value head, so that both
    # products are plain batched ones: 2.7 times faster on CPU than with separate G and S axes.
    q_BKXH = q_BSNH.reshape(B, S, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, H)
    # float32: a bfloat16 score near 10 is off by up to 0.03, which exp turns into 3 % of a weight.
    scores_BKXS = einsum("BKXH,BSKH->BKXS", q_BKXH, k_BSKH, out_dtype=jnp.float32)
    scores_BKGSS = scores_BKXS.reshape(B, K, G, S, S) * H**-0.5
    distance_SS = jnp.arange(S)[:, None] - jnp.arange(S)[None, :]
    visible_SS = (distance_SS >= 0) & (distance_SS < (S if window is None else window))
    visible_BSS = visible_SS[None]
    if lengths_BA is not None:
        segment_BS, _ = segments_of(lengths_BA, S)
        visible_BSS &= segment_BS[:, :, None] == segment_BS[:, None, :]
    scores_BKGSS = jnp.where(visible_BSS[:, None, None], scores_BKGSS, _UNSEEN)
    weights_BKGSS = jax.nn.softmax(scores_BKGSS, axis=-1).astype(v_BSKH.dtype)
    weights_BKXS = weights_BKGSS.reshape(B, K, G * S, S)
    out_BKXH = einsum("BKXS,BSKH->BKXH", weights_BKXS, v_BSKH)
    out_BSKGH = out_BKXH.reshape(B, K, G, S, H).transpose(0, 3, 1, 2, 4)
    # `models.remat` chooses by this name whether the backward pass recomputes the result.
    return checkpoint_name(out_BSKGH.reshape(B, S, N, H), "attention")


def cudnn_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
    lengths_BA: Int[AnyArray, "B A"] | None = None,
) -> Float[Array, "B S N H"]:
    """cuDNN's flash attention on one device's arrays: bfloat16 or float16, H up to 128.

    S is padded to whole tiles: with a partial last tile, the backward pass has been seen to return
    NaN where all scores of a row are below -88 (pytorch/pytorch#196678,
    NVIDIA/cudnn-frontend#1072). H is padded to a multiple of 8.
    """
    S, H = q_BSNH.shape[1], q_BSNH.shape[3]
    q, k, v = (_pad(x, -S % _TILE, -H % 8) for x in (q_BSNH, k_BSKH, v_BSKH))
    if lengths_BA is not None:
        out_BSNH = _packed_cudnn_attention(
            q, k, v, lengths_BA=lengths_BA, window=window, scale=H**-0.5
        )
        return out_BSNH[:, :S, :, :H]
    out_BSNH = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=H**-0.5,
        is_causal=True,
        # (left, right) of the query, which itself is not counted.
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out_BSNH[:, :S, :, :H]


def _packed_cudnn_attention(
    q_BSNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    lengths_BA: Int[AnyArray, "B A"],
    window: int | None,
    scale: float,
) -> Float[Array, "B S N H"]:
    """Attend within each segment as in a sequence of its own; other scores are not even computed.

    Besides the result, the backward pass keeps log-sum-exps of shape [B A, N, S] in float32.
    """
    # Private API, because `jax.nn.dot_product_attention` takes lengths but no segment offsets.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    S, N = q_BSNH.shape[1:3]
    K = k_BSKH.shape[2]
    real_BS11 = (jnp.sum(lengths_BA, axis=1)[:, None] > jnp.arange(S)[None, :])[..., None, None]
    if jax.__version_info__ < (0, 12):
        # Older versions compute the keys' offsets with the queries' stride (jax-ml/jax#39521),
        # which is right only for as many key/value heads as query heads.
        k_BSKH, v_BSKH = (jnp.repeat(x, N // K, axis=2) for x in (k_BSKH, v_BSKH))
    # cuDNN neither reads nor writes padding, so there its output is uninitialised memory, which
    # may be NaN, and so are the cotangents of q, k and v. The last line clears the output, the
    # gradient of this one the cotangents.
    qkv = [jnp.where(real_BS11, x, 0) for x in (q_BSNH, k_BSKH, v_BSKH)]
    seqlens_BA, offsets_BA = cudnn_lengths_and_offsets(lengths_BA)
    out_BSNH: Any = cudnn.dot_product_attention(
        *qkv,
        q_seqlen=seqlens_BA,
        kv_seqlen=seqlens_BA,
        q_offsets=offsets_BA,
        kv_offsets=offsets_BA,
        scale=scale,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
        sliding_window_length=window,
    )
    return jnp.where(real_BS11, out_BSNH, 0)


def cudnn_lengths_and_offsets(
    lengths_BA: Int[AnyArray, "B A"],
) -> tuple[Int[Array, "B A"], Int[Array, "B A+1"]]:
    """Segment lengths and first slots in cuDNN's format, where an empty segment has -1 in both.

    The offsets have one more entry than there are segments, always -1.

    >>> [x.tolist() for x in cudnn_lengths_and_offsets(jnp.array([[2, 0, 1]]))]
    [[[2, -1, 1]], [[0, -1, 2, -1]]]
    """
    lengths_BA = jnp.asarray(lengths_BA, jnp.int32)
    # At least two segments: JAX treats a batch as packed only if its rows have more than one.
    lengths_BA = jnp.pad(lengths_BA, ((0, 0), (0, max(2 - lengths_BA.shape[1], 0))))
    starts_BA = jnp.cumsum(lengths_BA, axis=1, dtype=jnp.int32) - lengths_BA
    lengths_BA, starts_BA = (jnp.where(lengths_BA > 0, x, -1) for x in (lengths_BA, starts_BA))
    return lengths_BA, jnp.pad(starts_BA, ((0, 0), (0, 1)), constant_values=-1)


def splash_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
    lengths_BA: Int[AnyArray, "B A"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """JAX's Pallas kernel for TPU on one device's arrays; it skips blocks that no query sees.

    In packed rows it skips blocks by causality and window only: scores between segments are
    computed and then masked.

    With `interpret` it runs on any platform, slowly and in any dtype, for tests.
    """
    # Imported here because it is slow to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    S, N, H = q_BSNH.shape[1:]
    block = _block(S)
    padded = _up_to_multiple(S, block)
    # The kernel does not scale its scores. Scaling in float32 rounds the queries only once more.
    scaled_BSNH = (q_BSNH.astype(jnp.float32) * H**-0.5).astype(q_BSNH.dtype)
    heads_first = [_pad(x, padded - S, 0).swapaxes(1, 2) for x in (scaled_BSNH, k_BSKH, v_BSKH)]
    kernel = _splash_kernel(padded, N, window, block, interpret)
    segment_ids = None
    if lengths_BA is not None:
        segment_BS, _ = segments_of(lengths_BA, padded)
        segment_ids = splash.SegmentIds(q=segment_BS, kv=segment_BS)
    return jax.vmap(kernel)(*heads_first, segment_ids).swapaxes(1, 2)[:, :S]


def _splash_kernel(
    S: int, N: int, window: int | None, block: int, interpret: bool
) -> Callable[..., Array]:
    """Build the kernel (q_NSH, k_KSH, v_KSH, segment ids or None) -> out_NSH; S is whole blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if window is None:
        mask = splash.CausalMask((S, S))
    else:
        mask = splash.LocalMask((S, S), (window - 1, 0), offset=0)
    # Scores of half a block of keys at a time, if that is whole tiles: scores are what fills VMEM.
    scored = block // 2 if block % (2 * _TILE) == 0 else block
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dq", "block_q_dkv"), block),
        **dict.fromkeys(("block_kv", "block_kv_dq", "block_kv_dkv"), block),
        **dict.fromkeys(("block_kv_compute", "block_kv_dkv_compute"), scored),
    )
    kernel: Any = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        # `models.remat` keeps the result and its log-sum-exps by this name.
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    return kernel


def _block(S: int) -> int:
    """Length of a block: as few blocks as hold S, each of as few whole tiles as possible.

    At most 1024: 2048 exceeds v5e's memory. Long blocks pay, because each costs about 0.3 us beside
    its products, which for 512 x 512 scores at H = 128 take only 0.15 us (v6e) to 0.7 us (v5e).
    """
    num_blocks = -(-S // 1024)
    return _up_to_multiple(-(-S // num_blocks), _TILE)


def _up_to_multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _pad(x_BSNH: Array, rows: int, columns: int) -> Array:
    """Append zeros to S and H: causality hides the new rows, and new columns add 0 to a score."""
    return jnp.pad(x_BSNH, ((0, 0), (0, rows), (0, 0), (0, columns)))
