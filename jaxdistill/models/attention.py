"""Scaled dot-product attention of whole rows, with grouped queries.

A reference in two einsums, and a fused kernel each for GPU and TPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.precision import einsum

# Finite, so that a row that sees nothing gives a harmless mean and not NaN, which would reach the
# gradient of every other row.
_UNSEEN = -1e30

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# A tile of either fused kernel; shorter rows would be mostly padding.
_TILE = 128


def causal_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    window: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "B S N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys j <= i, of a window only i - j < window.

    Query head n reads key/value head n // G. There is no mask: real tokens come first in their
    row, so none of them sees the padding behind it. Softmax in float32; the result is in v's dtype.

    `implementation`: "xla" is the reference, "cudnn" the flash attention of NVIDIA GPUs, "splash"
    that of TPUs, "auto" the fused one where platform, dtype, head width and length allow it. The
    fused ones never hold the S x S scores. Under a mesh a device attends for its own rows and
    key/value heads; where the mesh does not divide K, all of "tensor" repeat the same heads.

    Raises UserError for an unknown implementation, and for one that cannot do what is asked.

    Vaswani et al. 2017, arXiv 1706.03762, equation 1; Ainslie et al. 2023, arXiv 2305.13245.
    """
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    assert window is None or window >= 1, f"a window of {window} shows a query nothing"
    if window is not None and window >= S:
        window = None
    name = choose(implementation, sharding.platform(), v_BSKH.dtype, S, H)
    if name == "xla":
        return xla_attention(q_BSNH, k_BSKH, v_BSKH, window)
    kernel = cudnn_attention if name == "cudnn" else splash_attention
    # Queries by key/value head, so that a mesh splits both at the same places or neither.
    local = sharding.on_shards(
        lambda q, k, v: kernel(q.reshape(*q.shape[:2], -1, H), k, v, window).reshape(q.shape),
        ("BSKGH", "BSKH", "BSKH"),
        "BSKGH",
    )
    out_BSKGH = local(q_BSNH.reshape(B, S, K, N // K, H), k_BSKH, v_BSKH)
    return out_BSKGH.reshape(B, S, N, H)


def choose(
    implementation: str, platform: str, dtype: DTypeLike, sequence_length: int, head_dim: int
) -> str:
    """Which of "xla", "cudnn", "splash" runs; raises UserError as `causal_attention` says."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"attention '{implementation}' is unknown; use one of {known}")
    if implementation == "auto":
        fused = {"gpu": "cudnn", "tpu": "splash"}.get(platform)
        if fused is None or sequence_length < _TILE:
            return "xla"
        return "xla" if _obstacle(fused, platform, dtype, head_dim) else fused
    if obstacle := _obstacle(implementation, platform, dtype, head_dim):
        raise UserError(f"attention '{implementation}' {obstacle}; use 'auto' or 'xla'")
    return implementation


def _obstacle(name: str, platform: str, dtype: DTypeLike, head_dim: int) -> str | None:
    """Why an implementation cannot be used, or None."""
    dtype = jnp.dtype(dtype)
    if name == "cudnn":
        if platform != "gpu" or not is_ampere_or_newer():
            return f"needs an NVIDIA GPU, Ampere or newer, and this runs on {platform}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"computes in bfloat16 or float16, not in {dtype}"
        # Wider heads are for some generations only.
        return None if head_dim <= 128 else f"takes head_dim up to 128, not {head_dim}"
    if name == "splash":
        if platform != "tpu":
            return f"needs a TPU, or a TPU slice's mesh to compile for, and this is {platform}"
        # Its multiplications need not keep float32's precision, which whoever chose it wants.
        return None if dtype == jnp.bfloat16 else f"computes in bfloat16, not in {dtype}"
    return None


def is_ampere_or_newer() -> bool:
    # "9.0" on NVIDIA's, "gfx942" on AMD's.
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    return capability[0].isdigit() and float(capability) >= 8


# ---------------------------------------------------------------------------- implementations


def xla_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
) -> Float[Array, "B S N H"]:
    """Two batched multiplications with all S x S scores between them, for any dtype."""
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    # The queries of a group are rows (X = G S) of one matrix per key/value head, so that both
    # multiplications are plain batched ones: 2.7 times faster on CPU than with G and S apart.
    q_BKXH = q_BSNH.reshape(B, S, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, H)
    scores_BKXS = einsum("BKXH,BSKH->BKXS", q_BKXH, k_BSKH, out_dtype=jnp.float32)
    scores_BKGSS = scores_BKXS.reshape(B, K, G, S, S) * H**-0.5
    distance_SS = jnp.arange(S)[:, None] - jnp.arange(S)[None, :]
    visible_SS = (distance_SS >= 0) & (distance_SS < (S if window is None else window))
    scores_BKGSS = jnp.where(visible_SS[None, None, None], scores_BKGSS, _UNSEEN)
    weights_BKGSS = jax.nn.softmax(scores_BKGSS, axis=-1).astype(v_BSKH.dtype)
    weights_BKXS = weights_BKGSS.reshape(B, K, G * S, S)
    out_BKXH = einsum("BKXS,BSKH->BKXH", weights_BKXS, v_BSKH)
    out_BSKGH = out_BKXH.reshape(B, K, G, S, H).transpose(0, 3, 1, 2, 4)
    return checkpoint_name(out_BSKGH.reshape(B, S, N, H), "attention")


def cudnn_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
) -> Float[Array, "B S N H"]:
    """cuDNN's flash attention: bfloat16 or float16, H up to 128, on one device's arrays.

    S is padded to whole tiles: of a partial last one the backward pass has been seen to make NaN
    where all of a row's scores lie below -88 (pytorch/pytorch#196678, NVIDIA/cudnn-frontend#1072).
    H is padded to a multiple of 8.
    """
    S, H = q_BSNH.shape[1], q_BSNH.shape[3]
    out_BSNH = jax.nn.dot_product_attention(
        *(_pad(x, -S % _TILE, -H % 8) for x in (q_BSNH, k_BSKH, v_BSKH)),
        scale=H**-0.5,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out_BSNH[:, :S, :, :H]


def splash_attention(
    q_BSNH: Float[Array, "B S N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    window: int | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """JAX's Pallas kernel for TPU, which skips blocks that no query sees, on one device's arrays.

    With `interpret` it runs anywhere, slowly and in any dtype: for tests.
    """
    S, N, H = q_BSNH.shape[1:]
    block = _block(S)
    padded = _up_to_multiple(S, block)
    # The kernel does not scale its scores.
    scaled_BSNH = (q_BSNH.astype(jnp.float32) * H**-0.5).astype(q_BSNH.dtype)
    heads_first = [_pad(x, padded - S, 0).swapaxes(1, 2) for x in (scaled_BSNH, k_BSKH, v_BSKH)]
    kernel = _splash_kernel(padded, N, window, block, interpret)
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)[:, :S]


def _splash_kernel(
    S: int, N: int, window: int | None, block: int, interpret: bool
) -> Callable[..., Array]:
    """q_NSH, k_KSH, v_KSH -> out_NSH, for S of whole blocks."""
    # Here because it is long to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if window is None:
        mask = splash.CausalMask((S, S))
    else:
        mask = splash.LocalMask((S, S), (window - 1, 0), offset=0)
    # Half a block's scores at a time, where that is whole tiles: they fill the fast memory.
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
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    return kernel


def _block(S: int) -> int:
    """Rows of one block: as few blocks as hold S, and of those the smallest whole tiles.

    Up to 1024: a step from block to block costs some 0.3 us beside the multiplications, which for
    512 x 512 scores take only 0.15 us (v6e) to 0.7 us (v5e) at H = 128; 2048 exceeds v5e's memory.
    """
    num_blocks = -(-S // 1024)
    return _up_to_multiple(-(-S // num_blocks), _TILE)


def _up_to_multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _pad(x_BSNH: Array, rows: int, columns: int) -> Array:
    """Zeros after the end of S and H: causality hides the ones, the others add 0 to a score."""
    return jnp.pad(x_BSNH, ((0, 0), (0, rows), (0, 0), (0, columns)))
