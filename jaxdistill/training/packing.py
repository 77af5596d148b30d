"""Sequence packing: assign variable-length sequences to rows of a fixed size to reduce padding.

The plan is made on the host in NumPy. Student, teacher and contrasts see the same completions under
prompts of different lengths. A packed row holds the same sequences for each of them, in arrays of
different capacities, and once more the completions alone. Axis X enumerates these kinds: the
completions, the student's sequences, the teacher's, then each contrast's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# A, the maximum number of sequences in a packed row. To cuDNN each may be as long as the row: its
# backward pass adds up the queries' gradient for A times the row's positions, and its forward pass
# keeps statistics for as many. At 32 x 20,480 positions and 16 heads of 128 in float32 these are
# 5.4 GB and, for each layer, 42 MB. An H200 takes 5.5 GiB there, and 1.1 at a limit of 4
# (benchmarks/packed_workspace.py). Chosen: only sequences shorter than 1/32 of the packed row reach
# the limit.
MAX_SEQUENCES = 32

# The limits that a shape may have, and what one needs beyond the fullest row of its first plan.
# Fuller rows of later batches are divided, which wastes little unless lengths have changed. Four
# limits keep the compilations few; a quarter was chosen, not measured.
SEQUENCES = (4, 8, 16, MAX_SEQUENCES)
SPARE_SEQUENCES = 1.25

# The capacities of the other kinds are multiples of 1/16 of the student's: rounding up wastes at
# most a sixteenth of it, and few capacities mean few compilations. Chosen, not measured.
CAPACITY_STEPS = 16

# A run keeps its shapes until they have computed more positions than each step's own shape would
# have: MOST_WASTE on average over the last WINDOW steps, and twice as much for each further shape.
# Single batches of unusual lengths are no reason to compile. Chosen, not measured: a compilation of
# a real model's step costs as much as some ten steps.
MOST_WASTE = 0.03
WINDOW = 20
DECAY = 1 - 1 / WINDOW  # of what earlier steps count

# The first allocation of micro-batches: beyond those that the first batch fills. An empty one costs
# the transfer of its tokens and no computation. Chosen, not measured.
SPARE = 1.25
LEAST_SPARE = 4


class PackedShape(NamedTuple):
    """The array sizes of a packed batch, which the step is compiled for."""

    capacity_X: tuple[int, ...]  # tokens in a row of each kind
    micro_batches: int  # allocated, of which a batch fills the first
    sequences: int = MAX_SEQUENCES  # that a row may hold (A)


@dataclass
class KeptPacking:
    """The shapes that a run's batches were packed into, and what tells whether they still suit."""

    shapes: list[PackedShape] = field(default_factory=list)
    tokens_X: list[float] = field(default_factory=list)  # of each kind, over the window
    longest_X: list[int] = field(default_factory=list)  # sequence of each kind so far
    waste: float = 0.0  # positions beyond those of each step's own shape, over the window
    weight: float = 0.0  # of the steps in `tokens_X`: the last one counts 1, earlier ones less

    def note(self, tokens_X: np.ndarray, longest_X: np.ndarray) -> None:
        """Count a step, with the mean tokens of its batches and its longest sequences."""
        if self.shapes:
            tokens_X = tokens_X + np.array(self.tokens_X) * DECAY
            longest_X = np.maximum(longest_X, self.longest_X)
        self.weight = 1 + self.weight * DECAY
        self.tokens_X, self.longest_X = tokens_X.tolist(), longest_X.tolist()

    def capacities(self, pack: int) -> np.ndarray:
        """The capacities that suit the batches of the window on average: [X]."""
        mean_X = np.array(self.tokens_X) / self.weight
        return row_capacities(mean_X, np.array(self.longest_X), pack)


class Plan(NamedTuple):
    """A batch's rows in arrays of a shape."""

    shape: PackedShape
    rows: list[list[int]]  # the sequences of each packed row
    num_in_use: int  # micro-batches
    num_tokens: int  # of all kinds but the completions alone, which are part of the others
    parts: int  # rows of a micro-batch

    @property
    def cost(self) -> int:
        """Positions that each device computes; those of the completions alone are part of them."""
        return self.num_in_use * sum(self.shape.capacity_X[1:])


def cost_of(plans: Sequence[Plan]) -> int:
    return sum(plan.cost for plan in plans)


def padding_of(plans: Sequence[Plan]) -> float:
    """The fraction of the positions of all micro-batches in use that are padding."""
    positions = sum(plan.cost * plan.parts for plan in plans)
    return 1 - sum(plan.num_tokens for plan in plans) / positions


def plan_batches(
    sizes_MIX: Sequence[Int[np.ndarray, "I X"]], pack: int, parts: int, kept: KeptPacking
) -> list[Plan]:
    """Pack the batches of a step into one shape: a kept one, or a new one, which is kept too.

    `sizes_MIX` are the sequences' lengths in tokens, for each of the step's M batches of equally
    many sequences. `pack` is the student's capacity as in `row_capacities`, and a micro-batch has
    `parts` rows. A new shape is made for the lengths of the last steps and not of this one alone. A
    shape has one of two numbers of micro-batches: with some to spare, and enough for any batch of I
    sequences. Its rows hold as many sequences as the fullest row of its first plan and some more.
    """
    tokens_X = np.mean([sizes_IX.sum(axis=0) for sizes_IX in sizes_MIX], axis=0)
    longest_X = np.max([sizes_IX.max(axis=0) for sizes_IX in sizes_MIX], axis=0)
    own = _plans(sizes_MIX, row_capacities(tokens_X, longest_X, pack), parts)
    kept.note(tokens_X, longest_X)
    candidates = [
        _plans(sizes_MIX, np.array(shape.capacity_X), parts, shape.sequences)
        for shape in kept.shapes
        if (longest_X <= shape.capacity_X).all()
    ]
    best = min(candidates, key=cost_of, default=None)
    if best is not None:
        kept.waste = kept.waste * DECAY + cost_of(best) - cost_of(own)
        if kept.waste > MOST_WASTE * WINDOW * cost_of(own) * 2 ** (len(kept.shapes) - 1):
            best = None
    if best is None:
        kept.waste = 0.0
        best = _plans(sizes_MIX, kept.capacities(pack), parts)
    return _allocated(best, -(-len(sizes_MIX[0]) // parts), kept.shapes)


def plan_into(
    sizes_MIX: Sequence[Int[np.ndarray, "I X"]], shape: PackedShape, parts: int
) -> list[Plan]:
    """Pack the batches of a step into this shape, which holds any batch of I such sequences."""
    capacity_X = np.array(shape.capacity_X)
    plans = _plans(sizes_MIX, capacity_X, parts, shape.sequences)
    return [plan._replace(shape=shape) for plan in plans]


def fixed_shape(widths_X: Sequence[int], pack: int, sequences: int, parts: int) -> PackedShape:
    """The shape of packed rows that settings alone determine, as they do the padded rows' widths.

    `widths_X` are those of padded rows, which every sequence fits into. The student's capacity is a
    multiple of `pack`, and each other kind's is larger or smaller as its padded rows are. There are
    micro-batches for as many rows as `sequences`, the batch's.

    >>> fixed_shape([80, 96, 176], pack=128, sequences=48, parts=1)
    PackedShape(capacity_X=(112, 128, 240), micro_batches=48, sequences=32)
    """
    student = -(-widths_X[1] // pack) * pack
    step = max(student // CAPACITY_STEPS, 1)
    capacity_X = [-(-width * student // (widths_X[1] * step)) * step for width in widths_X]
    capacity_X[1] = student
    return PackedShape(tuple(capacity_X), -(-sequences // parts))


def _allocated(plans: list[Plan], most: int, shapes: list[PackedShape]) -> list[Plan]:
    """The plans in one of the shapes, which is added or given `most` micro-batches if need be."""
    capacity_X = plans[0].shape.capacity_X
    num_in_use = max(plan.num_in_use for plan in plans)
    fullest = max(len(row) for plan in plans for row in plan.rows)
    capacities = [shape.capacity_X for shape in shapes]
    if capacity_X in capacities:
        index = capacities.index(capacity_X)
        if num_in_use > shapes[index].micro_batches:
            shapes[index] = shapes[index]._replace(micro_batches=most)
        if fullest > shapes[index].sequences:  # its limit was what did not suit
            shapes[index] = shapes[index]._replace(sequences=_limit(fullest))
    else:
        index, spare = len(shapes), max(math.ceil(num_in_use * SPARE), num_in_use + LEAST_SPARE)
        shapes.append(PackedShape(capacity_X, min(spare, most), _limit(fullest)))
    return [plan._replace(shape=shapes[index]) for plan in plans]


def _limit(fullest: int) -> int:
    """The number of sequences that rows may hold if the fullest one of a plan holds `fullest`.

    >>> [_limit(fullest) for fullest in (1, 4, 9, 30)]
    [4, 8, 16, 32]
    """
    return next((n for n in SEQUENCES if n >= fullest * SPARE_SEQUENCES), MAX_SEQUENCES)


def _plans(
    sizes_MIX: Sequence[np.ndarray],
    capacity_X: np.ndarray,
    parts: int,
    max_sequences: int = MAX_SEQUENCES,
) -> list[Plan]:
    return [_plan(sizes_IX, capacity_X, parts, max_sequences) for sizes_IX in sizes_MIX]


def _plan(sizes_IX: np.ndarray, capacity_X: np.ndarray, parts: int, max_sequences: int) -> Plan:
    rows = plan_rows(sizes_IX, capacity_X, max_sequences)
    num_in_use = -(-len(rows) // parts)
    return Plan(
        shape=PackedShape(tuple(capacity_X.tolist()), num_in_use),
        rows=rows,
        num_in_use=num_in_use,
        num_tokens=int(sizes_IX[:, 1:].sum()),
        parts=parts,
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
