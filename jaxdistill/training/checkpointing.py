"""When a run saves a checkpoint, besides the one at its end: after some steps, or some minutes.

Also which one it keeps as its best.

A recipe may define its own choice (`OwnCheckpointing`).
"""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, Protocol, runtime_checkable

from jaxdistill.errors import UserError
from jaxdistill.evaluation.measures import MEASURES


@runtime_checkable
class OwnCheckpointing(Protocol):
    """A frozen dataclass with this method, defined in this file or in a recipe."""

    def is_due(self, step: int, seconds: float, step_seconds: float) -> bool:
        """Whether the state after step `step` (from 1) is saved.

        `seconds` have passed since the last checkpoint, or since the start of the steps; a step
        takes `step_seconds`.
        """
        ...


@dataclass(frozen=True)
class Steps:
    """A checkpoint after every `steps` steps."""

    steps: int

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"Steps: `steps` must be at least 1, got {self.steps}")

    def is_due(self, step: int, seconds: float, step_seconds: float) -> bool:
        return step % self.steps == 0


@dataclass(frozen=True)
class Minutes:
    """A checkpoint at least every `minutes` of wall time; after each step if one takes longer."""

    minutes: float

    def __post_init__(self):
        if not 0 < self.minutes < math.inf:
            raise UserError(f"Minutes: `minutes` must be above 0, got {self.minutes}")

    def is_due(self, step: int, seconds: float, step_seconds: float) -> bool:
        # Now, if waiting for another step would be too late.
        return seconds + step_seconds > 60 * self.minutes


Checkpointing = Steps | Minutes | OwnCheckpointing


@dataclass(frozen=True)
class KeepBest:
    """Keep the checkpoint of the best evaluated step beside the latest ones, as `RUN:best`.

    data: the name of one of `evaluation.splits`. measure: of its evaluations. better: None for the
    measure's own direction, which accuracy has and length has not.

    A step that is the best so far is saved once it is evaluated. Of equal steps the first is kept.
    Raises UserError for an unknown measure, and for one without a direction.
    """

    data: str
    measure: str = "accuracy"
    better: Literal["higher", "lower"] | None = None

    def __post_init__(self):
        if self.measure not in MEASURES:
            near = get_close_matches(str(self.measure), MEASURES, 3, 0.4) or list(MEASURES)
            raise UserError(
                f"keep_best.measure={self.measure!r:.80}: no such measure; nearest: "
                f"{', '.join(near)}"
            )
        if self.better not in ("higher", "lower", None):
            raise UserError(f"keep_best.better={self.better!r:.80}: expected higher, lower or None")
        if self.better is None and MEASURES[self.measure].better is None:
            raise UserError(
                f"keep_best.better: neither higher nor lower {self.measure} is better in itself; "
                "say which"
            )

    def is_better(self, value: float | None, than: float | None) -> bool:
        """Whether a value is better than the best so far; NaN and None are never."""
        if value is None or not math.isfinite(value):
            return False
        if than is None:
            return True
        higher = (self.better or MEASURES[self.measure].better) == "higher"
        return value > than if higher else value < than
