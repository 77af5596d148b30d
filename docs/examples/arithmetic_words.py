r"""Arithmetic in words: a task of its own and three runs on a real model of 135 million parameters.

Purpose: the paper's question on a small scale. The model first learns to answer with visible doubt
("Wait, let me check"), from worked examples that this file writes; then self-distillation and GRPO
train it on the same problems, and the epistemic words say what each does to that doubt.
Expected: SmolLM2-135M-Instruct solves none of the problems (0 of 50), and 1 of 16 with three worked
examples in its prompt; `sft` teaches it 39.5 % at temperature 1. `sdpo` then leaves the accuracy as
it is and lowers pass@16 by 4.7 points, without shorter responses (docs/log.md, "The example
measured again"); `grpo` is expected to raise the reward.
Hardware and time: one H200, a few minutes for the three runs. Two steps
in a small form take minutes on two CPU cores: --set steps=2 --set 'evaluation.splits=()', with
--set experience.batch_size=2 for `sft`, else --set experience.questions=2 --set
experience.rollouts=2 --set experience.sampling.max_new_tokens=64.
Commands (`make_smollm2.py`, beside this file, makes the folder `smollm2`):
  python docs/examples/arithmetic_words.py worked.jsonl
  jaxdistill train docs/examples/arithmetic_words.py:sft --run-dir runs/sft
  jaxdistill train docs/examples/arithmetic_words.py:sdpo --run-dir runs/sdpo
  jaxdistill train docs/examples/arithmetic_words.py:grpo --run-dir runs/grpo
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from jaxdistill import objectives
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.objectives import CrossEntropy, Objective
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.contexts import Context, NoContext, Solution
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.questions import Question
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.traces import Traces

WORKED = "worked.jsonl"  # the worked examples, where `python arithmetic_words.py FILE` wrote them
ASK = r"Please reason step by step, and put your final answer within \boxed{}."
NAMES = ("Tom", "Anna", "Omar", "Mei", "Lena", "Raj", "Sara", "Ben", "Ida", "Hugo", "Nora", "Finn")
THINGS = ("apples", "coins", "stamps", "books", "shells", "cards", "pens", "beads", "eggs", "nuts")
GAINS = ("buys", "finds", "gets")
LOSSES = ("gives away", "loses", "sells")


# --------------------------------------------------------------------------------- the problems


class Problem(NamedTuple):
    """`start` things, then one signed change after another; never fewer than one is left."""

    name: str
    thing: str
    start: int
    changes: tuple[tuple[str, int], ...]  # (verb, signed number)

    @property
    def text(self) -> str:
        *first, last = [f"{verb} {abs(number)}" for verb, number in self.changes]
        story = ", ".join(first) + (" and " if first else "") + last
        return (
            f"{self.name} has {self.start} {self.thing}, {story}. How many {self.thing} are left?"
        )

    @property
    def answer(self) -> int:
        return self.start + sum(number for _, number in self.changes)


def draw(rng: random.Random, changes: int, most: int) -> Problem:
    """A random problem with this many changes and no number above `most`."""
    start = held = rng.randint(2, most)
    made = []
    for _ in range(changes):
        is_gain = held < 3 or rng.random() < 0.5
        number = rng.randint(2, most) if is_gain else -rng.randint(1, min(most, held - 1))
        made.append((rng.choice(GAINS if is_gain else LOSSES), number))
        held += number
    return Problem(rng.choice(NAMES), rng.choice(THINGS), start, tuple(made))


def question(problem: Problem) -> Question:
    """The problem as it is asked; its text is its id, since equal texts are equal problems."""
    return Question(problem.text, f"{problem.text}\n{ASK}", str(problem.answer))


@dataclass(frozen=True)
class Arithmetic:
    """The first `count` different problems of a seed.

    Several numbers of changes make it likely that a model solves a part of them, neither none nor
    all.
    """

    count: int = 2000
    changes: tuple[int, int] = (1, 3)  # the least and the most of a problem
    most: int = 50  # no number of a problem is larger
    seed: int = 0

    grading_workers: ClassVar = 0  # a verdict is a comparison of two integers
    grades_cuts: ClassVar = True  # so that evaluations have the accuracy by token budget

    def __post_init__(self):
        low, high = self.changes
        if self.count < 1 or not 1 <= low <= high or self.most < 5:
            raise UserError(
                "Arithmetic needs `count` >= 1, 1 <= `changes[0]` <= `changes[1]` and `most` >= 5, "
                f"got {self}"
            )

    def questions(self) -> list[Question]:
        rng, found = random.Random(f"{self.seed}/{self.changes}/{self.most}"), {}
        # Names and things alone make more than a hundred texts of the same numbers.
        while len(found) < self.count:
            one = question(draw(rng, rng.randint(*self.changes), self.most))
            found.setdefault(one.id, one)
        return list(found.values())

    def grade(self, question: Question, response: str) -> Verdict:
        return grade_math(question, response)


# --------------------------------------------------------------------------- the worked examples


def solution(problem: Problem, rng: random.Random, doubts: float, mistakes: float) -> str:
    """A response with visible doubt: a step in `doubts` is checked, and one in `mistakes` is wrong
    at first, which its check finds.
    """
    held, lines = problem.start, [f"{problem.name} starts with {problem.start} {problem.thing}."]
    for verb, number in problem.changes:
        sign, size, result = "+" if number > 0 else "-", abs(number), held + number
        step = f"{problem.name} {verb} {size}: {held} {sign} {size} ="
        if rng.random() < mistakes:
            wrong = result + rng.choice((-10, -2, -1, 1, 2, 10))
            lines.append(f"{step} {wrong}. {check(wrong, number, held, rng)} So it is {result}.")
        elif rng.random() < doubts:
            lines.append(f"{step} {result}. {check(result, number, held, rng)}")
        else:
            lines.append(f"{step} {result}.")
        held = result
    return "\n".join([*lines, rf"The answer is \boxed{{{held}}}."])


def check(result: int, number: int, held: int, rng: random.Random) -> str:
    """The step the other way round, and what it says of the result."""
    opening = rng.choice(("Wait, let me check:", "Hmm, let me check:", "Maybe I should check:"))
    back, sign = result - number, "-" if number > 0 else "+"
    verdict = "that is right." if back == held else f"but it was {held}, so that is wrong."
    return f"{opening} {result} {sign} {abs(number)} = {back}, {verdict}"


def worked_examples(
    count: int, seed: int = 0, doubts: float = 0.6, mistakes: float = 0.2
) -> list[dict[str, str]]:
    """Rows of prompt and response, of problems with 1 to 3 changes and numbers up to 20, 50, 99."""
    rng, rows = random.Random(f"worked/{seed}"), []
    for _ in range(count):
        problem = draw(rng, changes=rng.randint(1, 3), most=rng.choice((20, 50, 99)))
        response = solution(problem, rng, doubts, mistakes)
        rows.append({"prompt": question(problem).prompt, "response": response})
    return rows


# ---------------------------------------------------------------------------------- the three runs


def sft() -> RunConfig:
    """Imitates the worked examples, each once: 50 steps of 256."""
    return RunConfig(
        name="arithmetic_sft",
        model=Pretrained("smollm2"),
        experience=Traces(WORKED, batch_size=256),
        objective=CrossEntropy(),
        steps=50,
        optimizer=Optimizer(peak_lr=5e-4, warmup_steps=5, schedule="cosine", weight_decay=0.0),
        evaluation=evaluation(),
        rollouts_every=0,
    )


def sdpo() -> RunConfig:
    """Self-distillation: the teacher is shown another, correct response to the same question."""
    return on_policy("arithmetic_sdpo", objectives.sdpo(), Solution(), peak_lr=2e-5)


def grpo() -> RunConfig:
    """The verifier's reward alone."""
    return on_policy("arithmetic_grpo", objectives.grpo(), NoContext(), peak_lr=2e-5)


def on_policy(name: str, objective: Objective, context: Context, peak_lr: float) -> RunConfig:
    return RunConfig(
        name=name,
        model=Pretrained("runs/sft"),
        experience=OnPolicy(
            task=Arithmetic(),
            questions=32,
            rollouts=8,
            sampling=Sampling(max_new_tokens=256),
            context=context,
        ),
        objective=objective,
        steps=50,
        optimizer=Optimizer(peak_lr=peak_lr, warmup_steps=5, b2=0.99, weight_decay=0.0),
        evaluation=evaluation(),
        track_reference=True,
    )


def evaluation() -> Evaluation:
    """Other problems of the same kind, and longer ones than any that is trained on."""
    return Evaluation(
        splits=(
            Split("held_out", Arithmetic(count=64, seed=1)),
            Split("longer", Arithmetic(count=64, seed=1, changes=(4, 4))),
        ),
        samples=4,
        sampling=Sampling(max_new_tokens=256),
        questions_per_batch=64,
    )


def write_worked(path: Path, count: int = 50 * 256) -> None:
    """One epoch of `sft`."""
    rows = map(json.dumps, worked_examples(count))
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_worked(Path(sys.argv[1] if len(sys.argv) > 1 else WORKED))
