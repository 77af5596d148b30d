"""Choose the first of several programs that fits in device memory, by the compiler's plan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxdistill import hosts, sharding

# The fraction of the device's memory limit that a program's plan may take. The rest is a reserve
# for fragmentation in the allocator and small arrays of other programs. Chosen, not measured.
MAX_PLANNED = 0.95


class FirstThatFits:
    """Calls the compiled function of the first choice whose program fits in memory.

    `build(choice)` is its jitted function, `limit` the memory in bytes. The choice is made once for
    each set of argument shapes. `choices` are ordered from the best; the last is taken if no
    earlier one fits, whether or not it does.
    """

    def __init__(self, build: Callable[[Any], Any], choices: Sequence[Any], limit: int):
        self._build, self._choices, self._limit = build, choices, limit
        self._compiled: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled_for(*arguments)[1](*arguments)

    def compiled_for(self, *arguments: Any) -> tuple[Any, Any]:
        """(choice, its compiled function) for arguments of these shapes."""
        leaves, tree = jax.tree.flatten(arguments)
        # A compiled function accepts only the shapes, dtypes and shardings that it was made for.
        key = tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        if key not in self._compiled:
            self._compiled[key] = self._first(arguments)
        return self._compiled[key]

    def _first(self, arguments: Any) -> tuple[Any, Any]:
        for choice in self._choices[:-1]:
            compiled = _compile(self._build(choice), arguments)
            fits = compiled is not None and needed_bytes(compiled) <= MAX_PLANNED * self._limit
            # Other programs on one host would wait for ever for those of the others.
            if all(hosts.all_gather(fits, "program that fits")):
                return choice, compiled
        # The last choice is run even if its plan is over the limit: the reserve may cover it, and
        # otherwise the error is the device's own.
        last = self._choices[-1]
        return last, self._build(last).lower(*arguments).compile()


def _compile(function: Any, arguments: Any) -> Any:
    """The compiled function; None if the compiler runs out of memory, as TPU compilers report."""
    try:
        return function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def needed_bytes(compiled: Any) -> int:
    """Bytes of device memory that the program needs, by the best figure of its compiler.

    A TPU's compiler gives the peak of its own allocation. The sum of the plan is up to 40 % higher,
    more than the memory for programs that the compiler accepts (docs/tpu_plans.md).
    """
    if sharding.platform() == "tpu":
        return compiled.memory_analysis().peak_memory_in_bytes
    return planned_bytes(compiled)


def planned_bytes(compiled: Any) -> int:
    """Bytes that a device holds while the program runs: arguments, temporaries and results.

    Results that reuse the memory of donated arguments are counted once, as arguments.
    """
    plan = compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + results


def memory_limit() -> int | None:
    """Bytes that may be allocated on a local device; None if it reports no limit, as CPUs do."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
