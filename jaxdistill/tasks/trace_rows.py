"""One row as a trace: a chat that asks, and the response to imitate.

| field | columns, in order; the names ignore case |
|---|---|
| question | messages, conversations, prompt, question, problem, query, instruction (with input) |
| response | response, completion, output |
| system | system, system_prompt, and a system turn |
| correct | correct: a verdict, as in the project's own records of evaluations and rollouts |
| finished | finished: false where the response reached a token limit |

In this project's own records, which have a `question_id`, `problem` is an id and no question.

Where the messages end in an assistant's turn, that turn is the response and everything before it
is the prompt; no other turn is imitated. `instruction`, `input` and `output` are Alpaca's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxdistill.tasks.questions import Question, messages
from jaxdistill.tasks.sources import chat
from jaxdistill.tasks.sources.columns import check_mapping
from jaxdistill.tasks.sources.instruction import BOX, Change, instruct
from jaxdistill.tasks.sources.place import BadRow, Place, in_short

FIELDS: dict[str, tuple[str, ...]] = {
    "question": (
        "messages",
        "conversations",
        "prompt",
        "question",
        "problem",
        "query",
        "instruction",
    ),
    "response": ("response", "completion", "output"),
    "system": ("system", "system_prompt"),
    "correct": ("correct",),
    "finished": ("finished",),
}
# A response that is a list of messages, stored as text; other JSON is what the model has to write.
_MESSAGES = re.compile(
    r"""(?s)\s*\[\s*\{(?=.*["'](?:role|from)["']\s*:)\s*["'](?:role|content|from|value)["']\s*:"""
)


class Trace(NamedTuple):
    """One row: `chat` is everything before the response."""

    chat: list[dict[str, str]]
    response: str
    correct: bool | None  # the verdict where the row has one
    is_finished: bool  # False where the row says that its response reached a token limit
    change: Change = "kept"  # what the instruction changed in the prompt


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Which columns of a row are read, which rows are left out, and what prompts are asked for.

    columns: pairs (field, column) for a layout that is not recognised.
    correct: True leaves out the rows whose field `correct` is false, False the others.
    instruction: as in `sources.Reading`; None leaves prompts as they are.
    """

    columns: tuple[tuple[str, str], ...] = ()
    correct: bool | None = None
    instruction: str | None = None

    def __post_init__(self):
        check_mapping(self.columns, FIELDS, "a trace")

    @property
    def wanted(self) -> frozenset[str]:
        """The columns that a row may need, in lower case."""
        named = [column for _, column in self.columns]
        known = [name for names in FIELDS.values() for name in names]
        return frozenset(name.lower() for name in [*named, *known, "input", _OWN_ID])

    def trace(self, place: Place, record: Mapping[str, Any]) -> Trace | None:
        """The row as a trace; None where `correct` leaves it out, whatever else it holds.

        Raises BadRow naming `place` and the field, what was expected and what came.
        """
        row = _Row(place, record, dict(self.columns))
        correct = row.flag("correct")
        if self.correct is not None and correct is None:
            raise place.wrong("correct", f"a verdict, for `correct={self.correct}`", None)
        if self.correct not in (None, correct):
            return None
        question, response = row.question_and_response()
        question, change = instruct(question, BOX, self.instruction)
        chat.text(place, "question", question.prompt)  # of an "Answer:" sentence nothing is left
        is_finished = row.flag("finished") is not False
        return Trace(messages(question), response, correct, is_finished, change)


@dataclass(frozen=True)
class _Row:
    """A record whose columns are found by field."""

    place: Place
    record: Mapping[str, Any]
    mapping: dict[str, str] = field(default_factory=dict)

    def question_and_response(self) -> tuple[Question, str]:
        asks, stored = self._only("question")
        turns, response = chat.turns(self.place, asks, stored), None
        if turns[-1].role == "assistant":
            last = stored if isinstance(stored, Mapping) else stored[-1]
            response = self._thought(asks, last) + turns.pop().content
        found = next(self._found("response"), None)
        if found is not None:
            given = self._response(*found)
            if response not in (None, given):
                raise self.place.bad(
                    f"`{asks}` ends in an assistant's turn, and `{found[0]}` is another response; "
                    f'name the prompt with columns=(("question", "COLUMN"),)'
                )
            response = given
        if response is None:
            raise self._unknown("response")
        if not turns:
            raise self.place.wrong(asks, "a user's turn before the response", stored)
        system, earlier, prompt = chat.asked(self.place, asks, turns)
        if asks.lower() == "instruction":
            prompt = "\n".join(filter(None, (prompt, self._input())))
        system = self._system(system)
        return Question("", prompt, "", system=system, earlier=earlier), response

    def flag(self, name: str) -> bool | None:
        column, value = next(self._found(name), (name, None))
        if value is None:
            return None
        written = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        if written.lower() not in _FLAGS:
            raise self.place.wrong(column, "true or false", value)
        return _FLAGS[written.lower()]

    def _found(self, name: str) -> Iterator[tuple[str, Any]]:
        """(column, value) of the field's columns that hold something, in order."""
        mapped = self.mapping.get(name)
        if mapped is not None and mapped not in self.record:
            raise self.place.bad(f"no column {mapped!r}, the {name}; {self._columns()}")
        lower = {column.lower(): column for column in self.record}
        known = [n for n in FIELDS[name] if n != "problem" or _OWN_ID not in lower]
        columns = list(map(lower.get, known)) if mapped is None else [mapped]
        for column in columns:
            value = None if column is None else chat.native(self.record[column])
            if column is not None and not chat.is_missing(value):
                yield column, value

    def _only(self, name: str) -> tuple[str, Any]:
        """The field's first column, decoded; several texts that disagree are refused."""
        found = list(self._found(name))
        if not found:
            raise self._unknown(name)
        chosen, stored = found[0]
        for other, value in found[1:]:
            texts = (stored, value)
            if all(isinstance(text, str) for text in texts) and not (
                stored.strip() in value or value.strip() in stored
            ):
                raise self.place.bad(
                    f"columns `{chosen}` and `{other}` differ, {in_short(stored)} and "
                    f'{in_short(value)}; choose one with columns=(("{name}", "{chosen}"),)'
                )
        return chosen, chat.messages_in(self.place, chosen, stored)

    def _response(self, column: str, value: Any) -> str:
        if isinstance(value, str | bytes):
            written = chat.text(self.place, column, value)
            if _MESSAGES.match(written) is None:
                return written
            value = chat.structured(self.place, column, written)
        turns = chat.turns(self.place, column, value)
        if [turn.role for turn in turns] != ["assistant"]:
            raise self.place.wrong(column, "text, or one message of the assistant", value)
        turn = value[-1] if isinstance(value, list) else value
        return self._thought(column, turn) + turns[0].content

    def _thought(self, column: str, turn: Mapping[str, Any]) -> str:
        """A turn's `reasoning_content`, as Qwen3's template renders it."""
        name = f"{column}.reasoning_content"
        thinking = chat.optional_text(self.place, name, turn.get("reasoning_content"))
        return f"<think>\n{thinking.strip()}\n</think>\n\n" if thinking else ""

    def _input(self) -> str | None:
        lower = {column.lower(): column for column in self.record}
        value = self.record[lower["input"]] if "input" in lower else None
        return chat.optional_text(self.place, "input", value)

    def _system(self, turn: str | None) -> str | None:
        column, value = next(self._found("system"), ("system", None))
        text = chat.optional_text(self.place, column, value)
        if None not in (text, turn) and text != turn:
            raise self.place.bad(
                f"column `{column}` and the system turn differ: {in_short(text)} and "
                f"{in_short(turn)}"
            )
        return turn if text is None else text

    def _unknown(self, name: str) -> BadRow:
        return self.place.bad(
            f"no column holds the {name} ({', '.join(FIELDS[name])}); {self._columns()}; name it "
            f'with columns=(("{name}", "COLUMN"),)'
        )

    def _columns(self) -> str:
        return f"the columns are {', '.join(self.place.columns or self.record)}"


_OWN_ID = "question_id"  # a column of this project's own records

# CSV stores flags as text, and verl's dumps as scores.
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
