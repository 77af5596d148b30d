"""Strict JAX for every test: eight simulated devices, no silent broadcasting of ranks.

`-m gpu` alone gets the machine's GPUs instead.
"""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook
from reference_models import reference, reference_logits  # noqa: F401
from shape_checker import ROOMS_WITH_ARRAYS

# New objects between two garbage collections, in place of Python's 700. Importing and tracing make
# millions that stay, and at each collection JAX's callback looks for garbage of its own
# (docs/log.md, 2026-12-01).
gc.set_threshold(50_000)

# Before the package is first imported. Here rather than among pytest's options, which do not reach
# the workers of pytest-xdist.
install_import_hook([f"jaxdistill.{room}" for room in ROOMS_WITH_ARRAYS], "shape_checker.check")

# A test case that takes long on a busy machine is no failure; pytest-timeout ends one that hangs.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

# Tests compile more than they compute: what speeds up the compiled program costs them more than it
# gives. Without LLVM's optimizations they take half the time; XLA's newer way to emit a fusion
# (through MLIR) takes twice as long to compile as the older one; and splitting a program in 32
# parts, to compile them in parallel, costs more than it gains when every core has its own worker.
QUICK_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# jaxlib 0.11 has the newer way alone, and an unknown flag ends the process.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")

# On a GPU most of a compilation is the autotuner, which times kernels for each product: minutes for
# the train step of a small model (docs/log.md). No test here is about speed. Names that jaxlib 0.10
# and 0.11 both know.
WITHOUT_AUTOTUNING = ["--xla_gpu_enable_triton_gemm=false", "--xla_gpu_autotune_level=0"]

# Programs are kept for the run, whose processes share a new folder: the other worker, what tests
# start, and a process that has dropped its own find them there. Writing one takes 2 ms and reading
# one spares half of its compilation or more, so of those that take 30 ms one in seven must be read
# again; of smaller ones too few are. A folder that outlived the run would let a test pass on what
# another compiler has made.
KEPT = {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.03",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
FOLDER = "JAX_COMPILATION_CACHE_DIR"

# Linux gives a process 65,530 memory mappings by default, and what is compiled beyond them crashes.
# No module adds more than a third of them.
MANY_MAPPINGS = 25_000


def pytest_configure(config):
    if config.option.markexpr == "tpu":
        # What a compiler without devices has made can be written there, and not be read again.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif FOLDER not in os.environ:  # whoever names one wants it; a worker has its parent's
        os.environ |= KEPT | {FOLDER: tempfile.mkdtemp(prefix="jaxdistill-compiled-")}
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True))
    if config.option.markexpr != "gpu":
        _simulate_devices()
    else:
        _share_gpus()
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")


def _simulate_devices():
    # Before JAX is imported, and for the processes that tests start.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_TO_COMPILE]).strip()
    # A name that is no folder is not looked for on the network.
    os.environ["HF_HUB_OFFLINE"] = "1"


def _share_gpus():
    # Flags that the user has set follow, and so win.
    flags = [*WITHOUT_AUTOTUNING, os.environ.get("XLA_FLAGS", "")]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    # The first of several processes would otherwise take three quarters of the memory.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Drop what has been compiled once it has many memory mappings; until then modules share it."""
    yield
    import jax

    mappings = Path("/proc/self/maps")  # absent where there is no such limit
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def _one_grading_process():
    """In place of one per core, for the few responses of a test: a start takes CPU seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdistill.sampling.rollouts.workers_of_host", lambda: 1)
        yield


@pytest.fixture(autouse=True)
def _no_lines_on_compilations(monkeypatch):
    """Whether a program takes over a second to compile depends on the machine: nothing is said."""
    monkeypatch.setattr("jaxdistill.compilation.LONG_SECONDS", float("inf"))


@pytest.fixture
def compilations():
    """What has been compiled since the test began, one entry each.

    Not a function's own cache size: all functions of a process share one cache, and after two
    thousand tests an entry may be gone again.
    """
    import jax

    seen = []

    def listen(event, duration, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(facts)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
