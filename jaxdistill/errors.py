"""The exceptions that are not bugs: a user's mistake, a run that stopped itself, a full memory.

Also the checks of numbers in settings, which raise the first. Nothing here imports JAX.
"""

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """A mistake in a config, file, folder or prompt; its message is one line for the user.

    The command line prints this line and exits with 2. Any other exception is a bug (exit 1).
    """


class OneRun(UserError):
    """A recipe of a single run where a study was expected."""


class RunStopped(RuntimeError):
    """A run that stopped itself because going on would not help; its message is one line.

    The command line prints this line and exits with 3. The last checkpoint stands.
    """


# The largest float32: settings are used in float32, in which a larger number is infinite.
FLOAT32_MAX = 3.4028234e38


def require_number(
    name: str,
    value: Any,
    low: float,
    high: float = FLOAT32_MAX,
    *,
    expected: str,
    whole: bool = False,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise UserError unless `value` is a number between `low` and `high`.

    `whole` asks for an integer. `open_low` and `open_high` exclude the bound itself. `name` is the
    setting, `expected` the range in words. NaN lies in no range; True and "1" are no numbers.
    """
    kind: Any = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    excluded = [bound for bound, is_open in ((low, open_low), (high, open_high)) if is_open]
    if not is_number or not low <= value <= high or value in excluded:
        raise UserError(f"{name}={value!r:.80}: expected a value {expected}")


@contextlib.contextmanager
def out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """Turn a device's or compiler's report of too little memory into one line with `advice`."""
    try:
        yield
    # JAX has no exception type for this; every backend reports it with this status.
    except RuntimeError as error:
        text, status = " ".join(str(error).split()), "RESOURCE_EXHAUSTED"
        if status not in text:
            raise
        reported = text.partition(status)[2]
        raise UserError(
            f"out of device memory while {doing} ({reported.lstrip(': ')[:120]}); {advice}"
        ) from error
