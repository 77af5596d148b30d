"""What a response is worth if it is cut after B tokens, and where its thinking and its answer end.

A cut response is the text of its first B tokens, graded like any other. Its verdict depends on the
answer that the grader finds in it alone, so that of many cuts few need to be graded.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdistill import hosts
from jaxdistill.evaluation.summary import budgets
from jaxdistill.sampling.rollouts import Grade, Rollouts, answers_to
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading.extract import THINKING_TAGS, last_box
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ChoiceTask, ExactTask, MathTask, SourceTask, Task, ToyTask

# Graders of ours, whose cost is small beside the sampling.
_CHEAP = (ToyTask.grade, MathTask.grade, ChoiceTask.grade, ExactTask.grade)


class Cuts(NamedTuple):
    """Where the parts of a response end, in tokens, and its verdicts when it is cut earlier.

    thinking: up to and including the last closing tag; all, if the thinking is not closed; 0
    without thinking.
    answer_at: the least number of tokens from which on the graded answer stays the same; None
    without an answer, or if the task's cuts are not graded.
    correct_at: the verdict of the response cut after B tokens, for each budget B below its length;
    None if the task's cuts are not graded.
    """

    thinking: int
    answer_at: int | None
    correct_at: dict[int, bool] | None


def grades_cuts(task: Task) -> bool:
    """Whether the cut responses of a task are graded too: an own task says so itself.

    Its grader may run programs or call a service, and every response is graded about ten times.
    """
    is_ours = isinstance(task, ToyTask | SourceTask) and type(task).grade in _CHEAP
    return bool(getattr(task, "grades_cuts", is_ours))


def read_cuts(
    task: Task, rollouts: Rollouts, grade: Grade, tokenizer: Any, *, opens_thinking: bool
) -> list[Cuts]:
    """The cuts of each row. `opens_thinking`: whether the prompt ends within the thinking.

    Each host reads those of its own questions, as it has graded their responses.
    """
    own = hosts.share_of(range(len(rollouts.questions)))
    found = []
    if own:
        part = answers_to(rollouts, own[0], own[-1] + 1)
        found = _cuts_of(_Rows(task, part, grade, tokenizer), opens_thinking)
    if hosts.count() == 1:
        return found
    # JSON has no integers for keys.
    told = [each._replace(correct_at=_pairs(each.correct_at)) for each in found]
    told = hosts.gather_shares(told, "cuts")
    return [Cuts(end, first, None if at is None else dict(at)) for end, first, at in told]


def _pairs(correct_at: dict[int, bool] | None) -> Any:
    return None if correct_at is None else list(correct_at.items())


def _cuts_of(rows: "_Rows", opens_thinking: bool) -> list[Cuts]:
    thinking = rows.thinking(opens_thinking)
    if not grades_cuts(rows.task):
        return [Cuts(tokens, None, None) for tokens in thinking]
    correct_at = rows.verdicts()
    answer_at = rows.answer_at()
    return [Cuts(*each) for each in zip(thinking, answer_at, correct_at, strict=True)]


class _Rows:
    """The rows of rollouts, which are cut and judged in batches."""

    def __init__(self, task: Task, rollouts: Rollouts, grade: Grade, tokenizer: Any):
        self.task, self.rollouts, self.grade, self.tokenizer = task, rollouts, grade, tokenizer
        self.tokens = [
            row[mask > 0] for row, mask in zip(rollouts.tokens_BT, rollouts.mask_BT, strict=True)
        ]
        # (question, what was found in a text) -> (answer, verdict)
        self.known: dict[tuple[str, Any], tuple[Any, bool]] = {}
        for row, (text, verdict) in enumerate(zip(rollouts.responses, rollouts.verdicts)):
            key = self._key(row, text)
            self.known[key] = (key[1] if self.is_math else verdict.answer), verdict.correct
        self.tags = getattr(task, "thinking_tags", ()) or THINKING_TAGS

    def cut(self, at: dict[int, int]) -> dict[int, str]:
        """The text of the first tokens of some rows, {row: number}."""
        texts = tokenizers.decode_all(self.tokenizer, [self.tokens[r][:n] for r, n in at.items()])
        return dict(zip(at, texts, strict=True))

    # ------------------------------------------------------------------------------ the thinking

    def thinking(self, opens_thinking: bool) -> list[int]:
        responses = self.rollouts.responses
        is_open = [opens_thinking or any(tag in text for tag, _ in self.tags) for text in responses]
        found = [len(ids) if so else 0 for ids, so in zip(self.tokens, is_open, strict=True)]
        closed = {row: n for row, text in enumerate(responses) if (n := self._closings(text))}
        ends = _first(
            {row: (0, len(self.tokens[row])) for row in closed},
            lambda at: {r: self._closings(t) == closed[r] for r, t in self.cut(at).items()},
        )
        return [ends.get(row, tokens) for row, tokens in enumerate(found)]

    def _closings(self, text: str) -> int:
        return sum(text.count(closing) for _, closing in self.tags)

    # ------------------------------------------------------------------------------- the answer

    def verdicts(self) -> list[dict[int, bool]]:
        """The verdict of each row at each budget below its length."""
        found: list[dict[int, bool]] = [{} for _ in self.tokens]
        for budget in budgets(max(map(len, self.tokens), default=0)):
            at = {row: budget for row, ids in enumerate(self.tokens) if len(ids) > budget}
            for row, (_, correct) in self.judged(self.cut(at)).items():
                found[row][budget] = correct
        return found

    def answer_at(self) -> list[int | None]:
        whole = dict(enumerate(self.rollouts.responses))
        final = {row: answer for row, (answer, _) in self.judged(whole).items()}
        final = {row: answer for row, answer in final.items() if answer is not None}
        if self.commands:
            chars = {row: self._stands_from(row, answer) for row, answer in final.items()}
            ends = _first(
                {row: (0, len(self.tokens[row])) for row in final},
                lambda at: {row: len(text) >= chars[row] for row, text in self.cut(at).items()},
            )
        else:
            ends = self._bisected(final)
        return [ends.get(row) for row in whole]

    def _stands_from(self, row: int, final: Any) -> int:
        """The least number of characters from which on the answer of a text is `final`.

        An answer changes after a command that opens it and after a closing tag of thinking, and
        then not until the next of them.
        """
        text = self.rollouts.responses[row]

        def is_final(length: int) -> bool:
            return self._answer(row, text[:length]) == final

        stable = len(text)
        if getattr(self.task, "last_chars", None) is not None:
            # The window moves with the end, in which the answer must be: that is not far.
            while stable and is_final(stable - 1):
                stable -= 1
            return stable
        closings = [closing for _, closing in self.tags]
        pattern = "|".join(map(re.escape, [*self.commands, *closings]))
        for end in reversed([match.end() for match in re.finditer(pattern, text, re.IGNORECASE)]):
            # The command alone may be a word of a sentence; with a brace after it, it is open.
            other = [n for n in range(end, min(end + 3, stable)) if not is_final(n)]
            if other:
                at = {row: (other[-1], stable)}
                return _first(at, lambda at: {r: is_final(n) for r, n in at.items()})[row]
            stable = min(end, stable)
        return stable

    def _bisected(self, final: dict[int, Any]) -> dict[int, int]:
        """Where the answers stand that no command opens, such as whole responses.

        The last budget with another answer is found first; between it and the next one the answer
        is taken to change once.
        """
        bounds = {row: (0, len(self.tokens[row])) for row in final}
        for budget in budgets(max(map(len, self.tokens), default=0)):
            at = {row: budget for row in bounds if len(self.tokens[row]) > budget}
            for row, (answer, _) in self.judged(self.cut(at)).items():
                low, high = bounds[row]
                if answer != final[row]:
                    bounds[row] = (budget, len(self.tokens[row]))
                elif high == len(self.tokens[row]):
                    bounds[row] = (low, budget)
        return _first(
            bounds,
            lambda at: {r: a == final[r] for r, (a, _) in self.judged(self.cut(at)).items()},
        )

    @property
    def commands(self) -> tuple[str, ...]:
        """What opens an answer in a response, for the graders of ours that look for it."""
        grader = getattr(type(self.task), "grade", None)
        if grader is MathTask.grade:
            return r"\boxed", r"\fbox"
        is_tag = getattr(self.task, "answer_in", "tag") == "tag"
        return ("<answer>",) if grader in (ChoiceTask.grade, ExactTask.grade) and is_tag else ()

    def _answer(self, row: int, text: str) -> Any:
        if self.is_math:
            return self._boxed(text)
        return self.task.grade(self.question(row), text).answer

    def judged(self, texts: dict[int, str]) -> dict[int, tuple[Any, bool]]:
        """(answer, verdict) of each text, {row: text}; equal answers are graded once."""
        keys = {row: self._key(row, text) for row, text in texts.items()}
        if self.is_math:  # without a box there is no answer
            self.known |= {key: (None, False) for key in keys.values() if key[1] is None}
        new = {key: row for row, key in keys.items() if key not in self.known}
        if new:
            asked = [self.question(row) for row in new.values()]
            verdicts = self.grade(asked, [texts[row] for row in new.values()])
            for key, verdict in zip(new, verdicts, strict=True):
                answer = key[1] if self.is_math else verdict.answer
                self.known[key] = answer, verdict.correct
        return {row: self.known[key] for row, key in keys.items()}

    def _key(self, row: int, text: str) -> tuple[str, Any]:
        return self.question(row).id, self._boxed(text) if self.is_math else text

    @property
    def is_math(self) -> bool:
        return isinstance(self.task, MathTask) and type(self.task).grade is MathTask.grade

    def _boxed(self, text: str) -> str | None:
        return last_box(text, self.task.thinking_tags, self.task.last_chars).answer  # pyright: ignore

    def question(self, row: int) -> Question:
        return self.rollouts.question_of(row)


def _first(
    bounds: dict[int, tuple[int, int]], holds: Callable[[dict[int, int]], dict[int, bool]]
) -> dict[int, int]:
    """For each row the least number in (low, high] at which something holds, by bisection.

    It holds at `high` and not at `low`; `holds` answers for several rows at once.
    """
    found = dict(bounds)
    while middle := {row: (a + b) // 2 for row, (a, b) in found.items() if b - a > 1}:
        for row, is_so in holds(middle).items():
            low, high = found[row]
            found[row] = (low, middle[row]) if is_so else (middle[row], high)
    return {row: high for row, (_, high) in found.items()}
