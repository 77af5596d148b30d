r"""The text around mathematics: separators, labels, names, words, thousands, digits in a base."""

import re
from collections.abc import Iterator

from jaxdistill.tasks.grading.normalise import closes_at_end
from jaxdistill.tasks.grading.tokens import FUNCTIONS, GREEK, word_set
from jaxdistill.tasks.grading.units import COUNTED, without_unit

# Words that are read as mathematics and not as a text.
MATHEMATICAL = frozenset({*FUNCTIONS, *GREEK, "sqrt", "pi", "inf", "infinity", "oo"})
BUILDER = r"\s*\(?([a-zA-Z](?:\s*\\in\s*\\mathbb\s*\{?R\}?)?)\)?\s*(?:\\mid|\||:)\s*(.*?)"
_BRACKETS = {"(": 1, "[": 1, "{": 1, r"\{": 1, ")": -1, "]": -1, "}": -1, r"\}": -1}
_MARK = re.compile(r"\\text\{[^{}]*\}|\\(?:langle|rangle)(?![a-zA-Z])|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_CONJUNCTION = re.compile(
    r"\\text\{\s*(?:,\s*)?(and|or)\s*\}|(?<![a-zA-Z\\])(and|or)(?![a-zA-Z])"
    r"|(或者?|[和与])"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![a-zA-Z])|[<>=]")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+|our\s+|my\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer|ans|result)\s*(?P<is>(?:is|are|equals|:|=)\s*:?)?\s*",
    re.IGNORECASE,
)
_CHINESE_LABEL = re.compile(
    r"(?:因此|所以|故)?,?\s*(?:最终|最后)?的?(?:答案|结果)\s*(?:是|为|等于)?\s*:?\s*|(?:一共|总共|共)有?\s*(?=\d)"
)
_CHINESE_CONJUNCTIONS = {"或": "or", "或者": "or", "和": "and", "与": "and"}
_THOUSANDS = re.compile(r"(?<![\d.,_^])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_COPULAS = re.compile(r"\b(?:answer|is|are|equals?|the|therefore|thus|so|hence|solution)\b", re.I)
_DIGITS_IN_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_IN_WORDS = "a number in words"  # a fault of a gold answer
_NUMBER_WORDS = word_set(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty "
    "seventy eighty ninety hundred thousand million billion and"
)


# ------------------------------------------------------------------------------------ separators


def top_level(text: str) -> Iterator[tuple[int, str, int]]:
    """(position, mark, depth of brackets) of each character or command."""
    depth = 0
    for match in _MARK.finditer(text):
        mark = match[0]
        change = {r"\langle": 1, r"\rangle": -1}.get(mark, _BRACKETS.get(mark, 0))
        depth += min(change, 0)
        yield match.start(), mark, depth
        depth += max(change, 0)


def split_at(text: str, separator: str) -> list[str]:
    r"""The parts of a text between separators that stand in no brackets.

    >>> split_at("(1,2),3", ",")
    ['(1,2)', '3']
    """
    found, start = [], 0
    for at, mark, depth in top_level(text):
        if mark == separator and depth == 0:
            found.append(text[start:at].strip())
            start = at + len(mark)
    return [*found, text[start:].strip()]


def split_list(text: str) -> tuple[list[str], str]:
    """The parts of a list and what joins the last ones: a comma, `and`, or `or`."""
    joined = ","
    found, start = [], 0
    ends: list[tuple[int, int]] = []
    depths = {at: depth for at, _, depth in top_level(text)}
    for match in _CONJUNCTION.finditer(text):
        if depths.get(match.start()) == 0:
            joined = match[1] or match[2] or _CHINESE_CONJUNCTIONS[match[3]]
            ends.append(match.span())
    ends += [(at, at + 1) for at, mark, depth in top_level(text) if mark in ",;" and depth == 0]
    for begin, end in sorted(ends):
        found.append(text[start:begin].strip())
        start = end
    found.append(text[start:].strip())
    # `1, 2, and 3` has nothing between the comma and the word.
    return [part for part in found if part] if len(found) > 1 else found, joined


def split_relations(text: str) -> tuple[list[str], list[str]]:
    """The sides of a chain of equations or inequalities, and the signs between them."""
    sides, signs, start = [], [], 0
    for at, mark, depth in top_level(text):
        if depth == 0 and _RELATION.fullmatch(mark):
            sides.append(text[start:at].strip())
            signs.append(mark)
            start = at + len(mark)
    return [*sides, text[start:].strip()], signs


def inside(text: str) -> tuple[str, str] | None:
    r"""(brackets, content) of a text that stands in brackets as a whole.

    >>> inside("[0,1)"), inside(r"\{1\}"), inside("(a)(b)")
    (('[)', '0,1'), ('{}', '1'), None)
    """
    for opening, closing, kind in (
        (r"\{", r"\}", "{}"), ("{", "}", "{}"), (r"\langle", r"\rangle", "()"),
    ):  # fmt: skip
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            is_balanced = all(depth >= 0 for _, _, depth in top_level(inner))
            return (kind, inner.strip()) if is_balanced else None
    if text[:1] in "([" and text[-1:] in ")]" and closes_at_end(text):
        return text[0] + text[-1], text[1:-1].strip()
    return None


def with_thousands(text: str) -> Iterator[str]:
    """The text with commas of thousands removed, then as a list where it may be one.

    In brackets a comma separates, unless a group starts with 0: (1,234) is a pair.
    """
    if "," not in text:
        yield text
        return
    in_brackets = _depths_of_lists(text)

    def is_number(match: re.Match[str]) -> bool:
        return not in_brackets[match.start()] or ",0" in match[0]

    yield _THOUSANDS.sub(lambda m: m[0].replace(",", "") if is_number(m) else m[0], text)
    alone = re.fullmatch(r"-?\d{1,3}(?:,[1-9]\d{2})+", text)
    if alone is not None:
        yield text.replace(",", ", ")


def _depths_of_lists(text: str) -> list[bool]:
    """For each character, whether its innermost bracket is one in which commas separate."""
    found, stack = [], []
    for mark in re.finditer(r"\\.|.", text, re.DOTALL):
        if mark[0] in ("(", "[", r"\{", "{"):
            stack.append(mark[0] != "{")
        elif mark[0] in (")", "]", r"\}", "}") and stack:
            stack.pop()
        found += [bool(stack) and stack[-1]] * len(mark[0])
    return found


# ------------------------------------------------------------------------------- labels and names


def plain(text: str) -> str:
    r"""The text without its commands for text and spaces: `\text{June }20` is June 20."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def folded(text: str) -> str:
    """A text as words are compared: in lower case, without spaces and full stops at its ends."""
    text = re.sub(r"\s*([,;])\s*", r"\1 ", plain(text))
    return re.sub(r"\s+", " ", text).strip(" .!?").casefold()


def without_label(text: str) -> str | None:
    r"""What follows a label such as `\text{Answer:}` or `The answer is`; None without one."""
    sign = re.match(r"\\(?:therefore|Rightarrow|implies|rightarrow|Longrightarrow|to)\b\s*", text)
    if sign is not None:
        return text[sign.end() :] or None
    label = re.match(r"\\text\{([^{}]*)\}\s*:?\s*", text)
    if label is not None and label.end() < len(text):
        name = label[1].strip()
        is_label = name.endswith((":", "=")) or ":" in label[0][-3:]
        if is_label or _LEAD.fullmatch(name):
            return text[label.end() :].strip()
    label = _CHINESE_LABEL.match(text)
    if label is not None and label[0] and label.end() < len(text):
        return text[label.end() :]
    lead = _LEAD.match(text)
    lead = (
        lead
        if lead is not None and lead["is"]
        else re.match(r"[A-Za-z]{2}[A-Za-z ]*:\s*(?=\S)", text)
    )
    if lead is not None and lead.end() < len(text):
        return text[lead.end() :].strip() or None
    return None


def is_name(text: str) -> bool:
    r"""Whether a text names a quantity: `x`, `f(2)`, `\angle ABC`, `a+b`, `\text{Area}`, `AB^2`?

    A power or a multiple is none: `x^2 = 25` is an equation for x, and 25 is not its answer.

    >>> [is_name(text) for text in ("x_1", "P(A)", r"\frac{AB}{CD}", "2x", "x^2", "")]
    [True, True, True, False, False, False]
    """
    rest = re.sub(r"_\s*(?:\{[^{}]*\}|\\?[a-zA-Z]+|\d+)", "", text)
    rest = re.sub(r"\\text\{[^{}]*\}", "A", rest)
    rest = re.sub(r"\\frac\s*\{([A-Za-z\s]+)\}\s*\{([A-Za-z\s]+)\}", r"\1\2", rest)
    rest = re.sub(r"(?<=[A-Za-z'])\^\s*\{?-1\}?", "", rest)  # an inverse function
    rest = re.sub(r"(?<=[A-Za-z'])\s*\([^()]*\)", "", rest)
    known = {*FUNCTIONS, *GREEK, "angle", "overline", "triangle", "measuredangle", "vec", "bar"}
    rest = re.sub(r"\\([a-zA-Z]+)", lambda m: "A" if m[1] in known else m[0], rest)
    return (
        re.fullmatch(r"[A-Za-z+\-\s{}'|()\[\],]*[A-Za-z][A-Za-z+\-\s{}'|()\[\],]*", rest)
        is not None
    )


def based(text: str) -> tuple[str, str] | None:
    r"""The digits and the base of `52_8`, `(52)_{8}`, `1A_{16}`, `52 base 8`; None for others.

    >>> based(r"52_{\text{eight}}"), based("a_8")
    (('52', '8'), None)
    """
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    found = re.fullmatch(
        r"\(?\s*(\d[0-9A-Za-z.]*|[A-F]*\d[0-9A-F.]*)\s*\)?\s*"
        r"(?:_\s*\{?\s*([a-z]+|\d+)\s*\}?|\(?\s*(?:in\s+)?base\s+([a-z]+|\d+)\s*\)?)",
        text.strip(),
        re.DOTALL,
    )
    if found is None:
        return None
    words = _DIGITS_IN_WORDS.split()
    base = found[2] or found[3]
    base = str(words.index(base)) if base in words else base
    return (found[1].upper().lstrip("0") or "0", base.lstrip("0")) if base.isdigit() else None


def without_dots(text: str) -> tuple[str, bool]:
    r"""A number without a sign that it is approximate, and whether there was one."""
    rest = re.sub(r"^(?:\\approx\s*)", "", text)
    rest = re.sub(r"(?<=\d)\s*(?:\\dots\s*|\.\.+)$", "", rest)
    return rest, rest != text


# ---------------------------------------------------------------------------------------- prose


def is_listed(text: str) -> bool:
    """Whether a text joins single letters, as an answer of several options does: `A, C and D`."""
    words = re.findall(r"[A-Za-z]+", text)
    return bool(words) and all(len(word) == 1 or word in ("and", "or") for word in words)


def is_prose(text: str) -> bool:
    """Whether a text has a word that is no product of letters and no function."""
    bare = re.sub(
        r"\\text\{[^{}]*\}|\\[a-zA-Z]+|\\mathbb\{.\}|begin\{[a-z]+\}|_\{[^{}]*\}", " ", text
    )
    bare = re.sub(r"\{(?:[pbBv]?matrix|array|smallmatrix|[lcr]+)\}", " ", bare)
    for word in re.findall(r"[A-Za-z]{4,}", bare):
        is_product = list(word) == sorted(set(word))
        if word not in MATHEMATICAL and not is_product and not set(word) <= set("xyzw"):
            return True
    return r"\text" in text


def fault_of_gold(gold: str, text: str) -> str | None:
    """Why a gold answer that can be parsed is still none: it is a sentence, or a number in words.

    gold: as it was written; text: normalised.
    """
    words = re.findall(r"[A-Za-z]+", plain(text))
    has_digit = re.search(r"\d", text) is not None
    if has_digit and _COPULAS.search(plain(text)):
        return "a sentence"
    if not has_digit and words and {word.lower() for word in words} <= _NUMBER_WORDS:
        return NUMBER_IN_WORDS
    is_bare = not any(command in gold for command in (r"\text", r"\mbox", r"\mathrm"))
    counted = re.fullmatch(r"-?[\d.,]+\s+([A-Za-z]{2,}(?:\s+[A-Za-z]+)*)", text)
    if is_bare and counted is not None and not set(counted[1].split()) <= MATHEMATICAL:
        unit = without_unit(text).unit
        if unit is None or unit.startswith(COUNTED):
            return "a number with words"
    return None
