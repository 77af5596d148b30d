"""Multiple choice: the letter inside the last `<answer>` tag (SciKnowEval's format)."""

import re

from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question


def grade_choice(question: Question, response: str) -> Verdict:
    """Grade one response against the gold letter, which must match exactly, including its case.

    >>> grade_choice(Question("q", "", "B"), "<answer>A</answer> no, <answer> B </answer>")
    Verdict(correct=True, reason='exact', answer='B')
    """
    _, tag, rest = response.rpartition("<answer>")
    if not tag:
        return Verdict(False, "no answer tag", None)
    answer, closing, _ = rest.partition("</answer>")
    if not closing:
        return Verdict(False, "unclosed answer tag", None)
    answer = answer.strip()
    if not re.fullmatch(r"[A-Z]", answer):
        return Verdict(False, "not one letter", answer[:100])
    is_same = answer == question.answer.strip()
    return Verdict(is_same, "exact" if is_same else "different", answer)
