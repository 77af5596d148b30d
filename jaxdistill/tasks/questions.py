"""A question: what the student is asked, and what is known about its answer."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One row of a data set; two rows with the same text are two questions with two ids."""

    id: str
    prompt: str  # the user turn
    answer: str  # gold
    system: str | None = None
    solution: str | None = None  # a reference solution's text


def is_text(value: object) -> bool:
    """Whether it is text that a tokenizer and a file can take: no lone surrogate as \\ud800.

    >>> is_text("1+1?"), is_text("\\ud800"), is_text(7)
    (True, False, False)
    """
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def messages(question: Question, user_turn: str | None = None) -> list[dict[str, str]]:
    """Return the chat that asks `question`, with `user_turn` in the place of its prompt if given.

    >>> messages(Question("q", "1+1?", "2", system="Be brief."))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1+1?'}]
    """
    system = [] if question.system is None else [{"role": "system", "content": question.system}]
    user = question.prompt if user_turn is None else user_turn
    return [*system, {"role": "user", "content": user}]
