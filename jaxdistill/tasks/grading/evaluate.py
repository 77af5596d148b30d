"""The values of expressions, to as many digits as a comparison needs, by mpmath."""

import hashlib
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jaxdistill.tasks.grading.exact import Undefined, exact
from jaxdistill.tasks.grading.tokens import Node, Unreadable

_MOST_LOG2 = 10**7  # of a number's size; beyond it nothing can be computed
_LARGEST_ANGLE = 10**15
_MOST_DIGITS = 400  # of a value; the work grows with their square
# Points at which functions are compared, by the size of each letter: the first three positive in
# every letter, the others of either sign. |x - 20| and x - 20 differ at small x alone.
SIZES = ((0.3, 2.3),) * 6 + ((3, 43),) * 4 + ((100, 1300),) * 2
TOO_LARGE = "too large"  # in place of a value that has too many digits


class TooLarge(Undefined):
    """The value has too many digits, or too large an exponent."""


@lru_cache(maxsize=32)
def _context(digits: int) -> Any:
    import mpmath  # a tenth of a second, which most verdicts do not need

    context = mpmath.MPContext()
    context.dps = digits
    return context


class Evaluator:
    """Evaluates trees to a number of digits.

    values: of the letters. Without `is_complex` an even root or a logarithm of a negative number is
    undefined, so that sqrt(x^2) differs from x. `log2` is the size of the largest number on the way
    to a value, whose absolute error is that of this number.
    """

    def __init__(self, digits: int, values: dict[str, Any], is_complex: bool):
        self.mp = _context(digits)
        self._values = values
        self._is_complex = is_complex
        self.log2 = 0

    def __call__(self, node: Node) -> Any:
        value = self._value(node)
        if value != 0 and self.mp.isfinite(value):
            self.log2 = max(self.log2, int(self.mp.mag(value)))
        return value

    def _value(self, node: Node) -> Any:
        kind = node[0]
        if kind in ("num", "based", "fact", "call", "pow", "div") and (
            (value := exact(node)) is not None
        ):
            return self.mp.mpf(value.numerator) / value.denominator
        if kind == "sym":
            return self._values[node[1]]
        if kind == "const":
            return self._constant(node[1])
        if kind == "group":
            return self(node[1])
        if kind == "neg":
            return -self(node[1])
        if kind in ("add", "mul", "div", "pow"):
            return self._operation(kind, self(node[1]), node[2])
        if kind == "fact":
            return self._gamma(self(node[1]) + 1)
        if kind == "call":
            return self._call(node[1], [self(argument) for argument in node[2:]])
        raise Unreadable(f"{kind} inside an expression")

    def _constant(self, name: str) -> Any:
        if name == "infty":
            raise Unreadable("infinity inside an expression")
        return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.j}[name]

    def _operation(self, kind: str, left: Any, node: Node) -> Any:
        right = self(node)
        if kind == "add":
            return left + right
        if kind == "mul":
            return left * right
        if kind == "div":
            if right == 0:
                raise Undefined("division by zero")
            return left / right
        return self._power(left, right, exact(node))

    def _power(self, base: Any, exponent: Any, rational: Fraction | None) -> Any:
        if base == 0:
            if self.mp.re(exponent) <= 0:
                raise Undefined("a power of zero")
            return base
        if abs(exponent) * (abs(self._log2(base)) + 1) > _MOST_LOG2:
            raise TooLarge("too large")
        if rational is not None and rational.denominator == 1:
            return base ** int(rational)
        if self._is_negative(base) and not self._is_complex:
            # The real root of a negative number, as pupils read (-8)^{1/3}.
            if rational is None or rational.denominator % 2 == 0:
                raise Undefined("a power of a negative number")
            sign = -1 if rational.numerator % 2 else 1
            return sign * (-base) ** exponent
        return self.mp.power(base, exponent)

    def _log2(self, value: Any) -> int:
        return int(self.mp.mag(value))

    def _is_negative(self, value: Any) -> bool:
        return not isinstance(value, self.mp.mpc) and value < 0

    def _gamma(self, value: Any) -> Any:
        if abs(value) > 10**6:
            raise TooLarge("too large")
        return self.mp.gamma(value)

    def _call(self, name: str, arguments: list[Any]) -> Any:
        function = getattr(self, f"_{name}", None)
        if function is not None:
            return function(*arguments)
        if len(arguments) != 1:
            raise Unreadable(f"{name} of {len(arguments)} arguments")
        (value,) = arguments
        plain = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ceil": "ceil"}
        known = "sin cos tan cot sec csc sinh cosh tanh exp floor ceil arcsin arccos arctan arg"
        if name in ("Re", "Im"):
            return getattr(self.mp, name.lower())(value)
        if name not in known.split():
            raise Unreadable(f"unknown function {name}")
        if abs(value) > (10**6 if name in ("exp", "sinh", "cosh") else _LARGEST_ANGLE):
            raise TooLarge("too large")
        if name in ("arcsin", "arccos") and abs(value) > 1 and not self._is_complex:
            raise Undefined("outside its domain")
        return getattr(self.mp, plain.get(name, name))(value)

    def _abs(self, value: Any) -> Any:
        return abs(value)

    def _degrees(self, value: Any) -> Any:
        return value * self.mp.pi / 180

    def _root(self, value: Any, degree: Any) -> Any:
        if degree != int(self.mp.re(degree)) or not 2 <= degree <= 1_000:
            return self._power(value, 1 / degree, None)
        degree = int(degree)
        if self._is_negative(value) and degree % 2:
            return -self.mp.root(-value, degree)
        if self._is_negative(value) and not self._is_complex:
            raise Undefined("an even root of a negative number")
        return self.mp.root(value, degree)

    def _ln(self, value: Any) -> Any:
        if value == 0 or (self._is_negative(value) and not self._is_complex):
            raise Undefined("a logarithm of no positive number")
        return self.mp.ln(value)

    def _log(self, value: Any, base: Any = 10) -> Any:
        below = self._ln(self.mp.mpf(base) if isinstance(base, int) else base)
        if below == 0:
            raise Undefined("a logarithm to base 1")
        return self._ln(value) / below

    def _binom(self, n: Any, k: Any) -> Any:
        return self._gamma(n + 1) / (self._gamma(k + 1) * self._gamma(n - k + 1))

    def _max(self, *values: Any) -> Any:
        return max(values)

    def _min(self, *values: Any) -> Any:
        return min(values)


def letters(node: Node) -> set[str]:
    """The names of the letters in a tree."""
    if node[0] == "sym":
        return {node[1]}
    inner = [part for part in node[1:] if isinstance(part, tuple)]
    return set().union(*map(letters, inner)) if inner else set()


def has_imaginary(node: Node) -> bool:
    """Whether the imaginary unit stands in a tree."""
    return node == ("const", "i") or any(
        has_imaginary(part) for part in node[1:] if isinstance(part, tuple)
    )


def values_of(
    nodes: list[Node],
    digits: int,
    point: int = 0,
    *,
    is_complex: bool = True,
    most_digits: int = _MOST_DIGITS,
) -> list[Any]:
    """The values of trees at one point, the same for each letter in all of them.

    digits: of the values' absolute error, 10^-digits, if they are above 1; large values are
    computed with more digits, so that 100! + x differs from 100! + y.

    None for a tree that is undefined there, TOO_LARGE for one of more than `most_digits`. Raises
    Unreadable for what is no expression.
    """
    needed, used = digits, 0
    found: list[Any] = []
    while needed > used:
        used = needed if needed == digits else -(-needed // 100) * 100
        found, log2 = _values(nodes, used, point, is_complex)
        needed = digits + int(0.302 * log2) + 1 if log2 > 30 else digits
        if needed > max(most_digits, digits):
            return [TOO_LARGE] * len(nodes)
    return found


def _values(nodes: list[Node], digits: int, point: int, is_complex: bool) -> tuple[list[Any], int]:
    """The values with a fixed number of digits, and the size of the largest number on the way."""
    names = set().union(*map(letters, nodes))
    context = _context(digits)
    letter_values = {name: context.mpf(_coordinate(name, point)) / 10**9 for name in names}
    evaluate = Evaluator(digits, letter_values, is_complex)
    found: list[Any] = []
    for node in nodes:
        try:
            value = evaluate(node)
            found.append(value if context.isfinite(value) else None)
        except TooLarge:
            found.append(TOO_LARGE)
        except (Undefined, ArithmeticError, ValueError, TypeError):
            found.append(None)
    return found, evaluate.log2


def _coordinate(name: str, point: int) -> int:
    """The value of a letter at a point, in billionths: from a hash, so always the same."""
    digest = hashlib.blake2b(f"{point}/{name}".encode(errors="replace"), digest_size=8).digest()
    value = int.from_bytes(digest, "big")
    low, high = (int(size * 10**9) for size in SIZES[point])
    magnitude = low + value % (high - low)
    return -magnitude if point >= 3 and value >> 40 & 1 else magnitude


def real_part(value: Any) -> Any:
    return _context(30).re(value)
