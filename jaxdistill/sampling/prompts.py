"""Prompts of questions as token ids, and whether the model has positions for prompt and response.

A model reads at most `max_positions` tokens (`max_position_embeddings` of its config.json, whatever
its RoPE scaling). Beyond them it computes numbers that it was never trained to give, and nothing
fails.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.questions import Question, messages

# A role's thinking mode, passed to the chat template as `enable_thinking`: on, off, None to leave
# it to the template, or the mode that the student samples in.
Thinking = bool | Literal["as_student"] | None


def thinking_of(role: Thinking, student: bool | None) -> bool | None:
    """A role's own thinking mode, or the student's.

    >>> thinking_of("as_student", False), thinking_of(None, False), thinking_of(True, False)
    (False, None, True)
    """
    return student if role == "as_student" else role


def unused_mode(setting: str, mode: Thinking, tokenizer: Any) -> list[str]:
    """A line for a person if a role's own `mode` changes no prompt; else no line.

    `setting` is what the person has set, such as `--thinking`.
    """
    if not isinstance(mode, bool):
        return []
    chat = [{"role": "user", "content": "question"}]
    with_mode, without = (tokenizers.prompt_text(tokenizer, chat, m) for m in (mode, not mode))
    if with_mode != without:
        return []
    return [f"`{setting}` makes no difference: the chat template has no thinking mode"]


def encode_prompts(
    tokenizer: Any, questions: Sequence[Question], enable_thinking: bool | None = None
) -> list[list[int]]:
    """The chat of each question up to where the assistant starts, as the student is asked it."""
    chats = [messages(question) for question in questions]
    return tokenizers.prompt_ids(tokenizer, chats, enable_thinking)


def prompt_lengths(
    tokenizer: Any, questions: Sequence[Question], enable_thinking: bool | None = None
) -> list[int]:
    """Tokens of each question's prompt; a prompt that stands several times is encoded once."""
    asked = [(question.system, question.earlier, question.prompt) for question in questions]
    distinct = list(dict(zip(asked, questions)).items())
    lengths: dict[Any, int] = {}
    # 1024: enough work for every thread of the tokenizer, and no more ids in memory than that.
    for start in range(0, len(distinct), 1024):
        names, those = zip(*distinct[start : start + 1024])
        lengths |= zip(names, map(len, encode_prompts(tokenizer, those, enable_thinking)))
    return [lengths[key] for key in asked]


def check_room(
    config: ModelConfig, questions: Sequence[Question], lengths: Sequence[int], max_new_tokens: int
) -> None:
    """Refuse prompts of `lengths` tokens that leave fewer than `max_new_tokens` positions.

    Raises UserError that names the question with the longest prompt.
    """
    positions = config.max_positions
    num_over = sum(length + max_new_tokens > positions for length in lengths)
    if not num_over:
        return
    longest, question = max(zip(lengths, questions), key=lambda pair: pair[0])
    raise UserError(
        f"question {question.id!r}: its prompt has {longest} tokens, and with "
        f"max_new_tokens={max_new_tokens} that is {longest + max_new_tokens}, beyond the model's "
        f"{positions} positions (max_position_embeddings); so are {num_over} of {len(lengths)} "
        "questions"
    )


def check_prompts(
    config: ModelConfig,
    tokenizer: Any,
    questions: Sequence[Question],
    max_new_tokens: int,
    enable_thinking: bool | None = None,
) -> None:
    """`check_room` of questions that are still text, before weights are read or a step is made."""
    lengths = prompt_lengths(tokenizer, questions, enable_thinking)
    check_room(config, questions, lengths, max_new_tokens)
