"""What a grader says about one response."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.questions import Question


@dataclass(frozen=True)
class Verdict:
    """Whether the response is right, why the grader thinks so, and the answer that it read."""

    correct: bool
    reason: str  # a few words: "exact", "different", "no box", "too slow", ...
    answer: str | None  # None: the response holds none


Grader = Callable[[Question, str], Verdict]


@dataclass(frozen=True)
class TaskGrader:
    """The `grade` of a recipe's own task, looked up where it runs: it need not be importable."""

    task: Any

    def __call__(self, question: Question, response: str) -> Verdict:
        return self.task.grade(question, response)


FAILED = "grader failed"  # how the reason of a verdict begins that a grader did not give
READY = "ready"  # what a grading process says first


def judge(grader: Grader, question: Question, response: str) -> Verdict:
    """Apply a grader; its failure on a response is a verdict too."""
    try:
        verdict = grader(question, response)
        # It may come from a recipe's own grader, and is written as JSON.
        fields = (bool, str, str | None)
        values = dataclasses.astuple(verdict) if isinstance(verdict, Verdict) else ()
        if not (values and all(map(isinstance, values, fields))):
            raise TypeError(f"expected a Verdict of bool, str and str or None, got {verdict!r}")
        return verdict
    except (Exception, SystemExit) as error:  # one strange response must not end a run
        # 200 characters: a reason is kept with every response, and sympy's messages hold formulas.
        return Verdict(False, f"{FAILED}: {in_one_line(error)}"[:200], None)
