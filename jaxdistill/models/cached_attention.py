"""One new token a row against a cache: append its key and value, attend to the positions in use.

The reference is plain XLA and reads the whole cache. On NVIDIA GPUs a kernel reads the positions in
use alone, each once for all queries of its head, and writes the new entry in the same launch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.precision import einsum

# Finite: a difference of two of them is 0 and not NaN.
_UNSEEN = -1e30

Appended = tuple[Array, Array, Array]  # out_BNH, k_BKSH, v_BKSH


def append_and_attend(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    length_B: Int[Array, " B"],
    *,
    window: int | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Put k_BKH, v_BKH at slot length_B of the cache and attend to it and those before.

    With a `window` only to the last so many. Buffers are written in place where they are donated; a
    full row (length S) loses the token. Query head n reads key/value head n // G; softmax in
    float32. Ainslie et al. 2023, arXiv 2305.13245.
    """
    B, N, H = q_BNH.shape
    K = k_BKSH.shape[1]
    use_kernel = sharding.platform() == "gpu" and H & (H - 1) == 0 and 16 <= H <= 256
    attend = kernel_attention if use_kernel else xla_attention
    # Heads lie by key/value head, so that a mesh splits queries and cache at the same places.
    local = functools.partial(attend, window=window)
    if use_kernel:
        axes = ("BKGH", "BKH", "BKH", "BKSH", "BKSH", "B")
        local = sharding.on_shards(local, axes, ("BKGH", "BKSH", "BKSH"))
    q_BKGH = q_BNH.reshape(B, K, N // K, H)
    out_BKGH, k_BKSH, v_BKSH = local(q_BKGH, k_BKH, v_BKH, k_BKSH, v_BKSH, length_B)
    return out_BKGH.reshape(B, N, H), k_BKSH, v_BKSH


# ---------------------------------------------------------------------------- XLA


def xla_attention(
    q_BKGH, k_BKH, v_BKH, k_BKSH, v_BKSH, length_B, *, window: int | None = None
) -> Appended:
    """Over a cache that lies as its multiplications read it.

    With S before K XLA would transpose the whole cache of every layer at every token.
    """
    H, S = q_BKGH.shape[-1], k_BKSH.shape[2]
    k_BKSH, v_BKSH = _append(k_BKSH, k_BKH, length_B), _append(v_BKSH, v_BKH, length_B)
    slot_1S, own_B1 = jnp.arange(S)[None, :], length_B[:, None]
    visible_BS = slot_1S <= own_B1
    if window is not None:
        visible_BS &= slot_1S > own_B1 - window
    scores_BKGS = einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, out_dtype=jnp.float32) * H**-0.5
    scores_BKGS = jnp.where(visible_BS[:, None, None, :], scores_BKGS, _UNSEEN)
    weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(v_BKSH.dtype)
    return einsum("BKGS,BKSH->BKGH", weights_BKGS, v_BKSH), k_BKSH, v_BKSH


def _append(
    x_BKSH: Float[Array, "B K S H"], new_BKH: Float[Array, "B K H"], slot_B: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    rows_B1 = jnp.arange(x_BKSH.shape[0])[:, None]
    heads_1K = jnp.arange(x_BKSH.shape[1])[None, :]
    return x_BKSH.at[rows_B1, heads_1K, slot_B[:, None]].set(
        new_BKH, mode="drop", unique_indices=True
    )


# ---------------------------------------------------------------------------- GPU


def kernel_attention(
    q_BKGH, k_BKH, v_BKH, k_BKSH, v_BKSH, length_B, *, window: int | None = None,
    interpret: bool = False, block: int = 64, warps: int = 4, stages: int = 3,
) -> Appended:  # fmt: skip
    """A program for each row, key/value head and part (Z) of the positions, on one device's arrays.

    Parts are joined by their log-sums (Dao et al. 2023, Flash-Decoding); a part beyond a row's end
    reads nothing. With `interpret` it runs anywhere, slowly.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, K, G, H = q_BKGH.shape
    S = k_BKSH.shape[2]
    chunk = _chunk(B * K, S, block)
    Z = pl.cdiv(S, chunk)
    X = max(16, pl.next_power_of_2(G))  # rows of the smallest matrix product; beyond G masked
    kernel = functools.partial(_attend_part, G=G, chunk=chunk, block=block, window=window)

    def spec(axes: str, *sizes: int):
        """Of each letter in `axes` the program's own, of the sizes all."""
        at = lambda *ids: tuple(ids["BKZ".index(a)] for a in axes) + (0,) * len(sizes)  # noqa: E731
        return pl.BlockSpec((None,) * len(axes) + sizes, at)

    cache = spec("BK", S, H)
    part_dtype = q_BKGH.dtype if Z == 1 else jnp.float32
    out_BKZGH, logsum_BKZG, k_BKSH, v_BKSH = pl.pallas_call(
        kernel,
        grid=(B, K, Z),
        in_specs=[spec("BK", X, H), spec("BK", H), spec("BK", H), cache, cache, spec("B")],
        out_specs=[spec("BKZ", X, H), spec("BKZ", X), cache, cache],
        out_shape=[
            jax.ShapeDtypeStruct((B, K, Z, G, H), part_dtype),
            jax.ShapeDtypeStruct((B, K, Z, G), jnp.float32),
            jax.ShapeDtypeStruct(k_BKSH.shape, k_BKSH.dtype),
            jax.ShapeDtypeStruct(v_BKSH.shape, v_BKSH.dtype),
        ],
        input_output_aliases={3: 2, 4: 3},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="append_and_attend",
    )(q_BKGH, k_BKH, v_BKH, k_BKSH, v_BKSH, length_B)
    if Z == 1:
        return out_BKZGH[:, :, 0], k_BKSH, v_BKSH
    weights_BKZG = jax.nn.softmax(logsum_BKZG, axis=2)
    out_BKGH = jnp.sum(out_BKZGH * weights_BKZG[..., None], axis=2)
    return out_BKGH.astype(q_BKGH.dtype), k_BKSH, v_BKSH


def _chunk(num_heads: int, S: int, block: int) -> int:
    """Positions of a part: 1024, or fewer where there would be too few programs to fill a GPU."""
    wanted = max(S * num_heads // 512, block)  # a Hopper GPU has 132 multiprocessors
    return min(1024, 1 << (wanted.bit_length() - 1))


def _attend_part(
    q_ref, k_new_ref, v_new_ref, k_ref, v_ref, length_ref, out_ref, logsum_ref, k_out_ref,
    v_out_ref, *, G: int, chunk: int, block: int, window: int | None,
) -> None:  # fmt: skip
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (X, H), S = q_ref.shape, k_ref.shape[0]
    is_query_X = jnp.arange(X) < G
    q_XH = triton.load(q_ref, mask=is_query_X[:, None], other=0.0)
    scale = H**-0.5
    length, part = length_ref[()], pl.program_id(2)
    end = jnp.minimum(length, (part + 1) * chunk)
    seen_from = 0 if window is None else jnp.maximum(length - window + 1, 0)
    begin = jnp.maximum(part * chunk, seen_from)
    precision = jax.lax.Precision.HIGHEST if q_XH.dtype == jnp.float32 else None

    def one_block(i, carry):
        out_XH, top_X, total_X = carry
        slot_Y = i * block + jnp.arange(block)
        is_seen_Y = (slot_Y >= begin) & (slot_Y < end)
        here = pl.ds(i * block, block)
        k_YH = triton.load(k_ref.at[here], mask=is_seen_Y[:, None], other=0.0)
        scores_XY = triton.dot(q_XH, k_YH, trans_b=True, precision=precision) * scale
        scores_XY = jnp.where(is_seen_Y[None, :], scores_XY, _UNSEEN)
        new_top_X = jnp.maximum(top_X, jnp.max(scores_XY, axis=1))
        weights_XY = jnp.exp(scores_XY - new_top_X[:, None])
        decay_X = jnp.exp(top_X - new_top_X)
        v_YH = triton.load(v_ref.at[here], mask=is_seen_Y[:, None], other=0.0)
        added_XH = triton.dot(weights_XY.astype(v_YH.dtype), v_YH, precision=precision)
        total_X = total_X * decay_X + jnp.sum(weights_XY, axis=1)
        return out_XH * decay_X[:, None] + added_XH, new_top_X, total_X

    # The first part begins with the new token itself, which need not come back from the cache.
    is_first = part == 0
    k_new_H, v_new_H = k_new_ref[...], v_new_ref[...]
    own_X = jnp.sum(q_XH.astype(jnp.float32) * k_new_H.astype(jnp.float32)[None, :], axis=1) * scale
    out_XH = jnp.where(is_first, v_new_H.astype(jnp.float32), 0.0)[None, :]
    carry = (
        jnp.broadcast_to(out_XH, (X, H)),
        jnp.where(is_first, own_X, _UNSEEN),
        jnp.where(is_first, jnp.ones(X), jnp.zeros(X)),
    )
    blocks = begin // block, pl.cdiv(jnp.maximum(end, begin), block)
    out_XH, top_X, total_X = jax.lax.fori_loop(*blocks, one_block, carry)
    out_XH = (out_XH / jnp.maximum(total_X, 1e-30)[:, None]).astype(out_ref.dtype)
    triton.store(out_ref, out_XH, mask=is_query_X[:, None])
    logsum_X = top_X + jnp.log(jnp.maximum(total_X, 1e-30))
    triton.store(logsum_ref, logsum_X, mask=is_query_X)

    @pl.when(is_first & (length < S))
    def _():
        k_out_ref[length, :] = k_new_H
        v_out_ref[length, :] = v_new_H
