"""Which devices draw and which update, and which objectives may learn from an older policy."""

import dataclasses

import jax
import pytest
from tiny_run import tiny

from jaxdistill import objectives
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, Distill, Mixed, RolloutCorrection
from jaxdistill.sharding import MeshConfig
from jaxdistill.training.schedules import InTurn, OneStepOff


def devices_of(schedule, mesh=MeshConfig(), count=8):  # noqa: B008
    """The numbers of the devices that update and of those that draw, and the sampler's shape."""
    both = schedule.meshes(mesh, jax.devices()[:count])
    return *([device.id for device in mesh.devices.flat] for mesh in both), both[1].devices.shape


@pytest.mark.parametrize(
    ("schedule", "mesh", "count", "update", "sampler", "shape"),
    [
        (InTurn(), MeshConfig(), 8, range(8), range(8), (1, 8, 1)),
        (OneStepOff(), MeshConfig(), 8, range(4), range(4, 8), (1, 4, 1)),
        (OneStepOff(), MeshConfig(), 3, range(2), [2], (1, 1, 1)),
        (OneStepOff(), MeshConfig(), 1, [0], [0], (1, 1, 1)),
        (OneStepOff(6, 2), MeshConfig(tensor=2), 8, range(2), range(2, 8), (1, 3, 2)),
        (OneStepOff(2), MeshConfig(fsdp=1), 8, [0], [6, 7], (1, 2, 1)),
        (OneStepOff(0), MeshConfig(tensor=2), 8, range(8), range(8), (1, 4, 2)),
    ],
)
def test_the_last_devices_draw_and_the_first_update(schedule, mesh, count, update, sampler, shape):
    assert devices_of(schedule, mesh, count) == (list(update), list(sampler), shape)


@pytest.mark.parametrize(
    ("schedule", "mesh", "expected"),
    [
        (OneStepOff(8), MeshConfig(), "sampler_devices=8` leaves none of 8 device"),
        (OneStepOff(6, 4), MeshConfig(), "sampler_tensor=4` must divide the 6 device"),
        (OneStepOff(0, 2), MeshConfig(), "sampler_tensor=2` needs `sampler_devices`"),
        (OneStepOff(6), MeshConfig(tensor=4), "mesh data=1, fsdp=-1, tensor=4 does not fit 2"),
    ],
)
def test_devices_that_cannot_be_split_are_refused_in_one_line(schedule, mesh, expected):
    with pytest.raises(UserError) as error:
        devices_of(schedule, mesh)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"runs on one host.* 2 processes take .*InTurn"):
        OneStepOff().meshes(MeshConfig())


@pytest.mark.parametrize("value", [-1, 1.5, True, "2", float("nan")])
def test_a_number_of_devices_must_be_one(value):
    for name in ("sampler_devices", "sampler_tensor"):
        with pytest.raises(UserError, match=rf"schedule\.{name}="):
            OneStepOff(**{name: value})


CORRECTED = RolloutCorrection()


@pytest.mark.parametrize(
    ("objective", "weighs_once", "weighs_twice"),
    [
        (Distill(), True, False),
        (Distill(importance_clip=None), False, False),
        (Distill(importance_clip=None, rollout_correction=CORRECTED), True, True),
        (GRPO(), True, False),
        (GRPO(rollout_correction=CORRECTED), True, True),
        (Mixed(distill=Distill(importance_clip=None)), False, False),
        (Mixed(distill=Distill(rollout_correction=CORRECTED)), True, False),
    ],
)
def test_samples_of_an_older_policy_need_importance_ratios(objective, weighs_once, weighs_twice):
    """From the second update of a batch on, pi_old is the trainer's own and not the sampler's."""
    for updates, weighs in ((1, weighs_once), (2, weighs_twice)):
        assert objectives.weighs_samples(objective, updates) == weighs
        experience = dataclasses.replace(tiny().experience, updates=updates, schedule=OneStepOff())
        if weighs:
            tiny(experience=experience, objective=objective)
            continue
        with pytest.raises(UserError, match=r"OneStepOff.* draws samples") as error:
            tiny(experience=experience, objective=objective)
        # What it advises is accepted.
        assert ("importance_clip" in str(error.value)) == (updates == 1)
        tiny(experience=dataclasses.replace(experience, schedule=InTurn()), objective=objective)
