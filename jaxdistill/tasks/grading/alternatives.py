"""Mathematics with several right answers: the first that fits decides."""

from dataclasses import replace

from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question


def grade_math_any(question: Question, response: str) -> Verdict:
    """`grade_math` against `question.answer`, then against each of `question.alternatives`."""
    verdict = grade_math(question, response)
    for answer in question.alternatives:
        if verdict.correct:
            break
        other = grade_math(replace(question, answer=answer), response)
        verdict = other if other.correct else verdict
    return verdict
