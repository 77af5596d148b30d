r"""Are two expressions the same number, or the same function of their letters?

Constants compare exactly as fractions where they are rational, else by 60 digits; expressions with
letters by their values at a few points. Nothing is rounded to a fixed number of decimals, so that
1e-9 is not 0, and no simplification runs, which could take hours.

A decimal is exact: 0.333333 is not 1/3. There are two exceptions. Two numbers that both say that
they are approximate (a sign of approximation, dots at the end) agree to 1e-6 of their size. And a
decimal of at least seven significant decimals is taken for the value that it was cut or rounded
from.
"""

import hashlib
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jaxdistill.tasks.grading.exact import Undefined, exact
from jaxdistill.tasks.grading.tokens import Node, Unreadable

_DIGITS = 60  # of the first evaluation; a second one with more tells a small number from zero
_MORE_DIGITS = 160
_SAME = -40  # power of ten: the relative difference of values that are the same
_MOST_LOG2 = 10**7  # of a number's size; beyond it nothing can be computed
_LARGEST_ANGLE = 10**15
_APPROXIMATELY = Fraction(1, 10**6)
_FEWEST_DIGITS = 7  # significant ones, and decimals, of a decimal that may have been cut
# Points at which functions are compared, by the size of each letter: the first three positive in
# every letter, the others of either sign. |x - 20| and x - 20 differ at small x alone.
_SIZES = ((0.3, 2.3),) * 6 + ((3, 43),) * 4 + ((100, 1300),) * 2


# ------------------------------------------------------------------------------ approximately


@lru_cache(maxsize=4)
def _context(digits: int) -> Any:
    import mpmath  # a tenth of a second, which most verdicts do not need

    context = mpmath.MPContext()
    context.dps = digits
    return context


class Evaluator:
    """Evaluates trees to a number of digits.

    values: of the letters. Without `is_complex` an even root or a logarithm of a negative number is
    undefined, so that sqrt(x^2) differs from x.
    """

    def __init__(self, digits: int, values: dict[str, Any], is_complex: bool):
        self.mp = _context(digits)
        self._values = values
        self._is_complex = is_complex

    def __call__(self, node: Node) -> Any:
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
            raise Undefined("too large")
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
            raise Undefined("too large")
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
            raise Undefined("too large")
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


def _has_imaginary(node: Node) -> bool:
    return node == ("const", "i") or any(
        _has_imaginary(part) for part in node[1:] if isinstance(part, tuple)
    )


def values_of(
    nodes: list[Node], digits: int, point: int = 0, *, is_complex: bool = True
) -> list[Any]:
    """The values of trees at one point, the same for each letter in all of them.

    None for a tree that is undefined there. Raises Unreadable for what is no expression.
    """
    names = set().union(*map(letters, nodes))
    context = _context(digits)
    letter_values = {name: context.mpf(_coordinate(name, point)) / 10**9 for name in names}
    evaluate = Evaluator(digits, letter_values, is_complex)
    found: list[Any] = []
    for node in nodes:
        try:
            value = evaluate(node)
            found.append(value if context.isfinite(value) else None)
        except (Undefined, ArithmeticError, ValueError, TypeError):
            found.append(None)
    return found


def _coordinate(name: str, point: int) -> int:
    """The value of a letter at a point, in billionths: from a hash, so always the same."""
    digest = hashlib.blake2b(f"{point}/{name}".encode(errors="replace"), digest_size=8).digest()
    value = int.from_bytes(digest, "big")
    low, high = (int(size * 10**9) for size in _SIZES[point])
    magnitude = low + value % (high - low)
    return -magnitude if point >= 3 and value >> 40 & 1 else magnitude


# ---------------------------------------------------------------------------------- comparison


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


def _same_constant(a: Node, b: Node, both_approximate: bool) -> bool:
    x, y = values_of([a, b], _DIGITS)
    if x is None or y is None:
        return False
    mp = _context(_DIGITS)
    largest, difference = max(abs(x), abs(y)), abs(x - y)
    if difference <= largest * mp.mpf(10) ** _SAME:
        return True
    if both_approximate and difference <= largest / 10**6:
        return True
    if difference < mp.mpf(10) ** (_SAME // 2):
        # Small against 1: zero but for rounding, which more digits make smaller, or not zero.
        again = values_of([a, b], _MORE_DIGITS)
        if None not in again:
            return abs(again[0] - again[1]) < difference * mp.mpf(10) ** (-_DIGITS // 2)
    if isinstance(x, mp.mpc) or isinstance(y, mp.mpc):
        return False
    return _is_cut(a, b, x, y) or _is_cut(b, a, y, x)


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
    tolerance = _context(_DIGITS).mpf(10) ** (_SAME // 2)
    for is_complex in (_has_imaginary(a) or _has_imaginary(b), True):
        num_compared = 0
        for point in range(len(_SIZES)):
            x, y = values_of([a, b], _DIGITS, point, is_complex=is_complex)
            if x is None and y is None:
                continue
            num_compared += 1
            if x is None or y is None or abs(x - y) > tolerance * max(abs(x), abs(y)):
                return False
        if num_compared:
            return True
    return False  # defined nowhere, such as a tower of powers


def constant_ratio(a: Node, b: Node) -> Any:
    """The number r with a = r b for all values of their letters; None if there is none."""
    ratios = []
    for is_complex in (False, True):
        for point in range(len(_SIZES)):
            x, y = values_of([a, b], _DIGITS, point, is_complex=is_complex)
            if (x is None) != (y is None):
                return None
            if x is not None and y is not None:
                if x == 0 or y == 0:
                    return None
                ratios.append(x / y)
        if ratios:
            break
    if not ratios:
        return None
    tolerance = _context(_DIGITS).mpf(10) ** (_SAME // 2)
    is_constant = all(abs(r - ratios[0]) <= tolerance * abs(ratios[0]) for r in ratios)
    return ratios[0] if is_constant else None


def real_part(value: Any) -> Any:
    return _context(_DIGITS).re(value)
