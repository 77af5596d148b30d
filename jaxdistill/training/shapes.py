"""Array shapes that stay the same from batch to batch, so that few programs serve a whole run.

Each new shape compiles the sampler or the step anew, which takes minutes for a real model. Shapes
therefore come from what a run has already compiled wherever that wastes little. They belong to the
run's state: a resumed run takes the same shapes, and so rounds its sums in the same way.
"""

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxdistill import sharding
from jaxdistill.training.batch import Batch, abstract_arrays, bucket, pack_alike, pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatches
from jaxdistill.training.packing import (
    KeptPacking,
    PackedShape,
    fixed_shape,
    plan_batches,
    plan_into,
)

# Widths are multiples of this: the tile of TPUs and of most GPU kernels for attention.
WIDTH_MULTIPLE = 64

# The first widths are a quarter wider than the texts that asked for them, later ones a half, and
# known ones are used for texts that fill at least half of them. Two widths are met in 100 batches
# of 32 long-tailed completions under prompts of `seen_512` (`tests/training/test_shapes.py`).
FIRST_SPARE, LATER_SPARE = 1.25, 1.5
LEAST_FILLED = 0.5


@dataclass
class KeptShapes:
    """The shapes that a run has used, in values for JSON. Their number only grows."""

    padded: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)  # by what is padded
    packed: dict[str, KeptPacking] = field(default_factory=dict)  # by the rows of a batch

    def widths(
        self, kind: str, longest_X: Sequence[int], limit_X: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Widths in tokens for arrays that belong together and whose longest texts are these.

        The smallest known widths that hold them, or new ones with some to spare. `limit_X` are the
        widths that suffice for any text, where they are known; the second widths are these.

        >>> shapes = KeptShapes()
        >>> [shapes.widths("prompt", (n,), (500,)) for n in (200, 256, 300, 130, 500)]
        [(256,), (256,), (500,), (256,), (500,)]
        """
        known = self.padded.setdefault(kind, [])
        holding = [width_X for width_X in known if all(map(operator.le, longest_X, width_X))]
        # Below the multiple there is nothing to save.
        least = max(sum(longest_X), WIDTH_MULTIPLE * LEAST_FILLED * len(longest_X))
        filled = [width_X for width_X in holding if sum(width_X) * LEAST_FILLED <= least]
        if len(known) > 1:  # no third for texts that one of two holds
            filled = holding
        if filled:
            return min(filled, key=sum)
        is_larger = bool(known) and not holding
        spare = LATER_SPARE if is_larger else FIRST_SPARE
        width_X = [bucket(int(n * spare), WIDTH_MULTIPLE) for n in longest_X]
        for x, limit in enumerate(limit_X):
            width_X[x] = max(longest_X[x], limit if is_larger else min(width_X[x], limit))
        if is_larger:  # they hold whatever the known ones hold, and may replace them
            width_X = [max(widths) for widths in zip(width_X, *known)]
        known.append(tuple(width_X))
        return known[-1]

    def state(self) -> dict[str, dict]:
        """A copy for a checkpoint."""
        return dataclasses.asdict(self)

    def restore(self, state: dict[str, dict]) -> None:
        """Take over what `state` returned; a checkpoint of an earlier version has nothing."""
        for kind, known in state.get("padded", {}).items():
            self.padded[kind] = [tuple(width_X) for width_X in known]
        for rows, kept in state.get("packed", {}).items():
            shapes = [PackedShape(tuple(capacity), *rest) for capacity, *rest in kept["shapes"]]
            self.packed[rows] = KeptPacking(**kept | {"shapes": shapes})


# A packed row of `compute.pack=auto` holds two to eight of the longest sequences that may occur,
# for about AUTO_TOKENS tokens if these are short. With one, every long sequence would have a row of
# its own and leave its end empty. Eight of the longest are some thirty of the average where lengths
# have a long tail, as many as a row may hold (`packing.MAX_SEQUENCES`). Chosen, not measured:
# AUTO_TOKENS is enough for a GPU's matrix products, and short rows leave less of the last empty.
AUTO_TOKENS = 4096
AUTO_SEQUENCES = (2, 8)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run's batches become the step's arrays: padded, or packed into known shapes."""

    compute: Compute
    shapes: KeptShapes
    most_tokens: tuple[int, int]  # of a completion, and of a student's prompt with its completion
    keeps_widths: bool  # False: padded rows are as wide as the arrays of their batch
    fixes_widths: bool = False  # these arrays, and packed rows, have the same widths in all batches

    def arrays(self, batches: Sequence[Batch]) -> tuple[list[MicroBatches], dict[str, float]]:
        """The arrays of a step's mini-batches, and facts to log: packed rows' share of padding.

        They have one shape, so that all updates of a step are the same program.
        """
        rows, parts = len(batches[0].advantage_B), sharding.num_parts("B")
        if tokens := self.tokens_per_row(-(-rows // parts)):
            if self.fixes_widths:
                kept = fixed_shape(batches[0].widths_X, tokens, rows, parts)
            else:
                kept = self.shapes.packed.setdefault(str(rows), KeptPacking())
            arrays, padding = pack_alike(batches, tokens, parts, kept)
            return arrays, {"padding": padding}
        capacity_X = None
        if self.keeps_widths:
            completion, student = self.most_tokens
            limits = completion, bucket(student, WIDTH_MULTIPLE)
            longest_X = np.max([batch.sizes_BX.max(axis=0) for batch in batches], axis=0).tolist()
            capacity_X = self.shapes.widths(f"{rows} rows", longest_X, limits)
        return [pad(batch, self.compute.micro_batches, parts, capacity_X) for batch in batches], {}

    def abstract(
        self, sizes_MIX: Sequence[np.ndarray], widths_X: Sequence[int], platform: str | None = None
    ) -> MicroBatches:
        """The shapes of `arrays` for mini-batches whose rows have these sizes, without any array.

        `sizes_MIX` are the `Batch.sizes_BX` of each, and `widths_X` the widths that padded rows
        have if they keep none: of completions and of each kind of prompt with its completion.
        `platform` is that of the devices; None: of the mesh in use.
        """
        rows, parts = len(sizes_MIX[0]), sharding.num_parts("B")
        if tokens := self.tokens_per_row(-(-rows // parts), platform):
            if self.fixes_widths:
                plans = plan_into(sizes_MIX, fixed_shape(widths_X, tokens, rows, parts), parts)
            else:
                plans = plan_batches(sizes_MIX, tokens, parts, KeptPacking())
            capacity_X, micro_batches, sequences = plans[0].shape
            return abstract_arrays((micro_batches, parts, sequences), capacity_X, rows)
        longest_X = np.max([sizes_IX.max(axis=0) for sizes_IX in sizes_MIX], axis=0).tolist()
        if self.keeps_widths:
            completion, student = self.most_tokens
            limits = completion, bucket(student, WIDTH_MULTIPLE)
            widths_X = KeptShapes().widths(f"{rows} rows", longest_X, limits)
        together = bucket(rows // self.compute.micro_batches, parts)
        micro_batches = -(-rows // together)
        arrays = abstract_arrays((micro_batches, together, 1), widths_X, rows)
        return arrays._replace(num_in_use=None)

    def tokens_per_row(self, sequences: int, platform: str | None = None) -> int:
        """The student's capacity in a packed row, of at most this many sequences; 0: no packing."""
        if self.compute.pack != "auto":
            return self.compute.pack
        if not self.compute.packs_on(platform or sharding.platform()):
            return 0
        longest, (least, most) = self.most_tokens[1], AUTO_SEQUENCES
        number = min(max(AUTO_TOKENS // longest, least), most, sequences)
        return bucket(number * longest, 2 * WIDTH_MULTIPLE)
