"""The texts of the toy world: unguided writers search aloud, guided writers are more concise.

An unguided trace expresses doubt: after a try that misses the target it says "wait" (or "hmm",
...), and half of the tries that seem to reach the target are recomputed ("check"). Checking is
useful because tries contain errors: occasionally a value is wrong (a slip), or the last value of a
miss is written as the target (wishful), and only a check detects that.

A guided writer has been told something, and its style depends on how much. `Guidance` gives the
probabilities of trying something else first, doubting, closing early and double-checking. They are
this world's ASSUMPTION about pretraining text, not a result; what is measured is the effect of
self-distillation on them. The control world differs in one respect: its guided writers keep
verifying and never close early, although they use equally few words of doubt.

The sparse world differs in what is easy. Its texts are mostly of four numbers, rarely of five, and
its unguided writers have a habit: they hardly try a chain that does not begin with `+` before all
those that do are used up. A problem whose solution begins otherwise is therefore hardly ever solved
within the tokens of a response, so that most groups of rollouts for it have no success.

A text is a sequence of words separated by spaces. A response continues the `<think>` at the end of
the prompt.
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
HABITUAL = "+"  # the first operation that writers with a habit try

Reveal = str  # "none" | "part" | "answer" | "whole": how much of the solution a context reveals


@dataclass(frozen=True)
class Guidance:
    """The style of a writer who has been told something. Every field is a probability."""

    false_start: float  # that the text begins with wrong tries
    closes_early: float  # that the answer follows a miss immediately
    doubts: float  # that a word of doubt follows a miss; otherwise `then` follows
    checks: float  # that a try that reaches the target is recomputed
    hedges: float  # that the text begins with a hedge


@dataclass(frozen=True)
class World:
    """The distribution of pretraining texts. The defaults are the main world.

    Every number is a probability, chosen and not measured. Those outside `guidance` describe
    unguided writers, except that `hedges_again`, `slips` and `wishes` apply to guided ones too.
    """

    name: str = "main"
    # How many numbers a problem has, and the share of the texts.
    sizes: tuple[tuple[int, float], ...] = ((3, 0.6), (4, 0.4))
    habit: float = 0.0  # the next try is one that begins with `HABITUAL`, while any is left
    # The next try is the solution; for three numbers and for more.
    right_first: tuple[float, float] = (0.30, 0.28)
    hedges: float = 0.30  # the text begins with a hedge
    doubts: float = 0.90  # a word of doubt follows a miss; otherwise `then` follows
    hedges_again: float = 0.35  # a hedge follows a word of doubt
    checks: float = 0.50  # a try that seems to reach the target is recomputed
    slips: float = 0.02  # a value is wrong; per operation
    wishes: float = 0.12  # the last value of a miss is written as the target
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
# Chosen such that texts of at most 80 tokens solve a third of the problems of four numbers
# (docs/toy_sparse.md), as in the paper, and larger ones seldom. Wishes, twice as frequent as in the
# main world, make wrong answers of searches that would otherwise be cut off.
SPARSE = World(name="sparse", sizes=((4, 0.75), (3, 0.15), (5, 0.10)), habit=0.97, wishes=0.20)
BUNDLED = (MAIN.name, CONTROL.name)  # the worlds whose base ships with the package
WORLDS = {world.name: world for world in (MAIN, CONTROL, SPARSE)}


def write_try(
    problem: Problem, ops: str, world: World, rng: random.Random, wishful: bool
) -> list[str]:
    """Write a try such as `20 + 15 = 35 - 1 = 34`, with slips.

    Its last word is the value that the writer believes was reached.
    """
    value = problem.numbers[0]
    words = [str(value)]
    for op, n in zip(ops, problem.numbers[1:]):
        # After a slip upwards, even a legal chain may exceed the largest number in the vocabulary.
        value = min(problems.apply(op, value, n), problems.MAX_VALUE)
        if rng.random() < world.slips:
            slipped = value + rng.choice((-10, -2, -1, 1, 2, 10))
            value = slipped if 0 <= slipped <= problems.MAX_VALUE else value
        words += [op, str(n), "=", str(value)]
    if wishful and value != problem.target and rng.random() < world.wishes:
        words[-1] = str(problem.target)
    return words


def believes(words: list[str], problem: Problem) -> bool:
    """Whether the writer of a try believes that it reached the target."""
    return words[-1] == str(problem.target)


def doubt(world: World, rng: random.Random) -> list[str]:
    words = [rng.choice(WAIT_WORDS)]
    return words + ([rng.choice(HEDGE_WORDS)] if rng.random() < world.hedges_again else [])


def pick_wrong(problem: Problem, candidates: list[str], rng: random.Random) -> str:
    """Pick a wrong chain; in half of the cases, the one of two that ends nearer to the target."""
    pair = [rng.choice(candidates) for _ in range(2)]
    if rng.random() < 0.5:
        return min(pair, key=lambda ops: abs(problem.chains[ops] - problem.target))
    return pair[0]


def considered(
    problem: Problem, wrong: list[str], world: World, rng: random.Random
) -> tuple[list[str], bool]:
    """The wrong chains that the next try may be, and whether it may be the solution."""
    if not world.habit or rng.random() >= world.habit:
        return wrong, True
    usual = [ops for ops in wrong if ops[0] == HABITUAL]
    is_usual = problem.solution[0] == HABITUAL
    return (usual, is_usual) if usual or is_usual else (wrong, True)


def close(problem: Problem, ops: str) -> list[str]:
    return [END_THINK, ANSWER, *problems.expression(problem.numbers, ops).split()]


def unguided(problem: Problem, world: World, rng: random.Random) -> str:
    """Search aloud: try chains without replacement, doubt after a miss, often check a hit."""
    words = [rng.choice(HEDGE_WORDS)] if rng.random() < world.hedges else []
    right_first = world.right_first[0 if len(problem.numbers) == 3 else 1]
    wrong = [ops for ops in problem.chains if ops != problem.solution]
    while True:
        candidates, may_solve = considered(problem, wrong, world, rng)
        if may_solve and (not candidates or rng.random() < right_first):
            ops = problem.solution
        else:
            ops = pick_wrong(problem, candidates, rng)
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
    """Write as someone who has been told the first operation, the answer, or a whole solution.

    A writer who knows the first operation still searches, but among fewer chains. One who knows the
    answer makes other tries only for show, and gives the known answer whatever the last try was.
    """
    guide = world.guide(reveal)
    words = [rng.choice(HEDGE_WORDS)] if rng.random() < guide.hedges else []
    wrong = [ops for ops in problem.chains if ops != problem.solution]
    knows_all = reveal != "part"
    consistent = [ops for ops in wrong if ops[0] == problem.solution[0]]
    # Up to four false tries, and below an even choice between the solution and another chain: both
    # chosen, not measured.
    false_tries = rng.randint(1, 4) if rng.random() < guide.false_start else 0

    def write(ops: str, wishful: bool) -> list[str]:
        # A writer who knows the solution computes it without slips; all other tries have them.
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
    """Write a try without slips."""
    words = [str(problem.numbers[0])]
    for op, n, value in zip(ops, problem.numbers[1:], problems.chain_values(problem.numbers, ops)):
        words += [op, str(n), "=", str(value)]
    return words


def concise(problem: Problem) -> str:
    """Return the shortest correct response, one try and the answer: the reference solution."""
    return " ".join(problem_try(problem, problem.solution) + close(problem, problem.solution))


def correct_trace(problem: Problem, world: World, rng: random.Random) -> str:
    """Draw unguided traces until one ends in the correct answer, for use in a context."""
    while True:
        text = unguided(problem, world, rng)
        if text.endswith(f"{ANSWER} {problem.answer}"):
            return text


# The contexts by how much they reveal, which is the richness axis of the study.
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


def draw_size(world: World, rng: random.Random) -> int:
    """How many numbers the next text's problem has."""
    draw, total = rng.random(), 0.0
    for size, share in world.sizes:
        total += share
        if draw < total:
            return size
    return world.sizes[-1][0]  # shares add up to 1 but for rounding


def example(world: World, seed: int, index: int) -> Example:
    """Return the pretraining text at the address (world, seed, index).

    In the main world 60 % of texts have three numbers and 40 % four. Two thirds are unguided; of
    the guided ones, one sixth are told a part, one third the answer, and one half the whole
    solution. A shown solution is a searching trace in 60 % of cases and the concise one otherwise.
    These shares were chosen, not measured.
    """
    rng = random.Random(f"{world.name}/{seed}/{index}")
    problem = problems.draw(rng, draw_size(world, rng), "pretrain")
    reveal = rng.choices(("none", "part", "answer", "whole"), (12, 1, 2, 3))[0]
    if reveal == "none":
        return Example(problem.text, unguided(problem, world, rng), reveal)
    shown = correct_trace(problem, world, rng) if rng.random() < 0.6 else concise(problem)
    context = rng.choice(REVEALS[reveal])
    prompt = contexts.render(context, problem.text, shown, problem.answer)
    return Example(prompt, guided(problem, reveal, world, rng), reveal)
