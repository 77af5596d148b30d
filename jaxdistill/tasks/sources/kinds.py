"""Which kind of task a data set is for, told from its rows."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources import columns as layouts
from jaxdistill.tasks.sources.instruction import BOX, TAG
from jaxdistill.tasks.sources.options import bare_letter
from jaxdistill.tasks.sources.place import in_short
from jaxdistill.tasks.sources.reading import Reading, accepted, rows_of

Kind = Literal["math", "choice", "exact"]
_NUM_ROWS = 64  # that are looked at; the task itself checks every row
_OPTION = re.compile(r"(?:^|\s)\(?([A-J])[).:]\s*\S")
_SMALL_OPTION = re.compile(r"(?:^|\s)\(?([a-j])[).:]\s*\S")
_MATHEMATICAL = re.compile(r"[\d\\^=<>{}√]|^-?[a-z]$|^-?\\?(pi|infty|[πθ∞])$")


def kind_of(reading: Reading) -> Kind:
    """The kind of task that fits the first rows of a data set.

    Raises UserError if they do not tell, so that nobody's right answers are graded as wrong.
    """
    rows = rows_of(reading.source, layouts.wanted_columns(reading.columns))
    read = accepted(
        rows,
        lambda place, row: layouts.question_of(place, row, reading.columns),
        "skip",
        skipped := [],
    )
    questions = [question for _, question in islice(read, _NUM_ROWS)]
    if not questions:
        raise UserError(skipped[0] if skipped else f"{reading.source}: holds no questions")
    kind = told_by(questions)
    if kind is None:
        answers = ", ".join(in_short(question.answer, 40) for question in questions[:3])
        raise UserError(
            f"{reading.source}: cannot tell its kind of task from answers such as {answers}; say "
            "math, choice or exact"
        )
    return kind


def told_by(questions: Sequence[Question]) -> Kind | None:
    r"""The kind of task of some questions; None where they do not agree or do not tell.

    >>> told_by([Question("q", "1+1?", "2")]), told_by([Question("q", "Capital?", "Paris")])
    ('math', None)
    """
    every_letter = all(
        re.fullmatch(r"[A-J]", bare_letter(question.answer)) for question in questions
    )
    if all(BOX.is_asked_by(question) for question in questions):
        return "math"
    if all(TAG.is_asked_by(question) for question in questions):
        return "choice" if every_letter else "exact"
    if any(TAG.is_asked_by(question) for question in questions):
        return None
    if every_letter:
        has_options = all({"A", "B"} <= set(_OPTION.findall(q.prompt)) for q in questions)
        return "choice" if has_options else None
    has_small = all({"a", "b"} <= set(_SMALL_OPTION.findall(q.prompt)) for q in questions)
    if has_small and all(re.fullmatch(r"\(?[a-j]\)?", q.answer) for q in questions):
        return None  # the letter of an option in lower case, and not the name of a variable
    if all(_MATHEMATICAL.search(question.answer) for question in questions):
        return "math"
    return None
