"""Are two answers equal? Each kind of answer has its own rule; none rounds or sorts what it reads.

`equivalent` is reflexive and symmetric. What no rule finds equal is different: a policy would learn
where the grader guesses.
"""

import re
from collections.abc import Sequence as Items
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jaxdistill.tasks.grading import numbers
from jaxdistill.tasks.grading.evaluate import TOO_LARGE, letters, real_part, values_of
from jaxdistill.tasks.grading.exact import exact
from jaxdistill.tasks.grading.normalise import normalise
from jaxdistill.tasks.grading.reading import readings
from jaxdistill.tasks.grading.tokens import Node, Unreadable
from jaxdistill.tasks.grading.units import units_agree
from jaxdistill.tasks.grading.values import (
    INFINITE,
    Based,
    Joined,
    Matrix,
    Named,
    Number,
    Option,
    Piece,
    Ratio,
    Region,
    Relation,
    Sequence,
    Value,
    Without,
    Words,
)

_MOST_ITEMS = 100  # of a set, each of which may be compared with each
_BRACKETS = ("()", "[]", "[)", "(]")


def equivalent(a: str, b: str) -> bool:
    r"""Whether two answers are equal. Raises Unreadable; NeedsAlgebra for an integral or the like.

    >>> equivalent("0.5", r"\frac12"), equivalent("0.333333", r"\frac13")
    (True, False)
    """
    if normalise(a) == normalise(b):
        return True
    return any(same(x, y) for x in readings(a) for y in readings(b))


def same(a: Value, b: Value) -> bool:
    """Whether two readings are equal."""
    if a == b:
        return True
    try:
        return _same(a, b) or _same(b, a)
    except Unreadable:  # a part has no value, such as an infinity inside a sum
        return False


def _same(a: Value, b: Value) -> bool:
    match a, b:
        case Named(), Named():
            return _same_names(a, b)
        case Named(), Relation():
            return a.relation is not None and _same_relations(a.relation, b)
        case Named(), _:
            return same(a.value, b)
        case Option(), Option():
            return a.letter == b.letter and (
                None in (a.text, b.text)
                or a.text == b.text
                or _same_texts(str(a.text), str(b.text))
            )
        case Option(), _:
            return _same_option(a, b)
        case Words(), Words():
            return _same_words(a, b)
        case Words(), Number():
            return a.product is not None and b.unit is None and _same_product(a.product, b.node)
        case Number(), Number():
            # 75 m beside 75\text{ m}
            if b.unit is None and b.node[0] == "mul" and b.node[2] == ("sym", a.unit):
                return _same_nodes(a.node, b.node[1])
            approximate = a.is_approximate and b.is_approximate
            return units_agree(a.unit, b.unit) and _same_nodes(a.node, b.node, approximate)
        case Based(), Number():
            return a.base == "10" and a.digits.isdigit() and _same_nodes(read_number(a), b.node)
        case Ratio(), Ratio():
            return _same_ratios(a, b)
        case Ratio(), Number():
            # 24:1 is not 24, but 2:3 may be written as a fraction.
            is_quotient = len(a.parts) == 2 and not a.is_time and not _is_integer(b.node)
            return is_quotient and _same_nodes(("div", *a.parts), b.node)
        case Matrix(), Matrix():
            return _same_matrices(a, b)
        case Relation() as left, Relation() as right:
            return _same_relations(left, right)
        case Sequence() as left, Sequence() as right:
            return _same_sequences(left, right) or _same_regions(left, right)
        case ((Region() | Joined() | Without()), (Region() | Joined() | Without() | Sequence())):
            return _same_regions(a, b) or _same_joined(a, b)
        case Sequence(brackets="{}", items=(item,)), (Number() | Words()):
            return same(item, b)
    return False


# ------------------------------------------------------------------------------ words and options


def _same_words(a: Words, b: Words) -> bool:
    if a.text == b.text:
        return True
    # xy is a product in any order; other letters may be a word, and BAC is not CAB.
    if a.product is None or b.product is None:
        return False
    return letters(a.product) | letters(b.product) <= set("xyz") and sorted(a.text) == sorted(
        b.text
    )


def _same_product(word: Node, product: Node) -> bool:
    """Whether a product is a short word of letters, such as `cat` and `ab`.

    Letters in alphabetical order, and x, y, z, are factors, which commute. Others may be a word:
    they stand in the product as in the word, so that neither `a c t` nor `t^2 a` is one of `tat`.
    """
    factors = _factors(word)
    if factors is not None and (factors == sorted(factors) or set(factors) <= set("xyz")):
        return _same_nodes(word, product)
    return factors is not None and factors == _factors(product)


def _factors(node: Node) -> list[str] | None:
    """The letters of a product of letters as they are written; None for another expression."""
    if node[0] == "group":
        return _factors(node[1])
    if node[0] == "mul":
        left, right = _factors(node[1]), _factors(node[2])
        return None if left is None or right is None else left + right
    return [node[1]] if node[0] in ("sym", "const") else None


def _same_option(a: Option, b: Value) -> bool:
    if isinstance(b, Number) and b.node[0] == "sym":
        return a.text is None and a.letter.lower() == b.node[1]
    return a.text is not None and any(same(text, b) for text in readings(a.text))


def _same_texts(a: str | None, b: str | None) -> bool:
    if a is None or b is None or a == b:
        return True
    return any(same(x, y) for x in readings(a) for y in readings(b))


# ---------------------------------------------------------------------------------------- numbers


def read_number(value: Based) -> Node:
    return ("num", Fraction(int(value.digits)), 0, 0)


def _is_infinite(node: Node) -> bool:
    return node in (INFINITE, ("neg", INFINITE))


def _same_nodes(a: Node, b: Node, both_approximate: bool = False) -> bool:
    a, b = _bare(a), _bare(b)
    if _is_infinite(a) or _is_infinite(b):
        return a == b
    return numbers.same_value(a, b, both_approximate=both_approximate)


def _bare(node: Node) -> Node:
    if node[0] == "group":
        return _bare(node[1])
    if node[0] == "neg" and node[1][0] == "group":
        return ("neg", _bare(node[1]))
    return node


def _is_integer(node: Node) -> bool:
    value = exact(node)
    return value is not None and value.denominator == 1


def _same_ratios(a: Ratio, b: Ratio) -> bool:
    if len(a.parts) != len(b.parts):
        return False
    if a.is_time and b.is_time:
        return all(map(_same_nodes, a.parts, b.parts))
    if any(exact(part) == 0 for part in (*a.parts, *b.parts)):
        return all(map(_same_nodes, a.parts, b.parts))
    first, second = a.parts[0], b.parts[0]
    # Proportional: each part against the first, multiplied out.
    return all(
        _same_nodes(("mul", x, second), ("mul", y, first))
        for x, y in zip(a.parts[1:], b.parts[1:], strict=True)
    )


def _same_matrices(a: Matrix, b: Matrix) -> bool:
    shapes = [[len(row) for row in matrix.rows] for matrix in (a, b)]
    if shapes[0] != shapes[1]:
        return False
    return all(
        _same_nodes(x, y)
        for left, right in zip(a.rows, b.rows, strict=True)
        for x, y in zip(left, right, strict=True)
    )


# -------------------------------------------------------------------------------- lists and sets


def _same_sequences(a: Sequence, b: Sequence) -> bool:
    """Solutions of an equation have no order, and braces say so for one side of the comparison.

    Words and letters in a bare list are in an order, which braces on the other side do not undo.
    """
    kinds = {a.brackets, b.brackets}
    if not a.is_ordered or not b.is_ordered:
        if a.is_ordered != b.is_ordered and any(isinstance(x, Option | Words) for x in a.items):
            return len(a.items) == len(b.items) and all(map(same, a.items, b.items))
        return kinds <= {"", "{}"} and _same_items(a.items, b.items)
    if len(a.items) != len(b.items) or not (len(kinds) == 1 or kinds == {"", "()"}):
        return False
    if all(isinstance(item, Named) for item in (*a.items, *b.items)):
        return _same_items(a.items, b.items)  # x = 1, y = 2 in any order
    return all(map(same, a.items, b.items))


def _same_items(a: Items[Value], b: Items[Value]) -> bool:
    """Whether each item of one has its equal in the other."""
    if max(len(a), len(b)) > _MOST_ITEMS:
        return False
    return all(any(same(x, y) for y in b) for x in a) and all(any(same(x, y) for x in a) for y in b)


def _same_joined(a: Value, b: Value) -> bool:
    if isinstance(a, Without) and isinstance(b, Without):
        is_same = None in (a.letter, b.letter) or a.letter == b.letter
        return is_same and same(a.base, b.base) and _same_items(a.points, b.points)
    if not (isinstance(a, Joined) and isinstance(b, Joined)):
        return False
    return a.sign == b.sign and _same_items(a.parts, b.parts)


# ------------------------------------------------------------------------- intervals, the real line


def _same_regions(a: Value, b: Value) -> bool:
    left, right = _region(a), _region(b)
    if left is None or right is None:
        return False
    if None not in (left.letter, right.letter) and left.letter != right.letter:
        return False
    pieces, others = _merged(left.pieces), _merged(right.pieces)
    if pieces is None or others is None or len(pieces) != len(others):
        return False
    return all(
        (x.low_closed, x.high_closed) == (y.low_closed, y.high_closed)
        and _same_nodes(x.low, y.low)
        and _same_nodes(x.high, y.high)
        for x, y in zip(pieces, others, strict=True)
    )


def _region(value: Value) -> Region | None:
    """A value as a part of the real line, if it can be one."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Without):
        return _cut(value)
    if isinstance(value, Joined) and value.sign == r"\cup":
        regions = [_region(part) for part in value.parts]
        found = [region for region in regions if region is not None]
        letters = {region.letter for region in found} - {None}
        if len(found) < len(regions) or len(letters) > 1:
            return None
        pieces = tuple(piece for region in found for piece in region.pieces)
        return Region(pieces, next(iter(letters), None))
    if isinstance(value, Sequence) and value.brackets in _BRACKETS and len(value.items) == 2:
        low, high = value.items
        if isinstance(low, Number) and isinstance(high, Number):
            closed = value.brackets[0] == "[", value.brackets[1] == "]"
            return Region((Piece(low.node, closed[0], high.node, closed[1]),))
    return None


def _cut(value: Without) -> Region | None:
    """A part of the real line less single points."""
    region = _region(value.base)
    if region is None or len(value.points) > _MOST_ITEMS:
        return None
    pieces = list(region.pieces)
    for point in value.points:
        at = _position(point.node) if isinstance(point, Number) else None
        ends = [(_position(piece.low), _position(piece.high)) for piece in pieces]
        if at is None or not isinstance(point, Number) or any(None in each for each in ends):
            return None
        found: list[Piece] = []
        for piece, (low, high) in zip(pieces, ends, strict=True):
            if low <= at <= high:
                below = Piece(piece.low, piece.low_closed and low < at, point.node, False)
                above = Piece(point.node, False, piece.high, piece.high_closed and at < high)
                found += [
                    part for part, is_left in ((below, low < at), (above, at < high)) if is_left
                ]
            else:
                found.append(piece)
        pieces = found
    return Region(tuple(pieces), value.letter or region.letter)


def _merged(pieces: Items[Piece]) -> list[Piece] | None:
    """Pieces in ascending order, those that touch as one; None for one that is empty or unknown."""
    ends = [(_position(piece.low), _position(piece.high), piece) for piece in pieces]
    if any(low is None or high is None or low > high for low, high, _ in ends):
        return None
    # At the same place a closed end comes first.
    ends.sort(key=lambda end: (end[0], not end[2].low_closed))
    found: list[tuple[Any, Piece]] = []
    for low, high, piece in ends:
        if found:
            last_high, last = found[-1]
            touches = low < last_high or (
                low == last_high and (piece.low_closed or last.high_closed)
            )
            if touches:
                is_further = high > last_high or (high == last_high and piece.high_closed)
                end = piece if is_further else last
                merged = Piece(last.low, last.low_closed, end.high, end.high_closed)
                found[-1] = (max(high, last_high), merged)
                continue
        found.append((high, piece))
    return [piece for _, piece in found]


@lru_cache(maxsize=1024)
def _position(node: Node) -> Any:
    """Where a bound lies on the real line; None for what is no real number."""
    node = _bare(node)
    if _is_infinite(node):
        return float("-inf" if node[0] == "neg" else "inf")
    if letters(node):
        return None
    (value,) = values_of([node], 50)
    return None if value in (None, TOO_LARGE) or hasattr(value, "_mpc_") else value


# -------------------------------------------------------------------------------------- relations


def _same_names(a: Named, b: Named) -> bool:
    if _names_agree(a.name, b.name) and same(a.value, b.value):
        return True
    # y = 2x + 3 and 2x = y - 3 may be the same line.
    if a.relation is None or b.relation is None or _is_solved(a) or _is_solved(b):
        return False
    return _same_relations(a.relation, b.relation)


def _is_solved(value: Named) -> bool:
    """Whether it gives a number: then another name is another quantity."""
    return isinstance(value.value, Number) and not letters(value.value.node)


def _names_agree(a: str, b: str) -> bool:
    if re.sub(r"[\s{}]", "", a) == re.sub(r"[\s{}]", "", b):
        return True
    # Letters name unknowns; f(x) and y, or a word and a letter, may name the same thing.
    unknown = r"\\?[a-z]+(?:_\{?\w+\}?|\d+)?'*"
    return not (re.fullmatch(unknown, a.strip()) and re.fullmatch(unknown, b.strip()))


_TURNED = {"<": ">", r"\le": r"\ge"}


def _same_relations(a: Relation, b: Relation) -> bool:
    a, b = _ascending(a), _ascending(b)
    if a.signs != b.signs:
        return False
    if len(a.signs) > 1:
        return all(map(_same_nodes, a.sides, b.sides))
    left, right = (("add", side, ("neg", other)) for side, other in (a.sides, b.sides))
    ratio = numbers.constant_ratio(left, right)
    if ratio is None or abs(real_part(ratio)) < 1e-30:
        return False
    # An inequality must not be multiplied by a negative number.
    return a.signs in (("=",), (r"\ne",), (r"\approx",)) or real_part(ratio) > 0


def _ascending(relation: Relation) -> Relation:
    """The relation with > and >= reversed."""
    if set(relation.signs) <= {">", r"\ge"}:
        turned = {greater: less for less, greater in _TURNED.items()}
        signs = tuple(turned[sign] for sign in reversed(relation.signs))
        return Relation(signs, tuple(reversed(relation.sides)))
    return relation
