"""The probe: what a model would write at each fork of a trace, under contexts of rising richness.

Axes: X forks, V vocabulary; the others are those of `axes`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy, ToyBase
from jaxdistill.tasks import contexts
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask, probe_prefixes
from jaxdistill.tasks.toy import grader, problems, traces

CONTEXTS: tuple[contexts.Context, ...] = (
    contexts.NoContext(),
    contexts.PartialSolution(),
    contexts.AnswerOnly(),
    contexts.SolutionWithoutThinking(),
    contexts.Solution(),
)


def forks(question: Question, words: list[str]) -> list[tuple[str, int]]:
    """Return (place, index) of each fork of a trace; word `index` is the one written there.

    The places are `start`, `miss` after a try that does not end in the target, and `match` after a
    try that does and is not a double check itself.
    """
    target = str(problems.parse(question.prompt).target)
    found = [("start", 0)]
    word_before_try = ""
    for i, word in enumerate(words[: words.index(traces.END_THINK) + 1]):
        if grader.is_arithmetic(word):
            continue
        if i > 0 and words[i - 1] != target and grader.is_arithmetic(words[i - 1]):
            found.append(("miss", i))
        elif i > 0 and words[i - 1] == target and word_before_try != traces.CHECK:
            found.append(("match", i))
        word_before_try = word
    return found


@functools.partial(jax.jit, static_argnames=("config", "group_ids"))
def _masses(
    params: Any,
    prompt: tuple[Int[AnyArray, "B P"], Int[AnyArray, "B P"]],
    written: tuple[Int[AnyArray, "B T"], Int[AnyArray, "B T"]],
    at: tuple[Int[AnyArray, " X"], Int[AnyArray, " X"]],
    *,
    config: ModelConfig,
    group_ids: tuple[tuple[str, tuple[int, ...]], ...],
) -> dict[str, Float[Array, " X"]]:
    """The probability of each group of ids at the forks, which are rows and indices in `at`.

    Texts are ids and their mask. One program serves all bases of a study.
    """
    hidden_BTD = completions.completion_hidden(
        params,
        config,
        prompt_ids_BP=prompt[0],
        prompt_mask_BP=prompt[1],
        completion_ids_BT=written[0],
        completion_mask_BT=written[1],
    )
    head_DV = parameters.head(params, config)
    # Only the hidden states at forks are multiplied by the head, not those of every position.
    probability_XV = jax.nn.softmax(hidden_BTD[at] @ head_DV, axis=-1)
    return {name: probability_XV[:, np.array(ids)].sum(axis=-1) for name, ids in group_ids}


def probe(policy: Policy, params: Any, task: ToyTask, seed: int = 0) -> list[dict[str, Any]]:
    """Return the mean probability of doubting, answering, `then` and checking at each fork.

    The forks are those of unguided traces of the main world on the task's questions, and the
    solution shown is the reference solution. There is a row {context, place, epistemic, answer,
    then, check, n} per context and place, where n is the number of forks. `epistemic` excludes
    `check`, which has its own column.
    """
    examples = probe_prefixes(task, seed)
    responses = tokenizers.encode(policy.tokenizer, [text for _, text in examples])
    pad = tokenizers.pad_id(policy.tokenizer)
    written = tokenizers.right_pad(responses, pad, 64)
    places = [
        (row, place, index)
        for row, (question, text) in enumerate(examples)
        for place, index in forks(question, text.split())
    ]
    at = tuple(np.array([place[i] for place in places]) for i in (0, 2))
    groups = {
        "epistemic": (*traces.WAIT_WORDS, *traces.HEDGE_WORDS),
        "answer": (traces.END_THINK,),
        "then": (traces.THEN,),
        "check": (traces.CHECK,),
    }
    group_ids = tuple(
        (name, tuple(ids for (ids,) in tokenizers.encode(policy.tokenizer, words)))
        for name, words in groups.items()
    )
    table = []
    for context in CONTEXTS:
        turns = [
            contexts.render(context, question.prompt, question.solution, question.answer)
            for question, _ in examples
        ]
        chats = [[{"role": "user", "content": turn}] for turn in turns]
        # Lengths are multiples of 64, so that contexts of similar length share a compiled program.
        prompt = tokenizers.left_pad(tokenizers.prompt_ids(policy.tokenizer, chats), pad, 64)
        found = _masses(params, prompt, written, at, config=policy.config, group_ids=group_ids)
        values = jax.device_get(found)
        for place in ("start", "miss", "match"):
            pick = np.array([name == place for _, name, _ in places])
            means = {name: float(value[pick].mean()) for name, value in values.items()}
            table.append(
                {
                    "context": type(context).__name__,
                    "place": place,
                    **means,
                    "n": int(pick.sum()),
                }
            )
    return table


def probe_base(source: ToyBase) -> list[dict[str, Any]]:
    """Probe a bundled base on 128 held-out problems, in float32."""
    policy = loading.open_model(f"toy:{source.world}", dtype=jnp.float32)
    return probe(policy, policy.params, ToyTask(pool="heldout", count=128))
