"""The tokens of a mathematical expression: numbers, letters, commands and marks."""

import re
from fractions import Fraction
from typing import Any, NamedTuple

Node = tuple[Any, ...]


class Unreadable(Exception):
    """The text is no mathematics that this grammar knows."""


class NeedsAlgebra(Unreadable):
    """The text has an integral, a sum or the like, which math_verify may know."""


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOST_TOKENS = 500
_MOST_DIGITS = 500  # of a numeral
_MOST_EXPONENT = 400  # of a number in scientific notation

GREEK = word_set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma "
    "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell "
    "hbar"
)
FUNCTIONS = word_set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp max min "
    "gcd lcm arg Re Im"
)
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc", "tg": "tan"}
_WORDS = {  # of plain text, as a programmer writes mathematics
    **{name: ("cmd", name) for name in (*FUNCTIONS, "sqrt", "pi", "theta", "alpha", "beta")},
    **{name: ("cmd", "infty") for name in ("inf", "infinity", "Infinity", "oo")},
    **{name: ("cmd", known) for name, known in _ALIASES.items()},
}

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<repeating>\d*\.\d*\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d))"
    r"|(?P<scientific>\d+(?:\.\d+)?[eE][+-]?\d+(?![\d.]))"
    r"|(?P<num>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<text>\\text\{[^{}]*\})"
    r"|(?P<cmd>\\[a-zA-Z]+)"
    r"|(?P<mark>\\.|\*\*|[^\sa-zA-Z\d])"
    r"|(?P<letters>[a-zA-Z]+)",
    re.DOTALL,
)


class Token(NamedTuple):
    kind: str  # num, text, cmd (without its backslash), letter, mark, end
    text: str
    value: Any = None  # of a number: its node


END = Token("end", "")


def tokens_of(text: str) -> list[Token]:
    """Split an expression into tokens. Raises Unreadable if there are too many."""
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, piece = str(match.lastgroup), match[0]
        if kind == "space":
            continue
        if kind == "scientific" and not _is_scientific(piece):
            mantissa = re.match(r"[\d.]+", piece)
            assert mantissa is not None
            found += [Token("num", mantissa[0], number(mantissa[0])), Token("letter", "e")]
            found += tokens_of(piece[mantissa.end() + 1 :])
        elif kind in ("num", "scientific", "repeating"):
            found.append(Token("num", piece, number(piece)))
        elif kind == "cmd":
            name = piece[1:]
            found.append(Token("cmd", _ALIASES.get(name, name)))
        elif kind == "letters":
            word = _WORDS.get(piece)
            found += [Token(*word)] if word else [Token("letter", letter) for letter in piece]
        else:
            found.append(Token(kind, piece))
        if len(found) > _MOST_TOKENS:
            raise Unreadable("too long")
    return found


def _is_scientific(piece: str) -> bool:
    """Whether 2e-1 means 0.2: `1e-05` and `1.5e3` do, `2e-1` may be twice e less 1."""
    mantissa, exponent = re.split("[eE]", piece)
    return mantissa == "1" or "." in mantissa or exponent[0] not in "+-" or len(exponent) > 2


def number(text: str) -> Node:
    r"""The node of a numeral: exact value, significant digits, and digits after the point.

    >>> number("0.50"), number(r"0.1\overline{6}")[1]
    (('num', Fraction(1, 2), 2, 2), Fraction(1, 6))
    """
    if len(text) > _MOST_DIGITS:
        raise Unreadable("too long")
    if "\\" in text:
        whole, repeated = re.split(r"\\[a-z]+\s*\{?", text.rstrip("}"))
        before, after = whole.split(".")
        nines = 10 ** len(after) * (10 ** len(repeated) - 1)
        value = Fraction(int(before + after or "0"), 10 ** len(after))
        return ("num", value + Fraction(int(repeated), nines), 0, 0)
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 5 or abs(int(exponent or 0)) > _MOST_EXPONENT:
        raise Unreadable("too long")
    _, _, decimals = mantissa.partition(".")
    digits = mantissa.replace(".", "").lstrip("0")
    value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)
    return ("num", value, len(digits), len(decimals) - int(exponent or 0))
