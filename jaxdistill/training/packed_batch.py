"""A batch whose rows stand one after another in rows of a fixed size, and its micro-batches.

The host plans who stands where (`packing`); here arrays are only looked up. B parts of the mesh
hold several packed rows each: micro-batch m is one packed row of every part. Each packed row holds
up to A of the I rows of the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.models.attention import segments_of
from jaxdistill.objectives import Rows, Sampled
from jaxdistill.sharding import constrain


class Sequences(NamedTuple):
    """The packed rows of one kind of prompt: each with its completion, one after another."""

    tokens: Int[AnyArray, "W micro S"]  # of one micro-batch [B, S]
    lengths: Int[AnyArray, "W micro A"]  # of one micro-batch [B, A]


class Packed(NamedTuple):
    """One step's data, packed; the fields of `batch.Batch` in another order.

    The packed rows of all kinds of prompt hold the same sequences in the same order, and so do the
    completions by themselves. Only the first `num_micro_batches` are in use: what follows them
    keeps the arrays' sizes to a few. `completion_lengths` is 0 behind a packed row's last.
    """

    num_micro_batches: Int[AnyArray, ""]
    plain: Sequences
    teacher: Sequences | None
    contrasts: tuple[Sequences, ...]
    completion_ids: Int[AnyArray, "W micro T"]
    behaviour_logp: Float[AnyArray, "W micro T"]
    completion_lengths: Int[AnyArray, "W micro A"]
    row: Int[AnyArray, "W micro A"]  # of the batch, that this sequence is
    length_I: Int[AnyArray, " I"]  # of the completion
    advantage_I: Float[AnyArray, " I"]
    row_weight_I: Float[AnyArray, " I"]
    correct_I: Float[AnyArray, " I"]
    contrast_weight_IJ: Float[AnyArray, "I J"] | None


class MicroBatch(NamedTuple):
    """One packed row of every part: what its networks read, and its completions' positions."""

    plain: Sequences
    teacher: Sequences | None
    contrasts: tuple[Sequences, ...]
    completion_lengths_BA: Int[AnyArray, "B A"]
    completion_mask_BT: Int[Array, "B T"]
    contrast_weight_BTJ: Float[Array, "B T J"] | None


class PackedPositions(NamedTuple):
    """Where positions of packed completions come from: the batch's row and the token in it."""

    row_BT: Int[Array, "B T"]  # 0 at padding
    index_BT: Int[Array, "B T"]
    is_real_BT: Array


def micro_batch(packed: Packed, m: Array | int) -> Packed:
    """The arrays of micro-batch m, without that axis; those of the batch's rows stay whole."""

    def pick(field: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, m, axis=1, keepdims=False), field
        )

    return packed._replace(
        plain=pick(packed.plain),
        teacher=pick(packed.teacher),
        contrasts=pick(packed.contrasts),
        completion_ids=pick(packed.completion_ids),
        behaviour_logp=pick(packed.behaviour_logp),
        completion_lengths=pick(packed.completion_lengths),
        row=pick(packed.row),
    )


def packed_positions(
    completion_lengths_BA: Int[AnyArray, "B A"], row_BA: Int[AnyArray, "B A"], T: int
) -> PackedPositions:
    segment_BT, index_BT = segments_of(completion_lengths_BA, T)
    # Padding is one segment more than there are.
    row_BA = jnp.pad(jnp.asarray(row_BA), ((0, 0), (0, 1)))
    is_real_BT = segment_BT < row_BA.shape[1] - 1
    return PackedPositions(jnp.take_along_axis(row_BA, segment_BT, axis=1), index_BT, is_real_BT)


def rows_mask(packed: Packed) -> Int[Array, "I T"]:
    """The completions' mask with a row each; T, the room of a packed row, holds the longest."""
    T = packed.completion_ids.shape[-1]
    return (jnp.arange(T)[None, :] < jnp.asarray(packed.length_I)[:, None]).astype(jnp.int32)


class RowData(NamedTuple):
    """What is known of each row of the batch, and of each of its positions."""

    rows_I: Rows  # one number a row
    contrast_weight_IJ: Float[AnyArray, "I J"] | None
    weight_IT: Float[Array, "I T"]
    distill_factor_IT: Float[Array, "I T"] | None = None
    gradient_factor_IT: Float[Array, "I T"] | None = None

    def on_every_device(self) -> "RowData":
        """Gathered once: a packed row looks up rows from anywhere in the batch."""
        return jax.tree.map(lambda x: constrain(jnp.asarray(x), "X" * x.ndim), self)


def aligned(
    packed: Packed, data: RowData, m: Array | int
) -> tuple[MicroBatch, Array, Sampled, Rows]:
    """Micro-batch m: its networks' inputs, loss weights, samples and rows at each position."""
    part = micro_batch(packed, m)
    positions = packed_positions(part.completion_lengths, part.row, part.completion_ids.shape[1])

    def at(x_IT: Array | None) -> Any:
        return None if x_IT is None else x_IT[positions.row_BT, positions.index_BT]

    weight_BT = jnp.where(positions.is_real_BT, at(data.weight_IT), 0.0)
    sampled = Sampled(
        tokens_BT=part.completion_ids,
        behaviour_logp_BT=part.behaviour_logp,
        index_BT=positions.index_BT,
        distill_factor_BT=at(data.distill_factor_IT),
        gradient_factor_BT=at(data.gradient_factor_IT),
    )
    rows, weight_BTJ = jax.tree.map(
        lambda x_I: x_I[positions.row_BT], (data.rows_I, data.contrast_weight_IJ)
    )
    micro = MicroBatch(
        plain=part.plain,
        teacher=part.teacher,
        contrasts=part.contrasts,
        completion_lengths_BA=part.completion_lengths,
        completion_mask_BT=positions.is_real_BT.astype(jnp.int32),
        contrast_weight_BTJ=weight_BTJ,
    )
    return micro, weight_BT, sampled, rows


def fold(sums: Callable[[Any], Any], packed: Packed) -> Any:
    """Add sums(m) over the micro-batches in use, in float32; their number is an argument."""
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(sums, 0),
    )
    return jax.lax.fori_loop(
        0, packed.num_micro_batches, lambda m, total: jax.tree.map(jnp.add, total, sums(m)), zero
    )


def map_rows(scores: Callable[[Any], Any], packed: Packed) -> Any:
    """scores(m), a tree of [B, T], for all micro-batches in use; put back as rows [I, T]."""
    num_rows, T = packed.length_I.shape[0], packed.completion_ids.shape[-1]
    zeros_IT = jax.tree.map(lambda s: jnp.zeros((num_rows, T), s.dtype), jax.eval_shape(scores, 0))

    def put(m, filled):
        part = micro_batch(packed, m)
        positions = packed_positions(part.completion_lengths, part.row, T)
        # Padding goes to a row that does not exist.
        row_BT = jnp.where(positions.is_real_BT, positions.row_BT, num_rows)

        def one(x_IT, new_BT):
            return x_IT.at[row_BT, positions.index_BT].set(new_BT, mode="drop")

        return jax.tree.map(one, filled, scores(m))

    return jax.lax.fori_loop(0, packed.num_micro_batches, put, zeros_IT)
