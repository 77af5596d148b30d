"""A task is a set of questions, a grader, and what its traces can be asked."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.tasks import sources
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import grader as toy_grader
from jaxdistill.tasks.toy import problems, traces


@dataclass(frozen=True)
class ToyTask:
    """The first `count` problems of a pool; smaller counts are subsets of larger ones.

    pool: pretrain, train or heldout; numbers: 3 in distribution, 4 and more beyond it.
    """

    pool: str = "train"
    numbers: int = 3
    count: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.pool not in problems.POOLS:
            raise UserError(f"`pool` must be one of {', '.join(problems.POOLS)}, got {self.pool!r}")
        if self.count < 1:
            raise UserError(f"`count` must be at least 1, got {self.count}")
        # Fewer than three leave no search; six have up to 3^5 = 243 chains. Chosen.
        if not 3 <= self.numbers <= 6:
            raise UserError(f"`numbers` must lie in 3..6, got {self.numbers}")


@dataclass(frozen=True)
class MathTask:
    """Questions with boxed answers in a .parquet (DAPO, AIME, AMC layouts) or .jsonl file."""

    path: str
    limit: int | None = None  # the first so many questions only

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` must be at least 1, got {self.limit}")


Task = ToyTask | MathTask


def questions_of(task: Task) -> list[Question]:
    """Read or make the task's questions.

    Raises UserError naming file and row, or when a toy pool holds fewer problems.
    """
    if isinstance(task, ToyTask):
        return [
            # A toy problem is its own id: all of a pool are distinct.
            Question(
                id=problem.text,
                prompt=problem.text,
                answer=problem.answer,
                solution=traces.concise(problem),
            )
            for problem in problems.draw_distinct(task.count, task.numbers, task.pool, task.seed)
        ]
    return sources.read(task.path)[: task.limit]


def grader_of(task: Task) -> Callable[[Question, str], Verdict]:
    return toy_grader.grade if isinstance(task, ToyTask) else grade_math


def grading_workers(task: Task) -> int:
    """Toy verdicts are a string comparison; mathematics needs processes that can be stopped.

    Two were chosen, not measured: one goes on while the other is replaced.
    """
    return 0 if isinstance(task, ToyTask) else 2


def trace_facts(task: Task, question: Question, response: str) -> dict[str, Any]:
    """What only this task can read off a trace: double checks and copy fidelity in the toy."""
    if not isinstance(task, ToyTask):
        return {"checks": None, "copy": None}
    trace = toy_grader.read_trace(question, response)
    return {"checks": trace.checks, "copy": trace.copied}


def example_text(world: str, seed: int, index: int) -> tuple[str, str]:
    """A pretraining text of the toy world: (user turn, response)."""
    text = traces.example(traces.WORLDS[world], seed, index)
    return text.prompt, text.response


def probe_prefixes(task: ToyTask, seed: int) -> list[tuple[Question, str]]:
    """Each question with one unguided trace of the main world, to be cut at its forks."""
    rng = random.Random(f"probe/{seed}")
    return [
        (question, traces.unguided(problems.parse(question.prompt), traces.MAIN, rng))
        for question in questions_of(task)
    ]
