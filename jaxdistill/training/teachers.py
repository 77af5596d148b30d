"""Who the teacher is: the initial model, a moving average, a snapshot, the student, a mixture.

A teacher is a frozen dataclass that says which networks it is made of, and how the parameters of
its own move if it has any. A recipe may bring its own: `OwnTeacher`.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Int

from jaxdistill import own_classes
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
            id(params) in known
            and jnp.shape(weight) == ()
            # What depends on the step is a number only when it is run: `check_teacher`.
            and (isinstance(weight, core.Tracer) or math.isfinite(weight))
            for params, weight in networks
        )
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise UserError(
            f"{type(teacher).__name__}.networks: expected ((parameters, weight), ...), with "
            "parameters that `models` holds, unchanged, and finite numbers as weights; got "
            f"{_described(networks, models)}"
        )
    return networks


def moved_teacher(teacher: Teacher, own: Any, student: Any, step: Any) -> Any:
    """The teacher's own parameters after a step; raises UserError where their shapes changed."""
    if not isinstance(teacher, MovingTeacher):
        return own
    moved = teacher.moved(own, student, step)
    new, tree = jax.tree.flatten(moved)
    name = f"{type(teacher).__name__}.moved"
    if tree != jax.tree.structure(own):
        raise UserError(
            f"{name}: expected parameters like those that it was given, got {_described(moved)}"
        )
    for (path, expected), leaf in zip(jax.tree.leaves_with_path(own), new, strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray) or leaf.shape != expected.shape:
            raise UserError(
                f"{name}: expected parameters like those that it was given, an array of shape "
                f"{expected.shape} at {jax.tree_util.keystr(path)}, got {_described(leaf)}"
            )
    return moved


def check_teacher(teacher: Teacher, params: Any, steps: int) -> None:
    """Try a recipe's own teacher on the initial parameters, at a run's first step and its last.

    Nothing is done for this library's. Raises UserError with one line that names the method if one
    raises, returns what `networks_of` or `moved_teacher` refuses, or gives NaN or an infinity.
    """
    if not own_classes.is_own(type(teacher)):
        return
    name = f"teacher: {type(teacher).__name__}"

    @jax.jit
    def tried(student: Any, reference: Any, own: Any, step: Any) -> tuple[Any, Any]:
        # The student's and the teacher's own are trained in float32.
        student, own = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (student, own))
        models = Models(student, reference, own, step)
        networks = own_classes.called(
            f"{name}.networks", lambda: networks_of(teacher, models), "teacher"
        )
        moved = own_classes.called(
            f"{name}.moved", lambda: moved_teacher(teacher, own, student, step), "teacher"
        )
        # Reduced while it is computed, so that no second model is kept in memory.
        is_finite = jax.tree.map(lambda x: jnp.isfinite(x).all(), moved)
        return [jnp.asarray(weight, jnp.float32) for _, weight in networks], is_finite

    own = params if isinstance(teacher, MovingTeacher) else None
    for step in sorted({0, max(steps - 1, 0)}):
        weights, is_finite = jax.device_get(tried(params, params, own, jnp.int32(step)))
        for index, weight in enumerate(weights):
            if not math.isfinite(weight):
                raise UserError(
                    f"{name}.networks returned weight {weight:g} of network {index} at step "
                    f"{step}, expected finite numbers"
                )
        for path, is_right in jax.tree.leaves_with_path(is_finite):
            if not is_right:
                raise UserError(
                    f"{name}.moved returned NaN or an infinity in {jax.tree_util.keystr(path)} at "
                    f"step {step}, expected finite numbers"
                )


def _described(value: Any, models: Models | None = None) -> str:
    """What came, in a few words: parameters are trees of hundreds of arrays."""
    for name, params in zip(Models._fields[:3], models or ()):
        if params is not None and value is params:
            return f"models.{name}"
    if type(value) in (tuple, list):
        inner = [_described(element, models) for element in value[:4]]
        return f"({', '.join(inner)}{', ...' * (len(value) > 4)}{',' * (len(value) == 1)})"
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}"
    is_plain = value is None or isinstance(value, str | int | float)
    return f"{value!r:.60}" if is_plain else f"a {type(value).__name__}"
