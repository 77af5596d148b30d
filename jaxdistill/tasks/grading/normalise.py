r"""The layout of an answer that does not change its meaning: fonts, colours, spaces, dollar signs.

`normalise` writes an answer in one form of LaTeX, which `reading` takes apart. It does not compare:
`\dfrac12` and `\frac 12` become the same text, `0.5` stays another one.
"""

import re

from jaxdistill.tasks.grading.characters import in_latex

# Commands whose argument is what is shown, and those whose argument is not shown at all.
_SHOWN = (
    "mathbf|mathit|mathsf|mathnormal|mathtt|boldsymbol|bm|pmb|ensuremath|underline|underbrace|overbrace|"
    "boxed|fbox|mathstrut|smash|mathop|mathclap|displaystyle|textstyle|scriptstyle|"
    r"(?:textcolor|colorbox)\s*\{[^{}]*\}|color\s*\{[^{}]*\}|bf|it|rm|tt|sf|tiny|small|large|Large|"
    "LARGE|huge|Huge"
)
_HIDDEN = "phantom|hphantom|vphantom|hspace|vspace|label|tag|hskip|kern|mspace"
TEXT_COMMANDS = (
    "textbf|textit|textsf|texttt|textrm|textup|textsc|textnormal|textmd|emph|mathrm|mbox|hbox|"
    r"operatorname\*?|text"
)
_SWITCHES = (
    "displaystyle|textstyle|scriptstyle|scriptscriptstyle|limits|nolimits|normalsize|small|tiny|"
    "large|Large|LARGE|huge|Huge|bf|it|rm|tt|sf|bfseries|itshape|left|right|middle|"
    "[bB]igg?[lrm]?|noindent|centering|hfill|nonumber|relax"
)
_NAMES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge"),
    **{"neq": r"\ne", "lt": "<", "gt": ">", "colon": ":", "degree": r"^\circ", "ast": r"\cdot"},
    **dict.fromkeys(("ldots", "cdots", "dotsc", "dotsb"), r"\dots"),
    **dict.fromkeys(("lvert", "rvert", "vert"), "|"),
    **{"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "("},
    **{"rparen": ")", "varnothing": r"\emptyset", "infin": r"\infty", "euro": "€"},
    **{"pounds": "£", "textdollar": r"\$", "dollar": r"\$", "varphi": r"\phi"},
    **{"varepsilon": r"\epsilon", "div": "/", "percent": "%", "quad": " ", "qquad": " "},
    **{"thinspace": " ", "enspace": " ", "enskip": " ", "space": " ", "land": r"\text{and}"},
    **{
        "bigcup": r"\cup",
        "bigcap": r"\cap",
        "lor": r"\text{or}",
        "R": r"\mathbb{R}",
        "approxeq": r"\approx",
        "simeq": r"\approx",
    },
    **{"smallsetminus": r"\setminus", "backslash": r"\setminus", "lnot": r"\neg"},
}
# Upright constants and functions, such as \mathrm{e}; sec and min are units.
_CONSTANTS = re.compile(r"\\text\{\s*([ei])\s*\}")
_FUNCTIONS_AS_TEXT = re.compile(
    r"\\text\{\s*((?:arc)?(?:sin|cos|tan)|(?:sin|cos|tan)h|cot|csc|log|ln|lg|exp|gcd|lcm)\s*\}"
)
_WRAPPER = re.compile(rf"\\(?:{_SHOWN})(?![a-zA-Z])\s*")
_NAME = re.compile(r"\\([a-zA-Z]+)")
_SPACES = re.compile(r"\\(?:[,;:> ]|!)|~|\s+")
_MOST_PASSES = 12
_LONGEST = 4_000  # of an answer, in characters; longer ones are compared as they are written

_IN_GROUPS = re.compile(
    # A separator between digits before a group of three: 1{,}000, 1,\!000, 1\,000, 1\!000, 1'000.
    r"(?<=\d)(?:\{,\}|,?\\!|(?:\\[,;: ]\s*)+|,\\[,; ]|')\s*(?=\d{3}(?!\d))"
)
_BLANK_GROUPS = re.compile(r"(?<![\d.,^_{/])(?<![\d.,^_{/] )\d{1,3}(?: \d{3})+(?![\d/])(?! ?[\d/])")


def normalise(answer: str) -> str:
    r"""Remove what does not change an answer's meaning. Idempotent.

    >>> normalise(r" $\left( 3,\; \dfrac{1}{2} \right)$. "), normalise(r"\textbf{Evelyn}")
    ('( 3, \\frac {1}{2} )', 'Evelyn')
    """
    if len(answer) > _LONGEST:
        return answer.strip()
    previous = None
    # Removing one wrapper may expose another, as in `$\text{A}.$`.
    for _ in range(_MOST_PASSES):
        if answer == previous:
            break
        previous, answer = answer, _once(answer)
    return answer


def _once(answer: str) -> str:
    # Before Unicode becomes commands, whose braces the text would not be matched with.
    answer = re.sub(rf"^\s*\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}\s*$", r"\1", answer)
    answer = in_latex(answer)
    answer = _without_delimiters(answer)
    if "\\" in answer:
        answer = re.sub(r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", r"\\\\", answer)  # row spacing
        answer = _without_wrappers(answer)
        answer = re.sub(rf"\\(?:{_SWITCHES})(?![a-zA-Z])\s*(?:(?<=left|ight)\.)?", "", answer)
        # A repeated alignment of columns, {*{20}{c}}, which the grammar does not know.
        answer = re.sub(r"(\\begin\s*\{array\})\s*\{\*\{\d+\}\{[lcr]\}\}", r"\1{c}", answer)
        answer = _NAME.sub(lambda name: _renamed(name[0], name[1]), answer)
        answer = re.sub(r"\\not\s*(?:=|\\in)", lambda m: r"\ne " if "=" in m[0] else m[0], answer)
        answer = re.sub(r"\^\s*\{\s*(?:\\circ|o|\\text\{o\})\s*\}", r"^\\circ ", answer)
    answer = _IN_GROUPS.sub("", answer)
    answer = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", answer)  # a decimal comma
    answer = re.sub(r"\{([:,;.])\}", r"\1", answer)
    answer = re.sub(r"\\%", "%", answer)
    answer = re.sub(r"([<>])=(?!=)", lambda m: {"<": r"\le ", ">": r"\ge "}[m[1]], answer)
    answer = re.sub(r"(?<![_^a-zA-Z}\]\\])\{\s*\}", "", answer)  # nothing in braces
    # A matrix row ends in two backslashes, and a space after them is none of LaTeX's own.
    answer = re.sub(r"(\\\\)|" + _SPACES.pattern, lambda m: m[1] or _space(m[0]), answer)
    answer = _BLANK_GROUPS.sub(lambda number: number[0].replace(" ", ""), answer)
    # A space after a comma stays: "1, 234" is a list and "1,234" may be a number.
    answer = re.sub(r" *([,;])( *)", lambda m: m[1] + m[2][:1], answer)
    return _without_ends(answer)


def _space(mark: str) -> str:
    return "" if mark == r"\!" else " "


def _renamed(command: str, name: str) -> str:
    new = _NAMES.get(name)
    if new is None:
        return command
    return new + (" " if new[-1].isalpha() and new[0] in "\\^" else "")


def _without_delimiters(answer: str) -> str:
    r"""Remove $...$, \(...\) and \[...\]; one dollar sign before a number is money."""
    dollars = re.findall(r"(?<!\\)\$", answer)
    if len(dollars) % 2 and re.search(r"(?<!\\)\$\s*-?[\d.]", answer):
        answer = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])", r"\\$", answer, count=1)
    answer = re.sub(r"(?<!\\)\$", "", answer)
    # A backslash matches with its successor, so that `\\[` is a row's end and then a bracket.
    return re.sub(r"(\\\\)|\\[()\[\]]", lambda m: m[1] or "", answer)


def _without_wrappers(answer: str) -> str:
    r"""Unwrap fonts and colours, and write every font of text as \text{...}."""
    answer = re.sub(rf"\\(?:{_HIDDEN})\s*\{{[^{{}}]*\}}", "", answer)
    while (wrapper := _WRAPPER.search(answer)) is not None:
        answer = answer[: wrapper.start()] + _unwrapped(answer[wrapper.end() :])
    answer = re.sub(r"\\mathrm\s+([a-zA-Z])(?![a-zA-Z])", r"\\text{\1}", answer)
    answer = re.sub(rf"\\(?:{TEXT_COMMANDS})(?![a-zA-Z])\s*(?=\{{)", r"\\text", answer)
    answer = re.sub(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}", answer)
    answer = re.sub(r"\\(?:checkmark|blacksquare|square|Box|qed)(?![a-zA-Z])", "", answer)
    answer = re.sub(r"\\overline\s*\{\s*([A-Z]{2,3})\s*\}", r"\1", answer)  # a segment
    answer = re.sub(r"\^\s*\{?\s*\\text\s*\{(st|nd|rd|th)\}\s*\}?", r"\1", answer)
    answer = _CONSTANTS.sub(r" \1", answer)
    answer = _FUNCTIONS_AS_TEXT.sub(r"\\\1 ", answer)
    # Text without letters is mathematics: \text{5}, \text{ - }.
    return re.sub(r"\\text\{([^{}a-zA-Z]*)\}", r"\1", answer)


def _unwrapped(text: str) -> str:
    """The text without the braces around its beginning, if it begins with braces."""
    if not text.startswith("{"):
        return text
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return f"{text[1 : mark.start()]} {text[mark.end() :]}"
    return text[1:]


def _without_ends(answer: str) -> str:
    """Remove marks around the whole answer: spaces, a full stop, braces, bold type, backticks."""
    answer = re.sub(r"(?<!\\)\\$", "", answer.strip()).rstrip(".,;").strip()
    answer = re.sub(r"^(\*\*|__|`|\")((?:(?!\1).)*)\1$", r"\2", answer, flags=re.DOTALL)
    answer = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", answer)
    inner = re.fullmatch(r"\{(.*)\}", answer, re.DOTALL)
    is_set = inner is not None and (
        _has_comma(inner[1]) or re.match(r"\s*[a-z]\s*(?:\\mid|[|:])", inner[1])
    )
    if inner is not None and not is_set and closes_at_end(answer):
        answer = inner[1]
    return answer.strip()


def _has_comma(text: str) -> bool:
    """Whether a text has a comma that stands in no brackets."""
    depth = 0
    marks = {"{": 1, "(": 1, "[": 1, r"\{": 1, "}": -1, ")": -1, "]": -1, r"\}": -1}
    for mark in re.finditer(r"\\.|[{}()\[\],]", text, re.DOTALL):
        depth += marks.get(mark[0], 0)
        if mark[0] == "," and depth == 0:
            return True
    return False


def closes_at_end(text: str) -> bool:
    r"""Whether the bracket that opens a text is closed by its last character.

    >>> closes_at_end("{a}{b}"), closes_at_end("(a(b))")
    (False, True)
    """
    depth = 0
    for mark in re.finditer(r"\\.|[{}()\[\]]", text, re.DOTALL):
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end() == len(text)
    return False
