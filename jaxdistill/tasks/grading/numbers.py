r"""Are two expressions the same number, or the same function of their letters?

Constants compare exactly as fractions where they are rational, else by 60 digits; expressions with
letters by their values at a few points. Nothing is rounded to a fixed number of decimals, so that
1e-9 is not 0, and no simplification runs, which could take hours.

A decimal is exact: 0.333333 is not 1/3. There are two exceptions. Two numbers that both say that
they are approximate (a sign of approximation, dots at the end) agree to 1e-6 of their size. And a
decimal of at least seven significant decimals is taken for the value that it was cut or rounded
from.
"""

from fractions import Fraction
from typing import Any

from jaxdistill.tasks.grading.evaluate import (
    SIZES,
    TOO_LARGE,
    has_imaginary,
    letters,
    values_of,
)
from jaxdistill.tasks.grading.exact import Undefined, exact
from jaxdistill.tasks.grading.tokens import Node

_DIGITS = 60  # of the first evaluation; a second one with more tells a small number from zero
_MORE_DIGITS = 160
_MOST_DIGITS_OF_CONSTANTS = 3_000  # such as 3^{2005} times pi
_APPROXIMATELY = Fraction(1, 10**6)
_FEWEST_DIGITS = 7  # significant ones, and decimals, of a decimal that may have been cut


def same_value(a: Node, b: Node, *, both_approximate: bool = False) -> bool:
    """Whether two expressions are equal as numbers, or as functions of their letters.

    Symmetric. Raises Unreadable if one is no expression.
    """
    if a == b:
        return True
    try:
        left, right = exact(a), exact(b)
    except Undefined:
        return False
    if left is not None and right is not None:
        if left == right:
            return True
        difference = abs(left - right)
        if both_approximate and difference <= _APPROXIMATELY * max(abs(left), abs(right)):
            return True
        return _is_cut(a, b, left, right) or _is_cut(b, a, right, left)
    if letters(a) or letters(b):
        return _same_function(a, b)
    return _same_constant(a, b, both_approximate)


def is_within(a: Node, b: Node, distance: Fraction) -> bool:
    """Whether two constants differ by at most a distance."""
    x, y = values_of([a, b], _DIGITS)
    if x in (None, TOO_LARGE) or y in (None, TOO_LARGE) or has_imaginary(a) or has_imaginary(b):
        return False
    return abs(x - y) * distance.denominator <= distance.numerator * (1 + _tenth(25))


def _same_constant(a: Node, b: Node, both_approximate: bool) -> bool:
    x, y = values_of([a, b], _DIGITS, most_digits=_MOST_DIGITS_OF_CONSTANTS)
    if x in (None, TOO_LARGE) or y in (None, TOO_LARGE):
        return False
    largest, difference = max(abs(x), abs(y)), abs(x - y)
    if difference <= min(largest, 1) * _tenth(40):
        return True
    if both_approximate and difference <= largest / 10**6:
        return True
    if difference < _tenth(20):
        # Small against 1: zero but for rounding, which more digits make smaller, or not zero.
        again = values_of([a, b], _MORE_DIGITS, most_digits=_MOST_DIGITS_OF_CONSTANTS)
        if None not in again and TOO_LARGE not in again:
            return abs(again[0] - again[1]) < difference * _tenth(30)
    if hasattr(x, "_mpc_") or hasattr(y, "_mpc_"):
        return False
    return _is_cut(a, b, x, y) or _is_cut(b, a, y, x)


def _tenth(power: int) -> Any:
    from mpmath import mpf

    return mpf(10) ** -power


def _is_cut(decimal: Node, other: Node, x: Any, y: Any) -> bool:
    """Whether a long decimal of value x is the other value y, cut or rounded to its digits."""
    decimal, other = _unsigned(decimal), _unsigned(other)
    if decimal[0] != "num" or min(decimal[2:]) < _FEWEST_DIGITS:
        return False
    if other[0] == "num" and 0 < other[3] <= decimal[3]:
        return False  # a decimal of no more digits, which is another number
    missing = (y - x if x > 0 else x - y) * 10 ** decimal[3]
    return -0.5 <= missing < 1


def _unsigned(node: Node) -> Node:
    while node[0] in ("neg", "group"):
        node = node[1]
    return node


def _same_function(a: Node, b: Node) -> bool:
    """Whether two functions agree at each point where one of them is defined."""
    for is_complex in (has_imaginary(a) or has_imaginary(b), True):
        num_compared = 0
        for point in range(len(SIZES)):
            x, y = values_of([a, b], _DIGITS, point, is_complex=is_complex)
            if TOO_LARGE in (x, y) or (x is None and y is None):
                continue
            num_compared += 1
            if x is None or y is None or abs(x - y) > _tenth(25) * min(max(abs(x), abs(y)), 1):
                return False
        if num_compared:
            return True
    return False  # defined nowhere, such as a tower of powers


def constant_ratio(a: Node, b: Node) -> Any:
    """The number r with a = r b for all values of their letters; None if there is none."""
    ratios: list[Any] = []
    for is_complex in (False, True):
        for point in range(len(SIZES)):
            x, y = values_of([a, b], _DIGITS, point, is_complex=is_complex)
            if TOO_LARGE in (x, y) or (x is None and y is None):
                continue
            if x is None or y is None or x == 0 or y == 0:
                return None
            ratios.append(x / y)
            if abs(ratios[-1] - ratios[0]) > _tenth(25) * abs(ratios[0]):
                return None
        if ratios:
            return ratios[0]
    return None
