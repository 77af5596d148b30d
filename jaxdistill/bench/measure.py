"""Time, memory, and the device's own rates, which are measured in the same run for comparison."""

import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.run.provenance import current_provenance
from jaxdistill.training.memory import planned_bytes


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call; `run` must block until its result is ready."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def median_and_spread(seconds: list[float], name: str = "seconds") -> dict[str, Any]:
    return {name: statistics.median(seconds), f"{name}_spread": [min(seconds), max(seconds)]}


def copy_bytes_per_second() -> float:
    """Bytes per second, read and written, of a device copy of an array that exceeds its caches."""
    # 4 GiB are far beyond a GPU's cache, 64 MiB beyond most CPUs'.
    size, copies = (2**26 if jax.default_backend() == "cpu" else 2**32), 8
    x = jax.random.bits(jax.random.key(0), (size // 4,))

    def run() -> None:
        y = x
        # Several copies per wait, so that the host's synchronisation adds little.
        for _ in range(copies):
            y = jnp.copy(y)
        y.block_until_ready()

    run()
    return 2 * size * copies / statistics.median(timed(run) for _ in range(5))


def matmul_flops_per_second(dtype: Any) -> float:
    """Operations per second of one device in a large product, 8192^3, of random numbers.

    Zeros would draw less power and so run faster.
    """
    # 8192^3 fills a large GPU; 256^3 ends at once on a CPU. 16 products per wait hide the launches.
    size, products = (256 if jax.default_backend() == "cpu" else 8192), 16
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (size, size), dtype) for key in keys)
    product = jax.jit(jnp.matmul)

    def run() -> None:
        z = x
        for _ in range(products):
            z = product(x, y)
        z.block_until_ready()

    run()
    return 2 * size**3 * products / statistics.median(timed(run) for _ in range(5))


def compare_with_matmul(flops: float, seconds: float, dtype: Any, devices: int) -> dict[str, float]:
    """Operations per second of the work, of the devices' matrix products, and the ratio of both."""
    rate, ceiling = flops / seconds, matmul_flops_per_second(dtype) * devices
    return {
        "model_flops": flops,
        "model_flops_per_second": rate,
        "matmul_flops_per_second": ceiling,
        "share_of_matmul": rate / ceiling,
    }


def compare_with_copy(moved: float, seconds: float, devices: int) -> dict[str, float]:
    """Bytes per second that the work moved, those of the devices' copies, and the ratio of both."""
    rate, ceiling = moved / seconds, copy_bytes_per_second() * devices
    return {
        "step_bytes": moved,
        "bytes_per_second": rate,
        "copy_bytes_per_second": ceiling,
        "share_of_copy": rate / ceiling,
    }


def memory(compiled: Any) -> dict[str, int]:
    """Bytes per device: the compiler's plan, and the measured peak where the device records one."""
    plan = compiled.memory_analysis()
    found = {
        "arguments": plan.argument_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
        "planned": planned_bytes(compiled),
    }
    # The peak is that of the whole process so far, not of this program alone.
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["peak"] = stats["peak_bytes_in_use"]
    return found


def profile(run: Callable[[], Any], kernels: int) -> dict[str, Any]:
    """The `kernels` kernels that take most of the first device's time in one call, in seconds.

    `collectives` has the seconds of those that exchange data between devices, and the part of them
    during which another kernel ran. Empty on a CPU, where the profiler does not list operations
    separately.
    """
    if not kernels or jax.default_backend() == "cpu":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        device = next(plane for plane in planes if re.match(r"/device:\w+:0", plane.name))
        # A TPU's kernels are in one line of the profile, a GPU's in one line per stream.
        is_kernels = lambda line: line.name == "XLA Ops" or line.name.startswith("Stream")  # noqa: E731
        events = [
            Event(event.name, event.start_ns / 1e9, event.duration_ns / 1e9)
            for line in device.lines
            if is_kernels(line)
            for event in line.events
        ]
    return {"profile": summed(events, kernels)}


class Event(NamedTuple):
    """One call of a kernel; `start` and `seconds` in seconds."""

    name: str
    start: float
    seconds: float


# Names of NCCL's kernels and of XLA's operations on a TPU.
_COLLECTIVE = re.compile(
    "nccl|all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute", re.IGNORECASE
)


def summed(events: list[Event], kernels: int) -> dict[str, Any]:
    """The longest `kernels` kernels of one device, and what its collectives take, in seconds."""
    calls = Counter(event.name for event in events)
    seconds = dict.fromkeys(calls, 0.0)
    for event in events:
        seconds[event.name] += event.seconds
    longest = [
        {"name": name, "calls": calls[name], "seconds": seconds[name]}
        for name in sorted(seconds, key=lambda name: -seconds[name])[:kernels]
    ]
    exchanges, others = [], []
    for event in events:
        (exchanges if _COLLECTIVE.search(event.name) else others).append(event)
    whole, apart = (_covered(exchanges), _covered(others))
    # Covered by both = the sum of what each covers, less what they cover together.
    hidden = whole + apart - _covered(events)
    return {
        "busy_seconds": sum(seconds.values()),
        "collectives": {"seconds": whole, "hidden_seconds": hidden},
        "kernels": longest,
    }


def _covered(events: list[Event]) -> float:
    """Seconds during which at least one of the events ran."""
    covered, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        stop = event.start + event.seconds
        covered += max(0.0, stop - max(event.start, end))
        end = max(end, stop)
    return covered


def environment() -> dict[str, Any]:
    """Device, host, versions and commit, without which a figure cannot be reproduced."""
    ours = current_provenance()
    packages = {name: ours["packages"][name] for name in ("jaxdistill", "jax", "jaxlib", "numpy")}
    return {
        "device": ours["devices"]["kind"],
        "devices": ours["devices"]["count"],
        "cpus": os.cpu_count(),
        **packages,
        "python": ours["python"],
        "git": ours["git"],
    }
