"""Sequence packing: assign variable-length sequences to rows of a fixed size to reduce padding.

The plan is made on the host in NumPy. Student, teacher and contrasts see the same completions under
prompts of different lengths. A packed row holds the same sequences for each of them, in arrays of
different capacities, and once more the completions alone. Axis X enumerates these kinds: the
completions, the student's sequences, the teacher's, then each contrast's.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# A, the maximum number of sequences in a packed row. cuDNN keeps softmax statistics for A times a
# row's positions, which at 32 x 20,480 positions and 16 heads in float32 are 42 MB per layer.
# Chosen, not measured: only sequences shorter than 1/32 of the packed row reach the limit.
MAX_SEQUENCES = 32

# The capacities of the other kinds are multiples of 1/16 of the student's: rounding up wastes at
# most a sixteenth of it, and few capacities mean few compilations. Chosen, not measured.
CAPACITY_STEPS = 16

# A run keeps its shapes until they have computed more positions than shapes of each batch's own
# would have: MOST_WASTE on average over the last WINDOW batches, and twice as much for each further
# shape. Single batches of unusual lengths are no reason to compile. Chosen, not measured: a
# compilation of a real model's step costs as much as some ten steps.
MOST_WASTE = 0.03
WINDOW = 20

# The first allocation of micro-batches: beyond those that the first batch fills. An empty one costs
# the transfer of its tokens and no computation. Chosen, not measured.
SPARE = 1.25
LEAST_SPARE = 4


class PackedShape(NamedTuple):
    """The array sizes of a packed batch, which the step is compiled for."""

    capacity_X: tuple[int, ...]  # tokens in a row of each kind
    micro_batches: int  # allocated, of which a batch fills the first


@dataclass
class KeptPacking:
    """The shapes that a run's batches were packed into, and what tells whether they still suit."""

    shapes: list[PackedShape] = field(default_factory=list)
    tokens_X: list[float] = field(default_factory=list)  # of each kind, over the window
    longest_X: list[int] = field(default_factory=list)  # sequence of each kind so far
    waste: float = 0.0  # positions beyond those of each batch's own shape, over the window


class Plan(NamedTuple):
    """A batch's rows in arrays of a shape."""

    shape: PackedShape
    rows: list[list[int]]  # the sequences of each packed row
    num_in_use: int  # micro-batches
    padding: float  # the fraction of positions in these micro-batches that are padding

    @property
    def cost(self) -> int:
        """Positions that each device computes; those of the completions alone are part of them."""
        return self.num_in_use * sum(self.shape.capacity_X[1:])


def plan_batch(sizes_IX: Int[np.ndarray, "I X"], pack: int, parts: int, kept: KeptPacking) -> Plan:
    """Pack a batch into one of the kept shapes, or into a new one, which is kept too.

    `sizes_IX` are the sequences' lengths in tokens, `pack` is the student's capacity as in
    `row_capacities`, and a micro-batch has `parts` rows. A new shape is made for the lengths of the
    last batches and not of this one alone. A shape has one of two numbers of micro-batches: with
    some to spare, and enough for any batch of I sequences.
    """
    tokens_X, longest_X = sizes_IX.sum(axis=0), sizes_IX.max(axis=0)
    own = _plan(sizes_IX, row_capacities(tokens_X, longest_X, pack), parts)
    if kept.shapes:
        tokens_X = tokens_X + np.array(kept.tokens_X) * (1 - 1 / WINDOW)
        longest_X = np.maximum(longest_X, kept.longest_X)
    kept.tokens_X, kept.longest_X = tokens_X.tolist(), longest_X.tolist()
    plans = [
        _plan(sizes_IX, np.array(shape.capacity_X), parts)
        for shape in kept.shapes
        if (sizes_IX <= shape.capacity_X).all()
    ]
    best = min(plans, key=lambda plan: plan.cost, default=None)
    if best is not None:
        kept.waste = kept.waste * (1 - 1 / WINDOW) + best.cost - own.cost
        if kept.waste > MOST_WASTE * WINDOW * own.cost * 2 ** (len(kept.shapes) - 1):
            best = None
    if best is None:
        kept.waste = 0.0
        best = _plan(sizes_IX, row_capacities(tokens_X, longest_X, pack), parts)
    return _allocated(best, -(-len(sizes_IX) // parts), kept.shapes)


def _allocated(plan: Plan, most: int, shapes: list[PackedShape]) -> Plan:
    """The plan in one of the shapes, which is added or given `most` micro-batches if need be."""
    capacities = [shape.capacity_X for shape in shapes]
    if plan.shape.capacity_X not in capacities:
        spare = max(math.ceil(plan.num_in_use * SPARE), plan.num_in_use + LEAST_SPARE)
        shapes.append(plan.shape._replace(micro_batches=min(spare, most)))
        return plan._replace(shape=shapes[-1])
    index = capacities.index(plan.shape.capacity_X)
    if plan.num_in_use > shapes[index].micro_batches:
        shapes[index] = shapes[index]._replace(micro_batches=most)
    return plan._replace(shape=shapes[index])


def _plan(sizes_IX: np.ndarray, capacity_X: np.ndarray, parts: int) -> Plan:
    rows = plan_rows(sizes_IX, capacity_X)
    num_in_use = -(-len(rows) // parts)
    positions = num_in_use * parts * int(capacity_X[1:].sum())
    return Plan(
        shape=PackedShape(tuple(capacity_X.tolist()), num_in_use),
        rows=rows,
        num_in_use=num_in_use,
        padding=1 - float(sizes_IX[:, 1:].sum()) / positions,
    )


def row_capacities(tokens_X: np.ndarray, longest_X: np.ndarray, pack: int) -> np.ndarray:
    """The capacity of a packed row, in tokens, for each of the X kinds: [X].

    `tokens_X` are the tokens of all sequences of each kind, `longest_X` those of the longest one.
    The student's capacity is the smallest multiple of `pack` that holds its longest sequence; a
    batch that fits into a smaller row takes the least power of two from 128 (a tile of attention)
    that holds it. Each other kind's is proportional to its tokens, so that all kinds of a row fill
    up together.
    """
    pack = min(pack, max(128, 1 << (int(tokens_X[1]) - 1).bit_length()))
    student = -(-int(longest_X[1]) // pack) * pack
    step = max(student // CAPACITY_STEPS, 1)
    needed_X = np.maximum(np.ceil(tokens_X / tokens_X[1] * student), longest_X).astype(int)
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
