"""Mathematics with several right answers: the first that fits decides."""

from dataclasses import replace

from jaxdistill.tasks.grading.math import LAST_CHARS, grade_math
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question


def grade_math_any(question: Question, response: str, *, last_chars: int = LAST_CHARS) -> Verdict:
    """`grade_math` against `question.answer`, then against each of `question.alternatives`."""
    verdict = grade_math(question, response, last_chars=last_chars)
    for answer in question.alternatives:
        if verdict.correct:
            break
        other = grade_math(replace(question, answer=answer), response, last_chars=last_chars)
        verdict = other if other.correct else verdict
    return verdict
