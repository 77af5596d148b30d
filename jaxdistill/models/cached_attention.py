"""Attention of one new token per row to the KV cache, to which its key and value are appended.

A layer's cache is a pool of M pages of S positions each: k and v [W, K, M, S, H]. Each part (W) of
the rows has a pool of its own, on the devices that hold these rows. Position t of a row is position
t % S of page `pages_BY[row, t // S]`. Without a page table the pool has one page per row, page b
for row b, and XLA reads it without a gather.

`xla_cached_attention` is the reference; it gathers the pages of a table. `tpu_attention` and, for
NVIDIA GPUs, `decode_kernel.kernel_attention` read only the filled part of the cache. On a GPU the
norm, the rotation and the write to the cache run in the same launch, because at a few microseconds
each the small kernels of a layer take as long as its attention.

A pool may be `Quantized`: int8 with one scale per position and head. The scales multiply scores and
attention weights, so every product reads only int8 numbers, which are exact in every compute dtype.
The new token's key and value are rounded before they are first used: what a row attends to must not
depend on when it is read, or by which implementation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.models.quantized import Quantized, quantize
from jaxdistill.precision import einsum

# Positions per page if rows share a pool: whole blocks of the GPU kernel (64) and one TPU tile
# (128). Larger pages would leave more of each row's last page empty.
PAGE = 128

# The score of a masked position. Finite, so that the difference of two is 0 and not NaN; any number
# far below all real scores would do.
UNSEEN = -1e30

Pool = Float[Array, "W K M S H"] | Quantized
Attended = tuple[Array, Pool, Pool]  # out_BNH, and the cache's k_WKMSH, v_WKMSH


def pool_axes(pool_WKMSH: Pool) -> Any:
    """The axis letters of a pool's arrays, as a tree: WKMSH, and WKMS for scales."""
    return jax.tree.map(lambda x: "WKMSH"[: x.ndim], pool_WKMSH)


def has_tpu_kernel(head_dim: int, page: int, dtype: DTypeLike, window: int | None) -> bool:
    """Whether `tpu_attention` can run: it has no windows and rounds its inputs to bfloat16."""
    is_tpu = sharding.platform() == "tpu" and window is None
    return is_tpu and head_dim % 128 == 0 and page % PAGE == 0 and dtype == jnp.bfloat16


def xla_cached_attention(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    k_WKMSH: Pool,
    v_WKMSH: Pool,
    length_B: Int[Array, " B"],
    pages_BY: Int[Array, "B Y"] | None = None,
    *,
    window: int | None = None,
) -> Attended:
    """Write k_BKH, v_BKH at position length_B of the cache; attend to it and all positions before.

    With `window`, attend to the last `window` positions only. Donated buffers are updated in place;
    a full row drops the token. Query head n reads key/value head n // G; softmax in float32. Under
    a mesh each device handles its own rows and key/value heads.

    Ainslie et al. 2023, arXiv 2305.13245.
    """
    attend = functools.partial(_xla_attend, window=window, is_whole=pages_BY is None)
    return _on_own_pages(
        attend, (q_BNH, k_BKH, v_BKH), (k_WKMSH, v_WKMSH), length_B=length_B, pages_BY=pages_BY
    )


def tpu_attention(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    k_WKMSH: Float[Array, "W K M S H"],
    v_WKMSH: Float[Array, "W K M S H"],
    length_B: Int[Array, " B"],
    pages_BY: Int[Array, "B Y"] | None = None,
) -> Attended:
    """`xla_cached_attention` to the filled part of the cache only, by JAX's Pallas TPU kernel."""
    attend = functools.partial(_tpu_attend, is_whole=pages_BY is None)
    return _on_own_pages(
        attend, (q_BNH, k_BKH, v_BKH), (k_WKMSH, v_WKMSH), length_B=length_B, pages_BY=pages_BY
    )


def _on_own_pages(
    attend: Callable[..., Attended],
    qkv: tuple[Array, Array, Array],
    pools: tuple[Pool, Pool],
    *,
    length_B: Int[Array, " B"],
    pages_BY: Int[Array, "B Y"] | None,
) -> Attended:
    """Run `attend` on each device, where W is 1 and the table numbers the device's own pages."""
    q_BNH, k_BKH, v_BKH = qkv
    B, N, H = q_BNH.shape
    K = k_BKH.shape[1]
    pools_axes = pool_axes(pools[0]), pool_axes(pools[1])
    local = sharding.on_shards(
        attend, (("BKGH", "BKH", "BKH"), pools_axes, "B", "BY"), ("BKGH", *pools_axes)
    )
    if pages_BY is None:  # page b of a part belongs to its row b
        W, _, M, _, _ = pools[0].shape
        pages_BY = jnp.tile(jnp.arange(M, dtype=jnp.int32), W)[:, None]
    q_BKGH = q_BNH.reshape(B, K, N // K, H)
    out_BKGH, *cache = local((q_BKGH, k_BKH, v_BKH), pools, length_B, pages_BY)
    return out_BKGH.reshape(B, N, H), *cache


def _append(pool_WKMSH: Pool, new_BKH: Array, length_B: Array, pages_BY: Array) -> Any:
    _, K, M, S, _ = pool_WKMSH.shape
    # A full row has no next page: M is out of range, so its write is dropped below.
    page_B1 = jnp.take_along_axis(
        pages_BY, (length_B // S)[:, None], axis=1, mode="fill", fill_value=M
    )
    heads_K1 = jnp.arange(K)[:, None]
    page_1B = page_B1.T
    slot_1B = (length_B % S)[None, :]

    def put(x_WKMSH, new_BKH):
        # One scatter: with dynamic_update_slice the TPU compiler chooses another layout for the
        # pool, and copies it at every token.
        return x_WKMSH.at[0, heads_K1, page_1B, slot_1B].set(new_BKH.swapaxes(0, 1), mode="drop")

    new = quantize(new_BKH) if isinstance(pool_WKMSH, Quantized) else new_BKH
    return jax.tree.map(put, pool_WKMSH, new)


def _xla_attend(qkv, pools, length_B, pages_BY, *, window, is_whole) -> Attended:
    """Attend with two einsums over a cache that is stored in the order in which they read it.

    With S before K, XLA would transpose the whole cache of every layer at every token.
    """
    q_BKGH, k_BKH, v_BKH = qkv
    k_WKMSH, v_WKMSH = pools
    k_WKMSH = _append(k_WKMSH, k_BKH, length_B, pages_BY)
    v_WKMSH = _append(v_WKMSH, v_BKH, length_B, pages_BY)
    S, H = k_WKMSH.shape[3:]
    first_B1 = jnp.zeros_like(length_B)[:, None]  # the first page that is read
    if is_whole:
        k_KBSH, v_KBSH = jax.tree.map(lambda x_WKMSH: x_WKMSH[0], (k_WKMSH, v_WKMSH))
    else:
        if window is not None:
            # One page more than the window fills: it may begin and end inside a page.
            num_seen = min((window + S - 2) // S + 1, pages_BY.shape[1])
            first_B1 = jnp.maximum(length_B - window + 1, 0)[:, None] // S
            # Every row gathers num_seen pages: near the end of its table, the last ones.
            first_B1 = jnp.minimum(first_B1, pages_BY.shape[1] - num_seen)
            seen_BY = first_B1 + jnp.arange(num_seen)[None, :]
            pages_BY = jnp.take_along_axis(pages_BY, seen_BY, axis=1)

        def gather(x_WKMSH):
            _, K, _, _, *width = x_WKMSH.shape  # [H], and [] for scales
            return x_WKMSH[0][:, pages_BY].reshape(K, pages_BY.shape[0], -1, *width)

        k_KBSH, v_KBSH = jax.tree.map(gather, (k_WKMSH, v_WKMSH))
    k_scale_KB1S = v_scale_KB1S = None
    if isinstance(k_KBSH, Quantized):
        k_KBSH, k_scale_KB1S = k_KBSH.values.astype(q_BKGH.dtype), k_KBSH.scale[:, :, None]
        v_KBSH, v_scale_KB1S = v_KBSH.values.astype(q_BKGH.dtype), v_KBSH.scale[:, :, None]
    slot_BS, own_B1 = first_B1 * S + jnp.arange(k_KBSH.shape[2])[None, :], length_B[:, None]
    visible_BS = slot_BS <= own_B1
    if window is not None:
        visible_BS &= slot_BS > own_B1 - window
    # Transpose the small operand: with queries as [B, K, G, H], XLA transposes the whole cache to
    # match them, which took 1.9 instead of 0.8 ms on a CPU.
    q_KBGH = q_BKGH.swapaxes(0, 1)
    scores_KBGS = einsum("KBGH,KBSH->KBGS", q_KBGH, k_KBSH, out_dtype=jnp.float32) * H**-0.5
    if k_scale_KB1S is not None:
        scores_KBGS *= k_scale_KB1S
    scores_KBGS = jnp.where(visible_BS[None, :, None, :], scores_KBGS, UNSEEN)
    weights_KBGS = jax.nn.softmax(scores_KBGS, axis=-1)
    if v_scale_KB1S is not None:
        weights_KBGS *= v_scale_KB1S
    out_KBGH = einsum("KBGS,KBSH->KBGH", weights_KBGS.astype(v_KBSH.dtype), v_KBSH)
    return out_KBGH.swapaxes(0, 1), k_WKMSH, v_WKMSH


def _tpu_attend(qkv, pools, length_B, pages_BY, *, is_whole) -> Attended:
    # Imported here because it is slow to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    q_BKGH, k_BKH, v_BKH = qkv
    k_WKMSH, v_WKMSH = pools
    k_WKMSH = _append(k_WKMSH, k_BKH, length_B, pages_BY)
    v_WKMSH = _append(v_WKMSH, v_BKH, length_B, pages_BY)
    B, K, G, H = q_BKGH.shape
    _, _, M, S, _ = k_WKMSH.shape
    if is_whole:  # the kernel loads whole pages into VMEM; one as long as a row might not fit
        num_pages = S // PAGE
        pages_BY = pages_BY * num_pages + jnp.arange(num_pages, dtype=jnp.int32)[None, :]
        M, S = M * num_pages, PAGE
    k_KMSH, v_KMSH = (x.reshape(K, M, S, H) for x in (k_WKMSH, v_WKMSH))
    # The kernel does not scale its scores; it accepts float32 queries.
    q_BNH = (q_BKGH.astype(jnp.float32) * H**-0.5).reshape(B, K * G, H)
    # The new token is included, except in a full row, which dropped it.
    length_B = jnp.minimum(length_B + 1, pages_BY.shape[1] * S)
    out_BNH = paged_attention(
        q_BNH,
        k_pages=k_KMSH,
        v_pages=v_KMSH,
        lengths=length_B.astype(jnp.int32),
        page_indices=pages_BY,
        pages_per_compute_block=pages_at_a_time(pages_BY.shape[1]),
    )
    return out_BNH.reshape(B, K, G, H).astype(v_KMSH.dtype), k_WKMSH, v_WKMSH


def pages_at_a_time(num_pages: int) -> int:
    """Pages that the TPU kernel fetches together: the largest divisor of `num_pages` up to 8."""
    # 8 pages of 128 keys and values of width 128 in bfloat16 take half a MiB, one MiB with the
    # double buffer, which is little of VMEM. Chosen, not timed on a TPU.
    return max(n for n in range(1, 9) if num_pages % n == 0)
