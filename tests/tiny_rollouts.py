"""Rollouts by hand, and the experience that they might be of."""

import dataclasses
from typing import Any

import numpy as np

from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question, messages
from jaxdistill.tasks.tasks import ToyTask, questions_of
from jaxdistill.training.batch import Texts
from jaxdistill.training.on_policy import OnPolicy

TASK = ToyTask(count=5)
QUESTIONS = questions_of(TASK)


def experience(**changes: Any) -> OnPolicy:
    config = OnPolicy(
        task=TASK,
        questions=2,
        rollouts=3,
        sampling=Sampling(max_new_tokens=8),
        context=Solution(),
        teacher_prompt_multiple=32,
        completion_multiple=8,
    )
    return dataclasses.replace(config, **changes)


def response(number: int, *words: str) -> str:
    """Thinking that differs by `number`, then the answer `number`."""
    return " ".join([*words, str(number), "</think>", "answer", str(number)])


def rollouts_of(
    policy: Policy,
    groups: list[list[tuple[str, bool]]],
    questions: list[Question] = QUESTIONS,
    *,
    seed: int = 0,
    step: int = 0,
    thinking: bool | None = None,
) -> Rollouts:
    """For each question a list of (response, is it right)."""
    texts = [text for group in groups for text, _ in group]
    rights = [right for group in groups for _, right in group]
    num_rollouts = len(groups[0])
    stop = policy.stop_ids[0]
    ids = [[*tokens, stop] for tokens in tokenizers.encode(policy.tokenizer, texts)]
    tokens_BT, mask_BT = tokenizers.right_pad(ids, 0, 1)
    chats = [messages(question) for question in questions[: len(groups)]]
    prompt_ids = tokenizers.prompt_ids(policy.tokenizer, chats, thinking)
    prompt_ids_QP, prompt_mask_QP = tokenizers.left_pad(prompt_ids, 0, 16)
    return Rollouts(
        address=Address(seed=seed, purpose="train", step=step),
        questions=list(questions[: len(groups)]),
        rollouts=num_rollouts,
        prompt_ids_BP=np.repeat(prompt_ids_QP, num_rollouts, axis=0),
        prompt_mask_BP=np.repeat(prompt_mask_QP, num_rollouts, axis=0),
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        logp_BT=np.full(tokens_BT.shape, -1.5, np.float32),
        finished_B=np.ones(len(texts), bool),
        responses=texts,
        verdicts=[Verdict(right, "match" if right else "wrong answer", "9") for right in rights],
    )


LONE = [(response(1), False), (response(2), True), (response(3), False)]  # the second alone wins
PAIR = [(response(4), True), (response(5), False), (response(6), True)]
NONE = [(response(7), False), (response(8), False), (response(9), False)]
ALL = [(response(10), True), (response(11), True), (response(12), True)]


def shown(question: Question, text: str) -> str:
    return (
        f"{question.prompt}\nCorrect solution:\n\n{text}\n\nCorrectly solve the original question."
    )


def rendered(policy: Policy, texts: Texts) -> list[str]:
    """The texts as words, special tokens included."""
    return [policy.tokenizer.decode(ids[:length]) for ids, length in zip(*texts)]
