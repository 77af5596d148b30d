"""The verdict of a grader on one response."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.questions import Question


@dataclass(frozen=True)
class Verdict:
    """Whether the response is correct, the grader's reason, and the answer that it extracted."""

    correct: bool
    reason: str  # one of `REASONS`, or "grader failed: ..."; of a recipe's own grader any text
    answer: str | None  # None if the response contains no answer


CORRECT, DIFFERENT = "correct", "different"
NO_ANSWER = "no answer"  # no box or no answer tag, or options that contradict each other
UNFINISHED = "unfinished"  # the thinking was never closed; the whole response was searched
MALFORMED = "malformed"  # a box or a tag that is open or empty, or an answer that cannot be read
UNREADABLE_GOLD = "unreadable gold"
TOO_SLOW = "too slow"
REASONS = (CORRECT, DIFFERENT, NO_ANSWER, UNFINISHED, MALFORMED, UNREADABLE_GOLD, TOO_SLOW)

Grader = Callable[[Question, str], Verdict]


@dataclass(frozen=True)
class TaskGrader:
    """The `grade` of a recipe's own task.

    It is looked up in the process that calls it: a task can be pickled, its method need not be.
    """

    task: Any

    def __call__(self, question: Question, response: str) -> Verdict:
        return self.task.grade(question, response)


FAILED = "grader failed"  # the start of the reason if the grader raised or its process died
READY = "ready"  # the first message of a grading process, sent after its imports
BEGAN = "began"  # its message on receiving a response: from then on the response may kill it

# A module that a grader lacks is a fault of the environment, and of no response.
_FAULT = re.compile(r"(?:grader failed|unreadable): ((?:ImportError|ModuleNotFoundError)\b.*)")


def fault_in(verdict: Verdict) -> str | None:
    """The import that failed in a grader, if that is the reason of its verdict."""
    found = None if verdict.correct else _FAULT.match(verdict.reason)
    return found and found[1]


def judge(grader: Grader, question: Question, response: str) -> Verdict:
    """Apply a grader. If it raises or returns no `Verdict`, the verdict is "grader failed"."""
    try:
        verdict = grader(question, response)
        # The grader may be a recipe's own, and a verdict's fields are written as JSON.
        fields = (bool, str, str | None)
        values = dataclasses.astuple(verdict) if isinstance(verdict, Verdict) else ()
        if not (values and all(map(isinstance, values, fields))):
            raise TypeError(f"expected a Verdict of bool, str and str or None, got {verdict!r}")
        return verdict
    except (Exception, SystemExit) as error:  # one strange response must not end a run
        # At most 200 characters, because a reason is kept with every response and sympy's messages
        # contain long formulas. Chosen, not measured.
        return Verdict(False, f"{FAILED}: {in_one_line(error)}"[:200], None)
