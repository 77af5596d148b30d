"""The oracle: verdicts on toy responses, and what the trace before the answer shows."""

from dataclasses import dataclass

from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.toy.traces import ANSWER, CHECK, END_THINK


def grade(question: Question, response: str) -> Verdict:
    """Right iff the response ends in its only `</think>`, then `answer` and the one solution."""
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
    checks: int  # re-computations
    reached: bool  # the last try, honestly computed, reaches the target
    copied: bool | None  # the answer is right, given `reached`; None when not reached or no answer


def read_trace(question: Question, response: str) -> Trace:
    """Count tries and checks, and ask whether a truly successful last try was copied out.

    Copy fidelity guards the world itself: were it to fall, accuracy would be lost by corrupted
    copying and not by lost search.
    """
    problem = problems.parse(question.prompt)
    words = response.partition(END_THINK)[0].split()
    tries = split_tries(words)
    reached = bool(tries) and operations(tries[-1], problem) == problem.solution
    verdict = grade(question, response)
    copied = verdict.correct if reached and verdict.answer is not None else None
    return Trace(len(tries), words.count(CHECK), reached, copied)


def facts(question: Question, response: str) -> dict[str, float | None]:
    """Double checks, and whether a successful last try was copied out."""
    trace = read_trace(question, response)
    return {"checks": trace.checks, "copy": trace.copied}


def is_arithmetic(word: str) -> bool:
    """Numbers, operations and `=`: what a try consists of."""
    return word.isdigit() or word in (*problems.OPERATIONS, "=")


def split_tries(words: list[str]) -> list[list[str]]:
    """Runs of arithmetic between the other words."""
    tries: list[list[str]] = [[]]
    for word in words:
        if is_arithmetic(word):
            tries[-1].append(word)
        elif tries[-1]:
            tries.append([])
    return [attempt for attempt in tries if attempt]


def operations(attempt: list[str], problem: problems.Problem) -> str | None:
    """The operations of `a + b = x - c = y`; None when its numbers are not the problem's."""
    body = [w for i, w in enumerate(attempt) if not (w == "=" or (i and attempt[i - 1] == "="))]
    numbers, ops = body[::2], body[1::2]
    is_whole = numbers == [str(n) for n in problem.numbers] and len(ops) == len(numbers) - 1
    return "".join(ops) if is_whole and set(ops) <= set(problems.OPERATIONS) else None
