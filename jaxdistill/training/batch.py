"""One step's data on the host, and its two layouts: padded rows and packed rows.

Either layout gives micro-batches of left-aligned rows, in which a sequence is a prompt followed by
its completion without a gap. A padded row is a packed row of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.training.micro_batches import MicroBatch, MicroBatches, Sequences
from jaxdistill.training.packing import (
    KeptPacking,
    PackedShape,
    padding_of,
    plan_batches,
    plan_into,
)


class Texts(NamedTuple):
    """The token ids of B texts, left-aligned and padded with 0, and their lengths in tokens."""

    ids_BP: Int[np.ndarray, "B P"]
    length_B: Int[np.ndarray, " B"]


def texts_of(ids_BP: Int[AnyArray, "B P"], mask_BP: Shaped[AnyArray, "B P"]) -> Texts:
    """Left-align texts that are padded on either side, where the mask is 0.

    >>> texts_of(np.array([[0, 5, 6], [7, 0, 0]]), np.array([[0, 1, 1], [1, 0, 0]])).ids_BP.tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    is_real_BP = np.asarray(mask_BP) > 0
    ids_BP = np.where(is_real_BP, ids_BP, 0)
    # A stable sort of False before True moves the tokens to the front and keeps their order.
    order_BP = np.argsort(~is_real_BP, axis=1, kind="stable")
    return Texts(np.take_along_axis(ids_BP, order_BP, axis=1), is_real_BP.sum(axis=1))


def texts_of_ids(texts: Sequence[Sequence[int] | np.ndarray], multiple: int = 1) -> Texts:
    """Texts from lists of token ids; P is the longest length, rounded up to a multiple.

    >>> texts_of_ids([[5, 6], [7]], multiple=4).ids_BP.tolist()
    [[5, 6, 0, 0], [7, 0, 0, 0]]
    """
    length_B = np.array([len(text) for text in texts])
    ids_BP = np.zeros((len(texts), bucket(int(length_B.max()), multiple)), np.int32)
    for ids_P, text in zip(ids_BP, texts):
        ids_P[: len(text)] = text
    return Texts(ids_BP, length_B)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data: B student prompts with their completions, and numbers per completion.

    `teacher` holds the prompts that the teacher sees instead; None for an objective without a
    teacher. `row_weight_B` is 0 for a row without a demonstration, which is not distilled.
    `contrasts` are J further prompts per row, which a contrastive objective compares with the
    teacher's (wrong solutions, for example); `contrast_weight_BJ` is 0 where none could be made.
    """

    prompt: Texts
    completion: Texts
    behaviour_logp_BT: Float[np.ndarray, "B T"]  # of the completion's tokens
    advantage_B: Float[np.ndarray, " B"]
    row_weight_B: Float[np.ndarray, " B"]
    correct_B: Float[np.ndarray, " B"]  # 1 where the grader accepted the completion
    teacher: Texts | None = None
    contrasts: tuple[Texts, ...] = ()
    contrast_weight_BJ: Float[np.ndarray, "B J"] | None = None

    @property
    def prompts(self) -> list[Texts]:
        """The student's prompts, then the teacher's, then each contrast's."""
        return [self.prompt, *([] if self.teacher is None else [self.teacher]), *self.contrasts]

    @property
    def sizes_BX(self) -> Int[np.ndarray, "B X"]:
        """Tokens of each row's completion alone, then with each of its `prompts`."""
        completion_B = self.completion.length_B
        sizes = [completion_B, *(prompt.length_B + completion_B for prompt in self.prompts)]
        return np.stack(sizes, axis=1)

    @property
    def widths_X(self) -> list[int]:
        """Widths of the arrays, in tokens, that hold each row's `sizes_BX`."""
        T = self.completion.ids_BP.shape[1]
        return [T, *(prompt.ids_BP.shape[1] + T for prompt in self.prompts)]


def pad(
    batch: Batch,
    micro_batches: int = 1,
    parts: int = 1,
    capacity_X: Sequence[int] | None = None,
) -> MicroBatches:
    """One sequence per row, with the width of the widest prompt plus that of the completions.

    Micro-batch m holds the rows m, m + `micro_batches`, and so on, so that every device keeps its
    rows and works on a share of each micro-batch. `micro_batches` must divide B. If the mesh's
    `parts` do not divide a micro-batch's rows, it has more of them, and the last ones are empty.
    `capacity_X` are other widths, in tokens, that hold the batch: of completions and of each kind
    of sequence.
    """
    if capacity_X is None:
        capacity_X = batch.widths_X
    row_WX = np.arange(len(batch.advantage_B)).reshape(-1, micro_batches)
    plan = [[row] for row in row_WX.T.reshape(-1).tolist()]
    num_rows = bucket(len(row_WX), parts)
    # Fuller micro-batches may be fewer; no device has more rows of one than without the mesh.
    shape = -(-len(plan) // num_rows), num_rows, 1
    return _build(batch, plan, np.array(capacity_X), shape)


def pack(
    batch: Batch, pack: int, parts: int = 1, kept: KeptPacking | None = None
) -> tuple[MicroBatches, float]:
    """Sequence packing: rows of a few fixed sizes, and the fraction of positions that are padding.

    `pack` is the capacity of the student's rows in tokens, rounded up to the next multiple that
    holds the longest sequence. A micro-batch has one packed row for each of the mesh's `parts`.
    `kept` are the shapes of earlier batches, one of which is used again unless they no longer suit
    (`packing.plan_batches`).
    """
    (packed,), padding = pack_alike([batch], pack, parts, kept)
    return packed, padding


def pack_alike(
    batches: Sequence[Batch],
    pack: int,
    parts: int = 1,
    kept: KeptPacking | PackedShape | None = None,
) -> tuple[list[MicroBatches], float]:
    """`pack` several batches of equally many rows into arrays of one shape.

    The shape may be given, in place of those to choose from (`packing.fixed_shape`). The fraction
    of padding is that of all batches together.
    """
    sizes_MIX = [batch.sizes_BX for batch in batches]
    if isinstance(kept, PackedShape):
        plans = plan_into(sizes_MIX, kept, parts)
    else:
        plans = plan_batches(sizes_MIX, pack, parts, kept or KeptPacking())
    packed = []
    for batch, plan in zip(batches, plans, strict=True):
        shape = plan.shape.micro_batches, parts, plan.shape.sequences
        # The step's loop ends after `num_in_use`: the empty micro-batches cost only their arrays.
        arrays = _build(batch, plan.rows, np.array(plan.shape.capacity_X), shape)
        packed.append(arrays._replace(num_in_use=np.asarray(plan.num_in_use, np.int32)))
    return packed, padding_of(plans)


def _build(
    batch: Batch, plan: list[list[int]], capacity_X: np.ndarray, shape: tuple[int, int, int]
) -> MicroBatches:
    """Build the arrays of a plan, which lists the sequences of each row.

    `shape` is (micro-batches, rows per micro-batch, maximum sequences per row). Row r of the plan
    becomes row r % rows of micro-batch r // rows.
    """
    num_micro, num_rows, num_sequences = shape
    # The logits of a completion's first token come from the last token of its prompt.
    assert batch.prompt.length_B.all(), "an empty prompt"

    def padded(rows: list[np.ndarray], width: int, dtype: Any) -> np.ndarray:
        flat = np.zeros((num_micro * num_rows, width), dtype)
        for r, row in enumerate(rows):
            flat[r, : len(row)] = row
        return flat.reshape(num_micro, num_rows, width).swapaxes(0, 1)

    def sequences(texts: list[list[np.ndarray]], capacity: int) -> Sequences:
        """Packed rows whose sequence i is the concatenation of text i of each list."""
        whole = [np.concatenate(parts) for parts in zip(*texts)]
        lengths_I = np.array([len(text) for text in whole])
        rows = [np.concatenate([whole[i] for i in row]) for row in plan]
        return Sequences(
            padded(rows, capacity, np.int32),
            padded([lengths_I[row] for row in plan], num_sequences, np.int32),
        )

    completion = _unpadded(batch.completion.ids_BP, batch.completion.length_B)
    logp = _unpadded(batch.behaviour_logp_BT, batch.completion.length_B)
    plain, *others = (
        sequences([_unpadded(*prompt), completion], capacity)
        for prompt, capacity in zip(batch.prompts, capacity_X[1:].tolist(), strict=True)
    )
    return MicroBatches(
        rows=MicroBatch(
            plain=plain,
            teacher=None if batch.teacher is None else others[0],
            contrasts=tuple(others[len(others) - len(batch.contrasts) :]),
            completions=sequences([completion], int(capacity_X[0])),
            behaviour_logp_BT=padded(
                [np.concatenate([logp[i] for i in row]) for row in plan],
                int(capacity_X[0]),
                np.float32,
            ),
            row_BA=padded([np.array(row) for row in plan], num_sequences, np.int32),
        ),
        num_in_use=None,
        length_I=batch.completion.length_B.astype(np.int32),
        advantage_I=batch.advantage_B,
        row_weight_I=batch.row_weight_B,
        correct_I=batch.correct_B,
        contrast_weight_IJ=batch.contrast_weight_BJ,
    )


def abstract_arrays(
    shape: tuple[int, int, int], capacity_X: Sequence[int], sequences: int
) -> MicroBatches:
    """The shapes and dtypes of `_build` for a batch of this many sequences.

    `capacity_X` are the widths of completions, student, teacher and contrasts; a batch without
    teacher has two. `shape` is as there, and `num_in_use` as `pack_alike` sets it.
    """
    num_micro, num_rows, num_sequences = shape
    dealt, (completion, *widths) = (num_rows, num_micro), capacity_X

    def abstract(*sizes: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    plain, *others = (
        Sequences(abstract(*dealt, width), abstract(*dealt, num_sequences)) for width in widths
    )
    number_I = abstract(sequences, dtype=np.float32)
    return MicroBatches(
        rows=MicroBatch(
            plain=plain,
            teacher=others[0] if others else None,
            contrasts=tuple(others[1:]),
            completions=Sequences(abstract(*dealt, completion), abstract(*dealt, num_sequences)),
            behaviour_logp_BT=abstract(*dealt, completion, dtype=np.float32),
            row_BA=abstract(*dealt, num_sequences),
        ),
        num_in_use=abstract(),
        length_I=abstract(sequences),
        advantage_I=number_I,
        row_weight_I=number_I,
        correct_I=number_I,
        contrast_weight_IJ=abstract(sequences, len(others) - 1, dtype=np.float32)
        if len(others) > 1
        else None,
    )


def _unpadded(ids_BP: np.ndarray, length_B: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(ids_BP, length_B)]


# ---------------------------------------------------------------------------------- widths


def bucket(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple, at least one: each distinct width is a compilation.

    >>> [bucket(size, 8) for size in (0, 8, 9)]
    [8, 8, 16]
    """
    return max(-(-size // multiple), 1) * multiple


def trim_or_pad(x_BT: np.ndarray, T: int) -> np.ndarray:
    """Trim or zero-pad the last axis to T."""
    return np.pad(x_BT[:, :T], ((0, 0), (0, max(T - x_BT.shape[1], 0))))
