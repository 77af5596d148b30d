r"""Mathematics: compare the last box of a response with the gold answer.

The training reward in the released code of arXiv 2603.24472 takes the last box within the
response's final 100 characters and asks math_verify. This grader differs in what it takes and in
how it compares: `extract` finds the box, `reading` says what an answer is, and `compare` has a rule
for each kind. math_verify is asked about integrals, sums and the like alone. docs/grading.md counts
the verdicts of the three. The paper's *evaluation* grader, which accepts answers that are off by a
factor of 100, is not implemented.
"""

import re
import threading
from collections.abc import Sequence
from functools import partial

from jaxdistill.tasks.grading import algebra
from jaxdistill.tasks.grading.compare import same
from jaxdistill.tasks.grading.extract import THINKING_TAGS, last_box
from jaxdistill.tasks.grading.names import NUMBER_IN_WORDS, fault_of_gold, folded, without_label
from jaxdistill.tasks.grading.normalise import normalise
from jaxdistill.tasks.grading.pool import TOO_SLOW, grade_all
from jaxdistill.tasks.grading.reading import readings
from jaxdistill.tasks.grading.tokens import NeedsAlgebra, Unreadable
from jaxdistill.tasks.grading.values import Option, Value, Words
from jaxdistill.tasks.grading.verdict import (
    CORRECT,
    DIFFERENT,
    MALFORMED,
    UNFINISHED,
    UNREADABLE_GOLD,
    Verdict,
)
from jaxdistill.tasks.questions import Question

_MOST_SHOWN = 500  # characters of an answer in a verdict


def grade_math(
    question: Question,
    response: str,
    *,
    last_chars: int | None = None,
    thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS,
) -> Verdict:
    r"""Grade one response against the gold answers. Never raises for any response.

    last_chars: how many characters at the response's end may hold the box; None: all that follow
    the thinking. thinking_tags: pairs of opening and closing tags.

    In the main thread SIGALRM limits math_verify to 4 s per step. Other threads cannot handle
    signals, so there it runs in a separate process. Only a `GradingPool` protects against every
    hang, such as a long C call during which no signal handler runs.

    >>> grade_math(Question("q", "", "1/2"), r"<think>\boxed{2}?</think> \boxed{0.5}")
    Verdict(correct=True, reason='correct', answer='0.5')
    """
    found = last_box(response, thinking_tags, last_chars)
    if found.answer is None:
        return Verdict(False, UNFINISHED if found.is_unfinished else found.reason, None)
    reasons = []
    for gold in (question.answer, *question.alternatives):
        reasons.append(_compared(gold, found.answer))
        if reasons[-1] == CORRECT:
            break
    # Of several gold answers the first one's reason counts, unless a later one is equal.
    reason = CORRECT if reasons[-1] == CORRECT else reasons[0]
    shown = found.answer if len(found.answer) <= _MOST_SHOWN else found.answer[:_MOST_SHOWN]
    mark = UNFINISHED if found.is_unfinished else reason
    return Verdict(reason == CORRECT, mark, shown)


def fault_in_gold(gold: str) -> str | None:
    """Why no answer could be compared with a gold answer, in a few words; None if it can be read.

    >>> fault_in_gold("The answer is 72."), fault_in_gold("72 boys"), fault_in_gold("72")
    ('a sentence', 'a number with words', None)
    """
    if re.fullmatch(r"-?\d{1,400}", gold):
        return None
    try:
        readings(gold)
    except NeedsAlgebra:
        return None
    except Unreadable as error:
        return str(error)
    return fault_of_gold(gold, normalise(gold))


def _compared(gold: str, given: str) -> str:
    """The reason of the verdict on an answer."""
    if normalise(gold) == normalise(given):
        return CORRECT
    if (fault := fault_in_gold(gold)) is not None:
        is_words = fault == NUMBER_IN_WORDS and folded(normalise(gold)) == folded(normalise(given))
        return CORRECT if is_words else UNREADABLE_GOLD
    golds, givens = _read(gold), _read(given)
    if givens == ():
        return MALFORMED
    if golds is None or givens is None:
        return _by_algebra(gold, given, golds or givens)
    return CORRECT if any(same(x, y) for x in golds for y in givens) else DIFFERENT


def _read(answer: str) -> tuple[Value, ...] | None:
    """The readings of an answer, () if there is none, None if computer algebra may know it."""
    try:
        return readings(answer)
    except NeedsAlgebra:
        return None
    except Unreadable:
        return ()


def _by_algebra(gold: str, given: str, other: tuple[Value, ...] | None) -> str:
    """The reason where one side at least needs computer algebra; `other` is what the other is."""
    if other and all(isinstance(value, Words | Option) for value in other):
        return DIFFERENT  # math_verify would take a word for a product of letters
    if threading.current_thread() is not threading.main_thread():
        question = Question("", "", gold)
        grader = partial(grade_math, thinking_tags=())
        return grade_all(grader, [question], [rf"\boxed{{{given}}}"], workers=1)[0].reason
    gold, given = (without_label(normalise(text)) or text for text in (gold, given))
    found = algebra.verify(gold, given)
    reasons = {
        algebra.TRUE: CORRECT,
        algebra.FALSE: DIFFERENT,
        algebra.SLOW: TOO_SLOW,
        algebra.UNREADABLE: MALFORMED,
        algebra.UNREADABLE_GOLD: UNREADABLE_GOLD,
    }
    return reasons[found]
