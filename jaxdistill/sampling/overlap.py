"""Text and verdicts of rows that have ended, made by the host while the device decodes the others.

Decoding is cut into programs of `STEPS` steps. The next one is queued before the host looks at
what the last one has drawn, so the device does not wait for the host. Tokens, texts and verdicts
are those of one program and one call of the grader, in the same order.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill import hosts
from jaxdistill.sampling.sampler import Samples, Steps
from jaxdistill.sharding import platform
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question

Wait = Callable[[], list[Verdict]]  # waits for verdicts, or raises what the grader raised
Submit = Callable[[Sequence[Question], Sequence[str]], Wait]  # returns at once

# Decode steps per program. Of Qwen3-1.7B they take 1.3 s or more on an H200, beside which a pass
# over the weights (3 ms), a launch and the copy of the tokens are small; and a response is graded
# at most that long after its end. Chosen, not measured.
STEPS = 512


def steps_between_texts(max_new_tokens: int) -> int:
    """Decode steps after which the host reads what has ended; 0: only once all rows have.

    A CPU decodes on the cores that would grade. Several hosts exchange texts in one order.
    """
    is_short = max_new_tokens <= STEPS
    return 0 if is_short or platform() == "cpu" or hosts.count() > 1 else STEPS


class Answers:
    """Texts and verdicts of rows, which come in any order; row q*R + r answers question q."""

    def __init__(
        self, tokenizer: Any, questions: Sequence[Question], rollouts: int, submit: Submit
    ) -> None:
        self._tokenizer, self._questions = tokenizer, questions
        self._rollouts, self._submit = rollouts, submit
        self._texts: dict[int, str] = {}
        self._graded: list[tuple[list[int], Wait]] = []

    def add(self, rows: Sequence[int], tokens_BT: np.ndarray, mask_BT: np.ndarray) -> None:
        """Decode these rows' tokens, and let them be graded."""
        texts = tokenizers.decode_all(
            self._tokenizer, [tokens_BT[row][mask_BT[row] > 0] for row in rows]
        )
        self._texts.update(zip(rows, texts, strict=True))
        asked = [self._questions[row // self._rollouts] for row in rows]
        self._graded.append((list(rows), self._submit(asked, texts)))

    def in_order(self) -> tuple[list[str], list[Verdict]]:
        """The texts and verdicts of all rows; raises what the grader raised."""
        verdicts: dict[int, Verdict] = {}
        for rows, wait in self._graded:
            verdicts.update(zip(rows, wait(), strict=True))
        rows = range(len(self._questions) * self._rollouts)
        return [self._texts[row] for row in rows], [verdicts[row] for row in rows]


def sample_in_steps(
    sampler: Steps, arguments: Sequence[Any], num_rows: int, answers: Answers
) -> Samples:
    """Sample on the device and hand rows to `answers` as they end; the samples on the host.

    `arguments` are those of the sampler; rows from `num_rows` on fill the batch.
    """
    params, *_ = arguments
    rows, state = sampler.start(*arguments)
    fewer = deque(sampler.slot_counts(len(state.is_waiting_B))[1:])
    state, now = sampler.advance(params, rows, state)
    is_read_B = np.zeros(len(now.samples.tokens_BT), bool)
    is_read_B[num_rows:] = True
    while True:
        # Queued before `now` is read. If all rows had ended by then, it takes no step.
        state, following = sampler.advance(params, rows, state)
        ended_B = np.asarray(now.ended_B)
        if (new := np.flatnonzero(ended_B & ~is_read_B)).size:
            answers.add(new.tolist(), *jax.device_get((now.samples.tokens_BT, now.samples.mask_BT)))
            is_read_B |= ended_B
        if ended_B.all():
            return jax.device_get(now.samples)
        while fewer and fewer[0] >= int(now.num_slots):
            state = sampler.shrink(state, fewer.popleft())
        now = following
