"""Answers in a tag: the letter of an option, or a text that must be exactly the gold answer."""

import re
from collections.abc import Sequence

from jaxdistill.tasks.grading.extract import THINKING_TAGS, Extracted, after_thinking, last_tag
from jaxdistill.tasks.grading.names import plain
from jaxdistill.tasks.grading.normalise import normalise
from jaxdistill.tasks.grading.verdict import (
    CORRECT,
    DIFFERENT,
    MALFORMED,
    NO_ANSWER,
    UNFINISHED,
    Verdict,
)
from jaxdistill.tasks.questions import Question

_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+|right\s+|best\s+)?"
    r"(?:answer|option|choice|letter)(?:\s+(?:is|would be|must be))?\s*[:=]?\s*"
    r"|(?:正确|最终)?的?(?:答案|选项|选择?)\s*(?:是|为)?\s*:?\s*",
    re.IGNORECASE,
)
# A letter as people write it: A, (A), [A], A., A), A:, "A"; in lower case only with such a mark or
# alone, because "a" is a word.
_LETTER = re.compile(
    r"[\"'“‘]?(?:[(\[]\s*([A-Za-z])\s*[)\]][.:]?|([A-Za-z])(?:[.):\]、](?![A-Za-z.])|$)|"
    r"([A-Z])(?![A-Za-z0-9_^+'’])(?!\s+(?!and\b|or\b|not\b|is\b|because\b|since\b|as\b)[A-Za-z]{2}))"
    r"[\"'”’]?"
)
_JOIN = re.compile(r"\s*(?:,?\s*\b(?:and|or|not)\b\s*(?:not\b\s*)?|[,;&/+]\s*)\s*", re.IGNORECASE)
_AFTER = re.compile(r"\s*(?:[-–—:.)]\s*)?")


def grade_choice(
    question: Question,
    response: str,
    *,
    thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS,
) -> Verdict:
    """Grade one response against the gold letter, in whatever way people write a letter.

    The last answer tag counts. Where a row has several gold letters, each is right; an answer of
    two different letters is none.

    >>> grade_choice(Question("q", "", "B"), "<answer>A</answer> no, <answer> (B) </answer>")
    Verdict(correct=True, reason='correct', answer='B')
    """
    found = last_tag(response, thinking_tags)
    if found.answer is None:
        return _verdict(found, found.reason, None)
    letters = letters_of(found.answer)
    if len(letters) != 1:
        return _verdict(found, NO_ANSWER if letters else MALFORMED, found.answer[:100])
    (letter,) = letters
    golds = {gold.strip().upper() for gold in (question.answer, *question.alternatives)}
    return _verdict(found, CORRECT if letter in golds else DIFFERENT, letter)


def letters_of(answer: str) -> set[str]:
    r"""The letters that an answer names, in upper case; its text after a letter is left out.

    >>> letters_of(r"\text{(b)}"), sorted(letters_of("A or C")), letters_of("B: 1.1 mol")
    ({'B'}, ['A', 'C'], {'B'})
    """
    text = answer if len(answer) < 1_000 else answer[:1_000]
    text = plain(normalise(re.sub(r"<[^<>]*>|[*_`#]", " ", text)))
    if (lead := _LEAD.match(text)) is not None:
        text = text[lead.end() :]
    found: set[str] = set()
    at = 0
    while (letter := _LETTER.match(text, at)) is not None:
        found.add((letter[1] or letter[2] or letter[3]).upper())
        join = _JOIN.match(text, letter.end())
        if join is not None:
            at = join.end()
            continue
        # "B. C" and "A B" name two letters, "B. Carbon" one.
        after = _AFTER.match(text, letter.end())
        assert after is not None
        is_text = re.match(r"[\"'(\[]?[A-Za-z][\"')\].:,]?(?![A-Za-z0-9(\[])(?!\s+[a-z0-9])",
                           text[after.end() :]) is None  # fmt: skip
        if is_text:
            return found
        at = after.end()
    return found


def grade_exact(
    question: Question,
    response: str,
    *,
    in_tag: bool = True,
    ignore_case: bool = False,
    thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS,
) -> Verdict:
    """Grade the text of the last answer tag, or the response after its thinking, as a text.

    Only space around it does not matter, and case with `ignore_case`.

    >>> grade_exact(Question("q", "", "Na+"), "<answer>Na+</answer>").correct
    True
    """
    if in_tag:
        found = last_tag(response, thinking_tags)
    else:
        text, is_unfinished = after_thinking(response, thinking_tags)
        found = Extracted(text.strip(), "", is_unfinished)
    if found.answer is None:
        return _verdict(found, found.reason, None)
    golds = {gold.strip() for gold in (question.answer, *question.alternatives)}
    given = found.answer
    if ignore_case:
        golds, given = {gold.casefold() for gold in golds}, given.casefold()
    return _verdict(found, CORRECT if given in golds else DIFFERENT, found.answer[:100])


def _verdict(found: Extracted, reason: str, answer: str | None) -> Verdict:
    mark = UNFINISHED if found.is_unfinished else reason
    return Verdict(reason == CORRECT, mark, answer)
