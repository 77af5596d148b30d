r"""The toy world's texts as short English reasoning, with the answer in a box.

A text of the toy world (`tasks.toy.traces`) is spoken: `wait 20 + 15 = 35 - 1 = 34 </think> answer
20 + 15 - 1` becomes "Wait, 20 plus 15 is 35. Minus 1 is 34. So the answer is \boxed{20 + 15 - 1}."
Problems, search and probabilities are therefore those of the toy world, but for two of them. No
value is written wrongly (`slips` and `wishes` are 0), so that every equation of a text is true:
a language model makes slips enough of its own. And guided writers never doubt and never check.

How a guided writer writes is this world's ASSUMPTION, as in the toy world, and not a result: what
is measured is what training does with it.

A box holds an expression in the usual notation: parentheses where precedence needs them, and a
difference with the larger number first. 1 and 25 to 24 is `25 - 1`.
"""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.files import write_whole
from jaxdistill.tasks import contexts
from jaxdistill.tasks.toy import problems, traces
from jaxdistill.tasks.toy.problems import Problem
from jaxdistill.tasks.toy.traces import Guidance, World

# After a miss a guided writer, who knows the solution, closes with it in 15 % of cases. In the toy
# world 10 to 15 % gave a graded harm, and 30 % a collapse.
GUIDED = Guidance(false_start=0.35, closes_early=0.15, doubts=0.0, checks=0.0, hedges=0.0)
WORDS = World(name="words", slips=0.0, wishes=0.0, guidance=(("whole", GUIDED),))

SPOKEN = {"+": "plus", "-": "minus", "*": "times"}
# Of a doubt and of a hedge the words that introduce the next try. " hmm" in small letters is two
# pieces in many vocabularies, so that half of the "hmm" is doubt that a lexicon of ids cannot see.
DOUBTS = {
    "wait": ("Wait,",),
    "hmm": ("Hmm,", "Not that, hmm:"),
    "actually": ("Actually,",),
    "alternatively": ("Alternatively,",),
}
HEDGES = {
    "maybe": "maybe",
    "perhaps": "perhaps",
    "might": "this might work:",
    "likely": "a likely way:",
    "seems": "this seems right:",
}
CHECK = "Let me check:"
NEXT = "Next,"

MOST_TEXTS = 10_000_000  # of a file: more than anyone needs, 5 GB. Chosen.


def prompt(problem: Problem) -> str:
    """The user's turn."""
    *first, last = map(str, problem.numbers)
    return (
        f"Use the numbers {', '.join(first)} and {last}, once each and in this order, with plus, "
        f"minus and times to make {problem.target}. A difference is the larger number minus the "
        "smaller. Put the expression in \\boxed{}."
    )


# --------------------------------------------------------------------------------- speaking


def spoken(problem: Problem, text: str, rng: random.Random) -> str:
    """A text of the toy world in words. `rng` chooses between the forms of a doubt."""
    thinking, _, answer = text.partition(traces.END_THINK)
    said: list[str] = []
    lead: list[str] = []
    for is_try, group in itertools.groupby(thinking.split(), _is_arithmetic):
        if is_try:
            said.append(_sentence(lead, spoken_try(list(group))))
            lead = []
        else:
            lead = [_lead(word, rng) for word in group]
    ops = "".join(answer.split()[2::2])  # after the word `answer` and the first number
    return " ".join([*said, rf"So the answer is \boxed{{{expression(problem.numbers, ops)}}}."])


def _is_arithmetic(word: str) -> bool:
    return word.isdigit() or word in (*problems.OPERATIONS, "=")


def _lead(word: str, rng: random.Random) -> str:
    if word in DOUBTS:
        return rng.choice(DOUBTS[word])
    return {traces.CHECK: CHECK, traces.THEN: NEXT}.get(word) or HEDGES[word]


def _sentence(lead: list[str], attempt: str) -> str:
    text = " ".join([*lead, attempt])
    return text[:1].upper() + text[1:]


def spoken_try(words: list[str]) -> str:
    """A try, one sentence per operation; `A - B` is said with the larger number first.

    >>> spoken_try("1 - 25 = 24 + 3 = 27 - 30 = 3".split())
    '25 minus 1 is 24. Plus 3 is 27. 30 minus 27 is 3.'
    """
    value, sentences = int(words[0]), []
    for i in range(1, len(words), 4):
        op, n, result = words[i], int(words[i + 1]), words[i + 3]
        if op == "-" and n > value:
            sentences.append(f"{n} minus {value} is {result}.")
        elif i == 1:
            sentences.append(f"{value} {SPOKEN[op]} {n} is {result}.")
        else:
            sentences.append(f"{SPOKEN[op].capitalize()} {n} is {result}.")
        value = int(result)
    return " ".join(sentences)


def expression(numbers: tuple[int, ...], ops: str) -> str:
    """A chain of operations in the usual notation.

    >>> expression((1, 25, 2), "-*"), expression((2, 3, 9), "*-"), expression((9, 2, 3), "-*")
    ('(25 - 1) * 2', '9 - 2 * 3', '(9 - 2) * 3')
    """
    text, value, is_sum = str(numbers[0]), numbers[0], False
    for op, n in zip(ops, numbers[1:], strict=True):
        inner = f"({text})" if is_sum else text
        if op == "*":
            text = f"{inner} * {n}"
        elif op == "-" and n > value:
            text = f"{n} - {inner}"
        else:
            text = f"{text} {op} {n}"
        value, is_sum = problems.apply(op, value, n), op != "*"
    return text


# ---------------------------------------------------------------------------------- writing


def unguided(problem: Problem, rng: random.Random, world: World = WORDS) -> str:
    """Search aloud, with doubt after a miss and a check of half of the hits."""
    return spoken(problem, traces.unguided(problem, world, rng), rng)


def guided(problem: Problem, rng: random.Random, world: World = WORDS) -> str:
    """Write as someone who has been shown a solution: without doubt and without checks."""
    return spoken(problem, traces.guided(problem, "whole", world, rng), rng)


def concise(problem: Problem) -> str:
    """The shortest correct response, one try and the answer: the reference solution."""
    return spoken(problem, traces.concise(problem), random.Random(0))


def example(seed: int, index: int, world: World = WORDS) -> tuple[str, str]:
    """The text at the address (world, seed, index): (user turn, response).

    As in the toy world 60 % have three numbers and 40 % four, and two thirds are unguided. Of the
    shown solutions 60 % are searching texts and the others the concise one. Chosen, not measured.
    """
    rng = random.Random(f"{world.name}/{seed}/{index}")
    problem = problems.draw(rng, 3 if rng.random() < 0.6 else 4, "pretrain")
    if rng.random() < 2 / 3:
        return prompt(problem), unguided(problem, rng, world)
    shown = unguided(problem, rng, world) if rng.random() < 0.6 else concise(problem)
    turn = contexts.render(contexts.Solution(), prompt(problem), shown, str(problem.target))
    return turn, guided(problem, rng, world)


def rows(count: int, seed: int = 0, world: World = WORDS) -> Iterator[dict[str, str]]:
    """The first `count` texts of a seed, as rows that fine-tuning reads (`tasks.trace_rows`)."""
    for index in range(count):
        turn, response = example(seed, index, world)
        yield {"prompt": turn, "response": response}


def write_rows(path: Path, count: int, seed: int = 0, world: World = WORDS) -> None:
    """Write the rows as JSON lines. Raises UserError for a count outside 1 to ten million."""
    if not 1 <= count <= MOST_TEXTS:
        raise UserError(f"`--count` must lie in 1..{MOST_TEXTS}, got {count}")
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows(count, seed, world)))
