r"""What only computer algebra can compare, such as an integral or a sum: math_verify decides.

Its True is checked once more where both sides are numbers, because it rounds to six decimals.
"""

import time

from jaxdistill.tasks.grading.normalise import normalise

# Time limit for each step of math_verify. It is below a pool's 5 s, so that a slow comparison
# usually ends here and the pool need not replace the worker.
_ALARM_S = 4
_DIGITS = 30
_SAME = 1e-12  # the relative difference of numbers that are equal

TRUE, FALSE, SLOW, UNREADABLE, UNREADABLE_GOLD = range(5)


def verify(gold: str, given: str) -> int:
    """Compare with math_verify; one of the constants above. In the main thread of a process only.

    Raises ImportError where math_verify or its parser is missing.
    """
    import math_verify
    from math_verify.errors import TimeoutException

    started = time.monotonic()
    try:
        golds, givens = (
            math_verify.parse(
                rf"\boxed{{{normalise(text)}}}",
                parsing_timeout=_ALARM_S,
                fallback_mode="no_fallback",
            )
            for text in (gold, given)
        )
        are_equal = any(
            math_verify.verify(x, y, timeout_seconds=_ALARM_S) and _are_near(x, y)
            for x in golds
            for y in givens
        )
    # TimeoutException derives from BaseException in some versions.
    except (Exception, TimeoutException):
        return SLOW if time.monotonic() - started >= _ALARM_S else UNREADABLE
    if are_equal:
        return TRUE
    if time.monotonic() - started >= _ALARM_S:
        return SLOW  # when its alarm fires inside `verify`, math_verify returns False
    if not golds:
        return UNREADABLE_GOLD
    return FALSE if givens else UNREADABLE


def _are_near(x: object, y: object) -> bool:
    """Whether two sympy numbers are equal up to rounding errors; True for what are no numbers."""
    if not (getattr(x, "is_number", False) and getattr(y, "is_number", False)):
        return True
    left, right = (complex(side.evalf(_DIGITS)) for side in (x, y))  # pyright: ignore
    return abs(left - right) <= _SAME * max(abs(left), abs(right), 1e-300)
