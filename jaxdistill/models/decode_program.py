"""One program of `decode_kernel`: a new token's attention to a part of its row's positions.

A program has the G queries of one key/value head and reads only the keys and values of its part,
block by block, with a running maximum and sum (flash attention). Part 0 starts from the new token,
which is in registers, and writes it to the cache. Everything here is traced for Triton, whose
arrays have sizes that are powers of two and whose products need at least 16 rows.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill.models import int8_kernel
from jaxdistill.models.cached_attention import UNSEEN
from jaxdistill.models.quantized import Quantized, dequantize, quantize, round_to_steps


class Inputs(NamedTuple):
    """The kernel's inputs; a field is an array, its axis letters, its block spec or its ref."""

    qkv: Any  # BKXH
    q_norm: Any  # H
    k_norm: Any  # H
    cos: Any  # Bh
    sin: Any  # Bh
    k: Any  # WKMSH
    v: Any  # WKMSH; of an int8 cache in pairs
    pages: Any  # BY
    length: Any  # B


class NewToken(NamedTuple):
    """A key or a value as it is stored, and as it is attended to: rounded as later tokens read it.

    A value is attended to in one array, or in two, its numbers at even and at odd places.
    """

    stored: Any
    seen: list[Array]  # float32 or the compute dtype


class Seen(NamedTuple):
    """The slots of a part that may be seen, begin to end, and the slot that the new token takes."""

    own: Array
    begin: Array
    end: Array


def padded_num_queries(G: int) -> int:
    """G rounded up to a power of two that the matrix units accept."""
    return max(16, _power_of_two(G))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Program:
    """The static settings of a program; `run` gets its own blocks of the inputs and outputs."""

    G: int
    chunk: int
    block: int
    window: int | None
    eps: float
    is_normed: bool
    is_rotated: bool
    is_whole: bool
    has_assembly: bool

    def run(self, refs: Inputs, out_ref, logsum_ref, k_out_ref, v_out_ref) -> None:
        from jax.experimental import pallas as pl

        cache = (_Int8 if isinstance(refs.k, Quantized) else _Exact)(self)
        # Norm, rotation and rounding of the queries alone, before they are padded to the rows of a
        # product: half of what a program does outside of its loop, and the same numbers.
        query_G = jnp.minimum(jnp.arange(_power_of_two(self.G)), self.G - 1)
        q_GH = self.head(refs, query_G, refs.q_norm)
        key = cache.new_key(self.head(refs, jnp.full(1, self.G), refs.k_norm))
        value = cache.new_value(refs.qkv)
        seen, is_first = self.seen(refs), pl.program_id(2) == 0
        # The first part starts from the new token itself, which is not read back from the cache.
        own_G = jnp.sum(q_GH.astype(jnp.float32) * key.seen[0].astype(jnp.float32), axis=1)
        own_G = self.padded(own_G * refs.qkv.shape[-1] ** -0.5)
        values = [jnp.where(is_first, x.astype(jnp.float32), 0.0) for x in value.seen]
        start = (
            tuple(jnp.broadcast_to(x[None, :], (len(own_G), len(x))) for x in values),
            jnp.where(is_first, own_G, UNSEEN),
            jnp.where(is_first, jnp.ones(own_G.shape), jnp.zeros(own_G.shape)),
        )
        queries = cache.queries(q_GH)
        self.store(
            jax.lax.fori_loop(
                seen.begin // self.block,
                pl.cdiv(jnp.maximum(seen.end, seen.begin), self.block),
                functools.partial(
                    self.add_block, cache=cache, queries=queries, refs=refs, seen=seen
                ),
                start,
            ),
            out_ref,
            logsum_ref,
        )

        # A full row drops the token; in a ring it has a place.
        @pl.when(is_first & (seen.own < self.num_positions(refs)))
        def _():
            page, slot = self.place(refs, seen.own)
            for ref, x_1 in zip(jax.tree.leaves(k_out_ref), jax.tree.leaves(key.stored)):
                ref[page, pl.ds(slot, 1), ...] = x_1
            for ref, x in zip(jax.tree.leaves(v_out_ref), jax.tree.leaves(value.stored)):
                ref[page, slot, ...] = x

    def head(self, refs: Inputs, row_G: Array, norm_ref: Any) -> Array:
        """Rows of qkv as attention compares them, normed (`rms_norm`), rotated (`apply_rope`)."""
        H, dtype = refs.qkv.shape[-1], refs.qkv.dtype
        half, column_H = H // 2, jnp.arange(H)

        def read(column_H):
            return refs.qkv[row_G[:, None], column_H[None, :]].astype(jnp.float32)

        def normed(x_GH, column_H):
            if not self.is_normed:
                return x_GH
            scale_1H = norm_ref[column_H].astype(jnp.float32)[None, :]
            # Rounded to `dtype` in between as by `rms_norm`: both paths then see the same heads.
            return (x_GH * inverse_G1 * scale_1H).astype(dtype).astype(jnp.float32)

        x_GH = read(column_H)
        inverse_G1 = jax.lax.rsqrt(jnp.sum(x_GH * x_GH, axis=1) / H + self.eps)[:, None]
        x_GH = normed(x_GH, column_H)
        if self.is_rotated:
            # The other element of each pair (i, i + H/2) is read again: Triton cannot slice
            # registers.
            other_H = (column_H + half) % H
            cos_H, sin_H = (ref[column_H % half] for ref in (refs.cos, refs.sin))
            sin_H = jnp.where(column_H < half, -sin_H, sin_H)
            x_GH = x_GH * cos_H[None, :] + normed(read(other_H), other_H) * sin_H[None, :]
        return x_GH.astype(dtype)

    def padded(self, x_G: Array) -> Array:
        """Rows repeated up to those of a product; results of the repetitions are not stored."""
        times = padded_num_queries(self.G) // len(x_G)
        if times == 1:
            return x_G
        repeated = jnp.broadcast_to(x_G[None], (times, *x_G.shape))
        return repeated.reshape(times * len(x_G), *x_G.shape[1:])

    def num_positions(self, refs: Inputs) -> int:
        S = refs.k.shape[1]
        return S if self.is_whole else refs.pages.shape[0] * S

    def place(self, refs: Inputs, position: Array) -> tuple[Array, Array]:
        """The page of a position, and the position within the page."""
        if self.is_whole:
            return jnp.int32(0), position
        S = refs.k.shape[1]
        return refs.pages[position // S], position % S

    def seen(self, refs: Inputs) -> Seen:
        from jax.experimental import pallas as pl

        length, first = refs.length[()], pl.program_id(2) * self.chunk
        if self.window is None:
            return Seen(length, first, jnp.minimum(length, first + self.chunk))
        num = self.num_positions(refs)
        seen_from = jnp.maximum(length - self.window + 1, 0)
        begin = jnp.maximum(first, jnp.where(length >= num, 0, seen_from))
        return Seen(length % num, begin, jnp.minimum(jnp.minimum(length, num), first + self.chunk))

    def is_seen(self, refs: Inputs, seen: Seen, slot_S: Array) -> Array:
        is_seen_S = (slot_S >= seen.begin) & (slot_S < seen.end)
        if self.window is None:
            return is_seen_S
        # Positions before the new token; the slot that it will take has the oldest one.
        age_S = seen.own - slot_S
        age_S = jnp.where(age_S > 0, age_S, age_S + self.num_positions(refs))
        return is_seen_S & (age_S < self.window)

    def add_block(
        self, i: Array, sums: Any, *, cache: Any, queries: Any, refs: Inputs, seen: Seen
    ) -> Any:
        """Online softmax: the sums so far are rescaled from the old maximum to the new one."""
        from jax.experimental import pallas as pl

        parts, top_G, total_G = sums
        is_seen_S = self.is_seen(refs, seen, i * self.block + jnp.arange(self.block))
        page, slot = self.place(refs, i * self.block)
        here = page, pl.ds(slot, self.block)
        scores_GS = cache.scores(queries, refs.k, here, is_seen_S)
        scores_GS = jnp.where(is_seen_S[None, :], scores_GS, UNSEEN)
        new_top_G = jnp.maximum(top_G, jnp.max(scores_GS, axis=1))
        weights_GS = jnp.exp(scores_GS - new_top_G[:, None])
        decay_G = jnp.exp(top_G - new_top_G)
        added = cache.values(weights_GS, refs.v, here, is_seen_S, refs.qkv.dtype)
        total_G = total_G * decay_G + jnp.sum(weights_GS, axis=1)
        parts = tuple(x_GH * decay_G[:, None] + y_GH for x_GH, y_GH in zip(parts, added))
        return parts, new_top_G, total_G

    def store(self, sums: Any, out_ref: Any, logsum_ref: Any) -> None:
        from jax.experimental.pallas import triton

        parts, top_G, total_G = sums
        query_G = jnp.arange(padded_num_queries(self.G))
        is_query_G = query_G < self.G
        # The sum of a part that saw nothing is 0; its log-sum-exp becomes about -1e30, and its
        # weight 0.
        total_G = jnp.maximum(total_G, 1e-30)
        for i, part in enumerate(parts):
            out = (part / total_G[:, None]).astype(out_ref.dtype)
            column_1H = (jnp.arange(part.shape[1]) * len(parts) + i)[None, :]
            here = out_ref if len(parts) == 1 else out_ref.at[query_G[:, None], column_1H]
            triton.store(here, out, mask=is_query_G[:, None])
        triton.store(logsum_ref, top_G + jnp.log(total_G), mask=is_query_G)


def _precision(dtype: Any) -> Any:
    # Triton would multiply float32 in TF32.
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@dataclass(frozen=True)
class _Exact:
    """A cache in the compute dtype."""

    program: Program

    def new_key(self, k_1H: Array) -> NewToken:
        return NewToken(k_1H, [k_1H])

    def new_value(self, qkv_ref: Any) -> NewToken:
        v_H = qkv_ref[self.program.G + 1, :]
        return NewToken(v_H, [v_H])

    def queries(self, q_GH: Array) -> Array:
        return self.program.padded(q_GH)

    def scores(self, q_GH: Array, k_ref: Any, here: Any, is_seen_S: Array) -> Array:
        from jax.experimental.pallas import triton

        k_SH = triton.load(k_ref.at[here], mask=is_seen_S[:, None], other=0.0)
        scores_GS = triton.dot(q_GH, k_SH, trans_b=True, precision=_precision(q_GH.dtype))
        return scores_GS * q_GH.shape[1] ** -0.5

    def values(
        self, weights_GS: Array, v_ref: Any, here: Any, is_seen_S: Array, dtype: Any
    ) -> list[Array]:
        from jax.experimental.pallas import triton

        v_SH = triton.load(v_ref.at[here], mask=is_seen_S[:, None], other=0.0)
        return [triton.dot(weights_GS.astype(dtype), v_SH, precision=_precision(dtype))]


@dataclass(frozen=True)
class _Int8:
    """An int8 cache, as `int8_kernel` reads it: products of integers, and values in pairs."""

    program: Program

    def new_key(self, k_1H: Array) -> NewToken:
        stored = quantize(k_1H)
        return NewToken(stored, [dequantize(stored)])

    def new_value(self, qkv_ref: Any) -> NewToken:
        row, (_, H) = self.program.G + 1, qkv_ref.shape
        scale = quantize(qkv_ref[row, :]).scale
        halves = [qkv_ref[row, jnp.arange(H // 2) * 2 + i] for i in range(2)]
        steps = [round_to_steps(x.astype(jnp.float32) / scale, jnp.int8) for x in halves]
        seen = [x.astype(jnp.float32) * scale for x in steps]
        return NewToken(Quantized(int8_kernel.pair(*steps), scale), seen)

    def queries(self, q_GH: Array) -> tuple[Array, ...]:
        coarse_GH, fine_GH, step_G1 = int8_kernel.in_two_integers(q_GH)
        return tuple(map(self.program.padded, (coarse_GH, fine_GH, step_G1)))

    def scores(self, queries: Any, k_ref: Any, here: Any, is_seen_S: Array) -> Array:
        from jax.experimental.pallas import triton

        coarse_GH, fine_GH, step_G1 = queries
        k_SH, k_scale_S = _loaded(k_ref, here, is_seen_S)
        sums_GS = int8_kernel.FINE * triton.dot(coarse_GH, k_SH, trans_b=True)
        sums_GS += triton.dot(fine_GH, k_SH, trans_b=True)
        scores_GS = sums_GS.astype(jnp.float32) * (step_G1 * coarse_GH.shape[1] ** -0.5)
        return scores_GS * k_scale_S[None, :]

    def values(
        self, weights_GS: Array, v_ref: Any, here: Any, is_seen_S: Array, dtype: Any
    ) -> list[Array]:
        from jax.experimental.pallas import triton

        pairs_Sh, v_scale_S = _loaded(v_ref, here, is_seen_S)
        scaled_GS = (weights_GS * v_scale_S[None, :]).astype(dtype)
        has_assembly = self.program.has_assembly
        halves = [
            int8_kernel.one_of_pairs(pairs_Sh, i, dtype, has_assembly=has_assembly)
            for i in range(2)
        ]
        return [triton.dot(scaled_GS, x_Sh, precision=_precision(dtype)) for x_Sh in halves]


def _loaded(ref: Quantized, here: Any, is_seen_S: Array) -> tuple[Array, Array]:
    """A block's integers and their scales."""
    from jax.experimental.pallas import triton

    values: Any = ref.values
    scale: Any = ref.scale
    return (
        triton.load(values.at[here], mask=is_seen_S[:, None], other=0),
        triton.load(scale.at[here], mask=is_seen_S, other=0.0),
    )
