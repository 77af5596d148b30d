"""A fused kernel for decoding on NVIDIA GPUs: norm, rotation, append and attention in one launch.

At a few microseconds each, the small kernels of a layer would take as long as its attention. The
kernel reads only the filled part of the KV cache; `cached_attention` documents the cache's layout
and has the reference implementation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.models import attention, int8_kernel
from jaxdistill.models.cached_attention import UNSEEN, Attended, Pool, capacity_of, pool_axes
from jaxdistill.models.quantized import Quantized, dequantize, quantize, round_to_steps


def has_kernel(head_dim: int) -> bool:
    """Whether `kernel_attention` can run: on NVIDIA GPUs from Ampere on, with a supported head."""
    # Array sizes in Triton are powers of two, and its products need at least 16 columns.
    if sharding.platform() != "gpu" or head_dim not in (16, 32, 64, 128, 256):
        return False
    return attention.is_ampere_or_newer()


# Positions that a program reads at a time. 64 with two pipeline stages was the best or close to it
# at every size on an H200. From 1 to 8 warps, no two runs agreed on an order.
BLOCK = 64


def kernel_attention(
    qkv_BKXH: Float[Array, "B K X H"],
    norms_H: tuple[Float[Array, " H"], Float[Array, " H"]] | None,
    rotary_Bh: tuple[Float[Array, "B half"], Float[Array, "B half"]] | None,
    k_WKMSH: Pool,
    v_WKMSH: Pool,
    length_B: Int[Array, " B"],
    pages_BY: Int[Array, "B Y"] | None = None,
    *,
    eps: float,
    window: int | None = None,
    in_integers: bool = False,
    **tuning: Any,
) -> Attended:
    """`xla_cached_attention` of heads as projected: G queries, one key and one value (X = G + 2).

    `norms_H` are the RMSNorm scales of queries and keys, with `eps`; `rotary_Bh` is the cosine and
    sine of the new position. None skips the norm or the rotation. Under a mesh each device handles
    its own rows and key/value heads.

    Two choices are off until they are timed. `in_integers` reads an int8 cache with products of
    integers and in pairs (`int8_kernel`); `has_narrow_head` prepares the G queries alone, before
    they are padded to the rows of a matrix product. It and other `tuning` go to `_attend`.
    """
    B, K, X, H = qkv_BKXH.shape
    # A kernel has no optional arguments: dummies take the place of arrays that it will not read.
    norms = norms_H or (jnp.zeros(H),) * 2
    rotary = rotary_Bh or (jnp.zeros((B, H // 2)),) * 2
    is_whole, capacity = pages_BY is None, capacity_of(k_WKMSH, pages_BY)
    if window is not None and window > capacity:
        window = None  # it hides nothing
    inputs = _Inputs(
        qkv=qkv_BKXH,
        q_norm=norms[0],
        k_norm=norms[1],
        cos=rotary[0],
        sin=rotary[1],
        k=k_WKMSH,
        v=v_WKMSH,
        pages=jnp.zeros((1, 1), jnp.int32) if pages_BY is None else pages_BY,
        length=length_B,
    )
    pools_axes = pool_axes(k_WKMSH), pool_axes(v_WKMSH)
    axes = _Inputs(
        qkv="BKXH",
        q_norm="H",
        k_norm="H",
        cos="BX",
        sin="BX",
        k=pools_axes[0],
        v=pools_axes[1],
        pages="XX" if is_whole else "BY",
        length="B",
    )
    is_integer = in_integers and isinstance(k_WKMSH, Quantized)
    attend = functools.partial(
        _attend_in_integers if is_integer else _attend,
        eps=eps,
        window=window,
        is_normed=norms_H is not None,
        is_rotated=rotary_Bh is not None,
        is_whole=is_whole,
        **tuning,
    )
    out_BKGH, *cache = sharding.on_shards(attend, [axes], ("BKXH", *pools_axes))(inputs)
    return out_BKGH.reshape(B, K * (X - 2), H), *cache


class _Inputs(NamedTuple):
    """The kernel's inputs; a field is an array, its axis letters, its block spec or its ref."""

    qkv: Any  # BKXH
    q_norm: Any  # H
    k_norm: Any  # H
    cos: Any  # Bh
    sin: Any  # Bh
    k: Any  # WKMSH
    v: Any  # WKMSH
    pages: Any  # BY
    length: Any  # B


# The kernel's grid is rows x key/value heads x parts of the positions, with one program for each.
#
#     positions of row b  0 ........ chunk ........ 2 chunk ... length ... (the cache's end)
#     program (b, k, 0)   [new token, block, block]                  |
#     program (b, k, 1)                   [block, block]             |
#     program (b, k, 2)                                 [block, mask]|  <- writes nothing beyond
#
# A program has the G queries of head k and reads only the keys and values of its part, block by
# block, with a running maximum and sum (flash attention). Part 0 starts from the new token, which
# is in registers, and writes it to the cache at `length`. The parts' results are combined by their
# log-sum-exps. In a ring (`cached_attention`) the parts are those of its slots.
def _attend(
    inputs: _Inputs,
    *,
    is_whole: bool,
    interpret: bool = False,
    chunk: int = 0,
    block: int = BLOCK,
    warps: int = 4,
    stages: int = 2,
    **static: Any,
) -> Attended:
    """Run one program for each row, key/value head and part (O) of the positions.

    The parts are combined by their log-sum-exps (Dao et al. 2023, Flash-Decoding); a part beyond
    its row's end reads nothing. `chunk` is the length of a part in positions, and 0 lets `_chunk`
    choose it. With `interpret` the kernel runs on any platform, slowly.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, K, X, H = inputs.qkv.shape
    (_, _, M, S, _), Y = inputs.k.shape, inputs.pages.shape[1]
    assert Y == 1 or S % block == 0, f"pages of {S} positions are not whole blocks of {block}"
    chunk = chunk or _chunk(B * K, Y * S, block)
    O = pl.cdiv(Y * S, chunk)
    padded_G = _padded_num_queries(X - 2)

    def spec(axes: str, *sizes: int):
        """The program's own index along each letter of `axes`, then whole axes of `sizes`."""
        return pl.BlockSpec(
            (None,) * len(axes) + sizes,
            lambda *ids: tuple(ids["BKO".index(a)] for a in axes) + (0,) * len(sizes),
        )

    def pages(x_WKMSH):
        """The row's own page, or all pages if there is a table; of values or of their scales."""
        num, rest = 1 if is_whole else M, x_WKMSH.shape[3:]
        return pl.BlockSpec(
            (None, None, num, *rest),
            lambda b, k, _: (0, k, b if is_whole else 0) + (0,) * len(rest),
        )

    pools = inputs.k, inputs.v
    static |= {"is_whole": is_whole, "has_assembly": not interpret}
    out_BKOGH, logsum_BKOG, k_WKMSH, v_WKMSH = pl.pallas_call(
        functools.partial(_attend_part, G=X - 2, chunk=chunk, block=block, **static),
        grid=(B, K, O),
        in_specs=[
            _Inputs(
                qkv=spec("BK", X, H),
                q_norm=spec("", H),
                k_norm=spec("", H),
                cos=spec("B", H // 2),
                sin=spec("B", H // 2),
                k=jax.tree.map(pages, inputs.k),
                v=jax.tree.map(pages, inputs.v),
                pages=spec("", 1, 1) if is_whole else spec("B", Y),
                length=spec("B"),
            )
        ],
        out_specs=[spec("BKO", padded_G, H), spec("BKO", padded_G), *jax.tree.map(pages, pools)],
        out_shape=[
            # Parts are combined in float32; a single part is rounded by the kernel itself.
            jax.ShapeDtypeStruct((B, K, O, X - 2, H), inputs.qkv.dtype if O == 1 else jnp.float32),
            jax.ShapeDtypeStruct((B, K, O, X - 2), jnp.float32),
            *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pools),
        ],
        # Update the cache in place. Its two arrays, or four with scales, are the inputs from the
        # sixth on and the outputs from the third on.
        input_output_aliases={5 + i: 2 + i for i in range(len(jax.tree.leaves(pools)))},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="append_and_attend",
    )(inputs)
    return _combined(out_BKOGH, logsum_BKOG).astype(inputs.qkv.dtype), k_WKMSH, v_WKMSH


def _combined(out_BKOGH: Array, logsum_BKOG: Array) -> Array:
    if out_BKOGH.shape[2] == 1:
        return out_BKOGH[:, :, 0]
    weights_BKOG = jax.nn.softmax(logsum_BKOG, axis=2)
    return jnp.sum(out_BKOGH * weights_BKOG[..., None], axis=2)


def _attend_in_integers(inputs: _Inputs, **static: Any) -> Attended:
    """`_attend` to an int8 cache as `int8_kernel` describes: the kernel reads values in pairs."""
    pairs = inputs.v._replace(values=int8_kernel.as_pairs(inputs.v.values))
    out_BKGH, k, v = _attend(inputs._replace(v=pairs), in_integers=True, **static)
    assert isinstance(v, Quantized)
    return out_BKGH, k, v._replace(values=int8_kernel.from_pairs(v.values))


def _chunk(num_heads: int, S: int, block: int) -> int:
    """Positions per part: 1024, or fewer if there would be too few programs to fill a GPU.

    Parts are short because the last programs run alone when rows differ in length.
    """
    # 512 programs are about four per multiprocessor of a Hopper GPU, which has 132. Chosen, not
    # measured. 1024 costs nothing: at 32 rows of 4,608, parts of 1024 positions took 239 us and
    # parts of 2048 took 237 us.
    wanted = max(S * num_heads // 512, block)
    return min(1024, 1 << (wanted - 1).bit_length())


def _padded_num_queries(G: int) -> int:
    """G rounded up to a power of two that the matrix units accept."""
    return max(16, 1 << (G - 1).bit_length())


def _attend_part(
    refs: _Inputs,
    out_ref,
    logsum_ref,
    k_out_ref,
    v_out_ref,
    *,
    G: int,
    chunk: int,
    block: int,
    window: int | None,
    eps: float,
    is_normed: bool,
    is_rotated: bool,
    is_whole: bool,
    has_assembly: bool,
    in_integers: bool = False,
    has_narrow_head: bool = False,
) -> None:
    """One program of the grid above; `refs` are its own blocks of the inputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    _, S, H = refs.k.shape
    num_positions = S if is_whole else refs.pages.shape[0] * S
    query_G = jnp.arange(_padded_num_queries(G))
    is_query_G = query_G < G

    def head(row_G, norm_ref):
        rotary = (refs.cos, refs.sin) if is_rotated else None
        return _head(refs.qkv, row_G, norm_ref if is_normed else None, rotary, eps)

    # Padding repeats the last query, or all of them; its results are not stored.
    made_G = jnp.arange(1 << (G - 1).bit_length()) if has_narrow_head else query_G
    made_GH = head(jnp.minimum(made_G, G - 1), refs.q_norm)

    def padded(x):
        times = len(query_G) // len(made_G)
        if times == 1:
            return x
        return jnp.broadcast_to(x[None], (times, *x.shape)).reshape(len(query_G), *x.shape[1:])

    q_GH = padded(made_GH)
    new_k_1H = head(jnp.full(1, G), refs.k_norm)
    new_v_H = refs.qkv[G + 1, :]
    new_k, new_v = new_k_1H, new_v_H
    is_quantized = isinstance(refs.k, Quantized)
    # The new token is rounded before it is attended to, as later tokens will read it.
    if is_quantized:
        new_k, new_v = quantize(new_k_1H), quantize(new_v_H)
        new_k_1H, new_v_H = dequantize(new_k), dequantize(new_v)
    # In how many arrays a value is: its elements at even and at odd places, or one.
    new_v_parts = [new_v_H]
    if in_integers:
        halves = [refs.qkv[G + 1, jnp.arange(H // 2) * 2 + i] for i in range(2)]
        steps = [round_to_steps(x.astype(jnp.float32) / new_v.scale, jnp.int8) for x in halves]
        new_v_parts = [x.astype(jnp.float32) * new_v.scale for x in steps]
        new_v = Quantized(int8_kernel.pair(*steps), new_v.scale)

    length = refs.length[()]
    part = pl.program_id(2)
    scale = H**-0.5
    # The slots of this part that may be seen, and the slot of the new token.
    if window is None:
        own, begin, end = length, part * chunk, jnp.minimum(length, (part + 1) * chunk)
    else:
        own, has_wrapped = length % num_positions, length >= num_positions
        seen_from = jnp.where(has_wrapped, 0, jnp.maximum(length - window + 1, 0))
        begin = jnp.maximum(part * chunk, seen_from)
        end = jnp.minimum(jnp.minimum(length, num_positions), (part + 1) * chunk)
    # Triton would multiply float32 in TF32.
    precision = jax.lax.Precision.HIGHEST if q_GH.dtype == jnp.float32 else None

    def place(position):
        """The page of a position, and the position within the page."""
        if is_whole:
            return jnp.int32(0), position
        return refs.pages[position // S], position % S

    integers = map(padded, int8_kernel.in_two_integers(made_GH)) if in_integers else ()
    integers = tuple(integers)

    def one_block(i, carry):
        parts, top_G, total_G = carry
        slot_S = i * block + jnp.arange(block)
        is_seen_S = (slot_S >= begin) & (slot_S < end)
        if window is not None:
            # Positions before the new token; the slot that it will take has the oldest one.
            age_S = own - slot_S
            is_seen_S &= jnp.where(age_S > 0, age_S, age_S + num_positions) < window
        page, slot = place(i * block)
        here, mask = (page, pl.ds(slot, block)), is_seen_S[:, None]

        def load(ref):
            """A block in the dtype of the products, and its scales if it is stored in int8."""
            if not is_quantized:
                return triton.load(ref.at[here], mask=mask, other=0.0), None
            values_SH = triton.load(ref.values.at[here], mask=mask, other=0)
            values_SH = values_SH if in_integers else values_SH.astype(q_GH.dtype)
            scale_S = triton.load(ref.scale.at[here], mask=is_seen_S, other=0.0)
            return values_SH, scale_S[None, :]

        k_SH, k_scale_1S = load(refs.k)
        if in_integers:
            coarse_GH, fine_GH, step_G1 = integers
            sums_GS = int8_kernel.FINE * triton.dot(coarse_GH, k_SH, trans_b=True)
            sums_GS += triton.dot(fine_GH, k_SH, trans_b=True)
            scores_GS = sums_GS.astype(jnp.float32) * (step_G1 * scale)
        else:
            scores_GS = triton.dot(q_GH, k_SH, trans_b=True, precision=precision) * scale
        if k_scale_1S is not None:
            scores_GS *= k_scale_1S
        scores_GS = jnp.where(is_seen_S[None, :], scores_GS, UNSEEN)
        # Online softmax: the sums so far are rescaled from the old maximum to the new one.
        new_top_G = jnp.maximum(top_G, jnp.max(scores_GS, axis=1))
        weights_GS = jnp.exp(scores_GS - new_top_G[:, None])
        decay_G = jnp.exp(top_G - new_top_G)
        v_SH, v_scale_1S = load(refs.v)
        scaled_GS = weights_GS if v_scale_1S is None else weights_GS * v_scale_1S
        v_parts = [v_SH]
        if in_integers:
            v_parts = [
                int8_kernel.one_of_pairs(v_SH, i, q_GH.dtype, has_assembly=has_assembly)
                for i in range(2)
            ]
        scaled_GS = scaled_GS.astype(q_GH.dtype)
        added = [triton.dot(scaled_GS, x_SH, precision=precision) for x_SH in v_parts]
        total_G = total_G * decay_G + jnp.sum(weights_GS, axis=1)
        parts = tuple(x_GH * decay_G[:, None] + y_GH for x_GH, y_GH in zip(parts, added))
        return parts, new_top_G, total_G

    # The first part starts from the new token itself, which is not read back from the cache.
    is_first = part == 0
    own_G = jnp.sum(made_GH.astype(jnp.float32) * new_k_1H.astype(jnp.float32), axis=1) * scale
    own_G = padded(own_G)
    new_v_parts = [jnp.where(is_first, x.astype(jnp.float32), 0.0) for x in new_v_parts]
    carry = (
        tuple(jnp.broadcast_to(x[None, :], (len(own_G), len(x))) for x in new_v_parts),
        jnp.where(is_first, own_G, UNSEEN),
        jnp.where(is_first, jnp.ones(own_G.shape), jnp.zeros(own_G.shape)),
    )
    blocks = begin // block, pl.cdiv(jnp.maximum(end, begin), block)
    parts, top_G, total_G = jax.lax.fori_loop(*blocks, one_block, carry)
    # The sum of a part that saw nothing is 0; its log-sum-exp becomes about -1e30, its weight 0.
    total_G = jnp.maximum(total_G, 1e-30)
    for i, part in enumerate(parts):
        out = (part / total_G[:, None]).astype(out_ref.dtype)
        column_1H = (jnp.arange(part.shape[1]) * len(parts) + i)[None, :]
        here = out_ref if len(parts) == 1 else out_ref.at[query_G[:, None], column_1H]
        triton.store(here, out, mask=is_query_G[:, None])
    triton.store(logsum_ref, top_G + jnp.log(total_G), mask=is_query_G)

    # A full row drops the token; in a ring it has a place.
    @pl.when(is_first & (own < num_positions))
    def _():
        page, slot = place(own)
        for ref, x_1 in zip(jax.tree.leaves(k_out_ref), jax.tree.leaves(new_k)):
            ref[page, pl.ds(slot, 1), ...] = x_1
        for ref, x in zip(jax.tree.leaves(v_out_ref), jax.tree.leaves(new_v)):
            ref[page, slot, ...] = x


def _head(qkv_ref, row_G: Array, norm_ref, rotary: tuple | None, eps: float) -> Array:
    """Rows of qkv as attention compares them: normed like `rms_norm`, rotated like `apply_rope`."""
    H, dtype = qkv_ref.shape[-1], qkv_ref.dtype
    half, column_H = H // 2, jnp.arange(H)

    def read(column_H):
        return qkv_ref[row_G[:, None], column_H[None, :]].astype(jnp.float32)

    def normed(x_GH, column_H):
        if norm_ref is None:
            return x_GH
        scale_1H = norm_ref[column_H].astype(jnp.float32)[None, :]
        # Rounded to `dtype` in between because `rms_norm` is: both paths then see the same heads.
        return (x_GH * inverse_G1 * scale_1H).astype(dtype).astype(jnp.float32)

    x_GH = read(column_H)
    inverse_G1 = jax.lax.rsqrt(jnp.sum(x_GH * x_GH, axis=1) / H + eps)[:, None]
    x_GH = normed(x_GH, column_H)
    if rotary is not None:
        # The other element of each pair (i, i + H/2) is read again: Triton cannot slice registers.
        other_H = (column_H + half) % H
        cos_H, sin_H = (ref[column_H % half] for ref in rotary)
        sin_H = jnp.where(column_H < half, -sin_H, sin_H)
        x_GH = x_GH * cos_H[None, :] + normed(read(other_H), other_H) * sin_H[None, :]
    return x_GH.astype(dtype)
