r"""Mathematics: the last \boxed{...} at the end of the response, compared with the gold answer.

As the training reward of arXiv 2603.24472's released code: the last box in the response's last
characters, right if it is the gold string, else if math_verify finds the two equal. Two things
differ. The window is 300 characters where theirs was 100, which cuts long LaTeX answers; give
`last_chars=100` for theirs. And math_verify reads both sides as LaTeX, where theirs could not read
a bare LaTeX gold. Their *evaluation* grader, which accepts a factor of 100, is not here.
"""

import re
import threading
import time
from functools import partial

from jaxdistill.tasks.grading.pool import TOO_SLOW, grade_all
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question

_ALARM_S = 4  # per step of math_verify, below a pool's 5 s, whose workers then need no replacing
# 300 digits: int() takes quadratic time and refuses strings of more than 4,300.
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")


def grade_math(question: Question, response: str, *, last_chars: int = 300) -> Verdict:
    """Grade one response against `question.answer`; never raises.

    In the main thread of a process math_verify is held to some seconds by SIGALRM; elsewhere the
    comparison runs in a process of its own. To be safe from every hang, use a `GradingPool`.
    """
    answer, reason = boxed(response[-last_chars:])
    if answer is None:
        return Verdict(False, reason, None)
    gold, given = normalise(question.answer), normalise(answer)
    if gold == given:
        return Verdict(True, "exact", answer)
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(given):  # most wrong answers end here
        return _compared(int(gold) == int(given), answer)
    if threading.current_thread() is not threading.main_thread():
        box = rf"\boxed{{{answer}}}"
        grader = partial(grade_math, last_chars=len(box))
        return grade_all(grader, [question], [box], workers=1)[0]
    return _verify(gold, given, answer)


def boxed(text: str) -> tuple[str | None, str]:
    r"""Return what the last \boxed{...} holds, or None and why.

    >>> boxed(r"so \boxed{\frac{1}{2}}."), boxed(r"so \boxed{1")
    (('\\frac{1}{2}', ''), (None, 'unclosed box'))
    """
    boxes = list(re.finditer(r"\\boxed\s*\{", text))
    if not boxes:
        return None, "no box"
    start, depth = boxes[-1].end(), 1
    # Escaped characters are skipped in pairs: the brace of `\{` opens nothing.
    for mark in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            answer = text[start : start + mark.start()].strip()
            return (answer, "") if answer else (None, "empty box")
    return None, "unclosed box"


def normalise(answer: str) -> str:
    r"""Remove what changes the looks of an answer but never its meaning; idempotent.

    Spaces between numbers stay: "1 1/2" is not "11/2".

    >>> normalise(r" $\left( 3,\; \dfrac{1}{2} \right)$. "), normalise(r"\text{Evelyn}")
    ('(3,\\frac{1}{2})', 'Evelyn')
    """
    previous = None
    while answer != previous:
        previous = answer
        answer = re.sub(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\!", "", answer)
        answer = re.sub(r"\\[,;:](?=\s|$)|\s+", " ", answer)
        answer = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", answer)
        answer = re.sub(r"\s*([,=()\[\]])\s*", r"\1", answer)
        answer = answer.strip().removesuffix(".").strip()
        answer = re.sub(r"^\$([^$]*)\$$", r"\1", answer)
        answer = re.sub(r"^\\(?:text|mathrm|textbf|mathbf|mbox)\{([^{}]*)\}$", r"\1", answer)
    return answer


def _compared(are_equal: bool, answer: str) -> Verdict:
    return Verdict(are_equal, "equivalent" if are_equal else "different", answer)


def _verify(gold: str, given: str, answer: str) -> Verdict:
    import math_verify
    from math_verify.errors import TimeoutException  # a BaseException in some versions

    started = time.monotonic()
    try:
        gold_readings, given_readings = (
            math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=_ALARM_S)
            for text in (gold, given)
        )
        are_equal = math_verify.verify(gold_readings, given_readings, timeout_seconds=_ALARM_S)
    except (Exception, TimeoutException) as error:
        return Verdict(False, f"unreadable: {type(error).__name__}", answer)
    if not are_equal and time.monotonic() - started >= _ALARM_S:
        return Verdict(False, TOO_SLOW, answer)  # math_verify itself calls this "different"
    if not given_readings:
        return Verdict(False, "unreadable", answer)
    return _compared(are_equal, answer)
