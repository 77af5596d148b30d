"""Who the teacher is: the initial model, a moving average, a snapshot, the student, a mixture."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.errors import UserError


@dataclass(frozen=True)
class Frozen:
    """The teacher keeps the initial parameters (the paper's main setting)."""


@dataclass(frozen=True)
class EMA:
    """T <- (1 - rate) T + rate S after every step (arXiv 2603.24472, section 5.4)."""

    rate: float = 0.05

    def __post_init__(self):
        if not 0.0 < self.rate <= 1.0:
            raise UserError(f"`rate` must lie in (0, 1], got {self.rate}; use Frozen() for 0")


@dataclass(frozen=True)
class Snapshot:
    """The teacher is the student after every `every`-th step, and held until the next."""

    every: int = 50  # chosen: half of the paper's 100 steps

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"`every` must be at least 1 step, got {self.every}")


@dataclass(frozen=True)
class Live:
    """The teacher is the student itself, as it is at each step; no gradient passes through it."""


@dataclass(frozen=True)
class TrustRegion:
    """Logits (1 - mix) T + mix S: the initial model's, moved towards the student's as it is, both
    under the teacher's context (verl's `trust-region`; `dp_actor.py:51`). Two forwards.
    """

    mix: float = 0.05  # as SDPO's `teacher_update_rate`

    def __post_init__(self):
        if not 0.0 < self.mix < 1.0:
            raise UserError(
                f"`mix` must lie between 0 and 1, got {self.mix}; use Frozen() for 0, Live() for 1"
            )


Teacher = Frozen | EMA | Snapshot | Live | TrustRegion


def moved_teacher(teacher: Teacher, params: Any, student_params: Any, step: Any) -> Any:
    """The teacher's own parameters after step `step` led the student to `student_params`."""
    match teacher:
        case EMA(rate):
            return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, params, student_params)
        case Snapshot(every):
            is_due = (step + 1) % every == 0
            return jax.tree.map(lambda t, s: jnp.where(is_due, s, t), params, student_params)
        case Frozen() | Live() | TrustRegion():
            return params
