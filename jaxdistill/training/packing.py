"""Sequence packing: which sequences share a row of a fixed size, so that little is padding.

Planned on the host in NumPy. Student, teacher and contrasts see the same completions under prompts
of different lengths; a packed row holds the same sequences for each of them, in room of its own
size, and its completions once more by themselves.
"""

import numpy as np

# A, the most sequences of a packed row: cuDNN keeps softmax statistics of A times a row's
# positions, which at 32 x 20,480 positions and 16 heads in float32 are 42 MB per layer. Chosen, not
# measured: it is reached only where sequences are shorter than 1/32 of the packed row.
MOST_SEQUENCES = 32

# The sizes of the other networks' packed rows are multiples of 1/16 of the student's: at most a
# sixteenth is lost to rounding, and few sizes mean few compilations. Chosen, not measured.
STEPS = 16


def rooms(sizes_IX: np.ndarray, pack: int) -> np.ndarray:
    """The room for each of X kinds: completions first, then the student, then the others.

    The student's is the least multiple of `pack` that holds its longest row; a batch that fits into
    one row of less takes the least power of two from 128, a tile of attention. The others stand to
    it as their sums do, in steps of a sixteenth, so that all fill up together.
    """
    pack = min(pack, max(128, 1 << (int(sizes_IX[:, 1].sum()) - 1).bit_length()))
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
