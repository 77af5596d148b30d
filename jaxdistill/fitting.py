"""The first of several programs that fits the device's memory, by the compiler's own plan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# Of the memory that the device gives out: what may be planned, the rest being lost in between.
MOST_PLANNED = 0.95


def first_that_fits(
    build: Callable[[Any], Any], choices: Sequence[Any], otherwise: Any
) -> Callable[..., Any]:
    """The jitted function `build(choice)` of the first choice that fits; `otherwise` without limit.

    The choice is made for each set of argument shapes, when they are first seen; `choices` are
    ordered from the best, and the last is taken where none fits. A function with a limit has
    `compiled_for(*arguments) -> (choice, compiled)`.
    """
    limit = memory_limit()
    if limit is None:
        return build(otherwise)
    known: dict[Any, tuple[Any, Any]] = {}

    def compiled_for(*arguments: Any) -> tuple[Any, Any]:
        key = tuple((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
        if key not in known:
            known[key] = _first(build, choices, arguments, limit)
        return known[key]

    def function(*arguments: Any) -> Any:
        return compiled_for(*arguments)[1](*arguments)

    function.compiled_for = compiled_for
    return function


def _first(build: Callable, choices: Sequence[Any], arguments: Any, limit: int) -> tuple[Any, Any]:
    for choice in choices[:-1]:
        compiled = _compiled(build(choice), arguments)
        if compiled is not None and planned_bytes(compiled) <= MOST_PLANNED * limit:
            return choice, compiled
    return choices[-1], build(choices[-1]).lower(*arguments).compile()


def _compiled(function: Any, arguments: Any) -> Any:
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
