r"""Where the answer stands in a response: the last box, or the last answer tag, after the thinking.

What precedes the last closing tag of thinking is not the answer. A response that opens thinking and
never closes it, because it was cut, is searched as a whole and called unfinished. One without any
tag is searched as a whole too: its model does not think in tags, or its prompt has opened them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

THINKING_TAGS = (("<think>", "</think>"),)

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MARK = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
# A box without braces: a number, a command with its arguments, or a letter.
_BARE = re.compile(
    r"\s*(?:"
    r"([+-]?(?:\d[\d,]*)?\.?\d+(?:/\d+)?(?!\w)%?)"
    r"|(\\(?:d?frac|sqrt|text|mathrm|textbf|mathbf|pi|infty)\s*(?:\{[^{}]*\}\s*)*)"
    r"|([A-Za-z](?![A-Za-z]))"
    r")"
)
# Inside a formula such as $\\boxed x+1$, all that follows.
_BARE_IN_FORMULA = re.compile(r"\s*([^\s{}$][^$\n]*?)\s*(?=\$|\\\)|\\\])")
# An answer is shorter than this many characters, so a longer text need not be scanned.
_LONGEST = 20_000
_MOST_EMPTY = 50  # commands at the end that hold no answer; beyond it the response is no answer


class Extracted(NamedTuple):
    """The answer, or None and the reason; and whether the thinking was never closed."""

    answer: str | None
    reason: str = ""  # "no answer" or "malformed"
    is_unfinished: bool = False


def after_thinking(
    response: str, tags: Sequence[tuple[str, str]] = THINKING_TAGS
) -> tuple[str, bool]:
    """What follows the last closing tag, and whether the thinking was opened and not closed.

    >>> after_thinking("<think>Hmm</think> 4"), after_thinking("<think>Hmm")
    ((' 4', False), ('<think>Hmm', True))
    """
    closed = max((at + len(tag) for _, tag in tags if (at := response.rfind(tag)) >= 0), default=0)
    rest = response[closed:]
    return rest, any(opening in rest for opening, _ in tags)


def last_box(
    response: str,
    tags: Sequence[tuple[str, str]] = THINKING_TAGS,
    last_chars: int | None = None,
) -> Extracted:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`, or what follows `\boxed 5`.

    last_chars: how many characters at the response's end may hold the box; None: all of them.

    >>> last_box(r"so \boxed{\frac{1}{2}}.").answer, last_box(r"so \boxed{1").reason
    ('\\frac{1}{2}', 'malformed')
    """
    text, is_unfinished = after_thinking(response, tags)
    text = text if last_chars is None else text[-last_chars:]
    answer, reason = boxed(text)
    return Extracted(answer, reason, is_unfinished)


def boxed(text: str) -> tuple[str | None, str]:
    r"""(content of the last box, ""), or (None, "no answer" or "malformed").

    Of nested boxes the outermost counts.

    >>> boxed(r"\boxed{x=\boxed{5}}"), boxed("5"), boxed(r"\boxed{}")
    (('x=\\boxed{5}', ''), (None, 'no answer'), (None, 'malformed'))
    """
    stop = len(text)
    for _ in range(_MOST_EMPTY):
        last = _last_match(text, stop)
        if last is None:
            break
        start, end = last
        if re.match(r"\s*\{", text[end : min(end + 100, stop)]):
            return _outermost(text[max(0, start - _LONGEST) : min(end + _LONGEST, stop)])
        bare = _without_braces(text, start, end, min(end + _LONGEST, stop))
        if bare is not None:
            return bare, ""
        # `\boxed` in a sentence about boxes: the answer is in a box before it.
        stop = start
    return None, "no answer"


def _without_braces(text: str, start: int, end: int, stop: int) -> str | None:
    """The answer after a command for a box at [start, end) without braces; None if none."""
    line = text[max(text.rfind("\n", 0, start) + 1, start - _LONGEST) : start]
    has_dollar = len(re.findall(r"(?<!\\)\$", line)) % 2
    in_formula = has_dollar or line.rfind(r"\(") > line.rfind(r"\)")
    formula = _BARE_IN_FORMULA.match(text, end, stop) if in_formula else None
    bare = formula or _BARE.match(text, end, stop)
    return None if bare is None else bare[0].strip()


def _last_match(text: str, stop: int) -> tuple[int, int] | None:
    """Where the last command for a box before a position starts and ends."""
    at = stop
    # From the end, since there may be a hundred thousand of them.
    for _ in range(_MOST_EMPTY):
        at = max(text.rfind(r"\boxed", 0, at), text.rfind(r"\fbox", 0, at))
        if at < 0:
            return None
        if (match := _BOX.match(text, at, stop)) is not None:
            return match.span()
    return None


def _outermost(text: str) -> tuple[str | None, str]:
    """The last box of braces in a text, with those that it lies in."""
    open_braces: list[tuple[int, bool]] = []  # where each starts, and whether it is a box's
    closed: list[tuple[int, int]] = []  # boxes that lie in no closed box
    for mark in _MARK.finditer(text):
        if mark[1]:
            open_braces.append((mark.end(), True))
        elif mark[2] == "{":
            open_braces.append((mark.end(), False))
        elif mark[2] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box:
                while closed and closed[-1][0] > start:
                    closed.pop()
                closed.append((start, mark.start()))
    open_boxes = [start for start, is_box in open_braces if is_box]
    if not closed or (open_boxes and open_boxes[-1] > closed[-1][0]):
        return None, "malformed"  # the last box is not closed
    answer = text[slice(*closed[-1])].strip()
    return (answer, "") if answer else (None, "malformed")


def last_tag(response: str, tags: Sequence[tuple[str, str]] = THINKING_TAGS) -> Extracted:
    """What the last `<answer>` tag holds.

    >>> last_tag("<answer> 7 </answer>").answer, last_tag("<answer>7").reason
    ('7', 'malformed')
    """
    text, is_unfinished = after_thinking(response, tags)
    *_, inner = re.split(r"<answer>", text, flags=re.IGNORECASE)
    if inner == text:
        return Extracted(None, "no answer", is_unfinished)
    answer, *closing = re.split(r"</answer>", inner, maxsplit=1, flags=re.IGNORECASE)
    if not closing or not answer.strip():
        return Extracted(None, "malformed", is_unfinished)
    return Extracted(answer.strip(), "", is_unfinished)
