"""A question: the prompt for the student, with its gold answer."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One row of a data set. Two rows with the same text are two questions with different ids."""

    id: str
    prompt: str  # the user turn
    answer: str  # the gold answer
    system: str | None = None  # the system turn
    solution: str | None = None  # the text of a reference solution


def is_text(value: object) -> bool:
    """Whether `value` is text that tokenizers and UTF-8 files accept: no lone surrogates.

    >>> is_text("1+1?"), is_text("\\ud800"), is_text(7)
    (True, False, False)
    """
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def messages(question: Question, user_turn: str | None = None) -> list[dict[str, str]]:
    """Return the chat that asks `question`; `user_turn`, if given, replaces its prompt.

    >>> messages(Question("q", "1+1?", "2", system="Be brief."))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1+1?'}]
    """
    system = [] if question.system is None else [{"role": "system", "content": question.system}]
    user = question.prompt if user_turn is None else user_turn
    return [*system, {"role": "user", "content": user}]
