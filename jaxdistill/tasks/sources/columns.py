"""One row as a question, by what its columns hold; the names of columns ignore case.

| field | columns, in order |
|---|---|
| question | prompt, question, problem, input, query, messages, conversations |
| answer | answer, final_answer, ground_truth, reward_model.ground_truth, expected_answer, ... |
| options | choices, options; or columns A, B, C, ... |
| solution | solution, extra_info.solution, and a GSM8K answer's text |
| system | system, system_prompt, and a system turn |
| id | problem_id, id, unique_id, idx, index, extra_info.index |

A set without a column of answers has them at the end of its solutions, as MATH and GSM8K do.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources import chat
from jaxdistill.tasks.sources.answers import answers, final_answer, written_out
from jaxdistill.tasks.sources.options import bare_letter, options_of, with_options
from jaxdistill.tasks.sources.place import BadRow, Place, in_short

FIELDS: dict[str, tuple[str, ...]] = {
    "question": ("prompt", "question", "problem", "input", "query", "messages", "conversations"),
    "answer": (
        "answer",
        "final_answer",
        "ground_truth",
        "reward_model.ground_truth",
        "expected_answer",
        "correct_answer",
        "gold_answer",
        "answer_key",
        "answerkey",
    ),
    "options": ("choices", "options"),
    "solution": ("solution", "extra_info.solution"),
    "system": ("system", "system_prompt"),
    "id": ("problem_id", "id", "unique_id", "idx", "index", "extra_info.index"),
}
_LETTERED = ("A", "B", "C", "D", "E")
_FINAL = "an answer, or a solution that ends in a box or in #### and the answer"
Mapped = Sequence[tuple[str, str]]  # pairs (field, column)


def check_mapping(
    mapping: Mapped, fields: Mapping[str, object] = FIELDS, of: str = "a question"
) -> None:
    """Refuse what are no pairs (field, column), each field at most once."""
    if not isinstance(mapping, tuple | list):
        raise UserError(f"`columns` must be pairs (field, column), got {mapping!r}")
    for pair in mapping:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(str, pair))):
            raise UserError(f"`columns` must be pairs (field, column), got {pair!r}")
        if pair[0] not in fields:
            near = get_close_matches(pair[0], fields, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"`columns`: {pair[0]!r} is no field of {of}; the fields are "
                f"{', '.join(fields)}{hint}"
            )
    if len({field for field, _ in mapping}) < len(mapping):
        raise UserError(f"`columns` names a field twice: {mapping!r}")


def wanted_columns(mapping: Mapped) -> frozenset[str]:
    """The top columns that a question may need, in lower case."""
    names = [*(name for names in FIELDS.values() for name in names), *_LETTERED, "instruction"]
    names += [column for _, column in mapping]
    return frozenset(part.lower() for name in names for part in (name, name.partition(".")[0]))


def question_of(place: Place, record: Mapping[str, Any], mapping: Mapped = ()) -> Question:
    """Read one row. Raises BadRow naming the field, what was expected and what came."""
    row = _Row(place, record, dict(mapping))
    field, stored = row.prompt()
    system, earlier, prompt = chat.asked(place, field, chat.turns(place, field, stored))
    options = row.options()
    if options is not None:
        prompt = with_options(prompt, options)
    gold, solution = row.gold(None if options is None else options.letter_of)
    return Question(
        id=row.id(),
        prompt=prompt,
        answer=gold[0],
        system=row.system(system),
        solution=solution,
        earlier=earlier,
        alternatives=gold[1:],
    )


class _Row:
    """A record whose columns are found by field."""

    def __init__(self, place: Place, record: Mapping[str, Any], mapping: dict[str, str]):
        self.place, self._record, self._mapping = place, record, mapping
        self._decoded: dict[str, Any] = {}

    # ---- finding columns

    def _found(self, field: str) -> Iterator[tuple[str, Any]]:
        """(name, value) of the field's columns that this record has, null ones too."""
        mapped = self._mapping.get(field)
        names = FIELDS[field] if mapped is None else (mapped,)
        found = False
        for name in names:
            top, _, inner = name.partition(".")
            for column in self._record:
                # A name that the user gives is exact; it may hold a dot itself.
                is_whole = column == name or (mapped is None and column.lower() == name)
                is_part = bool(inner) and (
                    column == top or (mapped is None and column.lower() == top)
                )
                if is_whole:
                    found = True
                    yield column, self._record[column]
                elif is_part:
                    # A column of this name that is no struct does not matter where it holds what
                    # can be missing; an answer or a named column cannot.
                    is_needed = field == "answer" or mapped is not None
                    held = self._inside(column, name) if is_needed else self._if_struct(column)
                    for key in inner.split("."):
                        held = held.get(key) if isinstance(held, Mapping) else None
                    found = True
                    yield name, held
        if mapped is not None and not found:
            raise self.place.bad(f"no column {mapped!r}, the {field}; {self._columns()}")

    def _inside(self, column: str, field: str) -> Any:
        """A struct, which may be stored as JSON."""
        if column not in self._decoded:
            held = chat.structured(self.place, column, self._record[column])
            if (
                isinstance(held, list)
                and held
                and all(isinstance(pair, tuple) and len(pair) == 2 for pair in held)
            ):
                held = dict(held)  # Arrow's maps come as pairs
            if held is not None and not isinstance(held, Mapping):
                raise self.place.wrong(column, "an object with named fields", held)
            self._decoded[column] = held
        return self._decoded[column]

    def _if_struct(self, column: str) -> Any:
        try:
            return self._inside(column, column)
        except BadRow:
            return None

    def _columns(self) -> str:
        return f"the columns are {', '.join(self.place.columns or self._record)}"

    def _unknown(self, what: str, field: str) -> BadRow:
        return self.place.bad(
            f"no column holds the {what}; {self._columns()}; name it with "
            f'columns=(("{field}", "COLUMN"),)'
        )

    # ---- reading fields

    def prompt(self) -> tuple[str, Any]:
        """The name and value of the column that is asked; several that disagree are refused."""
        every = list(self._found("question"))
        if not every:
            raise self._unknown("question", "question")
        found = [(name, value) for name, value in every if not chat.is_missing(value)]
        if not found:
            raise self.place.wrong(every[0][0], "text or messages", None)
        chosen, stored = found[0]
        if chosen.lower() == "input" and "instruction" in {name.lower() for name in self._record}:
            raise self.place.bad(
                "columns `instruction` and `input`: which one is asked? Say so with "
                'columns=(("question", "COLUMN"),)'
            )
        for name, other in found[1:]:
            texts = (chat.native(stored), chat.native(other))
            if all(isinstance(t, str) for t in texts) and not (
                texts[0].strip() in texts[1] or texts[1].strip() in texts[0]
            ):
                raise self.place.bad(
                    f"columns `{chosen}` and `{name}` hold different questions, {in_short(stored)} "
                    f'and {in_short(other)}; choose one with columns=(("question", "{chosen}"),)'
                )
        return chosen, stored

    def options(self) -> Any:
        for name, value in self._found("options"):
            value = chat.native(value)
            is_text = isinstance(value, str | bytes) and bool(value)
            value = chat.structured(self.place, name, value) if is_text else value
            if not (chat.is_missing(value) or chat.is_empty(value)):
                return options_of(self.place, name, value)
        if "options" not in self._mapping and all(column in self._record for column in "ABC"):
            # Columns of these names may hold anything: beside another answer they are no options.
            golds = [chat.native(gold) for _, gold in self._found("answer")]
            if any(
                isinstance(gold, str) and re.fullmatch("[A-Z]", bare_letter(gold)) for gold in golds
            ):
                return options_of(self.place, "A", {a: self._record.get(a) for a in _LETTERED})
        return None

    def gold(self, letter_of: Any) -> tuple[tuple[str, ...], str | None]:
        """Return (answer and alternatives, reference solution)."""
        every = list(self._found("answer"))
        solutions = [
            (name, solution)
            for name, value in self._found("solution")
            # Several solutions of a row are in order of preference; one is shown.
            for first in [chat.native(value)]
            for text in [first[0] if isinstance(first, list) and first else first]
            if (solution := self._solution(name, text)) is not None
        ]
        if not every:
            return self._gold_of_solution(solutions)
        read: dict[str, tuple[str, ...]] = {}
        for name, value in every:
            if chat.is_missing(value) and len(every) > 1:
                continue
            if letter_of is not None:
                read[name] = (letter_of(self.place, name, value),)
                continue
            given = answers(self.place, name, value)
            ends = [final_answer(text) for text in given]
            solutions += [(name, text) for text, (_, is_long) in zip(given, ends) if is_long]
            for end, _ in ends:
                if not end:
                    raise self.place.wrong(name, _FINAL, value)
            read[name] = tuple(end for end, _ in ends)
        if not read:
            raise self.place.wrong(every[0][0], "an answer", None)
        if len({_comparable(gold) for gold in read.values()}) > 1:
            shown = ", ".join(
                f"`{name}` {in_short(', '.join(gold))}" for name, gold in read.items()
            )
            raise self.place.bad(
                f"columns hold different answers: {shown}; choose one with "
                f'columns=(("answer", "{next(iter(read))}"),)'
            )
        gold = next(iter(read.values()))
        references = [text for _, text in solutions if text.strip() not in gold]
        return gold, references[0] if references else None

    def _solution(self, name: str, value: Any) -> str | None:
        """A solution's text; a number is an answer, written as such."""
        is_number = isinstance(value, int | float | Decimal) and not chat.is_missing(value)
        return (
            answers(self.place, name, value)[0]
            if is_number
            else chat.optional_text(self.place, name, value)
        )

    def _gold_of_solution(
        self, solutions: list[tuple[str, str]]
    ) -> tuple[tuple[str, ...], str | None]:
        """For sets such as MATH, whose answers are the boxes of their solutions."""
        if not solutions:
            raise self._unknown("answer", "answer")
        name, solution = solutions[0]
        answer, is_long = final_answer(solution)
        # DAPO-Math-17k-Processed keeps the answer alone there.
        words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", solution)
        if not is_long and ("\n" in solution.strip() or len(solution) > 60 or len(words) > 2):
            raise self.place.wrong(name, _FINAL, solution)
        if not answer:
            raise self.place.wrong(name, _FINAL, solution)
        gold = answers(self.place, name, answer)
        return gold, solution if is_long else None

    def system(self, turn: str | None) -> str | None:
        for name, value in self._found("system"):
            text = chat.optional_text(self.place, name, value)
            if text is None:
                continue
            if turn is not None and turn.strip() != text.strip():
                raise self.place.bad(
                    f"column `{name}` and the system turn of the messages differ: {in_short(text)} "
                    f"and {in_short(turn)}"
                )
            return text
        return turn

    def id(self) -> str:
        """The row's place, since rows may be duplicates, and the first name that it has."""
        names = [value for _, value in self._found("id") if not chat.is_missing(value)]
        named = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names[:1]]
        # No file in UTF-8 takes a lone surrogate.
        named = [name.encode(errors="backslashreplace").decode() for name in named]
        return ":".join([self.place.label, str(self.place.row), *named])


def _comparable(gold: tuple[str, ...]) -> frozenset[str]:
    """Answers without what writing adds: $, spaces, a full stop, the comma of 1,000, zeros."""
    bare = (re.sub(r"^\$(.*)\$$", r"\1", text.strip()).removesuffix(".") for text in gold)
    joined = (re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\s+", "", text)) for text in bare)
    return frozenset(
        written_out(Decimal(text)) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text) else text
        for text in joined
    )
