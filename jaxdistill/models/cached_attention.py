"""Attention of one new token per row to the KV cache, to which its key and value are appended.

A layer's cache is a pool of M pages of S positions each: k and v [W, K, M, S, H]. Each part (W) of
the rows has a pool of its own, on the devices that hold these rows. Position t of a row is position
t % S of page `pages_BY[row, t // S]`. Without a page table the pool has one page per row, page b
for row b, and XLA reads it without a gather.

A layer with a sliding window need not keep more positions than the window: a cache of C >= window
positions is a ring, in which position t of a row is stored at t % C and replaces position t - C.
Softmax does not depend on the order of keys, and keys are rotated before they are stored, so that
nothing else changes. If C < window the window hides nothing that is kept, and there is no ring.

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


def ring_positions(window: int | None, size: int, unit: int) -> int | None:
    """Positions that a sliding layer keeps of a row of `size`: whole units; None if it keeps all.

    >>> ring_positions(4096, 21_504, 128), ring_positions(4096, 4096, 128)
    (4096, None)
    """
    if window is None:
        return None
    ring = -(-window // unit) * unit
    return ring if ring < size else None


def has_tpu_kernel(pool_WKMSH: Pool, pages_BY: Array | None, window: int | None) -> bool:
    """Whether `tpu_attention` can run: it has no mask and rounds its inputs to bfloat16.

    It needs none for a ring that is just as long as the window, in any order of the keys.
    """
    S, H = pool_WKMSH.shape[3:]
    has_no_mask = window is None or window >= capacity_of(pool_WKMSH, pages_BY)
    is_tpu = sharding.platform() == "tpu" and pool_WKMSH.dtype == jnp.bfloat16
    return is_tpu and has_no_mask and H % 128 == 0 and S % PAGE == 0


def capacity_of(pool_WKMSH: Pool, pages_BY: Array | None) -> int:
    """Positions of a row that the cache can hold."""
    return pool_WKMSH.shape[3] * (1 if pages_BY is None else pages_BY.shape[1])


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

    With `window`, attend to the last `window` positions only; a cache that holds as many is a ring.
    Donated buffers are updated in place; a full row drops the token unless it is a ring. Query head
    n reads key/value head n // G; softmax in float32. Under a mesh each device handles its own rows
    and key/value heads.

    Ainslie et al. 2023, arXiv 2305.13245.
    """
    if window is not None and window > capacity_of(k_WKMSH, pages_BY):
        window = None
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
    *,
    window: int | None = None,
) -> Attended:
    """`xla_cached_attention` to the filled part of the cache only, by JAX's Pallas TPU kernel.

    A window must be at least as long as the cache (`has_tpu_kernel`).
    """
    capacity = capacity_of(k_WKMSH, pages_BY)
    assert window is None or window >= capacity, f"the kernel cannot mask {capacity} positions"
    attend = functools.partial(
        _tpu_attend, is_whole=pages_BY is None, is_ring=window is not None and window == capacity
    )
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
    S, H = k_WKMSH.shape[3:]
    capacity = pages_BY.shape[1] * S
    own_B = length_B if window is None else length_B % capacity
    k_WKMSH = _append(k_WKMSH, k_BKH, own_B, pages_BY)
    v_WKMSH = _append(v_WKMSH, v_BKH, own_B, pages_BY)
    slot_BS = jnp.arange(capacity)[None, :]
    if is_whole:
        k_KBSH, v_KBSH = jax.tree.map(lambda x_WKMSH: x_WKMSH[0], (k_WKMSH, v_WKMSH))
    else:
        # One page more than the window fills: it may begin and end inside a page.
        num_pages = pages_BY.shape[1]
        num_seen = num_pages if window is None else (window + S - 2) // S + 1
        if window is not None and num_seen < num_pages:
            first_B1 = jnp.maximum(length_B - window + 1, 0)[:, None] // S
            seen_BY = (first_B1 + jnp.arange(num_seen)[None, :]) % num_pages
            pages_BY = jnp.take_along_axis(pages_BY, seen_BY, axis=1)
            slot_BYS = seen_BY[:, :, None] * S + jnp.arange(S)[None, None, :]
            slot_BS = slot_BYS.reshape(len(length_B), -1)

        def gather(x_WKMSH):
            _, K, _, _, *width = x_WKMSH.shape  # [H], and [] for scales
            return x_WKMSH[0][:, pages_BY].reshape(K, pages_BY.shape[0], -1, *width)

        k_KBSH, v_KBSH = jax.tree.map(gather, (k_WKMSH, v_WKMSH))
    k_scale_KB1S = v_scale_KB1S = None
    if isinstance(k_KBSH, Quantized):
        k_KBSH, k_scale_KB1S = k_KBSH.values.astype(q_BKGH.dtype), k_KBSH.scale[:, :, None]
        v_KBSH, v_scale_KB1S = v_KBSH.values.astype(q_BKGH.dtype), v_KBSH.scale[:, :, None]
    if window is None:
        visible_BS = slot_BS <= length_B[:, None]
    else:
        # How many positions before the new token a slot's own lies; it may not exist yet.
        age_BS = (own_B[:, None] - slot_BS) % capacity
        visible_BS = age_BS < jnp.minimum(window, length_B + 1)[:, None]
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


def _tpu_attend(qkv, pools, length_B, pages_BY, *, is_whole, is_ring) -> Attended:
    # Imported here because it is slow to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    q_BKGH, k_BKH, v_BKH = qkv
    k_WKMSH, v_WKMSH = pools
    B, K, G, H = q_BKGH.shape
    _, _, M, S, _ = k_WKMSH.shape
    own_B = length_B % (pages_BY.shape[1] * S) if is_ring else length_B
    k_WKMSH = _append(k_WKMSH, k_BKH, own_B, pages_BY)
    v_WKMSH = _append(v_WKMSH, v_BKH, own_B, pages_BY)
    if is_whole:  # the kernel loads whole pages into VMEM; one as long as a row might not fit
        num_pages = S // PAGE
        pages_BY = pages_BY * num_pages + jnp.arange(num_pages, dtype=jnp.int32)[None, :]
        M, S = M * num_pages, PAGE
    k_KMSH, v_KMSH = (x.reshape(K, M, S, H) for x in (k_WKMSH, v_WKMSH))
    # The kernel does not scale its scores; it accepts float32 queries.
    q_BNH = (q_BKGH.astype(jnp.float32) * H**-0.5).reshape(B, K * G, H)
    # The new token is included, except in a full row, which dropped it. All of a full ring is seen.
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
