"""Who the teacher is: the initial model, a moving average, a snapshot, the student, a mixture.

A teacher is a frozen dataclass that says which networks it is made of, and how the parameters of
its own move if it has any. A recipe may bring its own: `OwnTeacher`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdistill.errors import UserError

# Parameters, and the weight of their logits in the mixture that the teacher is: a number, or a
# scalar array.
Network = tuple[Any, Any]


class Models(NamedTuple):
    """The parameters that a teacher can be made of, at one step."""

    student: Any  # as it is; no gradient passes through a teacher
    reference: Any  # the initial model's
    own: Any  # those that the teacher moves; None for one that is no `MovingTeacher`
    step: Int[Array, ""]  # optimizer steps taken before this one


@runtime_checkable
class OwnTeacher(Protocol):
    """A teacher: a frozen dataclass with this method, of this file or of a recipe."""

    def networks(self, models: Models) -> tuple[Network, ...]:
        """The networks whose logits, each times its weight, add up to the teacher's.

        Parameters are those of `models`, unchanged: one that is `models.reference` itself shares
        the reference's forward pass.
        """
        ...


@runtime_checkable
class MovingTeacher(OwnTeacher, Protocol):
    """A teacher with parameters of its own, which start as the student's and are checkpointed."""

    def moved(self, own: Any, student: Any, step: Any) -> Any:
        """Its parameters after step `step` (from 0) led the student to `student`."""
        ...


@dataclass(frozen=True)
class Frozen:
    """The teacher keeps the initial parameters (the paper's main setting)."""

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.reference, 1.0),)


@dataclass(frozen=True)
class EMA:
    """T <- (1 - rate) T + rate S after every step (arXiv 2603.24472, section 5.4)."""

    rate: float = 0.05

    def __post_init__(self):
        if not 0.0 < self.rate <= 1.0:
            raise UserError(f"`rate` must lie in (0, 1], got {self.rate}; use Frozen() for 0")

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.own, 1.0),)

    def moved(self, own: Any, student: Any, step: Any) -> Any:
        rate = self.rate
        return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, own, student)


@dataclass(frozen=True)
class Snapshot:
    """The teacher is the student after every `every`-th step, and held until the next."""

    every: int = 50  # chosen: half of the paper's 100 steps

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"`every` must be at least 1 step, got {self.every}")

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.own, 1.0),)

    def moved(self, own: Any, student: Any, step: Any) -> Any:
        is_due = (step + 1) % self.every == 0
        return jax.tree.map(lambda t, s: jnp.where(is_due, s, t), own, student)


@dataclass(frozen=True)
class Live:
    """The teacher is the student itself, as it is at each step; no gradient passes through it."""

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.student, 1.0),)


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

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.reference, 1 - self.mix), (models.student, self.mix))


Teacher = Frozen | EMA | Snapshot | Live | TrustRegion | OwnTeacher


def networks_of(teacher: Teacher, models: Models) -> tuple[Network, ...]:
    """The teacher's networks; raises UserError where a recipe's class returns something else."""
    networks = teacher.networks(models)
    known = [id(params) for params in models[:3] if params is not None]
    try:
        is_right = len(networks) > 0 and all(
            id(params) in known and jnp.shape(weight) == () for params, weight in networks
        )
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise UserError(
            f"{type(teacher).__name__}.networks: expected ((parameters, weight), ...), with "
            "parameters that `models` holds, unchanged, and numbers as weights; got "
            f"{jax.tree.map(jnp.shape, networks)}"
        )
    return networks


def moved_teacher(teacher: Teacher, own: Any, student: Any, step: Any) -> Any:
    """The teacher's own parameters after a step; raises UserError where their shapes changed."""
    if not isinstance(teacher, MovingTeacher):
        return own
    moved = teacher.moved(own, student, step)
    (shapes, tree), (expected, own_tree) = (
        jax.tree.flatten(jax.tree.map(jnp.shape, x), is_leaf=lambda x: isinstance(x, tuple))
        for x in (moved, own)
    )
    if tree != own_tree or shapes != expected:
        raise UserError(
            f"{type(teacher).__name__}.moved: expected parameters like those that it was given, "
            f"got {jax.tree.map(jnp.shape, moved)}"
        )
    return moved
