r"""What an answer is: words, an option, a number, a list, an interval, an equation, a matrix.

`readings` takes a normalised answer apart. Most answers have one reading; `100,200,300` has two, a
number and a list. `compare` decides whether two readings are equal.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from jaxdistill.tasks.grading import names
from jaxdistill.tasks.grading.evaluate import letters
from jaxdistill.tasks.grading.normalise import TEXT_COMMANDS, normalise
from jaxdistill.tasks.grading.numbers import is_within, same_value
from jaxdistill.tasks.grading.syntax import parse
from jaxdistill.tasks.grading.tokens import Node, Unreadable
from jaxdistill.tasks.grading.units import without_unit
from jaxdistill.tasks.grading.values import (
    INFINITE,
    REAL_LINE,
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

_MOST_DEPTH = 12
_LONGEST = 2_000  # of an answer that is read, in characters
_ALL_REALS = r"(?:all |the |all the )?real numbers|all reals"
_TEXT_COMMAND = re.compile(rf"\\(?:{TEXT_COMMANDS})(?![a-zA-Z])")

# ------------------------------------------------------------------------------------ readings


@lru_cache(maxsize=4096)
def readings(answer: str) -> tuple[Value, ...]:
    """Every reading of an answer as it was written. Raises Unreadable if there is none.

    >>> readings("05")[0].node[1], len(readings("100,200"))
    (Fraction(5, 1), 2)
    """
    text = normalise(answer)
    if re.fullmatch(r"[+-]?\d{1,400}", text):
        return (_number(text),)
    if len(text) > _LONGEST:
        raise Unreadable("too long")
    found: list[Value] = []
    try:
        for each in dict.fromkeys(names.with_thousands(text)):
            found += [read(side) for side in _approximated(each) or [each]]
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    if _TEXT_COMMAND.search(answer) is not None:
        found = [_as_text(value) for value in found]
    return tuple(dict.fromkeys(found))


def _approximated(text: str) -> list[str]:
    r"""Both sides of `10\sqrt{2} \approx 14.14`, if the second is the first one rounded."""
    left, sign, right = text.rpartition(r"\approx")
    decimal = re.fullmatch(r"-?\d*\.?(\d*)", without_unit(right.strip()).number)
    exact = names.split_relations(left)[0][-1]
    # A decimal on the left is no exact value: an answer of two decimals would be a hedge.
    if not sign or decimal is None or not re.search(r"[^\d.\s-]", exact):
        return []
    try:
        nodes = [parse(without_unit(side.strip()).number) for side in (exact, right)]
        if letters(nodes[0]) or letters(nodes[1]):
            return []
        is_rounded = is_within(nodes[0], nodes[1], Fraction(1, 2 * 10 ** len(decimal[1])))
    except Unreadable:
        return []
    return [left.strip(), right.strip()] if is_rounded else []


def _as_text(value: Value) -> Value:
    r"""The value with words that are no products: `\text{east}` is not `e a t s`."""
    if isinstance(value, Words):
        return replace(value, product=None)
    if isinstance(value, Sequence):
        return replace(value, items=tuple(map(_as_text, value.items)))
    return value


def read(text: str, depth: int = 0) -> Value:
    """The value of a normalised text. Raises Unreadable."""
    if not text or depth > _MOST_DEPTH:
        raise Unreadable("nothing to read")
    if (option := _option(text)) is not None:
        return option
    if (rest := names.without_label(text)) is not None:
        return read(normalise(rest), depth + 1)
    if (words := _words(text)) is not None:
        return REAL_LINE if re.fullmatch(_ALL_REALS, words.text) else words
    parts, sign = names.split_list(text)
    if len(parts) > 1:
        return _listed([read(part, depth + 1) for part in parts], sign)
    sides, signs = names.split_relations(text)
    if signs:
        return _related(sides, signs, depth)
    for sign in (r"\cup", r"\cap"):
        if len(parts := names.split_at(text, sign)) > 1:
            return Joined(sign, tuple(read(part, depth + 1) for part in parts))
    if (rest := _without(text, depth)) is not None:
        return rest
    point = re.fullmatch(r"([A-Z]'?)\s*(\(.*\))", text, re.DOTALL)
    if point is not None and isinstance(found := _bracketed(point[2], depth), Sequence):
        return Named(point[1], found)  # P(2, 3)
    if text[0] in "([{\\" and (inside := _bracketed(text, depth)) is not None:
        return inside
    return _scalar(text)


# ------------------------------------------------------------------------------------- words


def _option(text: str) -> Option | None:
    plain = names.plain(text)
    lead = r"(?i:(?:option|choice|answer)\s*:?\s*)?"
    alone = re.fullmatch(lead + r"(?:\(([A-Z])\)|([A-Z])[.):]?)", plain)
    if alone is None and re.fullmatch(r"\([a-e]\)", plain):
        return Option(plain[1].upper())
    if alone is not None:
        return Option(alone[1] or alone[2])
    with_text = re.fullmatch(lead + r"(?:\(([A-J])\)|([A-J])[.):](?=\s|\d|\\))\s*(.+)", plain)
    if with_text is None or re.match(r"(?:and|or|to|not)\b|[,(=+]", with_text[3]):
        return None
    letter = with_text[1] or with_text[2]
    # The text as it was written, with its commands for text.
    rest = re.sub(r"^.*?[.):]\s*\}?\s*", "", text, count=1, flags=re.DOTALL)
    return Option(letter, rest.strip() or None)


def _words(text: str) -> Words | None:
    """The text as words if it has no mathematics at all."""
    plain = names.plain(text)
    pieces = re.findall(r"[^\W\d_]+", plain)
    is_words = re.fullmatch(r"[^\W\d_]+(?:[\s\-'’.&,/]+[^\W\d_]+)*[.!?]?", plain)
    # One letter is an unknown; one character of Chinese is a word.
    if not is_words or all(len(piece) == 1 and not "一" <= piece <= "鿿" for piece in pieces):
        return None
    if any(piece in names.MATHEMATICAL for piece in pieces) or names.is_listed(plain):
        return None
    is_short = len(pieces) == 1 and len(plain) <= 4 and plain.isascii()
    return Words(names.folded(plain), parse(plain) if is_short else None)


def _text(text: str) -> Words:
    """Words with digits among them, such as a date. Raises Unreadable without a word."""
    plain = names.plain(text)
    if "\\" in plain or not re.search(r"[^\W\d_]{2,}|\d{1,2}(?:st|nd|rd|th)\b", plain):
        raise Unreadable("no mathematics and no words")
    return Words(names.folded(plain))


# ------------------------------------------------------------------------------------- several


def _listed(items: list[Value], sign: str) -> Value:
    """A list. Inequalities that `or` joins are one region; names of a list go with its values."""
    regions = [item for item in items if isinstance(item, Region)]
    if len(regions) == len(items) and sign == "or" and len({r.letter for r in regions}) == 1:
        pieces = tuple(piece for region in regions for piece in region.pieces)
        return Region(pieces, regions[0].letter)
    if isinstance(items[0], Named) and not any(isinstance(item, Named) for item in items[1:]):
        items[0] = items[0].value  # n = 2, 3, 4
        return Sequence(_flat(items), is_ordered=sign != "or")
    named = [item for item in items if isinstance(item, Named)]
    is_one_name = len({item.name for item in named}) == 1 and len(named) == len(items)
    if is_one_name:  # x = 2, x = 3: the solutions of one unknown
        return Sequence(_flat([item.value for item in named]), is_ordered=False)
    return Sequence(_flat(items), is_ordered=sign != "or")


def _flat(items: list[Value]) -> tuple[Value, ...]:
    """The items, both values of a plus-minus sign in its place."""
    found: list[Value] = []
    for item in items:
        if isinstance(item, Sequence) and not item.brackets and not item.is_ordered:
            found += item.items
        else:
            found.append(item)
    return tuple(found)


def _bracketed(text: str, depth: int) -> Value | None:
    """A tuple, an interval or a set; None if the brackets do not enclose the whole text."""
    if re.fullmatch(r"\\\{\s*\\\}", text):
        return Sequence((), "{}", is_ordered=False)
    inside = names.inside(text)
    if inside is None:
        return None
    brackets, inner = inside
    if brackets == "{}":
        builder = re.fullmatch(names.BUILDER, inner, re.DOTALL)
        if builder is not None:
            return read(builder[2].strip(), depth + 1)
        if text.startswith("{") and len(names.split_at(inner, ",")) == 1:
            return read(inner, depth + 1)  # braces of LaTeX
        return Sequence(_flat(_items(inner, depth)), "{}", is_ordered=False)
    if len(names.split_at(inner, ",")) + len(names.split_at(inner, ";")) > 2:
        return Sequence(tuple(_items(inner, depth)), brackets)
    # Of one element: the brackets mean nothing.
    return read(inner, depth + 1) if brackets in ("()", "[]") else None


def _items(inner: str, depth: int) -> list[Value]:
    separator = ";" if len(names.split_at(inner, ";")) > 1 else ","
    return [read(part, depth + 1) for part in names.split_at(inner, separator)]


def _without(text: str, depth: int) -> Without | None:
    """A set less a list of points in braces; None for other texts."""
    text = re.sub(r"(\\mathbb\{R\})\s*-\s*(?=\\\{)", r"\1\\setminus ", text)
    parts = names.split_at(text, r"\setminus")
    if len(parts) != 2:
        return None
    points = read(parts[1], depth + 1)
    if not isinstance(points, Sequence) or points.brackets != "{}":
        return None
    return Without(read(parts[0], depth + 1), points.items)


# ------------------------------------------------------------------------------------ relations


def _related(sides: list[str], signs: list[str], depth: int) -> Value:
    if set(signs) <= {"=", r"\approx"}:
        named = _named(sides, signs, depth)
        if named is not None:
            return named
    if signs == [r"\in"]:
        return Named(sides[0], read(sides[1], depth + 1))
    nodes = tuple(parse(without_unit(side).number) for side in sides)
    if (region := _region(nodes, signs)) is not None:
        return region
    return Relation(tuple(signs), nodes)


def _named(sides: list[str], signs: list[str], depth: int) -> Value | None:
    """The value at the end of `AB = 5` or `2 + 3 = 5`, or at the start of `5 = x`."""
    if not sides[0].strip():  # `= 5`, `\\approx 5`
        if len(sides) > 2:
            return _related(sides[1:], signs[1:], depth)
        found = read(sides[-1], depth + 1)
        is_number = isinstance(found, Number)
        return replace(found, is_approximate=r"\approx" in signs) if is_number else found
    for value, others in ((sides[-1], sides[:-1]), (sides[0], sides[1:])):
        is_name = [names.is_name(other) for other in others]
        if not any(is_name) or (names.is_name(value) and value is sides[0]):
            continue
        # The rest must be equal to the value: 2x = 10 does not name 10.
        constants = [o for o, named in zip(others, is_name, strict=True) if not named]
        name = next(o for o, named in zip(others, is_name, strict=True) if named)
        if not value.strip() or any(_differs(constant, value) for constant in constants):
            return None
        found = read(value, depth + 1)
        if isinstance(found, Number) and r"\approx" in signs:
            found = replace(found, is_approximate=True)
        return Named(names.folded(name), found, _equation(sides, signs))
    if not any(_differs(side, sides[-1]) for side in sides[:-1]):  # 2 + 3 = 5
        return read(sides[-1], depth + 1)
    return None


def _equation(sides: list[str], signs: list[str]) -> Relation | None:
    try:
        return Relation(tuple(signs), tuple(parse(side) for side in sides))
    except Unreadable:
        return None


def _differs(a: str, b: str) -> bool:
    """Whether two texts are not the same constant."""
    try:
        left, right = (parse(without_unit(text).number) for text in (a, b))
        return bool(letters(left) | letters(right)) or not same_value(left, right)
    except Unreadable:
        return True


_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _region(nodes: tuple[Node, ...], signs: list[str]) -> Region | Without | None:
    """The part of the line that an inequality of one letter with constant bounds describes."""
    at = [index for index, node in enumerate(nodes) if node[0] == "sym"]
    if len(at) != 1 or any(_has_letter(node) for i, node in enumerate(nodes) if i != at[0]):
        return None
    letter = nodes[at[0]][1]
    if len(nodes) == 2 and signs == [r"\ne"]:
        points = tuple(Number(each) for each in _both_signs(nodes[1 - at[0]]))
        return Without(REAL_LINE, points, letter)
    if not set(signs) <= set(_TURNED):
        return None
    if len(nodes) == 2:
        sign = signs[0] if at[0] == 0 else _TURNED[signs[0]]
        bound, is_closed = nodes[1 - at[0]], sign in (r"\le", r"\ge")
        if sign in ("<", r"\le"):
            return Region((Piece(("neg", INFINITE), False, bound, is_closed),), letter)
        return Region((Piece(bound, is_closed, INFINITE, False),), letter)
    if len(nodes) == 3 and at == [1]:
        low, _, high = nodes
        if all(sign in (">", r"\ge") for sign in signs):
            low, high, signs = high, low, signs[::-1]
        elif not all(sign in ("<", r"\le") for sign in signs):
            return None
        return Region((Piece(low, len(signs[0]) > 1, high, len(signs[1]) > 1),), letter)
    return None


def _has_letter(node: Node) -> bool:
    return bool(letters(node))


# ------------------------------------------------------------------------------------- scalars


def _number(text: str) -> Number:
    return Number(parse(text))


def _scalar(text: str) -> Value:
    if (based := names.based(text)) is not None:
        return Based(*based)
    if re.fullmatch(r"\d{1,2}(?::\d{2}){0,2} ?(?i:[ap]\.? ?m\.?)", names.plain(text)):
        return Words(names.folded(text).replace(".", "").replace(" ", ""))  # a time of day
    if (ratio := _ratio(text)) is not None:
        return ratio
    number, unit = without_unit(text)
    number, is_approximate = names.without_dots(number)
    if names.is_prose(number):
        return _text(text)
    try:
        node = parse(number)
    except Unreadable as error:
        if r"\text" in text:
            return _text(text)
        raise error
    if node == ("set",):
        return Sequence((), "{}", is_ordered=False)
    if node[0] == "numbers":
        if node[1] != "R":
            return Words(f"mathbb {node[1]}")
        return REAL_LINE
    if (matrix := _matrix(node)) is not None:
        return matrix
    both = list(_both_signs(node))
    if len(both) > 1:
        return Sequence(tuple(Number(each, unit) for each in both), is_ordered=False)
    return Number(node, unit, is_approximate)


def _ratio(text: str) -> Ratio | None:
    parts = names.split_at(text, ":")
    if not 2 <= len(parts) <= 6 or not all(part.strip() for part in parts):
        return None
    is_time = re.fullmatch(r"\d{1,2}\s*:\s*\d{2}(\s*:\s*\d{2})?", text) is not None
    return Ratio(tuple(parse(part) for part in parts), is_time)


def _matrix(node: Node) -> Matrix | None:
    """A matrix, or a number times a matrix."""
    kind = node[0]
    if kind == "matrix":
        return Matrix(node[1:])
    if kind == "group":
        return _matrix(node[1])
    if kind == "neg" and (inner := _matrix(node[1])) is not None:
        return Matrix(tuple(tuple(("neg", entry) for entry in row) for row in inner.rows))
    if kind == "mul" and (inner := _matrix(node[2])) is not None:
        return Matrix(tuple(tuple(("mul", node[1], e) for e in row) for row in inner.rows))
    return None


def _both_signs(node: Node) -> Iterator[Node]:
    r"""The expression with every `\pm` as plus and `\mp` as minus, then the reverse."""
    if not _has_both(node):
        yield node
        return
    for sign in (1, -1):
        yield _with_sign(node, sign)


def _has_both(node: Node) -> bool:
    return node[0] in ("pm", "mp") or any(
        _has_both(part) for part in node[1:] if isinstance(part, tuple) and part
    )


def _with_sign(node: Node, sign: int) -> Node:
    if node[0] in ("pm", "mp"):
        is_plus = (node[0] == "pm") == (sign > 0)
        right = _with_sign(node[2], sign)
        right = right if is_plus else ("neg", right)
        return right if node[1] is None else ("add", _with_sign(node[1], sign), right)
    return tuple(
        _with_sign(part, sign) if isinstance(part, tuple) and part and part[0] != node else part
        for part in node
    )
