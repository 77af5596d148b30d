"""One step's data as the device reads it: rows of sequences, grouped into micro-batches.

A row holds one sequence (`batch.pad`) or up to A packed sequences (`batch.pack`). The host assigns
the sequences to rows; the code here only indexes arrays. Data per sequence is an array over I, the
sequences of the whole batch, and a row refers to its sequences by that index.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.models.attention import segments_of
from jaxdistill.objectives import BatchFactors, Rows, Sampled
from jaxdistill.sharding import constrain
from jaxdistill.training.chunked_objective import PositionData


class Sequences(NamedTuple):
    """Rows of up to A contiguous sequences from slot 0 on; padding follows the last one."""

    tokens_BS: Int[AnyArray, "B S"]
    lengths_BA: Int[AnyArray, "B A"]  # 0 in the unused entries after a row's last sequence


class MicroBatch(NamedTuple):
    """One micro-batch: the same completions in the same order, under each kind of prompt.

    A completion follows its prompt without a gap. `completions` holds the completions without any
    prompt, and gives the T positions that the objective is evaluated at.
    """

    plain: Sequences
    teacher: Sequences | None
    contrasts: tuple[Sequences, ...]
    completions: Sequences
    behaviour_logp_BT: Float[AnyArray, "B T"]
    row_BA: Int[AnyArray, "B A"]  # the sequence's index in the batch (axis I)


class MicroBatches(NamedTuple):
    """One step's data. Each array of `rows` has the micro-batches as its second axis."""

    # The first axis stays the rows of a micro-batch, since that is the axis sharded over devices.
    rows: MicroBatch
    # The number of micro-batches that hold data. An argument of the compiled step, so that steps
    # with different numbers share a compilation. None: all of them, a number the compiler knows.
    num_in_use: Int[AnyArray, ""] | None
    length_I: Int[AnyArray, " I"]  # of the completion
    advantage_I: Float[AnyArray, " I"]
    row_weight_I: Float[AnyArray, " I"]
    correct_I: Float[AnyArray, " I"]
    contrast_weight_IJ: Float[AnyArray, "I J"] | None

    @property
    def mask_IT(self) -> Int[Array, "I T"]:
        """The loss mask with one sequence per row; T, a row's capacity, holds the longest one."""
        T = self.rows.completions.tokens_BS.shape[-1]
        return (jnp.arange(T)[None, :] < jnp.asarray(self.length_I)[:, None]).astype(jnp.int32)

    @property
    def is_single(self) -> bool:
        """Whether there is one micro-batch, known before the program runs."""
        return self.num_in_use is None and self.rows.row_BA.shape[1] == 1

    def micro_batch(self, m: Array | int) -> MicroBatch:
        """Micro-batch m, without the axis of micro-batches."""
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, m, axis=1, keepdims=False)  # noqa: E731
        return jax.tree.map(pick, self.rows)

    def in_words(self) -> str:
        """The shapes that the step is compiled for.

        >>> import numpy as np
        >>> from jaxdistill.training.batch import Batch, pad, texts_of_ids
        >>> one, text = np.ones(1, np.float32), texts_of_ids([[5, 6]])
        >>> pad(Batch(prompt=text, completion=text, behaviour_logp_BT=np.zeros((1, 2)),
        ...     advantage_B=one, row_weight_B=one, correct_B=one)).in_words()
        '1 micro-batch(es) of 1 row(s): student 4, completions 2 tokens'
        """
        kinds = {"student": self.rows.plain, "teacher": self.rows.teacher}
        kinds |= {f"contrast {j}": x for j, x in enumerate(self.rows.contrasts, 1)}
        kinds["completions"] = self.rows.completions
        num_rows, num_micro, sequences = self.rows.row_BA.shape
        sizes = (f"{name} {x.tokens_BS.shape[-1]:,}" for name, x in kinds.items() if x is not None)
        rows = f"{num_rows} row(s)" + (f" of up to {sequences} sequences" if sequences > 1 else "")
        return f"{num_micro} micro-batch(es) of {rows}: {', '.join(sizes)} tokens"


class PackedPositions(NamedTuple):
    """Which sequence of the batch each packed position belongs to, and which token of it it is."""

    row_BT: Int[Array, "B T"]  # the sequence's index in the batch; 0 at padding
    index_BT: Int[Array, "B T"]  # the token's index in the completion
    is_real_BT: Bool[Array, "B T"]  # False at padding


def packed_positions(micro: MicroBatch) -> PackedPositions:
    T = micro.completions.tokens_BS.shape[1]
    segment_BT, index_BT = segments_of(micro.completions.lengths_BA, T)
    # `segments_of` numbers padding as one further segment, A; the extra column is its entry.
    row_BA = jnp.pad(jnp.asarray(micro.row_BA), ((0, 0), (0, 1)))
    is_real_BT = segment_BT < row_BA.shape[1] - 1
    return PackedPositions(jnp.take_along_axis(row_BA, segment_BT, axis=1), index_BT, is_real_BT)


class PerSequence(NamedTuple):
    """The fields of `Rows`, with one number per completion of the batch."""

    advantage_I: Float[AnyArray, " I"]
    correct_I: Float[AnyArray, " I"]
    distill_weight_I: Float[AnyArray, " I"]
    length_I: Int[AnyArray, " I"]
    step_I: Int[AnyArray, " I"]

    def spread(self, over: Callable[[Any], Any]) -> Rows:
        """The same data at each position: `over` maps an array [I] to [B, T]."""
        return Rows(
            advantage_BT=over(self.advantage_I),
            correct_BT=over(self.correct_I),
            distill_weight_BT=over(self.distill_weight_I),
            length_BT=over(self.length_I),
            step_BT=over(self.step_I),
        )


class RowData(NamedTuple):
    """Data per sequence of the batch and per position of its completion, one sequence per row."""

    sequences: PerSequence
    contrast_weight_IJ: Float[AnyArray, "I J"] | None
    weight_IT: Float[Array, "I T"]
    distill_factor_IT: Float[Array, "I T"] | None = None
    gradient_factor_IT: Float[Array, "I T"] | None = None
    target_factor_IT: Float[Array, "I T"] | None = None
    old_logp_IT: Float[Array, "I T"] | None = None

    def with_factors(self, factors: BatchFactors) -> "RowData":
        """The same data with the factors of weights and targets of the whole batch."""
        return self._replace(
            distill_factor_IT=factors.distill_BT,
            gradient_factor_IT=factors.gradient_BT,
            target_factor_IT=factors.target_BT,
        )

    def replicated(self) -> "RowData":
        """The same arrays, whole on every device.

        A packed row may hold sequences from anywhere in the batch. Gathering once here avoids a
        collective in each micro-batch.
        """
        return jax.tree.map(lambda x: constrain(jnp.asarray(x), "X" * x.ndim), self)


def aligned(batch: MicroBatches, data: RowData, m: Array | int) -> tuple[MicroBatch, PositionData]:
    """Micro-batch m, and the data of each of its completion positions, gathered from `data`."""
    micro = batch.micro_batch(m)
    places = packed_positions(micro)

    def at(x_IT: Array | None) -> Any:
        return None if x_IT is None else x_IT[places.row_BT, places.index_BT]

    weight_IJ = data.contrast_weight_IJ
    return micro, PositionData(
        sampled=Sampled(
            tokens_BT=micro.completions.tokens_BS,
            behaviour_logp_BT=micro.behaviour_logp_BT,
            index_BT=places.index_BT,
            distill_factor_BT=at(data.distill_factor_IT),
            gradient_factor_BT=at(data.gradient_factor_IT),
            target_factor_BT=at(data.target_factor_IT),
            old_logp_BT=at(data.old_logp_IT),
        ),
        rows=data.sequences.spread(lambda x_I: x_I[places.row_BT]),
        mask_BT=places.is_real_BT,
        # Padding points at sequence 0, so it reads that sequence's weight unless it is zeroed here.
        loss_weight_BT=jnp.where(places.is_real_BT, at(data.weight_IT), 0.0),
        contrast_weight_BTJ=None if weight_IJ is None else weight_IJ[places.row_BT],
    )


def fold(sums: Callable[[Any], Any], batch: MicroBatches) -> Any:
    """Accumulate sums(m), a tree, over the micro-batches in use.

    The accumulator is float32 at least: gradients in bfloat16 would lose small contributions. A
    single micro-batch needs no loop and keeps its own dtypes.
    """
    if batch.is_single:
        return sums(0)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(sums, 0),
    )
    return _loop(batch, lambda m, total: jax.tree.map(jnp.add, total, sums(m)), zero)


def map_rows(scores: Callable[[Any], Any], batch: MicroBatches) -> Any:
    """Evaluate scores(m), a tree of [B, T], on the micro-batches in use; returns a tree of [I, T].

    A row of the result is one sequence, whatever row it was packed into.
    """
    num_rows, T = batch.mask_IT.shape
    zeros_IT = jax.tree.map(lambda s: jnp.zeros((num_rows, T), s.dtype), jax.eval_shape(scores, 0))

    def put(m, filled):
        places = packed_positions(batch.micro_batch(m))
        # Padding is scattered to an out-of-range row, which mode="drop" ignores.
        row_BT = jnp.where(places.is_real_BT, places.row_BT, num_rows)

        def scatter(x_IT, new_BT):
            return x_IT.at[row_BT, places.index_BT].set(new_BT, mode="drop")

        return jax.tree.map(scatter, filled, scores(m))

    return _loop(batch, put, zeros_IT)


def _loop(batch: MicroBatches, body: Callable[[Any, Any], Any], start: Any) -> Any:
    num = batch.rows.row_BA.shape[1] if batch.num_in_use is None else batch.num_in_use
    return jax.lax.fori_loop(0, num, body, start)
