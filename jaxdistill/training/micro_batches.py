"""One step's data as the device reads it: rows of sequences, in micro-batches.

A row holds one sequence (`batch.pad`) or up to A of them, one after another (`batch.pack`). The
host decides which sequence of the batch stands where; here arrays are only looked up. What is known
of each of the I sequences of the batch is kept by their number.
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
from jaxdistill.training.chunked_objective import PositionData


class Sequences(NamedTuple):
    """Rows of sequences that stand one after another from slot 0; padding follows the last."""

    tokens_BS: Int[AnyArray, "B S"]
    lengths_BA: Int[AnyArray, "B A"]  # 0 behind a row's last sequence


class MicroBatch(NamedTuple):
    """What is computed at a time: the same sequences, in the same order, under each kind of prompt.

    A completion follows its prompt without a gap; `completions` holds the completions alone.
    """

    plain: Sequences
    teacher: Sequences | None
    contrasts: tuple[Sequences, ...]
    completions: Sequences
    behaviour_logp_BT: Float[AnyArray, "B T"]
    row_BA: Int[AnyArray, "B A"]  # the number of the sequence in the batch


class MicroBatches(NamedTuple):
    """One step's data. Each array of `rows` has an axis of micro-batches after its first."""

    rows: MicroBatch
    # How many micro-batches are in use: an argument, so that steps of any number share a
    # compilation. None: all of them, which is known to the compiler.
    num_in_use: Int[AnyArray, ""] | None
    length_I: Int[AnyArray, " I"]  # of the completion
    advantage_I: Float[AnyArray, " I"]
    row_weight_I: Float[AnyArray, " I"]
    correct_I: Float[AnyArray, " I"]
    contrast_weight_IJ: Float[AnyArray, "I J"] | None

    @property
    def mask_IT(self) -> Int[Array, "I T"]:
        """The loss mask, one sequence in each row; T, the room of a row, holds the longest."""
        T = self.rows.completions.tokens_BS.shape[-1]
        return (jnp.arange(T)[None, :] < jnp.asarray(self.length_I)[:, None]).astype(jnp.int32)

    def micro_batch(self, m: Array | int) -> MicroBatch:
        """Micro-batch m, without that axis."""
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, m, axis=1, keepdims=False)  # noqa: E731
        return jax.tree.map(pick, self.rows)


class PackedPositions(NamedTuple):
    """Of each position of packed completions: its sequence in the batch, and its token in that."""

    row_BT: Int[Array, "B T"]  # 0 at padding
    index_BT: Int[Array, "B T"]
    is_real_BT: Array


def packed_positions(micro: MicroBatch) -> PackedPositions:
    T = micro.completions.tokens_BS.shape[1]
    segment_BT, index_BT = segments_of(micro.completions.lengths_BA, T)
    # Padding is one segment more than there are.
    row_BA = jnp.pad(jnp.asarray(micro.row_BA), ((0, 0), (0, 1)))
    is_real_BT = segment_BT < row_BA.shape[1] - 1
    return PackedPositions(jnp.take_along_axis(row_BA, segment_BT, axis=1), index_BT, is_real_BT)


class PerSequence(NamedTuple):
    """What an objective is told of each completion of the batch: the fields of `Rows`."""

    advantage_I: Float[AnyArray, " I"]
    correct_I: Float[AnyArray, " I"]
    distill_weight_I: Float[AnyArray, " I"]
    length_I: Int[AnyArray, " I"]
    step_I: Int[AnyArray, " I"]

    def spread(self, over: Callable[[Any], Any]) -> Rows:
        """The same at each position: `over` makes [B, T] of [I]."""
        return Rows(
            advantage_BT=over(self.advantage_I),
            correct_BT=over(self.correct_I),
            distill_weight_BT=over(self.distill_weight_I),
            length_BT=over(self.length_I),
            step_BT=over(self.step_I),
        )


class RowData(NamedTuple):
    """What is known of each sequence of the batch, and of each of its positions."""

    sequences: PerSequence
    contrast_weight_IJ: Float[AnyArray, "I J"] | None
    weight_IT: Float[Array, "I T"]
    distill_factor_IT: Float[Array, "I T"] | None = None
    gradient_factor_IT: Float[Array, "I T"] | None = None

    def on_every_device(self) -> "RowData":
        """Gathered once: a row looks up sequences from anywhere in the batch."""
        return jax.tree.map(lambda x: constrain(jnp.asarray(x), "X" * x.ndim), self)


def aligned(batch: MicroBatches, data: RowData, m: Array | int) -> tuple[MicroBatch, PositionData]:
    """Micro-batch m, and what is known of each position of its completions."""
    micro = batch.micro_batch(m)
    found = packed_positions(micro)

    def at(x_IT: Array | None) -> Any:
        return None if x_IT is None else x_IT[found.row_BT, found.index_BT]

    weight_IJ = data.contrast_weight_IJ
    return micro, PositionData(
        sampled=Sampled(
            tokens_BT=micro.completions.tokens_BS,
            behaviour_logp_BT=micro.behaviour_logp_BT,
            index_BT=found.index_BT,
            distill_factor_BT=at(data.distill_factor_IT),
            gradient_factor_BT=at(data.gradient_factor_IT),
        ),
        rows=data.sequences.spread(lambda x_I: x_I[found.row_BT]),
        mask_BT=found.is_real_BT,
        loss_weight_BT=jnp.where(found.is_real_BT, at(data.weight_IT), 0.0),
        contrast_weight_BTJ=None if weight_IJ is None else weight_IJ[found.row_BT],
    )


def fold(sums: Callable[[Any], Any], batch: MicroBatches) -> Any:
    """Add sums(m) over the micro-batches in use, in float32; of one alone there is no loop."""
    if batch.num_in_use is None and batch.rows.row_BA.shape[1] == 1:
        return sums(0)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(sums, 0),
    )
    return _over(batch, lambda m, total: jax.tree.map(jnp.add, total, sums(m)), zero)


def map_rows(scores: Callable[[Any], Any], batch: MicroBatches) -> Any:
    """scores(m), a tree of [B, T], over the micro-batches in use, as a tree of [I, T]."""
    num_rows, T = batch.mask_IT.shape
    zeros_IT = jax.tree.map(lambda s: jnp.zeros((num_rows, T), s.dtype), jax.eval_shape(scores, 0))

    def put(m, filled):
        found = packed_positions(batch.micro_batch(m))
        # Padding goes to a row that does not exist.
        row_BT = jnp.where(found.is_real_BT, found.row_BT, num_rows)

        def one(x_IT, new_BT):
            return x_IT.at[row_BT, found.index_BT].set(new_BT, mode="drop")

        return jax.tree.map(one, filled, scores(m))

    return _over(batch, put, zeros_IT)


def _over(batch: MicroBatches, body: Callable[[Any, Any], Any], start: Any) -> Any:
    num = batch.rows.row_BA.shape[1] if batch.num_in_use is None else batch.num_in_use
    return jax.lax.fori_loop(0, num, body, start)
