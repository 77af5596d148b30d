"""One step's data on the host, and its two layouts: padded rows, and packed ones.

Either gives micro-batches of left-aligned rows, a prompt and its completion one after the other
from slot 0. A padded row is a packed row of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.training.micro_batches import MicroBatch, MicroBatches, Sequences
from jaxdistill.training.packing import MOST_SEQUENCES, plan_rows, rooms


class Texts(NamedTuple):
    """The tokens of B texts, each from slot 0, and how many there are; padding is 0."""

    ids_BP: Int[np.ndarray, "B P"]
    length_B: Int[np.ndarray, " B"]


def texts_of(ids_BP: Int[AnyArray, "B P"], mask_BP: Shaped[AnyArray, "B P"]) -> Texts:
    """Texts that may be padded on either side, where the mask is 0.

    >>> texts_of(np.array([[0, 5, 6], [7, 0, 0]]), np.array([[0, 1, 1], [1, 0, 0]])).ids_BP.tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    is_real_BP = np.asarray(mask_BP) > 0
    ids_BP = np.where(is_real_BP, ids_BP, 0)
    order_BP = np.argsort(~is_real_BP, axis=1, kind="stable")
    return Texts(np.take_along_axis(ids_BP, order_BP, axis=1), is_real_BP.sum(axis=1))


def texts_of_ids(texts: Sequence[Sequence[int] | np.ndarray], multiple: int = 1) -> Texts:
    """Texts as sequences of ids; P is the longest length, rounded up to `multiple`.

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
    """One step's data: B prompts of the student, each with a completion, and what is known of it.

    `teacher` is what the teacher sees in the prompt's place; None where the objective has none. A
    row with `row_weight_B` 0 has nothing to learn from (no demonstration). `contrasts` are J
    further prompts of each row, that a contrastive objective sets against the teacher's (wrong
    solutions, say); one with `contrast_weight_BJ` 0 could not be made.
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
        """The student's prompts, the teacher's, and each contrast's."""
        return [self.prompt, *([] if self.teacher is None else [self.teacher]), *self.contrasts]


def pad(batch: Batch, micro_batches: int = 1) -> MicroBatches:
    """A row for each sequence, as wide as the widest prompt and completion together.

    Micro-batch m holds the rows m, m + `micro_batches`, and so on: every device then holds its
    share of each.
    """
    T = batch.completion.ids_BP.shape[1]
    room_X = np.array([T, *(prompt.ids_BP.shape[1] + T for prompt in batch.prompts)])
    row_WX = np.arange(len(batch.advantage_B)).reshape(-1, micro_batches)
    plan = [[row] for row in row_WX.T.reshape(-1).tolist()]
    shape = micro_batches, len(row_WX), 1
    return _build(batch, plan, room_X, shape)


def pack(batch: Batch, pack: int, parts: int = 1) -> tuple[MicroBatches, float]:
    """Sequences packed into rows of few sizes, and the share of positions that are padding.

    `pack` is the room of the student's packed rows; where a sequence is longer it is the next
    multiple that holds it. `parts` of the mesh hold packed rows of their own.
    """
    completion_B = batch.completion.length_B
    # Of each row: the completion, then each prompt with it.
    sizes_BX = np.stack(
        [completion_B, *(prompt.length_B + completion_B for prompt in batch.prompts)], axis=1
    )
    room_X = rooms(sizes_BX, pack)
    plan = plan_rows(sizes_BX, room_X)
    num_in_use = -(-len(plan) // parts)
    num_kept = 1 << (num_in_use - 1).bit_length()  # a power of two: few sizes
    packed = _build(batch, plan, room_X, (num_kept, parts, MOST_SEQUENCES))
    positions = num_in_use * parts * room_X[1:].sum()
    return (
        packed._replace(num_in_use=np.asarray(num_in_use, np.int32)),
        float(1 - sizes_BX[:, 1:].sum() / positions),
    )


def _build(
    batch: Batch, plan: list[list[int]], room_X: np.ndarray, shape: tuple[int, int, int]
) -> MicroBatches:
    """The arrays of a plan, which lists the sequences of each row.

    `shape` counts micro-batches, rows of each, and sequences that a row can hold. Row r of the plan
    is row r % rows of micro-batch r // rows.
    """
    num_micro, num_rows, num_sequences = shape
    assert batch.prompt.length_B.all(), "an empty prompt"

    def dealt(rows: list[np.ndarray], width: int, dtype: Any) -> np.ndarray:
        flat = np.zeros((num_micro * num_rows, width), dtype)
        for r, row in enumerate(rows):
            flat[r, : len(row)] = row
        return flat.reshape(num_micro, num_rows, width).swapaxes(0, 1)

    def sequences(texts: list[list[np.ndarray]], room: int) -> Sequences:
        """Rows of sequences, each of which is made of several texts."""
        whole = [np.concatenate(parts) for parts in zip(*texts)]
        lengths_I = np.array([len(text) for text in whole])
        rows = [np.concatenate([whole[i] for i in row]) for row in plan]
        return Sequences(
            dealt(rows, room, np.int32),
            dealt([lengths_I[row] for row in plan], num_sequences, np.int32),
        )

    completion = _unpadded(batch.completion.ids_BP, batch.completion.length_B)
    logp = _unpadded(batch.behaviour_logp_BT, batch.completion.length_B)
    plain, *others = (
        sequences([_unpadded(*prompt), completion], room)
        for prompt, room in zip(batch.prompts, room_X[1:].tolist(), strict=True)
    )
    return MicroBatches(
        rows=MicroBatch(
            plain=plain,
            teacher=None if batch.teacher is None else others[0],
            contrasts=tuple(others[len(others) - len(batch.contrasts) :]),
            completions=sequences([completion], int(room_X[0])),
            behaviour_logp_BT=dealt(
                [np.concatenate([logp[i] for i in row]) for row in plan], int(room_X[0]), np.float32
            ),
            row_BA=dealt([np.array(row) for row in plan], num_sequences, np.int32),
        ),
        num_in_use=None,
        length_I=batch.completion.length_B.astype(np.int32),
        advantage_I=batch.advantage_B,
        row_weight_I=batch.row_weight_B,
        correct_I=batch.correct_B,
        contrast_weight_IJ=batch.contrast_weight_BJ,
    )


def _unpadded(ids_BP: np.ndarray, length_B: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(ids_BP, length_B)]


# ---------------------------------------------------------------------------------- widths


def bucket(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


def trim_or_pad(x_BT: np.ndarray, T: int) -> np.ndarray:
    """Trim or zero-pad the last axis to T."""
    return np.pad(x_BT[:, :T], ((0, 0), (0, max(T - x_BT.shape[1], 0))))
