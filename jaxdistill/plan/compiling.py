"""The compiler's answer on a program, kept on disk: a step takes minutes, and asks no device.

An answer belongs to the program's text, the compiler's version, the topology and the options. A
file that cannot be read, or is that of another program, is made again.
"""

import hashlib
import json
import os
import re
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdistill import sharding
from jaxdistill.files import write_whole
from jaxdistill.plan import hlo
from jaxdistill.plan.programs import Program
from jaxdistill.plan.topologies import Topology, compiler_version, quiet_libtpu
from jaxdistill.training.memory import planned_bytes

# Belongs to the key: what is kept, and how it is read off the program, has changed with the number.
FORMAT = 2
# The option of least effort that still plans memory: with jax 0.10 a step of 1.7B takes 1.6 CPU
# minutes instead of 3.6. JAX 0.11 has levels in place of that number, and refuses it.
HAS_LEVELS = tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 11)
QUICK = {"optimization_level": "O1"} if HAS_LEVELS else {"exec_time_optimization_effort": -1.0}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the compiler says of a program; bytes per device.

    peak: of arguments and temporaries together; 0 if the program was refused. refused: the
    compiler's error for a program that does not fit, else None. available: the memory that it names
    in such an error.
    """

    program: str
    key: str
    seconds: float
    peak: int = 0
    arguments: int = 0
    temporary: int = 0
    planned: int = 0
    refused: str | None = None
    available: float | None = None
    collectives: tuple[hlo.Collective, ...] = ()


def cache_folder() -> Path:
    """`jaxdistill/plans` in XDG_CACHE_HOME or ~/.cache; it may be deleted at any time."""
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "jaxdistill" / "plans"


def key_of(text: str, topology: Topology, options: dict[str, Any]) -> str:
    parts = [FORMAT, jax.__version__, compiler_version(), topology.name, sorted(options.items())]
    return hashlib.sha256(json.dumps([*parts, text]).encode()).hexdigest()[:32]


def compiled(
    program: Program,
    mesh: Any,
    topology: Topology,
    *,
    quick: bool = False,
    folder: Path | None = None,
) -> Answer:
    """Lower and compile a program, or read what the compiler said before."""
    options = dict(QUICK) if quick and topology.kind == "tpu" else {}
    folder = folder or cache_folder()
    with sharding.use_mesh(mesh), quiet_libtpu():
        lowered = program.lower()
        key = key_of(lowered.as_text(), topology, options)
        if (kept := _read(folder / f"{key}.json", key)) is not None:
            return kept
        answer = _ask(program.name, lowered, key, options)
    _keep(folder / f"{key}.json", answer)
    return answer


def _ask(name: str, lowered: Any, key: str, options: dict[str, Any]) -> Answer:
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            # JAX keeps what a compiler without devices made, and cannot read it again.
            unreadable = "Error reading persistent compilation cache entry"
            warnings.filterwarnings("ignore", message=unreadable)
            executable = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        return Answer(
            program=name,
            key=key,
            seconds=time.monotonic() - began,
            refused=text[:400],
            available=available_in(text),
        )
    memory = executable.memory_analysis()
    return Answer(
        program=name,
        key=key,
        seconds=time.monotonic() - began,
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        planned=planned_bytes(executable),
        collectives=tuple(hlo.collectives(executable.as_text())),
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def available_in(text: str) -> float | None:
    """The device's memory, in bytes, in the compiler's report that a program needs more.

    >>> available_in("(240.00G) exceeds available HBM (95.74G)") / 2**30
    95.74
    >>> available_in("Ran out of memory in memory space hbm. Used 215.17G of 31.25G hbm") / 2**30
    31.25
    """
    found = re.search(r"available HBM \(([\d.]+)([KMG]?)\)|of ([\d.]+)([KMG]?) hbm", text)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * _UNITS[unit]


def _read(file: Path, key: str) -> Answer | None:
    """A kept answer; None if there is none or the file is damaged."""
    try:
        fields = json.loads(file.read_text())
        if fields["key"] != key:
            return None
        rows = [(kind, size, tuple(trips)) for kind, size, trips in fields.pop("collectives")]
        answer = Answer(**fields, collectives=tuple(hlo.Collective(*row) for row in rows))
        # A refused program has no peak, and any other has one.
        return answer if (answer.peak > 0) != bool(answer.refused) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _keep(file: Path, answer: Answer) -> None:
    """Keep an answer, unless the folder cannot be written: the next plan then asks again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(answer)))
    except OSError:
        pass


def asked_memory(mesh: Any, topology: Topology, folder: Path | None = None) -> float:
    """Bytes per device that the compiler names as available, from a program that cannot fit."""
    import jax.numpy as jnp

    # The largest device has less than 120 GiB.
    huge = jax.ShapeDtypeStruct((30 * 2**30,), jnp.float32, sharding=sharding.replicated(mesh))
    program = Program("memory", jax.jit(jnp.sin), (huge,), 0)
    answer = compiled(program, mesh, topology, quick=True, folder=folder)
    return answer.available or topology.memory
