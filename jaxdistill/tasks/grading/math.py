r"""Mathematics: compare the last \boxed{...} near the end of the response with the gold answer.

This follows the training reward in the released code of arXiv 2603.24472: the last box within the
response's final characters is correct if it equals the gold string, or if math_verify finds the two
equivalent. There are two differences. The window is 300 characters; theirs of 100 cuts off long
LaTeX answers (`MathTask(last_chars=100)` restores it). Both sides are given to math_verify as
LaTeX; theirs cannot read a gold answer in LaTeX without delimiters. Their *evaluation* grader,
which accepts answers that are off by a factor of 100, is not implemented.
"""

import re
import threading
import time
from functools import partial

from jaxdistill.tasks.grading.pool import TOO_SLOW, grade_all
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question

# Time limit for each step of math_verify. It is below a pool's 5 s, so that a slow comparison
# usually ends here and the pool need not replace the worker.
_ALARM_S = 4
# At most 300 digits, because int() takes quadratic time and refuses more than 4,300 digits. Chosen,
# not measured.
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")


LAST_CHARS = 300  # the window at the end of a response in which a box counts


def grade_math(question: Question, response: str, *, last_chars: int = LAST_CHARS) -> Verdict:
    """Grade one response against `question.answer`. Never raises for any response.

    In the main thread SIGALRM limits math_verify to 4 s per step. Other threads cannot handle
    signals, so there the comparison runs in a separate process. Only a `GradingPool` protects
    against every hang, such as a long C call during which no signal handler runs.
    """
    answer, reason = boxed(response[-last_chars:])
    if answer is None:
        return Verdict(False, reason, None)
    gold, given = normalise(question.answer), normalise(answer)
    if gold == given:
        return Verdict(True, "exact", answer)
    # math_verify is slow, and most wrong answers are integers.
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(given):
        return _comparison(int(gold) == int(given), answer)
    if threading.current_thread() is not threading.main_thread():
        box = rf"\boxed{{{answer}}}"
        # The box may be longer than the default window.
        grader = partial(grade_math, last_chars=len(box))
        return grade_all(grader, [question], [box], workers=1)[0]
    return _verify(gold, given, answer)


def boxed(text: str) -> tuple[str | None, str]:
    r"""Return (content of the last \boxed{...}, ""), or (None, reason) if there is none.

    >>> boxed(r"so \boxed{\frac{1}{2}}."), boxed(r"so \boxed{1")
    (('\\frac{1}{2}', ''), (None, 'unclosed box'))
    """
    boxes = list(re.finditer(r"\\boxed\s*\{", text))
    if not boxes:
        return None, "no box"
    start, depth = boxes[-1].end(), 1
    # A backslash matches with the character after it, so `\{` and `\}` do not count as braces.
    for mark in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            answer = text[start : start + mark.start()].strip()
            return (answer, "") if answer else (None, "empty box")
    return None, "unclosed box"


def normalise(answer: str) -> str:
    r"""Remove formatting that does not change an answer's meaning. Idempotent.

    Spaces between numbers are kept, since "1 1/2" is not "11/2".

    >>> normalise(r" $\left( 3,\; \dfrac{1}{2} \right)$. "), normalise(r"\text{Evelyn}")
    ('(3,\\frac{1}{2})', 'Evelyn')
    """
    previous = None
    # Removing one wrapper may expose another, as in `$\text{A}.$`.
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


def _comparison(are_equal: bool, answer: str) -> Verdict:
    return Verdict(are_equal, "equivalent" if are_equal else "different", answer)


def _verify(gold: str, given: str, answer: str) -> Verdict:
    import math_verify
    from math_verify.errors import TimeoutException

    started = time.monotonic()
    try:
        gold_readings, given_readings = (
            math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=_ALARM_S)
            for text in (gold, given)
        )
        are_equal = math_verify.verify(gold_readings, given_readings, timeout_seconds=_ALARM_S)
    # TimeoutException derives from BaseException in some versions.
    except (Exception, TimeoutException) as error:
        return Verdict(False, f"unreadable: {type(error).__name__}", answer)
    if not are_equal and time.monotonic() - started >= _ALARM_S:
        # When its alarm fires inside `verify`, math_verify returns False, not an error.
        return Verdict(False, TOO_SLOW, answer)
    if not given_readings:
        return Verdict(False, "unreadable", answer)
    return _comparison(are_equal, answer)
