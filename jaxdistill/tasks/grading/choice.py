"""Answers in a tag: the letter of an option, or a text that must be exactly the gold answer."""

import re

from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question


def grade_choice(question: Question, response: str) -> Verdict:
    """Grade one response against the gold letter, which must match exactly, including its case.

    Where a row has several gold letters, each is right. Parentheses, a full stop and bold type
    around the letter do not matter.

    >>> grade_choice(Question("q", "", "B"), "<answer>A</answer> no, <answer> (B) </answer>")
    Verdict(correct=True, reason='exact', answer='B')
    """
    answer, reason = tagged(response)
    if answer is None:
        return Verdict(False, reason, None)
    letter = re.fullmatch(r"(?:\*\*)?\(?([A-Z])\)?\.?(?:\*\*)?", answer)
    if letter is None:
        return Verdict(False, "not one letter", answer[:100])
    is_same = letter[1] in {gold.strip() for gold in (question.answer, *question.alternatives)}
    return Verdict(is_same, "exact" if is_same else "different", letter[1])


def grade_exact(
    question: Question, response: str, *, in_tag: bool = True, ignore_case: bool = False
) -> Verdict:
    """Grade the text of the last answer tag, or the whole response, against the gold text.

    Only space around it does not matter, and case with `ignore_case`.

    >>> grade_exact(Question("q", "", "Na+"), "<answer>Na+</answer>").correct
    True
    """
    answer, reason = tagged(response) if in_tag else (response.strip(), "")
    if answer is None:
        return Verdict(False, reason, None)
    golds = {gold.strip() for gold in (question.answer, *question.alternatives)}
    given = answer
    if ignore_case:
        golds, given = {gold.casefold() for gold in golds}, answer.casefold()
    is_same = given in golds
    return Verdict(is_same, "exact" if is_same else "different", answer[:100])


def tagged(response: str) -> tuple[str | None, str]:
    """Return what the last `<answer>` tag holds, or None and why.

    >>> tagged("<answer> 7 </answer>"), tagged("<answer>7")
    (('7', ''), (None, 'unclosed answer tag'))
    """
    _, tag, rest = response.rpartition("<answer>")
    if not tag:
        return None, "no answer tag"
    answer, closing, _ = rest.partition("</answer>")
    return (answer.strip(), "") if closing else (None, "unclosed answer tag")
