"""The toy world's grader: verdicts on responses, and statistics of the trace before the answer."""

from dataclasses import dataclass

from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.toy.traces import ANSWER, CHECK, END_THINK


def grade(question: Question, response: str) -> Verdict:
    """Accept iff the text after the first `</think>` is exactly `answer` and the one solution."""
    _, mark, tail = response.partition(END_THINK)
    words = tail.split()
    if not mark or not words or words[0] != ANSWER:
        return Verdict(correct=False, reason="no answer", answer=None)
    answer = " ".join(words[1:])
    correct = answer == question.answer
    return Verdict(correct=correct, reason="match" if correct else "wrong answer", answer=answer)


@dataclass(frozen=True)
class Trace:
    """What the thinking part of a response did."""

    tries: int
    checks: int  # recomputations of a try
    reached: bool  # the last try's operations, computed without slips, reach the target
    copied: bool | None  # whether the answer is correct; None if not `reached` or no answer


def read_trace(question: Question, response: str) -> Trace:
    """Count tries and checks, and find whether a successful last try was copied to the answer.

    Copy fidelity validates the toy world itself: if it falls, accuracy is lost by faulty copying
    and not by worse search.
    """
    problem = problems.parse(question.prompt)
    words = response.partition(END_THINK)[0].split()
    tries = split_tries(words)
    reached = bool(tries) and operations(tries[-1], problem) == problem.solution
    verdict = grade(question, response)
    copied = verdict.correct if reached and verdict.answer is not None else None
    return Trace(len(tries), words.count(CHECK), reached, copied)


def facts(question: Question, response: str) -> dict[str, float | None]:
    """Return the number of checks, and whether a successful last try was copied (else None)."""
    trace = read_trace(question, response)
    return {"checks": trace.checks, "copy": trace.copied}


def is_arithmetic(word: str) -> bool:
    """Whether `word` can be part of a try: a number, an operation or `=`."""
    return word.isdigit() or word in (*problems.OPERATIONS, "=")


def split_tries(words: list[str]) -> list[list[str]]:
    """Return the runs of arithmetic words between the other words."""
    tries: list[list[str]] = [[]]
    for word in words:
        if is_arithmetic(word):
            tries[-1].append(word)
        elif tries[-1]:
            tries.append([])
    return [attempt for attempt in tries if attempt]


def operations(attempt: list[str], problem: problems.Problem) -> str | None:
    """Return the operations of `a + b = x - c = y`, or None if its numbers are not the problem's.

    The written results x and y are ignored, since they may contain slips.
    """
    body = [w for i, w in enumerate(attempt) if not (w == "=" or (i and attempt[i - 1] == "="))]
    numbers, ops = body[::2], body[1::2]
    is_whole = numbers == [str(n) for n in problem.numbers] and len(ops) == len(numbers) - 1
    return "".join(ops) if is_whole and set(ops) <= set(problems.OPERATIONS) else None
