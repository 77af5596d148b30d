"""When a run saves a checkpoint, besides the one at its end: after some steps, or some minutes.

A recipe may define its own choice (`OwnCheckpointing`).
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxdistill.errors import UserError


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
