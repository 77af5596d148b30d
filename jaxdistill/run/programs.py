"""The programs of a run: the one place where a config becomes sampler, step and array layout.

`run.loop` calls them with arrays, and `plan` lowers them with shapes alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxdistill import hosts, sharding
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.models import placement
from jaxdistill.models.config import ModelConfig
from jaxdistill.sampling.engine import Engine
from jaxdistill.storage.loading import Policy
from jaxdistill.training.ahead import Batches, BatchesAhead, InTurnBatches
from jaxdistill.training.experience import Source
from jaxdistill.training.schedules import InTurn, OneStepOff
from jaxdistill.training.shapes import KeptShapes, Layout
from jaxdistill.training.step import make_train_step
from jaxdistill.training.timing import Clock


def engine_of(config: RunConfig, policy: Policy, mesh: sharding.Mesh) -> Engine:
    """What samples in training: `Engine.sampler` builds its program."""
    return Engine(
        policy,
        mesh=mesh,
        dtype=config.compute.dtype,
        attention=config.compute.attention,
        cache_dtype=config.compute.cache_dtype,
        weights_dtype=config.compute.weights_dtype,
        slot_counts=config.compute.slot_counts,
        grade_while_decoding=config.compute.grade_while_decoding,
        enable_thinking=getattr(config.experience, "student_thinking", None),
    )


def meshes_of(config: RunConfig) -> tuple[sharding.Mesh, sharding.Mesh]:
    """(mesh of the update, mesh of the sampler), which are the same unless `schedule` says so."""
    schedule = getattr(config.experience, "schedule", InTurn())
    return schedule.meshes(config.mesh)


def batches_of(
    config: RunConfig,
    source: Source,
    engine: Engine,
    params: Any,
    *,
    sampler: sharding.Mesh,
    steps: int,
    clock: Clock,
) -> Batches:
    """How the run's steps get their batches; `engine` is that of the update's mesh.

    Raises UserError if the sampler has a mesh of its own that does not split the model's heads.
    """
    if not isinstance(getattr(config.experience, "schedule", None), OneStepOff):
        return InTurnBatches(source)
    is_shared = engine.mesh is not None and sampler == engine.mesh
    if not is_shared:
        check_sampler(engine.policy.config, sampler)
    engine = dataclasses.replace(engine, mesh=sampler)
    return BatchesAhead(source, engine, params, steps=steps, is_shared=is_shared, clock=clock)


def check_sampler(model: ModelConfig, sampler: sharding.Mesh) -> None:
    """Say of a sampler's own mesh what `loading` says of the update's (`placement.check_mesh`)."""
    try:
        said = placement.check_mesh(model, sampler)
    except UserError as error:
        raise UserError(f"`experience.schedule.sampler_tensor`: {error}") from error
    for line in said:
        hosts.say(f"sampler: {line}")


def layout_of(
    config: RunConfig, shapes: KeptShapes, most_tokens: tuple[int, int], keeps_widths: bool
) -> Layout:
    """How batches become the step's arrays; the last two are those of the run's `Source`."""
    return Layout(
        compute=config.compute,
        shapes=shapes,
        most_tokens=most_tokens,
        keeps_widths=keeps_widths,
        fixes_widths=getattr(config.experience, "fixes_widths", False),
    )


def train_step_of(
    config: RunConfig,
    model: ModelConfig,
    epistemic_ids: Sequence[int],
    *,
    steps: int,
    temperature: float,
    teacher_temperature: float | None,
) -> Callable[..., Any]:
    """The run's step (`make_train_step`); the temperatures are those of its `Source`."""
    return make_train_step(
        model=model,
        objective=config.objective,
        epistemic_ids=tuple(epistemic_ids),
        optimizer=config.optimizer,
        teacher=config.teacher,
        compute=config.compute,
        steps=steps,
        temperature=temperature,
        track_reference=config.track_reference,
        teacher_temperature=teacher_temperature,
        updates=config.updates,
    )
