"""A question: the prompt for the student, with its gold answer."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Question:
    """One row of a data set. Two rows with the same text are two questions with different ids."""

    id: str
    prompt: str  # the user turn
    answer: str  # the gold answer
    system: str | None = None  # the system turn
    solution: str | None = None  # the text of a reference solution
    earlier: tuple[tuple[str, str], ...] = ()  # few-shot turns before the prompt: (role, content)
    alternatives: tuple[str, ...] = ()  # further gold answers, each as right as `answer`
    problem: str | None = None  # the id that rows of the same text share; None: its own id

    @property
    def problem_id(self) -> str:
        """The unit that confidence intervals resample: rows of one problem stay together."""
        return self.id if self.problem is None else self.problem


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
    system = [] if question.system is None else [("system", question.system)]
    user = question.prompt if user_turn is None else user_turn
    turns = [*system, *question.earlier, ("user", user)]
    return [{"role": role, "content": content} for role, content in turns]


def asked_text(question: Question) -> bytes:
    """A digest of everything that the model is asked: equal for rows of the same prompt."""
    return _digest([question.system, *question.earlier, question.prompt.strip()])


def with_problems(questions: Iterable[Question]) -> list[Question]:
    """The questions, each that repeats the prompt of an earlier one with the `problem` of that.

    >>> rows = with_problems([Question("a", "1+1?", "2"), Question("b", "1+1?", "2")])
    >>> [row.problem_id for row in rows]
    ['a', 'a']
    """
    first: dict[bytes, str] = {}
    found = []
    for question in questions:
        problem = first.setdefault(asked_text(question), question.problem_id)
        is_first = problem == question.problem_id
        found.append(question if is_first else replace(question, problem=problem))
    return found


def fingerprint(questions: Iterable[Question]) -> str:
    """A digest of questions in their order: it changes with any id, prompt, answer or solution."""
    total = hashlib.sha256()
    for question in questions:
        q = question
        total.update(
            _digest([q.id, q.prompt, q.answer, q.system, q.solution, *q.earlier, *q.alternatives])
        )
    return total.hexdigest()[:16]  # 64 bits: two data sets do not collide by chance


def _digest(parts: Iterable[object]) -> bytes:
    return hashlib.blake2b(repr(list(parts)).encode(errors="replace"), digest_size=16).digest()


def with_unique_ids(questions: list[Question]) -> list[Question]:
    """Give each repetition of a question its own id, and therefore its own samples.

    A set of questions smaller than the batch is repeated to fill it. Each repetition is a group of
    its own, as in the paper's seen_1x64.
    """
    seen: dict[str, int] = {}
    result = []
    for question in questions:
        nth = seen[question.id] = seen.get(question.id, 0) + 1
        again = replace(question, id=f"{question.id}#{nth}", problem=question.problem_id)
        result.append(again if nth > 1 else question)
    return result
