"""Rational constants as fractions: integers of any size, powers, factorials, roots of squares."""

import math
from collections.abc import Callable
from fractions import Fraction

from jaxdistill.tasks.grading.tokens import Node, Unreadable

_MOST_BITS = 150_000  # of an exact number, about 45,000 digits


class Undefined(Exception):
    """The expression has no real value here, or one that is too large to compute."""


def exact(node: Node) -> Fraction | None:
    r"""The value of a rational constant, None for any other expression.

    >>> from jaxdistill.tasks.grading.syntax import parse
    >>> exact(parse(r"\frac{6!}{2^3}")), exact(parse(r"\sqrt{2}"))
    (Fraction(90, 1), None)
    """
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "group":
        return exact(node[1])
    if kind == "neg":
        value = exact(node[1])
        return None if value is None else -value
    if kind == "based":
        return _based(node)
    if kind in ("add", "mul", "div", "pow"):
        left, right = exact(node[1]), exact(node[2])
        return None if left is None or right is None else _combined(kind, left, right)
    if kind == "fact":
        value = exact(node[1])
        if value is None or value.denominator != 1 or not 0 <= value <= 5_000:
            return None
        return Fraction(math.factorial(int(value)))
    if kind == "call" and node[1] in _EXACT:
        values = [exact(argument) for argument in node[2:]]
        known = [value for value in values if value is not None]
        return _EXACT[node[1]](*known) if len(known) == len(values) else None
    return None


def _combined(kind: str, left: Fraction, right: Fraction) -> Fraction | None:
    if _bits(left) + _bits(right) > _MOST_BITS:
        return None
    if kind == "add":
        return left + right
    if kind == "mul":
        return left * right
    if kind == "div":
        if right == 0:
            raise Undefined("division by zero")
        return left / right
    if right.denominator != 1 or (left == 0 and right <= 0):
        return None
    if abs(right) * _bits(left) > _MOST_BITS and abs(left) != 1:
        return None
    return left ** int(right) if abs(left) != 1 else left ** int(right % 2)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _based(node: Node) -> Fraction | None:
    """The value of digits in a base, such as 52_8."""
    digits, base = node[1], node[2]
    if not (str(base).isdigit() and 2 <= int(base) <= 36 and digits[1].denominator == 1):
        raise Unreadable("a subscript of a number")
    try:
        return Fraction(int(str(digits[1]), int(base)))
    except ValueError as error:  # a digit that the base does not have
        raise Unreadable("a digit beyond its base") from error


def _exact_root(value: Fraction, degree: Fraction) -> Fraction | None:
    if degree.denominator != 1 or not 2 <= degree <= 64 or value < 0 or _bits(value) > 2_000:
        return None
    above, below = (_integer_root(n, int(degree)) for n in (value.numerator, value.denominator))
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low if low**degree == value else None


def _exact_binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= n <= 5_000 or k < 0:
        return None
    return Fraction(math.comb(int(n), int(k)))


def _of_integers(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def apply(*values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(function(*map(int, values)))

    return apply


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "root": _exact_root,
    "binom": _exact_binomial,
    "abs": lambda value: abs(value),
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": _of_integers(math.gcd),
    "lcm": _of_integers(math.lcm),
}
