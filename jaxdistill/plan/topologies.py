"""The slices that a plan is made for: names, devices, memory, and published rates.

Nothing here imports JAX before `devices` is called, so that a mistyped name is answered at once.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jaxdistill.errors import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device can do at most; rates are published ones, for dense bfloat16.

    memory: bytes that programs may use. flops: operations per second. bandwidth: of its memory,
    bytes per second. network: bytes per second that it receives from the other devices of its slice
    over all links together, which a collective along one mesh axis does not reach.
    """

    memory: float
    flops: float
    bandwidth: float
    network: float


# Memory of TPUs: what libtpu 0.0.42's compiler names as available, less than the 32 GiB, 16 GB,
# 95 GiB, 32 GB and 192 GiB per chip that are published. Rates of a chip:
# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read on 2026-11-30. Links count in one
# direction, half of the published sum of both; v4's page has none, but 1.1 PB/s of all-reduce for
# 4,096 chips, which for v5e and v6e is that half too. tpu7x has two devices per chip, which share
# what a chip has.
TPUS = {
    "v4": Device(memory=30.75 * GIB, flops=275e12, bandwidth=1.2e12, network=268e9),
    "v5e": Device(memory=15.75 * GIB, flops=197e12, bandwidth=0.819e12, network=200e9),
    "v5p": Device(memory=95.74 * GIB, flops=459e12, bandwidth=2.765e12, network=600e9),
    "v6e": Device(memory=31.25 * GIB, flops=918e12, bandwidth=1.638e12, network=400e9),
    "tpu7x": Device(memory=94.75 * GIB, flops=1153.5e12, bandwidth=3.69e12, network=300e9),
}
# Of a GPU's memory, what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_FRACTION = 0.75
# Memory and rates: NVIDIA's data sheets (SXM); NVLink in one direction.
GPUS = {
    "A100": Device(memory=80e9, flops=312e12, bandwidth=2.04e12, network=300e9),
    "H100": Device(memory=80e9, flops=989e12, bandwidth=3.35e12, network=450e9),
    "H200": Device(memory=141e9, flops=989e12, bandwidth=4.8e12, network=450e9),
    "B200": Device(memory=180e9, flops=2250e12, bandwidth=8.0e12, network=900e9),
}

# The slices that Cloud TPU offers, in ascending size: MaxText's accelerator_to_spec_map.py.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES = {
    "v4": _CUBES,
    "v5e": _FLAT,
    "v5p": _CUBES,
    "v6e": _FLAT,
    "tpu7x": tuple(shape for shape in _CUBES if shape != "2x2x2"),
}

FORMS = "v4, v5e, v5p, v6e or tpu7x with a slice, as v5p:2x2x2; gpu:8xH200; or cpu:8"


@dataclass(frozen=True)
class Topology:
    """A slice by name. kind: "tpu", "gpu", or "cpu", whose devices are those of this process."""

    name: str
    kind: str
    generation: str
    shape: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape) * (2 if self.generation == "tpu7x" else 1)

    @property
    def device(self) -> Device | None:
        """None for CPUs, of which nothing is assumed."""
        return (TPUS | GPUS).get(self.generation)

    @property
    def memory(self) -> float:
        """Bytes per device that a run's programs may use; infinite for CPUs."""
        if self.device is None:
            return math.inf
        return self.device.memory * (GPU_FRACTION if self.kind == "gpu" else 1.0)

    @property
    def larger(self) -> "list[Topology]":
        """The slices of the same kind with more devices, the smallest first."""
        if self.kind == "gpu":
            counts = [n for n in (1, 2, 4, 8) if n > self.num_devices]
            return [parse(f"gpu:{n}x{self.generation}") for n in counts]
        if self.kind != "tpu":
            return []
        every = [parse(f"{self.generation}:{shape}") for shape in SLICES[self.generation]]
        return [each for each in every if each.num_devices > self.num_devices]


def parse(name: str) -> Topology:
    """The topology of a name. Raises UserError, in one line, for one that cannot be.

    >>> parse("v5p:2x2x2").num_devices, parse("tpu7x:2x2x1").num_devices, parse("gpu:8xH200").kind
    (8, 8, 'gpu')
    """
    generation, _, rest = name.partition(":")
    if generation == "gpu":
        return _gpu(name, rest)
    if generation == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", rest):
        return Topology(name, "cpu", "cpu", (int(rest),))
    if generation not in TPUS:
        near = get_close_matches(generation, TPUS, 1, 0.4)
        hint = f"did you mean {near[0]}:...? " if near else ""
        raise UserError(f"--topology {name!r} is unknown; {hint}expected {FORMS}")
    if rest not in SLICES[generation]:
        raise UserError(
            f"--topology {name!r}: {generation} has no slice {rest!r}; Cloud TPU offers "
            f"{', '.join(SLICES[generation])}"
        )
    return Topology(name, "tpu", generation, tuple(int(size) for size in rest.split("x")))


def _gpu(name: str, rest: str) -> Topology:
    found = re.fullmatch(r"([1-9]\d{0,2})x(\w+)", rest)
    if found is None or found[2] not in GPUS:
        raise UserError(
            f"--topology {name!r}: expected gpu:NUMBERxKIND with a kind of {', '.join(GPUS)}, as "
            "gpu:8xH200"
        )
    if int(found[1]) > 8:
        raise UserError(
            f"--topology {name!r}: the devices of one host are planned, at most 8, got {found[1]}"
        )
    return Topology(name, "gpu", found[2], (int(found[1]),))


def devices(topology: Topology) -> list[Any]:
    """Devices that programs can be compiled for, on a machine that need not have any.

    Raises UserError if the compiler is not installed or refuses the topology, and for a GPU,
    whose compiler needs one.
    """
    import jax

    if topology.kind == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.num_devices:
            raise UserError(
                f"--topology {topology.name}: this process has {len(found)} CPU device(s); set "
                f"JAX_NUM_CPU_DEVICES={topology.num_devices}"
            )
        return found[: topology.num_devices]
    if topology.kind == "gpu":
        raise UserError(f"--topology {topology.name}: GPUs are planned by arithmetic alone")
    require_compiler()
    from jax.experimental import topologies

    how: dict[str, Any] = {}
    if topology.generation == "v4":
        how["chip_config_name"] = "megacore"  # one device per chip, as on a Cloud TPU VM
    if topology.num_devices in (1, 8) and len(topology.shape) == 2:
        how["chips_per_host_bounds"] = (*topology.shape, 1)  # hosts of one chip and of eight
    try:
        with quiet_libtpu():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **how)
    except Exception as error:  # libtpu raises several types, of which some are jaxlib's own
        text = " ".join(str(error).split())[:160]
        raise UserError(
            f"--topology {topology.name}: the TPU compiler refuses it: {text}"
        ) from None
    return list(found.devices)


def require_compiler() -> None:
    """Raises UserError if the TPU compiler is not installed."""
    if compiler_version() is None:
        raise UserError(
            "the TPU compiler is not installed (it needs no TPU): pip install 'jaxdistill[tpu]'; "
            "--quick --no-compile estimates without it"
        )


def compiler_version() -> str | None:
    """The version of libtpu, None without it."""
    from importlib import metadata, util

    if util.find_spec("libtpu") is None:
        return None
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:  # a folder in PYTHONPATH without its metadata
        return "unknown"


@contextlib.contextmanager
def quiet_libtpu() -> Iterator[None]:
    """Ask no metadata server, as there is no TPU host here, and share the library's lock file."""
    wanted = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
