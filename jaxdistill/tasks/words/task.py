r"""The task in words: its questions, the grader of boxes, and statistics of the reasoning.

A response is correct iff its last box holds an expression of exactly the problem's numbers, once
each, whose exact value is the target (`tasks.grading.math`). The order of the numbers is asked for
and not graded: another expression with the right value is as right.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxdistill.tasks.grading.characters import in_latex
from jaxdistill.tasks.grading.extract import last_box
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.verdict import MALFORMED, Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.words import texts
from jaxdistill.tasks.words.texts import SPOKEN

OTHER_NUMBERS = "other numbers"  # a verdict's reason: not the problem's numbers, once each
# Longer than any expression of six numbers below 100 with all its parentheses.
_LONGEST = 200
_EXPRESSION = re.compile(r"(?:[0-9\s()+-]|\*(?!\s*\*)|\\times|\\cdot)+")  # `**` is a power
# Of LaTeX what says nothing about the value: dollars, and the size of parentheses.
_SILENT = re.compile(r"\$|\\(?:left|right)(?=[()])")
_SENTENCE = rf"(?:(\d{{1,6}}) )?({'|'.join(SPOKEN.values())}) (\d{{1,6}}) is (\d{{1,6}})\."
_TRY = re.compile(rf"{_SENTENCE}(?:\s+{_SENTENCE})*", re.IGNORECASE)
_STEP = re.compile(_SENTENCE, re.IGNORECASE)
_SIGNS = {word: sign for sign, word in SPOKEN.items()}


@dataclass(frozen=True)
class WordsTask:
    """The toy world's problems in words, graded by value: the first `count` of a pool.

    The pools are those of `ToyTask`: no problem is in two of them. `pretrain` is that of the
    fine-tuned base's texts. Raises UserError for any other pool, a count below 1, or fewer than 3
    or more than 6 numbers.
    """

    pool: str = "train"  # pretrain, train, validation or heldout
    numbers: int = 3  # of a problem: 3 to 6
    count: int = 2000  # problems
    seed: int = 0  # of the order in which a pool's problems are drawn

    grading_workers: ClassVar = 0  # a verdict is a few operations on short numbers

    def __post_init__(self):
        problems.require_drawable(pool=self.pool, numbers=self.numbers, count=self.count)

    def questions(self) -> list[Question]:
        drawn = problems.draw_distinct(self.count, self.numbers, self.pool, self.seed)
        return [
            Question(p.text, texts.prompt(p), str(p.target), solution=texts.concise(p))
            for p in drawn
        ]

    def grade(self, question: Question, response: str) -> Verdict:
        return grade(question, response)

    def facts(self, question: Question, response: str) -> dict[str, float | None]:
        return facts(question, response)


def grade(question: Question, response: str) -> Verdict:
    """Judge a response; `question.id` is the problem as the toy world writes it."""
    found = last_box(response)
    if found.answer is None:
        return Verdict(correct=False, reason=found.reason, answer=None)
    # `20 − 15`, `20 × 15` and what else a model writes in the place of ASCII.
    answer = _SILENT.sub("", in_latex(found.answer)).strip()
    # Before the value: what is left is short, and has neither powers nor letters.
    if len(found.answer) > _LONGEST or not _EXPRESSION.fullmatch(answer):
        return Verdict(correct=False, reason=MALFORMED, answer=found.answer[:_LONGEST])
    used = sorted(map(int, re.findall(r"\d+", answer)))
    if used != sorted(problems.parse(question.id).numbers):
        return Verdict(correct=False, reason=OTHER_NUMBERS, answer=answer)
    # An expression equals a number by its exact value.
    return grade_math(question, rf"\boxed{{{answer}}}")


class Step(NamedTuple):
    """One sentence of a try: "Plus 3 is 27." has no `left`, which is the value before it."""

    left: int | None
    op: str
    right: int
    result: int


def read_tries(response: str) -> list[list[Step]]:
    """The tries of a response: sentences of operations that follow one another directly."""
    found = []
    for attempt in _TRY.finditer(response):
        steps = [
            Step(int(a) if a else None, _SIGNS[op.lower()], int(b), int(c))
            for a, op, b, c in _STEP.findall(attempt[0])
        ]
        found.append(steps)
    return found


class Computed(NamedTuple):
    """A try without its slips: the numbers that it uses, its value, and its false equations."""

    numbers: tuple[int, ...]
    value: int | None  # None if a sentence does not follow from the one before
    slips: int


def compute(steps: list[Step]) -> Computed:
    """Recompute a try; a slip is an equation that is false for the value written before it."""
    numbers: list[int] = []
    value, written, slips = None, None, 0
    for step in steps:
        if value is None or written is None:
            if step.left is None:
                return Computed(tuple(numbers), None, slips)
            pair, new = (step.left, step.right), (step.left, step.right)
        elif step.left in (None, written):  # "Plus 3 is 27." or "24 plus 3 is 27." after a 24
            pair, new = (written, step.right), (step.right,)
        elif step.op == "-" and step.right == written:  # "30 minus 27 is 3." after a 27
            pair, new = (step.left, written), (step.left,)
        else:
            return Computed(tuple(numbers), None, slips)
        slips += problems.apply(step.op, *pair) != step.result
        true = pair if value is None else (value, new[0])
        value, written = problems.apply(step.op, *true), step.result
        numbers += new
    return Computed(tuple(numbers), value, slips)


def facts(question: Question, response: str) -> dict[str, float | None]:
    """Checks, slips (false equations), tries, and whether a successful last try was copied.

    A copy is None where the last try, computed without slips, does not reach the target with the
    problem's numbers, or where there is no box.
    """
    problem = problems.parse(question.id)
    tries = [compute(steps) for steps in read_tries(response)]
    verdict = grade(question, response)
    reached = bool(tries) and (
        tries[-1].value == problem.target and sorted(tries[-1].numbers) == sorted(problem.numbers)
    )
    copied = float(verdict.correct) if reached and verdict.answer is not None else None
    return {
        "checks": response.lower().count(texts.CHECK.lower()),
        "copy": copied,
        "tries": len(tries),
        "slips": sum(attempt.slips for attempt in tries),
    }
