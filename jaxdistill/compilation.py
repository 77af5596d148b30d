"""JAX's persistent compilation cache, and a line on stderr for each program that takes long.

Nothing here imports JAX before it is called: the command line sets the cache up for verbs that may
not need JAX at all.
"""

import contextlib
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

# The variables that JAX reads when it is imported.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
IS_ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

# Programs that take longer to compile, or to read from the cache, are reported.
LONG_SECONDS = 1.0

# Programs that take longer to compile are kept. JAX's own default is a second; half of it makes
# sure that whatever was reported once is found by the next start, on a machine that is busier too.
KEPT_SECONDS = "0.5"

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"

_shapes: ContextVar[str] = ContextVar("shapes", default="")


def cache_folder() -> Path:
    """What this user's commands can make or fetch again: XDG_CACHE_HOME or ~/.cache, and a name."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdistill"


def keep_programs() -> None:
    """Keep compiled programs in the user's cache folder, for this process and those it starts.

    The folder is `jaxdistill/MACHINE` in XDG_CACHE_HOME or ~/.cache, with one MACHINE for each kind
    of CPU (`machine`). It grows without a limit and may be deleted at any time. JAX's own variables
    come first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false
    keeps nothing. Must be called before JAX is imported. A folder that cannot be written is not
    used (`not_kept`).
    """
    if FOLDER in os.environ or IS_ENABLED in os.environ:
        return
    try:
        folder = cache_folder() / machine()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or not ours to write in
        return
    if os.access(folder, os.W_OK | os.X_OK):
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault(LEAST_SECONDS, KEPT_SECONDS)


# What /proc/cpuinfo calls a CPU's kind and instructions, on x86 and on ARM.
_OF_CPU = (
    "vendor_id", "cpu family", "model", "model name", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
)  # fmt: skip


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A name for this kind of CPU, such as x86_64-1f0e5d3c9a72.

    Programs contain instructions of the CPU that they were compiled on, those for GPUs in their
    host part, and would crash on one that lacks them. JAX's own key names the CPU only as far as
    the backend describes it, so machines that share a home folder have folders of their own.
    """
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]  # of several equal processors
    except OSError:  # another system than Linux
        first = platform.processor()
    fields = [line.partition(":") for line in first.splitlines()]
    kind = [line for line in fields if line[0].strip() in _OF_CPU or not line[1]]
    digest = hashlib.sha256(repr(kind).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def not_kept() -> str | None:
    """Why this process keeps no compiled programs, in words; None if it does keep them."""
    import jax

    options = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
    is_enabled, folder = (getattr(jax.config, option) for option in options)
    if not is_enabled:
        return f"compiled programs are not kept ({IS_ENABLED} is off)"
    if not folder:
        return f"compiled programs are not kept (set {FOLDER} to a folder that can be written)"
    return None


@contextlib.contextmanager
def named(shapes: str) -> Iterator[None]:
    """Programs compiled in this context are reported with their shapes in these words."""
    token = _shapes.set(shapes)
    try:
        yield
    finally:
        _shapes.reset(token)


def _print(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above a progress bar, if one is shown


@contextlib.contextmanager
def reported(write: Callable[[str], None] = _print) -> Iterator[None]:
    """Write a line for each program that takes more than a second to compile or to read."""
    import jax

    found = threading.local()  # a thread's own: set just before the duration of the same program

    def on_event(event: str, **kwargs: str | int) -> None:
        if event == _FOUND:
            found.is_cached = True

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event != _COMPILED:
            return
        is_cached = getattr(found, "is_cached", False)
        found.is_cached = False
        if duration_secs >= LONG_SECONDS and jax.process_index() == 0:
            write(_line(str(kwargs.get("fun_name", "a program")), duration_secs, is_cached))

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)


def _line(program: str, seconds: float, is_cached: bool) -> str:
    """
    >>> _line("jit(step)", 36.2, is_cached=False)
    'compiled jit(step) in 36.2 s'
    >>> with named("4 rows of 512 tokens"):
    ...     _line("jit(step)", 1.3, is_cached=True)
    'read jit(step) from the compilation cache in 1.3 s: 4 rows of 512 tokens'
    """
    shapes = _shapes.get()
    done = f"read {program} from the compilation cache" if is_cached else f"compiled {program}"
    return f"{done} in {seconds:.1f} s{': ' if shapes else ''}{shapes}"
