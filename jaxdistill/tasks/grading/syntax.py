r"""One mathematical expression as a tree: numbers, letters, sums, powers, functions, matrices.

A tree is a tuple whose first entry names its kind: ("num", Fraction, digits, decimals), ("sym",
name), ("const", "pi"), ("add", a, b), ("neg", a), ("mul", a, b), ("div", a, b), ("pow", a, b),
("call", name, *arguments), ("tuple", brackets, *items), ("set", *items), ("matrix", *rows), and so
on, as `Parser` makes them. The grammar is smaller than LaTeX's: what it does not know raises
`Unreadable`, so that nothing is misread, and what a computer algebra system may know raises
`NeedsAlgebra`.
"""

from fractions import Fraction

from jaxdistill.tasks.grading.tokens import (
    END,
    FUNCTIONS,
    GREEK,
    NeedsAlgebra,
    Node,
    Token,
    Unreadable,
    number,
    tokens_of,
    word_set,
)

_MOST_DEPTH = 40  # of nested brackets; beyond it nobody means it, and recursion would fail
_ALGEBRA = word_set(
    "int iint oint sum prod lim partial nabla pmod bmod mod equiv det sup inf to "
    "rightarrow implies iff forall exists neg wedge vee mapsto perp parallel operatorname "
    "deg dim ker liminf limsup cong sim propto dots"
)
_ACCENTS = word_set("vec hat bar tilde dot ddot overrightarrow widehat overline mathcal mathfrak")
_OPENING = {
    **{"(": ")", "[": "]", r"\{": r"\}"},
    **{"langle": "rangle", "lfloor": "rfloor", "lceil": "rceil"},
}


def parse(text: str) -> Node:
    r"""The tree of one expression.

    Raises Unreadable, and NeedsAlgebra if math_verify may know it.

    >>> parse("2x+1")[0], parse(r"\frac12")[0]
    ('add', 'div')
    """
    parser = Parser(tokens_of(text))
    node = parser.whole()
    if parser.now is not END:
        raise Unreadable(f"unexpected {parser.now.text}")
    return node


class Parser:
    """A recursive-descent parser; each method reads one level of the grammar."""

    def __init__(self, tokens: list[Token]):
        self._tokens = [*tokens, END]
        self._at = 0
        self._depth = 0
        self._bars = 0  # absolute values that are open

    @property
    def now(self) -> Token:
        return self._tokens[self._at]

    def ahead(self, steps: int = 1) -> Token:
        return self._tokens[min(self._at + steps, len(self._tokens) - 1)]

    def take(self) -> Token:
        token = self.now
        self._at += token is not END
        return token

    def skip(self, *texts: str) -> bool:
        """Take the next token if it is one of these."""
        is_one = self.now is not END and self.now.kind != "text" and self.now.text in texts
        self._at += is_one
        return is_one

    def expect(self, text: str) -> None:
        if not self.skip(text):
            raise Unreadable(f"expected {text}, got {self.now.text or 'the end'}")

    # ------------------------------------------------------------------------------- levels

    def whole(self) -> Node:
        r"""An expression; `10 \choose 3` and `1 \over 2` are old forms of two commands."""
        node = self.union()
        if self.skip("choose"):
            return ("call", "binom", node, self.union())
        if self.skip("over"):
            return ("div", node, self.union())
        return node

    def union(self) -> Node:
        node = self.sum()
        while self.now.kind == "cmd" and self.now.text in ("cup", "cap", "setminus"):
            node = (self.take().text, node, self.sum())
        return node

    def sum(self) -> Node:
        """Terms with signs between them; a sign before the first belongs to the whole term."""
        node = self._signed()
        while True:
            if self.skip("+"):
                node = ("add", node, self._signed())
            elif self.skip("-"):
                node = ("add", node, ("neg", self._signed()))
            elif self.now.kind == "cmd" and self.now.text in ("pm", "mp"):
                node = (self.take().text, node, self._signed())
            else:
                return node

    def _signed(self) -> Node:
        if self.skip("+"):
            return self._signed_once()
        if self.skip("-"):
            return ("neg", self._signed_once())
        if self.now.kind == "cmd" and self.now.text in ("pm", "mp"):
            return (self.take().text, None, self.product())
        return self.product()

    def _signed_once(self) -> Node:
        if self.now.text in ("+", "-") and self.now.kind == "mark":
            raise Unreadable("two signs")
        return self.product()

    def product(self) -> Node:
        node = self._mixed() or self.power()
        while True:
            if self.skip("times", "cdot", "*"):
                node = ("mul", node, self._operand())
            elif self.skip("/"):
                node = ("div", node, self._operand())
            elif self._starts_factor():
                if self.now.kind == "num" and _ends_in_number(node):
                    raise Unreadable("two numbers side by side")
                node = ("mul", node, self.power())
            else:
                return node

    def _operand(self) -> Node:
        """What follows a sign of multiplication or division, which may have a sign itself."""
        return ("neg", self.power()) if self.skip("-") else self.power()

    def _mixed(self) -> Node | None:
        """A mixed number, `3 1/2` or `3\\frac{1}{2}`, whose fraction lies between 0 and 1."""
        whole, start = self.now, self._at
        if whole.kind != "num" or not whole.text.isdigit():
            return None
        self.take()
        if self.now.kind == "num" and self.now.text.isdigit() and self.ahead().text == "/":
            above, _, below = self.take(), self.take(), self.take()
            if below.kind == "num" and below.text.isdigit():
                value = _proper(above.value[1], below.value[1])
                if value is not None and self.now.text not in ("^", "!"):
                    return _exact(whole.value[1] + value)
        elif self.now.kind == "cmd" and self.now.text == "frac":
            fraction = self.power()
            if fraction[0] == "div" and {fraction[1][0], fraction[2][0]} == {"num"}:
                value = _proper(fraction[1][1], fraction[2][1])
                if value is not None:
                    return _exact(whole.value[1] + value)
        self._at = start
        return None

    def _starts_factor(self) -> bool:
        token = self.now
        if token.kind == "num":
            # Nobody writes x2 for 2x, but n2^n, 3!7! and (2)3 are products.
            before = self._tokens[self._at - 1].text
            return before in ("!", ")") or self.ahead().text in ("^", "**")
        if token.kind == "letter":
            return True
        if token.kind == "mark":
            return token.text in ("(", "[", "{", r"\{") or (token.text == "|" and not self._bars)
        known = ("cup", "cap", "setminus", "times", "cdot", "pm", "mp", "rangle", "rfloor", "rceil")
        return token.kind == "cmd" and token.text not in (*known, "mid", "choose", "over", "end")

    def power(self) -> Node:
        """A factor with what is written behind it: subscript, exponent, factorial, degree."""
        node = self.base()
        while True:
            if self.skip("!"):
                node = ("fact", node)
            elif self.now.text == "_" and self.now.kind == "mark":
                node = self._subscripted(node)
            elif self.skip("'"):
                node = ("sym", f"{_name(node)}'")
            elif self.skip("%"):
                raise Unreadable("a percentage inside an expression")
            elif self.now.text in ("^", "**") and self.now.kind == "mark":
                self.take()
                if self.skip("circ"):
                    node = ("call", "degrees", node)
                    continue
                exponent = self.argument(whole_number=True)
                # A second exponent is an error in LaTeX.
                if self.now.text == "^":
                    raise Unreadable("two exponents")
                node = ("pow", node, exponent)
            else:
                return node

    def _subscripted(self, node: Node) -> Node:
        self.expect("_")
        index = self._raw_argument()
        if not index:
            raise Unreadable("an empty subscript")
        if node[0] == "num":
            return ("based", node, index)
        if node[0] == "group" and node[1][0] == "num":
            return ("based", node[1], index)
        return ("sym", f"{_name(node)}_{index}")

    # ------------------------------------------------------------------------------- factors

    def argument(self, *, whole_number: bool = False) -> Node:
        r"""What a command or an exponent takes: a group in braces, or the next token.

        LaTeX takes one digit: \frac12 is one half, but people write 2^10 for 2^{10}.
        """
        if self.skip("{"):
            return self._group("}")
        if self.skip("-"):  # 2^-1, which LaTeX would show otherwise but people write
            return ("neg", self.argument(whole_number=whole_number))
        token = self.now
        is_long = token.kind == "num" and token.text.isdigit() and len(token.text) > 1
        if is_long and not whole_number:
            first, rest = token.text[0], token.text[1:]
            self._tokens[self._at] = Token("num", rest, number(rest))
            return number(first)
        return self.base()

    def _raw_argument(self) -> str:
        """A subscript as text."""
        if not self.skip("{"):
            return self.take().text
        found, depth = [], 1
        while self.now is not END:
            depth += {"{": 1, "}": -1}.get(self.now.text, 0)
            token = self.take()
            if depth == 0:
                return "".join(found)
            found.append(token.text)
        raise Unreadable("an open subscript")

    def _group(self, closing: str) -> Node:
        self._enter()
        bars, self._bars = self._bars, 0
        node = self.whole()
        self._bars = bars
        self.expect(closing)
        self._depth -= 1
        return node

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise Unreadable("nested too deeply")

    def base(self) -> Node:
        token = self.take()
        if token.kind == "num":
            return token.value
        if token.kind == "letter":
            if token.text in ("e", "i") and self.now.text != "_":
                return ("const", token.text)
            return ("sym", token.text)
        if token.kind == "mark" and token.text == "{":
            return self._group("}")
        if token.text in _OPENING and token.kind in ("mark", "cmd"):
            return self._bracketed(token.text)
        if token.kind == "mark" and token.text in ("|", r"\|"):
            return self._absolute(token.text)
        if token.kind == "cmd":
            return self._command(token.text)
        raise Unreadable(f"unexpected {token.text or 'end'}")

    def _bracketed(self, opening: str) -> Node:
        self._enter()
        bars, self._bars = self._bars, 0
        items: list[Node] = []
        if not (opening == r"\{" and self.now.text == r"\}"):
            items.append(self.union())
            while self.skip(",", ";"):
                items.append(self.union())
        self._bars = bars
        closing = self.take().text
        self._depth -= 1
        if opening in ("lfloor", "lceil"):
            return ("call", opening[1:], *self._closed(items, closing, opening))
        if opening == r"\{":
            return ("set", *self._closed(items, closing, opening, several=True))
        if opening == "langle":
            return ("tuple", "()", *self._closed(items, closing, opening, several=True))
        if closing not in (")", "]"):
            raise Unreadable(f"unexpected {closing}")
        if len(items) == 1:
            if _OPENING[opening] != closing:
                raise Unreadable("brackets that do not match")
            return ("group", items[0])
        return ("tuple", opening + closing, *items)

    def _closed(
        self, items: list[Node], closing: str, opening: str, several: bool = False
    ) -> list[Node]:
        if closing != _OPENING[opening] or (len(items) != 1 and not several):
            raise Unreadable(f"unexpected {closing}")
        return items

    def _absolute(self, bar: str) -> Node:
        self._enter()
        self._bars += 1
        node = self.union()
        self._bars -= 1
        self.expect(bar)
        self._depth -= 1
        return ("call", "abs", node)

    def _command(self, name: str) -> Node:
        if name in ("pi", "infty"):
            return ("const", name)
        if name in GREEK:
            return ("sym", name)
        if name in ("imath", "jmath"):
            return ("const", "i")
        if name == "emptyset":
            return ("set",)
        if name == "mathbb":
            return ("numbers", self._raw_argument())
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name == "binom":
            return ("call", "binom", self.argument(), self.argument())
        if name == "sqrt":
            return self._root()
        if name in FUNCTIONS:
            return self._function(name)
        if name in _ACCENTS:
            return ("sym", f"{name} {self._raw_argument()}")
        if name == "begin":
            return self._matrix()
        if name in _ALGEBRA:
            raise NeedsAlgebra(name)
        raise Unreadable(f"unknown command {name}")

    def _root(self) -> Node:
        degree: Node = ("num", Fraction(2), 1, 0)
        if self.skip("["):
            degree = self._group("]")
        if self.now.kind == "num":  # people write \sqrt12 for the root of 12
            return ("call", "root", self.take().value, degree)
        if self.skip("("):
            return ("call", "root", self._group(")"), degree)
        return ("call", "root", self.argument(), degree)

    def _function(self, name: str) -> Node:
        r"""`\sin^2 2x`, `\log_2(8)`, `\max(1, 2)`: the argument may lack its brackets."""
        base = exponent = None
        for _ in range(2):
            if self.skip("_"):
                base = self.argument(whole_number=True)
            elif self.skip("^"):
                exponent = self.argument(whole_number=True)
        if self.now.text in ("(", "[") and self.now.kind == "mark":
            inner = self._bracketed(self.take().text)
            arguments = inner[2:] if inner[0] == "tuple" else (inner[1],)
        else:
            self._enter()
            arguments = (self._bare_argument(),)
            self._depth -= 1
        arguments = arguments if base is None else (*arguments, base)
        name = "log" if name == "lg" else name
        if exponent == ("neg", ("num", Fraction(1), 1, 0)) and f"arc{name}" in FUNCTIONS:
            return ("call", f"arc{name}", *arguments)
        node = ("call", name, *arguments)
        return node if exponent is None else ("pow", node, exponent)

    def _bare_argument(self) -> Node:
        """The factors that follow a function without brackets, up to a sign or a function."""
        node = self._mixed() or self.power()
        while True:
            if self.skip("/"):
                node = ("div", node, self.power())
            elif not self._starts_factor() or (
                self.now.kind == "cmd" and self.now.text in FUNCTIONS
            ) or (self.now.text in ("(", "[") and self.now.kind == "mark"):  # fmt: skip
                return node
            else:
                node = ("mul", node, self.power())

    def _matrix(self) -> Node:
        r"""The rows of `\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}`, or of an array."""
        kind = self._raw_argument()
        if kind == "array":
            self._raw_argument()  # the alignment of its columns
        if kind not in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "array", "smallmatrix"):
            raise NeedsAlgebra(kind)
        rows: list[list[Node]] = [[]]
        while not self.skip("end"):
            if self.skip("\\\\"):
                rows.append([])
                continue
            if rows[-1]:
                self.expect("&")
            rows[-1].append(self.sum())
        if self._raw_argument() != kind:
            raise Unreadable("an open matrix")
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) > 1:
            raise Unreadable("rows of different lengths")
        return ("matrix", *(tuple(row) for row in rows))


def _exact(value: Fraction) -> Node:
    return ("num", value, 0, 0)


def _proper(above: Fraction, below: Fraction) -> Fraction | None:
    return above / below if 0 < above < below else None


def _ends_in_number(node: Node) -> bool:
    return node[0] == "num" or (node[0] in ("mul", "div") and _ends_in_number(node[2]))


def _name(node: Node) -> str:
    if node[0] in ("sym", "const"):
        return node[1]
    raise Unreadable("a subscript of an expression")
