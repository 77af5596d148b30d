"""Questions to completions to verdicts: what one training or evaluation step looks at."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxdistill.models.quantized import CacheDtype
from jaxdistill.sampling import Samples, Sampling, fit_slots, keys, make_sampler
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import questions as questions_module
from jaxdistill.tasks.grading import GradingPool, Verdict, grade_all
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import Task, grader_of, grading_workers

Place = Callable[[Any], Any]  # puts a tree of host arrays onto the mesh
Grade = Callable[[Sequence[Question], Sequence[str]], list[Verdict]]

PROMPT_MULTIPLE = 16  # prompts are padded to multiples, so that few shapes are compiled


@dataclass(frozen=True)
class Rollouts:
    """R completions of each of Q questions; row q*R + r is the r-th of question q. Host arrays."""

    questions: list[Question]
    rollouts: int
    prompt_ids_BP: np.ndarray
    prompt_mask_BP: np.ndarray
    tokens_BT: np.ndarray
    mask_BT: np.ndarray
    logp_BT: np.ndarray
    finished_B: np.ndarray
    responses: list[str]
    verdicts: list[Verdict]

    @property
    def rewards_QR(self) -> np.ndarray:
        rewards = [verdict.correct for verdict in self.verdicts]
        return np.array(rewards, np.float32).reshape(-1, self.rollouts)

    @property
    def lengths_B(self) -> np.ndarray:
        return self.mask_BT.sum(axis=1)

    def question_of(self, row: int) -> Question:
        return self.questions[row // self.rollouts]


@dataclass(frozen=True)
class Grading:
    """A task's grader with the processes that it needs."""

    grade: Grade
    close: Callable[[], None]


def open_grading(task: Task) -> Grading:
    """Worker processes where an answer may be slow or hang; they start with the first responses."""
    grader, workers = grader_of(task), grading_workers(task)
    if workers == 0:
        return Grading(functools.partial(grade_all, grader), lambda: None)
    pool = GradingPool(grader, workers)
    return Grading(pool.grade, pool.close)


def collect(
    policy: Policy,
    params: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    rollouts: int,
    *,
    grade: Grade,
    seed: int,
    purpose: str,
    step: int,
    enable_thinking: bool | None = None,
    dtype: str = "float32",
    attention: str = "auto",
    cache_dtype: CacheDtype = "auto",
    place: Place = lambda tree: tree,
    first_rollout: int = 0,
    slots: int | None = None,
) -> Rollouts:
    """Sample `rollouts` completions a question and grade them.

    The samples of a question depend on (seed, purpose, step, question, rollout) and the parameters
    alone. `place` puts host arrays onto the mesh. `slots` rows are decoded at a time; None: as many
    as memory allows, of which they share the pages where not every row can have its own.
    """
    chats = [questions_module.messages(question) for question in questions]
    ids = tokenizers.prompt_ids(policy.tokenizer, chats, enable_thinking)
    pad = tokenizers.pad_id(policy.tokenizer)
    prompt_ids_QP, prompt_mask_QP = tokenizers.left_pad(ids, pad, PROMPT_MULTIPLE)
    (num_questions, num_prompt), num_rows = prompt_ids_QP.shape, len(questions) * rollouts
    pages = None
    if slots is None:
        slots, pages = fit_slots(
            policy.config, num_questions, num_rows, num_prompt, sampling.max_new_tokens, dtype,
            cache_dtype,
        )  # fmt: skip
    slots = min(slots, num_rows)  # the same program for whatever is more
    sampler = make_sampler(
        policy.config, sampling, policy.stop_ids, pad, rollouts=rollouts, slots=slots, pages=pages,
        dtype=dtype, attention=attention, cache_dtype=cache_dtype,
    )  # fmt: skip
    hashes = keys.question_hashes([question.id for question in questions])
    keys_B = keys.row_keys(seed, purpose, step, hashes, rollouts, first_rollout=first_rollout)
    drawn = sampler(params, *place((prompt_ids_QP, prompt_mask_QP, keys_B)))
    samples: Samples = jax.device_get(drawn)
    responses = tokenizers.decode_all(
        policy.tokenizer, [row[mask > 0] for row, mask in zip(samples.tokens_BT, samples.mask_BT)]
    )
    repeated = [question for question in questions for _ in range(rollouts)]
    verdicts = grade(repeated, responses)
    return Rollouts(
        list(questions),
        rollouts,
        np.repeat(prompt_ids_QP, rollouts, axis=0),
        np.repeat(prompt_mask_QP, rollouts, axis=0),
        np.asarray(samples.tokens_BT),
        np.asarray(samples.mask_BT),
        np.asarray(samples.logp_BT),
        np.asarray(samples.finished_B),
        responses,
        verdicts,
    )
