"""One new token a row against a cache: append its key and value, attend to the positions in use.

`xla_attention` is the reference and reads the whole cache. `kernel_attention`, for NVIDIA GPUs,
reads the positions in use alone, each once for all queries of its head; what else is to be done for
a head, its norm, its rotation and the write to the cache, happens in the same launch, because at a
few microseconds each the small kernels of a layer take as long as its attention.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.models import attention
from jaxdistill.precision import einsum

# Finite: a difference of two of them is 0 and not NaN.
_UNSEEN = -1e30

Attended = tuple[Array, Array, Array]  # out_BNH, and the cache's k_BKSH, v_BKSH


def has_kernel(head_dim: int) -> bool:
    """Whether `kernel_attention` runs here: on NVIDIA's Ampere or newer, heads a power of two."""
    if sharding.platform() != "gpu" or head_dim not in (16, 32, 64, 128, 256):
        return False
    return attention.is_ampere_or_newer()


def xla_attention(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    length_B: Int[Array, " B"],
    *,
    window: int | None = None,
) -> Attended:
    """Put k_BKH, v_BKH at slot length_B of the cache and attend to it and those before.

    With a `window` only to the last so many. Buffers are written in place where they are donated; a
    full row (length S) loses the token. Query head n reads key/value head n // G; softmax in
    float32. Ainslie et al. 2023, arXiv 2305.13245.

    The cache lies as its multiplications read it. With S before K XLA would transpose the whole
    cache of every layer at every token.
    """
    (B, N, H), (_, K, S, _) = q_BNH.shape, k_BKSH.shape
    k_BKSH, v_BKSH = _append(k_BKSH, k_BKH, length_B), _append(v_BKSH, v_BKH, length_B)
    slot_1S, own_B1 = jnp.arange(S)[None, :], length_B[:, None]
    visible_BS = slot_1S <= own_B1
    if window is not None:
        visible_BS &= slot_1S > own_B1 - window
    q_BKGH = q_BNH.reshape(B, K, N // K, H)
    scores_BKGS = einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, out_dtype=jnp.float32) * H**-0.5
    scores_BKGS = jnp.where(visible_BS[:, None, None, :], scores_BKGS, _UNSEEN)
    weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(v_BKSH.dtype)
    out_BNH = einsum("BKGS,BKSH->BKGH", weights_BKGS, v_BKSH).reshape(B, N, H)
    return out_BNH, k_BKSH, v_BKSH


def _append(
    x_BKSH: Float[Array, "B K S H"], new_BKH: Float[Array, "B K H"], slot_B: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    rows_B1 = jnp.arange(x_BKSH.shape[0])[:, None]
    heads_1K = jnp.arange(x_BKSH.shape[1])[None, :]
    return x_BKSH.at[rows_B1, heads_1K, slot_B[:, None]].set(
        new_BKH, mode="drop", unique_indices=True
    )


# ---------------------------------------------------------------------------- the kernel


def kernel_attention(
    qkv_BKXH: Float[Array, "B K X H"],
    norms_H: tuple[Float[Array, " H"], Float[Array, " H"]] | None,
    rotary_Bh: tuple[Float[Array, "B half"], Float[Array, "B half"]] | None,
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    length_B: Int[Array, " B"],
    *,
    eps: float,
    window: int | None = None,
    **tuning: Any,
) -> Attended:
    """`xla_attention` of heads as the projection gives them: G queries, a key and a value (X).

    Queries and keys are normed by the two scales and turned by cosine and sine; None: they come so.
    Under a mesh each device does its own rows and key/value heads.
    """
    B, K, X, H = qkv_BKXH.shape
    # A kernel has no absent arguments: what it is not to read is a dummy.
    norms = norms_H or (jnp.zeros(H),) * 2
    rotary = rotary_Bh or (jnp.zeros((B, H // 2)),) * 2
    local = sharding.on_shards(
        functools.partial(
            _attend, eps=eps, window=window, is_normed=norms_H is not None,
            is_turned=rotary_Bh is not None, **tuning,
        ),
        ("BKXH", "H", "H", "BX", "BX", "BKSH", "BKSH", "B"),
        ("BKXH", "BKSH", "BKSH"),
    )  # fmt: skip
    out_BKGH, k_BKSH, v_BKSH = local(qkv_BKXH, *norms, *rotary, k_BKSH, v_BKSH, length_B)
    return out_BKGH.reshape(B, K * (X - 2), H), k_BKSH, v_BKSH


def _attend(
    qkv_BKXH, q_norm_H, k_norm_H, cos_Bh, sin_Bh, k_BKSH, v_BKSH, length_B, *,
    interpret: bool = False, chunk: int = 0, block: int = 64, warps: int = 4, stages: int = 2,
    **static: Any,
) -> Attended:  # fmt: skip
    """A program for each row, key/value head and part (Z) of the positions.

    Parts are joined by their log-sums (Dao et al. 2023, Flash-Decoding); one that lies beyond its
    row's end reads nothing. With `interpret` it runs anywhere, slowly.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (B, K, X, H), S = qkv_BKXH.shape, k_BKSH.shape[2]
    chunk = chunk or _chunk(B * K, S, block)
    Z, Y = pl.cdiv(S, chunk), _queries_of_a_product(X - 2)

    def spec(axes: str, *sizes: int):
        """A program's own of each letter in `axes`, and of the sizes all."""
        at = lambda *ids: tuple(ids["BKZ".index(a)] for a in axes) + (0,) * len(sizes)  # noqa: E731
        return pl.BlockSpec((None,) * len(axes) + sizes, at)

    cache = spec("BK", S, H)
    out_BKZGH, logsum_BKZG, k_BKSH, v_BKSH = pl.pallas_call(
        functools.partial(_attend_part, G=X - 2, chunk=chunk, block=block, **static),
        grid=(B, K, Z),
        in_specs=[
            spec("BK", X, H), spec("", H), spec("", H), spec("B", H // 2), spec("B", H // 2), cache,
            cache, spec("B"),
        ],
        out_specs=[spec("BKZ", Y, H), spec("BKZ", Y), cache, cache],
        out_shape=[
            jax.ShapeDtypeStruct((B, K, Z, X - 2, H), qkv_BKXH.dtype if Z == 1 else jnp.float32),
            jax.ShapeDtypeStruct((B, K, Z, X - 2), jnp.float32),
            jax.ShapeDtypeStruct(k_BKSH.shape, k_BKSH.dtype),
            jax.ShapeDtypeStruct(v_BKSH.shape, v_BKSH.dtype),
        ],
        input_output_aliases={5: 2, 6: 3},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="append_and_attend",
    )(qkv_BKXH, q_norm_H, k_norm_H, cos_Bh, sin_Bh, k_BKSH, v_BKSH, length_B)  # fmt: skip
    if Z == 1:
        return out_BKZGH[:, :, 0], k_BKSH, v_BKSH
    weights_BKZG = jax.nn.softmax(logsum_BKZG, axis=2)
    out_BKGH = jnp.sum(out_BKZGH * weights_BKZG[..., None], axis=2)
    return out_BKGH.astype(qkv_BKXH.dtype), k_BKSH, v_BKSH


def _chunk(num_heads: int, S: int, block: int) -> int:
    """Positions of a part: 2048, or fewer where there would be too few programs to fill a GPU."""
    wanted = max(S * num_heads // 512, block)  # a Hopper GPU has 132 multiprocessors
    return min(2048, 1 << (wanted - 1).bit_length())


def _queries_of_a_product(G: int) -> int:
    """G, padded to a power of two that matrix units take."""
    return max(16, 1 << (G - 1).bit_length())


def _attend_part(
    qkv_ref, q_norm_ref, k_norm_ref, cos_ref, sin_ref, k_ref, v_ref, length_ref, out_ref,
    logsum_ref, k_out_ref, v_out_ref, *, G: int, chunk: int, block: int, window: int | None,
    eps: float, is_normed: bool, is_turned: bool,
) -> None:  # fmt: skip
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    S, H = k_ref.shape
    query_Y = jnp.arange(_queries_of_a_product(G))
    is_query_Y = query_Y < G

    def head(row_Y, norm_ref):
        rotary = (cos_ref, sin_ref) if is_turned else None
        return _head(qkv_ref, row_Y, norm_ref if is_normed else None, rotary, eps)

    # Beyond G the last query again: its results are dropped.
    q_YH = head(jnp.minimum(query_Y, G - 1), q_norm_ref)
    new_k_1H = head(jnp.full(1, G), k_norm_ref)
    new_v_H = qkv_ref[G + 1, :]

    length, part, scale = length_ref[()], pl.program_id(2), H**-0.5
    end = jnp.minimum(length, (part + 1) * chunk)
    seen_from = 0 if window is None else jnp.maximum(length - window + 1, 0)
    begin = jnp.maximum(part * chunk, seen_from)
    precision = jax.lax.Precision.HIGHEST if q_YH.dtype == jnp.float32 else None

    def one_block(i, carry):
        out_YH, top_Y, total_Y = carry
        slot_C = i * block + jnp.arange(block)
        is_seen_C = (slot_C >= begin) & (slot_C < end)
        here, mask = pl.ds(i * block, block), is_seen_C[:, None]
        k_CH = triton.load(k_ref.at[here], mask=mask, other=0.0)
        scores_YC = triton.dot(q_YH, k_CH, trans_b=True, precision=precision) * scale
        scores_YC = jnp.where(is_seen_C[None, :], scores_YC, _UNSEEN)
        new_top_Y = jnp.maximum(top_Y, jnp.max(scores_YC, axis=1))
        weights_YC = jnp.exp(scores_YC - new_top_Y[:, None])
        decay_Y = jnp.exp(top_Y - new_top_Y)
        v_CH = triton.load(v_ref.at[here], mask=mask, other=0.0)
        added_YH = triton.dot(weights_YC.astype(v_CH.dtype), v_CH, precision=precision)
        total_Y = total_Y * decay_Y + jnp.sum(weights_YC, axis=1)
        return out_YH * decay_Y[:, None] + added_YH, new_top_Y, total_Y

    # The first part begins with the new token itself, which need not come back from the cache.
    is_first = part == 0
    own_Y = jnp.sum(q_YH.astype(jnp.float32) * new_k_1H.astype(jnp.float32), axis=1) * scale
    out_1H = jnp.where(is_first, new_v_H.astype(jnp.float32), 0.0)[None, :]
    carry = (
        jnp.broadcast_to(out_1H, q_YH.shape),
        jnp.where(is_first, own_Y, _UNSEEN),
        jnp.where(is_first, jnp.ones(own_Y.shape), jnp.zeros(own_Y.shape)),
    )
    blocks = begin // block, pl.cdiv(jnp.maximum(end, begin), block)
    out_YH, top_Y, total_Y = jax.lax.fori_loop(*blocks, one_block, carry)
    total_Y = jnp.maximum(total_Y, 1e-30)
    out_YH = (out_YH / total_Y[:, None]).astype(out_ref.dtype)
    triton.store(out_ref, out_YH, mask=is_query_Y[:, None])
    triton.store(logsum_ref, top_Y + jnp.log(total_Y), mask=is_query_Y)

    @pl.when(is_first & (length < S))
    def _():
        k_out_ref[pl.ds(length, 1), :] = new_k_1H
        v_out_ref[length, :] = new_v_H


def _head(qkv_ref, row_Y: Array, norm_ref, rotary: tuple | None, eps: float) -> Array:
    """Rows of qkv as they are compared: normed as `rms_norm`, turned as `apply_rope` does it."""
    H, dtype = qkv_ref.shape[-1], qkv_ref.dtype
    half, column_H = H // 2, jnp.arange(H)

    def read(column_H):
        return qkv_ref[row_Y[:, None], column_H[None, :]].astype(jnp.float32)

    def normed(x_YH, column_H):
        if norm_ref is None:
            return x_YH
        scale_1H = norm_ref[column_H].astype(jnp.float32)[None, :]
        return (x_YH * inverse_Y1 * scale_1H).astype(dtype).astype(jnp.float32)

    x_YH = read(column_H)
    inverse_Y1 = jax.lax.rsqrt(jnp.sum(x_YH * x_YH, axis=1) / H + eps)[:, None]
    x_YH = normed(x_YH, column_H)
    if rotary is not None:
        # The other of each pair (i, i + H/2) is read again: registers cannot be cut in two.
        other_H = (column_H + half) % H
        cos_H, sin_H = (ref[column_H % half] for ref in rotary)
        sin_H = jnp.where(column_H < half, -sin_H, sin_H)
        x_YH = x_YH * cos_H[None, :] + normed(read(other_H), other_H) * sin_H[None, :]
    return x_YH.astype(dtype)
