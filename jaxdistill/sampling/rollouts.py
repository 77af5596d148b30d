"""The result of sampling: completions of questions with their verdicts, and how they are graded."""

import contextlib
import dataclasses
import functools
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.sampling.keys import Address
from jaxdistill.sampling.overlap import Submit
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading import GradingPool, Verdict, grade_all
from jaxdistill.tasks.grading.host import workers_of_host
from jaxdistill.tasks.grading.pool import TOO_SLOW
from jaxdistill.tasks.grading.verdict import FAILED, TaskGrader
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import MathTask, Task

# It gets whole questions' responses, on several hosts those of this one's questions alone.
Grade = Callable[[Sequence[Question], Sequence[str]], list[Verdict]]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """R completions of each of Q questions; row q*R + r is the r-th of question q. Host arrays."""

    address: Address  # the purpose that they were drawn for
    questions: list[Question]  # Q
    rollouts: int  # R
    prompt_ids_BP: np.ndarray  # left-padded
    prompt_mask_BP: np.ndarray  # 1 at prompt tokens
    tokens_BT: np.ndarray  # the rest as in `sampler.Samples`
    mask_BT: np.ndarray
    logp_BT: np.ndarray
    finished_B: np.ndarray
    responses: list[str]  # B, decoded without special tokens
    verdicts: list[Verdict]  # B

    @property
    def rewards_QR(self) -> np.ndarray:
        """1 for a correct response, 0 for any other."""
        rewards = [verdict.correct for verdict in self.verdicts]
        return np.array(rewards, np.float32).reshape(-1, self.rollouts)

    @functools.cached_property
    def lengths_B(self) -> np.ndarray:
        """Tokens per completion, including the stop token."""
        return self.mask_BT.sum(axis=1)

    def question_of(self, row: int) -> Question:
        return self.questions[row // self.rollouts]


def answers_to(rollouts: Rollouts, first: int, last: int) -> Rollouts:
    """The rows of the questions from `first` up to, but not including, `last`."""
    rows = slice(first * rollouts.rollouts, last * rollouts.rollouts)
    per_row = {
        field.name: getattr(rollouts, field.name)[rows]
        for field in dataclasses.fields(rollouts)
        if field.name not in ("address", "questions", "rollouts")
    }
    return dataclasses.replace(rollouts, questions=rollouts.questions[first:last], **per_row)


def decode_and_grade(
    tokenizer: Any,
    questions: Sequence[Question],
    generated: Sequence[np.ndarray],
    grade: Grade,
    rollouts: int,
) -> tuple[list[str], list[Verdict]]:
    """The responses as text, and their verdicts: each host does those of its own questions.

    They are exchanged, so that a grader's time limit, which depends on a machine's load, cannot
    make two hosts learn from different rewards.
    """
    own = hosts.share_of(range(len(questions)))
    asked = [questions[q] for q in own for _ in range(rollouts)]
    first = own[0] * rollouts if own else 0
    texts = tokenizers.decode_all(tokenizer, generated[first : first + len(asked)])
    verdicts = grade(asked, texts) if asked else []
    if hosts.count() == 1:
        return texts, verdicts
    rows = [[text, *dataclasses.astuple(v)] for text, v in zip(texts, verdicts, strict=True)]
    rows = hosts.gather_shares(rows, "graded")
    return [text for text, *_ in rows], [Verdict(*fields) for _, *fields in rows]


def not_graded(questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
    """A placeholder verdict per response, for callers that do not grade."""
    return [Verdict(correct=False, reason="not graded", answer=None) for _ in responses]


@dataclass(frozen=True)
class Grading:
    """A task's grader, and the function that stops its worker processes."""

    grade: Grade
    close: Callable[[], None]
    start: Callable[[], None] = lambda: None  # wait for a process; raises UserError if none works
    submit: Submit | None = None  # `grade` without waiting; None: it grades in this process


def open_grading(task: Task) -> Grading:
    """Open a task's grader, by default in worker processes, because grading may be slow or hang.

    The processes start with the first responses. Raises UserError for an invalid
    `grading_workers` or `grading_timeout_s` of the task, or a task that cannot be pickled.
    """
    # For the timeout of 5 s see GradingPool.
    workers, name = getattr(task, "grading_workers", None), type(task).__name__
    workers = workers_of_host() if workers is None else workers
    timeout_s = getattr(task, "grading_timeout_s", 5.0)
    if type(workers) is not int or workers < 0:
        raise UserError(f"{name}.grading_workers: expected an int of at least 0, got {workers!r}")
    if type(timeout_s) not in (int, float) or not 0 < timeout_s < math.inf:
        raise UserError(f"{name}.grading_timeout_s: expected a number above 0, got {timeout_s!r}")
    if workers == 0:
        return Grading(functools.partial(grade_all, task.grade), close=lambda: None)
    grader = task.grade if isinstance(task, MathTask) else TaskGrader(task)
    try:
        pickle.dumps(grader)
    except Exception as error:
        raise UserError(
            f"{name} cannot be sent to its grading processes: {in_one_line(error)}"
        ) from error
    pool = GradingPool(grader, workers, timeout_s)
    return Grading(pool.grade, pool.close, pool.start, pool.submit)


def check_environment(tasks: Sequence[Task]) -> None:
    """Raise UserError if mathematics cannot be graded here, where one of the tasks needs that."""
    for task in [task for task in tasks if isinstance(task, MathTask)][:1]:
        with contextlib.closing(open_grading(task)) as grading:
            grading.start()


def check_grading(task: Task, question: Question) -> None:
    """Grade a question's own solution as a run would. Raises UserError if that gives no verdict."""
    with contextlib.closing(open_grading(task)) as grading:
        (verdict,) = grading.grade([question], [question.solution or question.answer])
    if verdict.reason.startswith(FAILED) or verdict.reason == TOO_SLOW:
        name = f"{type(task).__name__}.grade"
        raise UserError(f"{name} on question {question.id!r}: {verdict.reason}")
