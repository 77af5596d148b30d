"""Rows of a batch into packed rows of few sizes: with a long tail of lengths little is padding.

Planned on the host in NumPy. Student, teacher and contrasts see the same completions under prompts
of different lengths; a packed row holds the same rows of the batch for each of them, in room of its
own size, and its completions once more by themselves.
"""

from typing import Any

import numpy as np

from jaxdistill.training.batch import Batch
from jaxdistill.training.packed_batch import Packed, Sequences

# A, the most sequences of a packed row: cuDNN keeps softmax statistics of A times a row's
# positions, which at 32 x 20,480 positions and 16 heads in float32 are 42 MB per layer. Chosen, not
# measured: it is reached only where sequences are shorter than 1/32 of the packed row.
MOST_SEQUENCES = 32

# The sizes of the other networks' packed rows are multiples of 1/16 of the student's: at most a
# sixteenth is lost to rounding, and few sizes mean few compilations. Chosen, not measured.
STEPS = 16


def pack(batch: Batch, pack: int, parts: int = 1) -> tuple[Packed, float]:
    """The batch packed, and the share of positions that are padding in it.

    `pack` is the room of the student's packed rows; where a row is longer it is the next multiple
    that holds it. `parts` of the mesh hold packed rows of their own.
    """
    prompts = prompts_of(batch)
    completion_I = np.asarray(batch.completion_mask_BT).sum(axis=1)
    assert all(np.asarray(mask).any(axis=1).all() for _, mask in prompts[:1]), "an empty prompt"
    # Of each row: the completion, then each prompt with it.
    sizes_IX = np.stack(
        [completion_I, *(np.asarray(mask).sum(axis=1) + completion_I for _, mask in prompts)], 1
    )
    room_X = rooms(sizes_IX, pack)
    plan = plan_rows(sizes_IX, room_X)
    packed = build_arrays(batch, prompts, sizes_IX, room_X, plan=plan, parts=parts)
    num_rows = int(packed.num_micro_batches) * parts
    return packed, float(1 - sizes_IX[:, 1:].sum() / (num_rows * room_X[1:].sum()))


def prompts_of(batch: Batch) -> list[Any]:
    """(ids, mask) of the student's prompts, the teacher's, and each contrast's."""
    prompts: list[Any] = [(batch.prompt_ids_BP, batch.prompt_mask_BP)]
    if batch.teacher_ids_BP is not None:
        prompts.append((batch.teacher_ids_BP, batch.teacher_mask_BP))
    if batch.contrast_ids_BJP is not None:
        assert batch.contrast_mask_BJP is not None
        contrasts = np.asarray(batch.contrast_ids_BJP), np.asarray(batch.contrast_mask_BJP)
        prompts += [tuple(x[:, j] for x in contrasts) for j in range(contrasts[0].shape[1])]
    return prompts


# ------------------------------------------------------------------------------------ the plan


def rooms(sizes_IX: np.ndarray, pack: int) -> np.ndarray:
    """The room for each of X kinds: completions first, then the student, then the others.

    The student's is the least multiple of `pack` that holds its longest row. The others stand to it
    as their sums do, in steps of a sixteenth, so that all fill up together.
    """
    student = -(-int(sizes_IX[:, 1].max()) // pack) * pack
    step = max(student // STEPS, 1)
    share_X = sizes_IX.sum(axis=0) / sizes_IX[:, 1].sum()
    wanted_X = np.maximum(np.ceil(share_X * student), sizes_IX.max(axis=0)).astype(int)
    room_X = np.maximum(-(-wanted_X // step), 1) * step
    room_X[1] = student
    room_X[3:] = room_X[3:].max(initial=0)  # contrasts are alike, so their sizes need not differ
    return room_X


def plan_rows(
    sizes_IX: np.ndarray, room_X: np.ndarray, most: int = MOST_SEQUENCES
) -> list[list[int]]:
    """Rows of the batch for each packed row, by greedy vector packing, one packed row at a time.

    Each begins with the largest row that is left, and goes on with the one that leaves the least
    room over, in the Euclidean norm over the X kinds (Panigrahy et al. 2011, "Heuristics for vector
    bin packing", norm-based greedy).
    """
    assert (sizes_IX <= room_X).all(), "a row is longer than its room"
    share_IX = sizes_IX / room_X
    is_left_I = np.ones(len(share_IX), bool)
    plan: list[list[int]] = []
    while is_left_I.any():
        rows: list[int] = []
        score_I = -share_IX.max(axis=1)
        fits_I = is_left_I
        while fits_I.any() and len(rows) < most:
            chosen = int(np.argmin(np.where(fits_I, score_I, np.inf)))
            rows.append(chosen)
            is_left_I[chosen] = False
            over_X = room_X - sizes_IX[rows].sum(axis=0)
            fits_I = is_left_I & (sizes_IX <= over_X).all(axis=1)
            score_I = np.square(over_X / room_X - share_IX).sum(axis=1)
        plan.append(rows)
    return plan


# ---------------------------------------------------------------------------------- the arrays


def build_arrays(
    batch: Batch,
    prompts: list[Any],
    sizes_IX: np.ndarray,
    room_X: np.ndarray,
    plan: list[list[int]],
    parts: int,
) -> Packed:
    """The arrays of a plan. Packed row r is part r % parts of micro-batch r // parts."""
    num_micro_batches = -(-len(plan) // parts)
    num_kept = 1 << (num_micro_batches - 1).bit_length()  # a power of two: few sizes

    def dealt(flat: np.ndarray) -> np.ndarray:
        """[micro-batches * parts, ...] -> [B, micro-batches, ...]."""
        return flat.reshape(num_kept, parts, *flat.shape[1:]).swapaxes(0, 1)

    def filled(texts: list[np.ndarray], room: int, dtype: Any) -> np.ndarray:
        flat = np.zeros((num_kept * parts, room), dtype)
        for r, rows in enumerate(plan):
            text = np.concatenate([texts[row] for row in rows])
            flat[r, : len(text)] = text
        return dealt(flat)

    def of_sequences(x_I: np.ndarray) -> np.ndarray:
        flat = np.zeros((num_kept * parts, MOST_SEQUENCES), np.int32)
        for r, rows in enumerate(plan):
            flat[r, : len(rows)] = x_I[rows]
        return dealt(flat)

    completions = _texts(batch.completion_ids_BT, batch.completion_mask_BT)
    behaviour = _texts(batch.behaviour_logp_BT, batch.completion_mask_BT)

    def sequences(n: int) -> Sequences:
        texts = [np.concatenate(both) for both in zip(_texts(*prompts[n - 1]), completions)]
        return Sequences(filled(texts, int(room_X[n]), np.int32), of_sequences(sizes_IX[:, n]))

    plain, *others = (sequences(n + 1) for n in range(len(prompts)))
    length_I = sizes_IX[:, 0].astype(np.int32)
    correct_I = batch.correct_B
    if correct_I is None:
        correct_I = np.zeros(len(length_I), np.float32)
    weight_IJ = batch.contrast_weight_BJ
    return Packed(
        num_micro_batches=np.asarray(num_micro_batches, np.int32),
        plain=plain,
        teacher=others[0] if others else None,
        contrasts=tuple(others[1:]),
        completion_ids=filled(completions, int(room_X[0]), np.int32),
        behaviour_logp=filled(behaviour, int(room_X[0]), np.float32),
        completion_lengths=of_sequences(length_I),
        row=of_sequences(np.arange(len(length_I))),
        length_I=length_I,
        advantage_I=np.asarray(batch.advantage_B),
        row_weight_I=np.asarray(batch.row_weight_B),
        correct_I=np.asarray(correct_I),
        contrast_weight_IJ=None if weight_IJ is None else np.asarray(weight_IJ),
    )


def _texts(values: Any, mask: Any) -> list[np.ndarray]:
    """Each row's values where its mask is set."""
    return [row[is_real] for row, is_real in zip(np.asarray(values), np.asarray(mask) > 0)]
