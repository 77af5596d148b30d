"""What people write in the toy world: search aloud when unguided, concise text when they know.

An unguided trace doubts: after a try that misses the target it says "wait" (or "hmm", ...), and
half of the time it re-computes a try that seems to reach it ("check"). The doubt pays, because
tries contain slips: now and then a value is off, or a last value that misses is wishfully written
as the target, and only a check catches that.

A guided writer has been told something, and how it writes depends on how much: `Guidance` says
how often it tries something else first, doubts, closes early or double-checks. Those figures are
this world's ASSUMPTION about pretraining text, not a result; what is measured is what
self-distillation makes of them. The control world differs in one thing: there guided text keeps
verifying and never closes early, though it has as few words of doubt.

Text is a space-separated sequence of words; a response continues the `<think>` that ends the
prompt.
"""

import random
from dataclasses import dataclass

from jaxdistill.tasks import contexts
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.toy.problems import Problem

WAIT_WORDS = ("wait", "hmm", "actually", "alternatively")
HEDGE_WORDS = ("maybe", "perhaps", "might", "likely", "seems")
CHECK = "check"
THEN = "then"
END_THINK = "</think>"
ANSWER = "answer"

Reveal = str  # "none" | "part" | "answer" | "whole": how much a context tells


@dataclass(frozen=True)
class Guidance:
    """How a writer behaves who knows something; every field is a probability."""

    false_start: float  # begins with tries other than the solution
    closes_early: float  # after a miss, writes the answer at once
    doubts: float  # after a miss, an epistemic word (else `then`)
    checks: float  # after reaching the target, re-computes
    hedges: float  # begins with a hedge


@dataclass(frozen=True)
class World:
    """The text a base model is pretrained on. Defaults: the main world."""

    name: str = "main"
    right_first: tuple[float, float] = (0.30, 0.28)  # P(next try is the solution): 3, >3 numbers
    hedges: float = 0.30
    doubts: float = 0.90  # after a miss, else `then`
    hedges_again: float = 0.35  # after a word of doubt
    checks: float = 0.50
    slips: float = 0.02  # per operation
    wishes: float = 0.12  # a missing last value is written as the target
    guidance: tuple[tuple[Reveal, Guidance], ...] = (
        ("part", Guidance(0.35, 0.0, 0.55, 0.25, 0.15)),
        ("answer", Guidance(0.35, 0.05, 0.45, 0.25, 0.05)),
        ("whole", Guidance(0.35, 0.10, 0.25, 0.0, 0.0)),
    )

    def guide(self, reveal: Reveal) -> Guidance:
        return dict(self.guidance)[reveal]


MAIN = World()
CONTROL = World(
    name="control",
    guidance=(
        ("part", Guidance(0.35, 0.0, 0.55, 0.50, 0.15)),
        ("answer", Guidance(0.35, 0.0, 0.45, 0.50, 0.05)),
        ("whole", Guidance(0.35, 0.0, 0.25, 0.50, 0.0)),
    ),
)
WORLDS = {world.name: world for world in (MAIN, CONTROL)}


def write_try(
    problem: Problem, ops: str, world: World, rng: random.Random, wishful: bool
) -> list[str]:
    """`20 + 15 = 35 - 1 = 34`, with slips; the last word is what the writer believes it to be."""
    value = problem.numbers[0]
    words = [str(value)]
    for op, n in zip(ops, problem.numbers[1:]):
        # after a slip upwards a legal chain may leave the range, for which there is no word
        value = min(problems.apply(op, value, n), problems.MAX_VALUE)
        if rng.random() < world.slips:
            slipped = value + rng.choice((-10, -2, -1, 1, 2, 10))
            value = slipped if 0 <= slipped <= problems.MAX_VALUE else value
        words += [op, str(n), "=", str(value)]
    if wishful and value != problem.target and rng.random() < world.wishes:
        words[-1] = str(problem.target)
    return words


def believes(words: list[str], problem: Problem) -> bool:
    return words[-1] == str(problem.target)


def doubt(world: World, rng: random.Random) -> list[str]:
    words = [rng.choice(WAIT_WORDS)]
    return words + ([rng.choice(HEDGE_WORDS)] if rng.random() < world.hedges_again else [])


def pick_wrong(problem: Problem, candidates: list[str], rng: random.Random) -> str:
    """A wrong chain; half of the time the nearer to the target of two."""
    pair = [rng.choice(candidates) for _ in range(2)]
    if rng.random() < 0.5:
        return min(pair, key=lambda ops: abs(problem.chains[ops] - problem.target))
    return pair[0]


def close(problem: Problem, ops: str) -> list[str]:
    return [END_THINK, ANSWER, *problems.expression(problem.numbers, ops).split()]


def unguided(problem: Problem, world: World, rng: random.Random) -> str:
    """Search aloud: tries without replacement, doubt after misses, checks after hits."""
    words = [rng.choice(HEDGE_WORDS)] if rng.random() < world.hedges else []
    right_first = world.right_first[0 if len(problem.numbers) == 3 else 1]
    wrong = [ops for ops in problem.chains if ops != problem.solution]
    while True:
        if not wrong or rng.random() < right_first:
            ops = problem.solution
        else:
            ops = pick_wrong(problem, wrong, rng)
            wrong.remove(ops)
        attempt = write_try(problem, ops, world, rng, wishful=True)
        words += attempt
        if believes(attempt, problem) and rng.random() < world.checks:
            attempt = write_try(problem, ops, world, rng, wishful=False)
            words += [CHECK, *attempt]
        if believes(attempt, problem):
            return " ".join(words + close(problem, ops))
        words += doubt(world, rng) if rng.random() < world.doubts else [THEN]


def guided(problem: Problem, reveal: Reveal, world: World, rng: random.Random) -> str:
    """The text of a writer who has been told the first operation, the answer, or the solution.

    Whoever knows part of the solution still searches, among fewer chains; whoever knows the answer
    tries other things only for form's sake, and answers what it knows whatever was tried last.
    """
    guide = world.guide(reveal)
    words = [rng.choice(HEDGE_WORDS)] if rng.random() < guide.hedges else []
    wrong = [ops for ops in problem.chains if ops != problem.solution]
    knows_all = reveal != "part"
    consistent = [ops for ops in wrong if ops[0] == problem.solution[0]]
    false_tries = rng.randint(1, 4) if rng.random() < guide.false_start else 0

    def write(ops: str, wishful: bool) -> list[str]:
        # who knows the solution computes it without slips; everything else carries them
        if knows_all and ops == problem.solution:
            return problem_try(problem, ops)
        return write_try(problem, ops, world, rng, wishful)

    while True:
        if false_tries > 0 and wrong:
            ops = pick_wrong(problem, wrong, rng)
            wrong.remove(ops)
            consistent = [c for c in consistent if c != ops]
            false_tries -= 1
        elif knows_all or not consistent or rng.random() < 0.5:
            ops = problem.solution
        else:
            ops = consistent.pop(rng.randrange(len(consistent)))
            wrong.remove(ops)
        attempt = write(ops, wishful=True)
        words += attempt
        if believes(attempt, problem) and rng.random() < guide.checks:
            attempt = write(ops, wishful=False)
            words += [CHECK, *attempt]
        if believes(attempt, problem):
            return " ".join(words + close(problem, problem.solution if knows_all else ops))
        if rng.random() < guide.closes_early:
            return " ".join(words + close(problem, problem.solution))
        words += doubt(world, rng) if rng.random() < guide.doubts else [THEN]


def problem_try(problem: Problem, ops: str) -> list[str]:
    """The try without any slip."""
    words = [str(problem.numbers[0])]
    for op, n, value in zip(ops, problem.numbers[1:], problems.chain_values(problem.numbers, ops)):
        words += [op, str(n), "=", str(value)]
    return words


def concise(problem: Problem) -> str:
    """The shortest correct response: one try, the answer. The reference solution of a problem."""
    return " ".join(problem_try(problem, problem.solution) + close(problem, problem.solution))


def correct_trace(problem: Problem, world: World, rng: random.Random) -> str:
    """An unguided trace that ends in the right answer, as a context to be shown."""
    while True:
        text = unguided(problem, world, rng)
        if text.endswith(f"{ANSWER} {problem.answer}"):
            return text


# Which contexts tell how much; the richness axis of the study.
REVEALS: dict[Reveal, tuple[contexts.Context, ...]] = {
    "part": (contexts.PartialSolution(),),
    "answer": (contexts.SolutionWithoutThinking(), contexts.AnswerOnly()),
    "whole": (contexts.Solution(),),
}


@dataclass(frozen=True)
class Example:
    """One pretraining text: a rendered user turn and the response to it."""

    prompt: str
    response: str
    reveal: Reveal


def example(world: World, seed: int, index: int) -> Example:
    """The pretraining text at an address: 2/3 unguided; guided texts half whole, the rest shared.

    Three numbers in 60 % of texts, four in 40 %.
    """
    rng = random.Random(f"{world.name}/{seed}/{index}")
    problem = problems.draw(rng, 3 if rng.random() < 0.6 else 4, "pretrain")
    reveal = rng.choices(("none", "part", "answer", "whole"), (12, 1, 2, 3))[0]
    if reveal == "none":
        return Example(problem.text, unguided(problem, world, rng), reveal)
    shown = correct_trace(problem, world, rng) if rng.random() < 0.6 else concise(problem)
    context = rng.choice(REVEALS[reveal])
    prompt = contexts.render(context, problem.text, shown, problem.answer)
    return Example(prompt, guided(problem, reveal, world, rng), reveal)
