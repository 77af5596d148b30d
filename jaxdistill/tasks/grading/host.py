"""How many grading processes fit on a host."""

import os
from pathlib import Path

# Between batches of responses the cores are idle, so each may grade. Beyond 32 processes their
# starts, a second of imports each, take longer than what they save. Chosen, not measured.
_MOST_WORKERS = 32
# A process with sympy and its parser takes about 150 MB.
_BYTES_PER_WORKER = 512 << 20
_SHARE_OF_MEMORY = 0.25  # of what is available: the rest is the model's host copies and the data's


def workers_of_host() -> int:
    """One process for each core that this process may use, as far as memory allows; at least 2.

    With two, one continues while the other is replaced.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    room = int(_available_bytes() * _SHARE_OF_MEMORY / _BYTES_PER_WORKER)
    return max(2, min(cores or 1, room, _MOST_WORKERS))


def _available_bytes() -> int:
    """Memory that can be taken without swapping; where the system does not say, 8 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 8 << 30
