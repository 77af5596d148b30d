"""The first of several programs that fits the device's memory, by the compiler's own plan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# Share of the memory that the device gives out which a program's plan may take. The rest covers the
# allocator's fragmentation and small arrays of other programs. Chosen, not measured.
MOST_PLANNED = 0.95


class FirstThatFits:
    """The jitted function `build(choice)` of the first choice that fits the memory.

    Chosen when a set of argument shapes is first seen, and kept for it. `choices` are ordered from
    the best; the last is taken where none fits.
    """

    def __init__(self, build: Callable[[Any], Any], choices: Sequence[Any], limit: int):
        self._build, self._choices, self._limit = build, choices, limit
        self._compiled: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled_for(*arguments)[1](*arguments)

    def compiled_for(self, *arguments: Any) -> tuple[Any, Any]:
        """(choice, its compiled function)."""
        leaves, tree = jax.tree.flatten(arguments)
        key = tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        if key not in self._compiled:
            self._compiled[key] = self._first(arguments)
        return self._compiled[key]

    def _first(self, arguments: Any) -> tuple[Any, Any]:
        for choice in self._choices[:-1]:
            compiled = _compile(self._build(choice), arguments)
            if compiled is not None and planned_bytes(compiled) <= MOST_PLANNED * self._limit:
                return choice, compiled
        last = self._choices[-1]
        return last, self._build(last).lower(*arguments).compile()


def _compile(function: Any, arguments: Any) -> Any:
    """The compiled function; None where the compiler itself finds no room, as TPUs' does."""
    try:
        return function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def planned_bytes(compiled: Any) -> int:
    """What a device holds while the program runs: arguments, temporaries, and further results."""
    plan = compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + results


def memory_limit() -> int | None:
    """Bytes that a device of ours gives out; None where it does not say, as CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
