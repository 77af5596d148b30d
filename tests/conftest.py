"""Strict JAX for every test: eight simulated devices, no silent broadcasting of ranks.

`-m gpu` alone gets the machine's GPUs instead.
"""

import os

import pytest
from reference_models import reference, reference_logits  # noqa: F401


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        _simulate_devices()
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")


def _simulate_devices():
    # Before JAX is imported, and for the processes that tests start.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests compile more than they compute: without LLVM's optimizations they take half the time.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = flags.strip()
    # A name that is no folder is not looked for on the network.
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Drop what a module compiled.

    The programs of some two thousand tests are more than the 65,530 memory mappings that Linux
    gives a process by default; what is compiled then crashes.
    """
    yield
    import jax

    jax.clear_caches()


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
