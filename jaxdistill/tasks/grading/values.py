"""The kinds of answers: words, an option, a number, a list, an interval, an equation, a matrix."""

from dataclasses import dataclass

from jaxdistill.tasks.grading.tokens import Node

INFINITE: Node = ("const", "infty")


@dataclass(frozen=True)
class Words:
    """Text that is compared as a text, in whatever case."""

    text: str
    product: Node | None = None  # of letters, where a word of few letters may be one


@dataclass(frozen=True)
class Option:
    """The letter of an option, perhaps with the option's text."""

    letter: str
    text: str | None = None


@dataclass(frozen=True)
class Number:
    """A number or an expression, with the unit beside it."""

    node: Node
    unit: str | None = None
    is_approximate: bool = False


@dataclass(frozen=True)
class Sequence:
    """Several answers: a list (brackets ""), a tuple, an interval of two ends, or a set ("{}").

    is_ordered: False for a set, for what `or` joins, and for the two values of a plus-minus sign.
    """

    items: "tuple[Value, ...]"
    brackets: str = ""
    is_ordered: bool = True


@dataclass(frozen=True)
class Piece:
    """One interval of the real line."""

    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """A part of the real line, as inequalities of one letter describe it."""

    pieces: tuple[Piece, ...]
    letter: str | None = None


REAL_LINE = Region((Piece(("neg", INFINITE), False, INFINITE, False),))


@dataclass(frozen=True)
class Joined:
    """Sets with a sign between them, `\\cup` or `\\cap`, whose order does not matter."""

    sign: str
    parts: "tuple[Value, ...]"


@dataclass(frozen=True)
class Without:
    r"""A set without single points: `\mathbb{R} \setminus \{0\}`."""

    base: "Value"
    points: "tuple[Value, ...]"
    letter: str | None = None


@dataclass(frozen=True)
class Named:
    """A value with the name of what it is the value of: `x = 5`, `\\angle ABC = 60^\\circ`."""

    name: str
    value: "Value"
    relation: "Relation | None" = None  # the same as an equation, where both sides can be parsed


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that is not solved for one letter."""

    signs: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True)
class Based:
    """Digits in a base that is written with them."""

    digits: str
    base: str


@dataclass(frozen=True)
class Ratio:
    """Parts with colons between them."""

    parts: tuple[Node, ...]
    is_time: bool


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


Value = (
    Words
    | Option
    | Number
    | Sequence
    | Region
    | Joined
    | Without
    | Named
    | Relation
    | Based
    | Ratio
    | Matrix
)
