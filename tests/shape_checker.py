"""What checks the library's annotations under pytest, wrong shapes and dtypes included.

`conftest.py` has jaxtyping decorate every function and dataclass of the package with it.
"""

import functools

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

# The others have no shapes to check, and generating texts calls their functions so often that the
# checks took a third of a test's time (64 s instead of 43 s for tests/tasks/toy/test_traces.py).
ROOMS_WITH_ARRAYS = (
    "api",
    "axes",
    "bench",
    "config",
    "epistemic.selection",
    "evaluation",
    "losses",
    "models",
    "objectives",
    "precision",
    "run",
    "sampling",
    "sharding",
    "storage",
    "tracing",
    "training",
)

# The numeric tower of PEP 484: an int may stand where a float is written. NumPy's integers index,
# count and compare as Python's do, as its float64 is a Python float by itself.
_checked = beartype(
    conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({int: int | np.integer}))
)

LOOK_THEMSELVES = ("jaxdistill.api", "jaxdistill.tracing.answers", "jaxdistill.tracing.siblings")


def _when_called(function):
    """`function`, checked from its first call on: most are never called in a test's process.

    Writing and compiling the checks of the whole package takes seconds of each worker's start.
    """
    checked = None

    @functools.wraps(function)
    def check_first(*arguments, **keywords):
        nonlocal checked
        if checked is None:
            checked = _checked(function)
        return checked(*arguments, **keywords)

    return check_first


def check(function):
    # The notebook surface looks at its arguments itself, to tell in one line what is wrong; the
    # siblings of a trace have no arrays, and their tests stand-ins for a model.
    if function.__module__ in LOOK_THEMSELVES:
        return function
    if function.__name__ != "__init__":
        return _when_called(function)

    # Of a dataclass. Settings look at their fields themselves, to tell the user which is wrong in
    # one line; a check before theirs would take the word from them.
    checked = _when_called(function)

    @functools.wraps(function)
    def check_unless_the_class_does(self, *arguments, **fields):
        is_checked = not hasattr(self, "__post_init__")
        return (checked if is_checked else function)(self, *arguments, **fields)

    return check_unless_the_class_does
