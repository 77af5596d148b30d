"""Teachers: the initial model, a moving average, a snapshot, the student itself, another model.

A teacher is a frozen dataclass whose methods return the networks that it consists of and, if it has
its own parameters, their update after each step. A recipe may define its own (`OwnTeacher`).
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Int

from jaxdistill import own_classes
from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig

# (parameters, weight of their logits in the teacher's mixture: a number or a scalar array).
Network = tuple[Any, Any]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["model", "num_ids"]
)
@dataclass(frozen=True)
class External:
    """A network with a config of its own, of other sizes than the student's.

    num_ids: ids of the tokenizer that it shares with the student, over which all distributions are
    taken; None if neither vocabulary has rows beyond them.
    """

    params: Any
    model: ModelConfig
    num_ids: int | None = None


class Untrained(NamedTuple):
    """The parameters that no step changes, where there are more than the initial model's."""

    reference: Any
    external: External


class Models(NamedTuple):
    """The parameters that a teacher can consist of, at one step."""

    student: Any  # the current student's; no gradient passes through a teacher
    reference: Any  # the initial model's
    own: Any  # the teacher's own parameters; None if it is not a `MovingTeacher`
    step: Int[Array, ""]  # steps (rollout batches) before this one
    external: External | None = None  # another model (`Fixed`)


@runtime_checkable
class OwnTeacher(Protocol):
    """A teacher: a frozen dataclass with this method, defined in this file or in a recipe."""

    def networks(self, models: Models) -> tuple[Network, ...]:
        """The networks whose logits, each times its weight, sum to the teacher's logits.

        Their parameters must be entries of `models`, unchanged. A network whose parameters are
        `models.reference` itself shares the reference's forward pass.
        """
        ...


@runtime_checkable
class MovingTeacher(OwnTeacher, Protocol):
    """A teacher with its own parameters, which start as the student's and are checkpointed."""

    def moved(self, own: Any, student: Any, step: Any) -> Any:
        """The teacher's parameters after step `step` (from 0), which updated the student."""
        ...


@dataclass(frozen=True)
class Frozen:
    """The teacher keeps the initial parameters (the main setting of arXiv 2603.24472)."""

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
    """The teacher is a copy of the student, renewed after every `every`-th step."""

    every: int = 50  # half of the paper's 100 steps; chosen, not measured

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
    """The teacher is the current student at each step; no gradient passes through it."""

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.student, 1.0),)


@dataclass(frozen=True)
class TrustRegion:
    """Logits (1 - mix) R + mix S: the initial model's, moved towards the current student's.

    Both see the teacher's context (verl's `trust-region`, `dp_actor.py:51`), which takes two
    forward passes.
    """

    mix: float = 0.05  # as SDPO's `teacher_update_rate`

    def __post_init__(self):
        if not 0.0 < self.mix < 1.0:
            raise UserError(
                f"`mix` must lie between 0 and 1, got {self.mix}; use Frozen() for 0, Live() for 1"
            )

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.reference, 1 - self.mix), (models.student, self.mix))


@dataclass(frozen=True)
class Fixed:
    """Another model, of any size or family that has the student's tokenizer; it is never trained.

    `model` is a Hugging Face folder, a run (its newest checkpoint), a hub name or `toy:main`. The
    context says what it is shown: with `NoContext()` this is plain on-policy distillation, with
    any other the teacher is privileged too. `template`: `same` requires its chat template and end
    token to be the student's; with `student` it reads the student's whatever its own are.
    """

    model: str
    template: Literal["same", "student"] = "same"

    def __post_init__(self):
        if not (isinstance(self.model, str) and self.model.strip()):
            raise UserError(f"`model` must name a model, got {self.model!r}")

    def networks(self, models: Models) -> tuple[Network, ...]:
        return ((models.external, 1.0),)


Teacher = Frozen | EMA | Snapshot | Live | TrustRegion | Fixed | OwnTeacher


def untrained_of(params: Any) -> tuple[Any, External | None]:
    """(the initial model's parameters, another model) of what a step is given as untrained."""
    return params if isinstance(params, Untrained) else (params, None)


def networks_of(teacher: Teacher, models: Models) -> tuple[Network, ...]:
    """The teacher's networks; raises UserError if a recipe's class returns anything else."""
    networks = teacher.networks(models)
    # Identity and not equality: `score_batch` recognises a shared network by its object.
    own = (models.student, models.reference, models.own, models.external)
    known = [id(params) for params in own if params is not None]
    try:
        is_valid = len(networks) > 0 and all(
            id(params) in known
            and jnp.shape(weight) == ()
            # A weight that depends on the step has no value while tracing; `check_teacher` runs it.
            and (isinstance(weight, core.Tracer) or math.isfinite(weight))
            for params, weight in networks
        )
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{type(teacher).__name__}.networks: expected ((parameters, weight), ...), with "
            "unchanged parameters from `models` and finite numbers as weights; got "
            f"{_summary(networks, models)}"
        )
    return networks


def moved_teacher(teacher: Teacher, own: Any, student: Any, step: Any) -> Any:
    """The teacher's own parameters after a step; raises UserError if their shapes changed."""
    if not isinstance(teacher, MovingTeacher):
        return own
    moved = teacher.moved(own, student, step)
    new, tree = jax.tree.flatten(moved)
    name = f"{type(teacher).__name__}.moved"
    if tree != jax.tree.structure(own):
        raise UserError(
            f"{name}: expected parameters with the structure of `own`, got {_summary(moved)}"
        )
    for (path, expected), leaf in zip(jax.tree.leaves_with_path(own), new, strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray) or leaf.shape != expected.shape:
            raise UserError(
                f"{name}: expected parameters with the shapes of `own`, an array of shape "
                f"{expected.shape} at {jax.tree_util.keystr(path)}, got {_summary(leaf)}"
            )
    return moved


def check_teacher(teacher: Teacher, params: Any, steps: int) -> None:
    """Try a recipe's own teacher on the initial parameters, at a run's first step and its last.

    Built-in teachers are not tried. Raises UserError with one line that names the method, if a
    method raises, returns something that `networks_of` or `moved_teacher` refuses, or returns NaN
    or an infinity.
    """
    if not own_classes.is_own(type(teacher)):
        return
    name = f"teacher: {type(teacher).__name__}"

    @jax.jit
    def trial(student: Any, reference: Any, own: Any, step: Any) -> tuple[Any, Any]:
        # In a run the student's and the teacher's own parameters are float32, whatever the dtype
        # that they were loaded in.
        student, own = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (student, own))
        models = Models(student, reference, own, step)
        networks = own_classes.called(
            f"{name}.networks", lambda: networks_of(teacher, models), "teacher"
        )
        moved = own_classes.called(
            f"{name}.moved", lambda: moved_teacher(teacher, own, student, step), "teacher"
        )
        # Reduced inside the compiled function, so that XLA need not keep a second model in memory.
        is_finite = jax.tree.map(lambda x: jnp.isfinite(x).all(), moved)
        return [jnp.asarray(weight, jnp.float32) for _, weight in networks], is_finite

    own = params if isinstance(teacher, MovingTeacher) else None
    for step in sorted({0, max(steps - 1, 0)}):
        weights, is_finite = jax.device_get(trial(params, params, own, jnp.int32(step)))
        for index, weight in enumerate(weights):
            if not math.isfinite(weight):
                raise UserError(
                    f"{name}.networks returned weight {weight:g} for network {index} at step "
                    f"{step}, expected finite numbers"
                )
        for path, is_leaf_finite in jax.tree.leaves_with_path(is_finite):
            if not is_leaf_finite:
                raise UserError(
                    f"{name}.moved returned NaN or an infinity in {jax.tree_util.keystr(path)} at "
                    f"step {step}, expected finite numbers"
                )


def _summary(value: Any, models: Models | None = None) -> str:
    """A short description for an error: the repr of parameters would list hundreds of arrays."""
    for name, params in zip(Models._fields[:3], models or ()):
        if params is not None and value is params:
            return f"models.{name}"
    if type(value) in (tuple, list):
        inner = [_summary(element, models) for element in value[:4]]
        return f"({', '.join(inner)}{', ...' * (len(value) > 4)}{',' * (len(value) == 1)})"
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}"
    is_plain = value is None or isinstance(value, str | int | float)
    return f"{value!r:.60}" if is_plain else f"a {type(value).__name__}"
