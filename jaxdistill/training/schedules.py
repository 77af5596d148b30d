"""When a step's rollouts are drawn: before its update, or while the step before is updated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxdistill import objectives, sharding
from jaxdistill.errors import UserError, require_number
from jaxdistill.objectives import Objective
from jaxdistill.sharding import Mesh, MeshConfig


@dataclass(frozen=True)
class InTurn:
    """All devices draw a step's rollouts, with the parameters that it updates, and update then."""

    def meshes(self, mesh: MeshConfig, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
        """(mesh of the update, mesh of the sampler) over `devices`; None: all of them."""
        both = sharding.make_mesh(mesh, devices)
        return both, both

    def require_ratios(self, objective: Objective, updates: int) -> None:
        """Nothing is required: the sampler's policy is the one that is updated."""


@dataclass(frozen=True)
class OneStepOff:
    """A step's rollouts are drawn while the step before is taken, with the policy before that step.

    The sampler has devices of its own, the last ones, and the mesh of the run covers the others:
    the update, the teacher's scores and evaluations. The policy that has drawn a batch is exactly
    one step older than the one that it updates, so that the objective must have importance ratios
    (`importance_clip` or a `rollout_correction`); others are refused.

    sampler_devices: devices that draw rollouts; None: half of all, and of a single device that one.
    0: none of their own. Devices that do both draw first and update then.
    sampler_tensor: of these, devices that heads and vocabulary are split over (`mesh.tensor` of the
    sampler). The rows are split over the others.
    """

    sampler_devices: int | None = None
    sampler_tensor: int = 1

    def __post_init__(self) -> None:
        most = 1_000_000  # more than any slice has
        if self.sampler_devices is not None:
            what = "of at least 0 (0: those of the update), a whole number, or None"
            require_number(
                "schedule.sampler_devices", self.sampler_devices, 0, most, expected=what, whole=True
            )
        what = "of at least 1, a whole number of devices"
        require_number(
            "schedule.sampler_tensor", self.sampler_tensor, 1, most, expected=what, whole=True
        )

    def meshes(self, mesh: MeshConfig, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
        """(mesh of the update, mesh of the sampler), one and the same if they share their devices.

        Raises UserError if the devices cannot be split like that, and on several hosts.
        """
        if jax.process_count() > 1:
            raise UserError(
                "`experience.schedule=OneStepOff()` runs on one host, with all of its devices; "
                f"{jax.process_count()} processes take `experience.schedule=InTurn()`"
            )
        devices = list(jax.devices() if devices is None else devices)
        count = len(devices) // 2 if self.sampler_devices is None else self.sampler_devices
        if count >= len(devices):
            raise UserError(
                f"`experience.schedule.sampler_devices={count}` leaves none of {len(devices)} "
                "device(s) to the update; 0 lets both share all of them"
            )
        if count == 0:
            if self.sampler_tensor != 1:
                raise UserError(
                    f"`experience.schedule.sampler_tensor={self.sampler_tensor}` needs "
                    "`sampler_devices`: without devices of its own the sampler has the run's mesh"
                )
            both = sharding.make_mesh(mesh, devices)
            return both, both
        if count % self.sampler_tensor:
            raise UserError(
                f"`experience.schedule.sampler_tensor={self.sampler_tensor}` must divide the "
                f"{count} device(s) of the sampler"
            )
        of_sampler = MeshConfig(
            data=1, fsdp=count // self.sampler_tensor, tensor=self.sampler_tensor
        )
        return (
            sharding.make_mesh(mesh, devices[:-count]),
            sharding.make_mesh(of_sampler, devices[-count:]),
        )

    def require_ratios(self, objective: Objective, updates: int) -> None:
        """Raise UserError unless the objective accounts for samples of an older policy."""
        if objectives.weighs_samples(objective, updates):
            return
        least = "" if updates > 1 else "`importance_clip` (2.0 is usual) or "
        why = f" with `experience.updates={updates}`" if updates > 1 else ""
        raise UserError(
            "`experience.schedule=OneStepOff()` draws samples from the policy before the last step"
            f"{why}: `objective` must weigh them by importance ratios; give it {least}a "
            "`rollout_correction`, such as RolloutCorrection()"
        )


Schedule = InTurn | OneStepOff
