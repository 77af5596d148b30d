"""Sequence packing: assign variable-length sequences to rows of a fixed size to reduce padding.

The plan is made on the host in NumPy. Student, teacher and contrasts see the same completions under
prompts of different lengths. A packed row holds the same sequences for each of them, in arrays of
different capacities, and once more the completions alone. Axis X enumerates these kinds: the
completions, the student's sequences, the teacher's, then each contrast's.
"""

import numpy as np

# A, the maximum number of sequences in a packed row. cuDNN keeps softmax statistics for A times a
# row's positions, which at 32 x 20,480 positions and 16 heads in float32 are 42 MB per layer.
# Chosen, not measured: only sequences shorter than 1/32 of the packed row reach the limit.
MAX_SEQUENCES = 32

# The capacities of the other kinds are multiples of 1/16 of the student's: rounding up wastes at
# most a sixteenth of it, and few capacities mean few compilations. Chosen, not measured.
CAPACITY_STEPS = 16


def row_capacities(sizes_IX: np.ndarray, pack: int) -> np.ndarray:
    """The capacity of a packed row, in tokens, for each of the X kinds: [X].

    `sizes_IX` are the sequences' lengths in tokens. The student's capacity is the smallest multiple
    of `pack` that holds its longest sequence; a batch that fits into a smaller row takes the least
    power of two from 128 (a tile of attention) that holds it. Each other kind's is proportional to
    its total number of tokens, so that all kinds of a row fill up together.
    """
    pack = min(pack, max(128, 1 << (int(sizes_IX[:, 1].sum()) - 1).bit_length()))
    student = -(-int(sizes_IX[:, 1].max()) // pack) * pack
    step = max(student // CAPACITY_STEPS, 1)
    ratio_X = sizes_IX.sum(axis=0) / sizes_IX[:, 1].sum()
    needed_X = np.maximum(np.ceil(ratio_X * student), sizes_IX.max(axis=0)).astype(int)
    capacity_X = np.maximum(-(-needed_X // step), 1) * step
    capacity_X[1] = student
    # The contrasts have similar lengths, so one capacity for all of them wastes little.
    capacity_X[3:] = capacity_X[3:].max(initial=0)
    return capacity_X


def plan_rows(
    sizes_IX: np.ndarray, capacity_X: np.ndarray, max_sequences: int = MAX_SEQUENCES
) -> list[list[int]]:
    """The sequences of each packed row, by greedy vector bin packing, one row at a time.

    Each row starts with the largest remaining sequence, relative to the capacities. It then takes
    the one whose sizes are nearest to the remaining capacity, in the Euclidean norm over the X
    kinds (Panigrahy et al. 2011, "Heuristics for vector bin packing", norm-based greedy).
    """
    assert (sizes_IX <= capacity_X).all(), "a sequence is longer than its row's capacity"
    share_IX = sizes_IX / capacity_X
    is_left_I = np.ones(len(share_IX), bool)
    plan: list[list[int]] = []
    while is_left_I.any():
        row: list[int] = []
        score_I = -share_IX.max(axis=1)
        fits_I = is_left_I
        while fits_I.any() and len(row) < max_sequences:
            chosen = int(np.argmin(np.where(fits_I, score_I, np.inf)))
            row.append(chosen)
            is_left_I[chosen] = False
            remaining_X = capacity_X - sizes_IX[row].sum(axis=0)
            fits_I = is_left_I & (sizes_IX <= remaining_X).all(axis=1)
            score_I = np.square(remaining_X / capacity_X - share_IX).sum(axis=1)
        plan.append(row)
    return plan
