"""What a grader says about one response."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxdistill.tasks.questions import Question


@dataclass(frozen=True)
class Verdict:
    """Whether the response is right, why the grader thinks so, and the answer that it read."""

    correct: bool
    reason: str  # a few words: "exact", "different", "no box", "too slow", ...
    answer: str | None  # None: the response holds none


Grader = Callable[[Question, str], Verdict]


def judge(grader: Grader, question: Question, response: str) -> Verdict:
    """Apply a grader; its failure on a response is a verdict too."""
    try:
        return grader(question, response)
    except Exception as error:  # one strange response must not end a run
        # 200 characters: a reason is kept with every response, and sympy's messages hold formulas.
        return Verdict(False, f"grader failed: {type(error).__name__}: {error}"[:200], None)
