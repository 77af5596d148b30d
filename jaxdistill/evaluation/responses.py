"""Read responses from files of this or any other tool: JSON lines, parquet and what `files` reads.

Their text is only counted and encoded, never interpreted.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.evaluation.replies import (
    THINKING,
    Misplaced,
    Reply,
    count_ids,
    ended_by,
    question_in,
    replies,
    used_tokens,
)
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.sources import files
from jaxdistill.tasks.sources.names import FileSource
from jaxdistill.tasks.sources.place import BadRow

# The fields in which evaluation tools store responses, in order of preference. `messages` is last,
# because it may also be what was asked.
FIELDS = (
    "response",
    "responses",
    "generated_responses",
    "output",
    "outputs",
    "completion",
    "completions",
    "choices",
    "resps",
    "generated_text",
    "generation",
    "generations",
    "text",
    "answer_responses",
    "prediction",
    "predictions",
    "messages",
    "conversations",
)
# Verdicts of other tools: verl's reward manager, lm-eval, TRL's reward function, verl. Only 0 and
# 1 are verdicts; a file in which the field has other values has none.
VERDICTS = ("is_correct", "acc", "exact_match", "accuracy_reward", "score")
# Formats that hold one object per row other than a line of JSON.
_OTHER_FORMATS = (".parquet", ".csv", ".tsv", ".json", ".gz", ".arrayrecord", ".array_record")


class Response(NamedTuple):
    """One response with the fields of its record; None for a field that the record lacks."""

    text: str  # with the thinking that the record has beside it, in tags
    source: str  # the file's path, relative to the folder if a single one was given
    where: str  # path:row
    question: str | None
    system: str | None
    correct: bool | None
    finished: bool | None  # False: cut at the token limit
    num_tokens: int | None


@dataclass
class Found:
    """What files hold: their responses, how many rows have none, and lines that say what was done.

    num_missing: responses that are null, as of requests that failed.
    """

    responses: list[Response] = field(default_factory=list)
    num_missing: int = 0
    notes: list[str] = field(default_factory=list)


def encode(tokenizer: Any, responses: Sequence[Response]) -> list[list[int]]:
    """Encode each response's text. The ids lack the stop token, which is not part of the text."""
    # JSON may contain a lone surrogate ("\ud800"), which no tokenizer accepts: it becomes "?".
    texts = [each.text.encode("utf-8", "replace").decode() for each in responses]
    return tokenizers.encode(tokenizer, texts)


# ------------------------------------------------------------------------------------ files


def read_responses(paths: Sequence[Path], field: str | None = None) -> Found:
    """Read files of responses and folders of them. The response is in `field` or one of `FIELDS`.

    For a run folder its `rollouts/` are read, or its `evals/` if it has none. A field may contain
    several responses (`replies`); `correct`, `finished` and `num_tokens` are then a list with one
    value per response, or one value for all. A response that is null is counted and left out.
    Raises UserError naming file and row for invalid input, and for a file without any response.
    """
    found = Found()
    for path in paths:
        before = len(found.responses)
        read = []
        for file in _files(path):
            # With a single folder, short names are still unambiguous.
            is_inside = len(paths) == 1 and file != path
            source = str(file.relative_to(path)) if is_inside else str(file)
            read.append(_File(file, source, field))
            read[-1].read(found)
        if len(found.responses) == before:
            said = "the file is empty"
            if nulls := sum(each.num_missing for each in read):
                said = (
                    f"`{read[0].field}` is null in all {nulls:,}; name another field with --field"
                )
            raise UserError(f"{path}: no responses; {said}")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    patterns = ("rollouts/*.jsonl", "evals/**/*.jsonl", "**/*.jsonl", "**/*.parquet")
    for pattern in patterns:
        if found := sorted(path.glob(pattern)):
            return found
    raise UserError(
        f"{path}: a folder without .jsonl files (or .parquet files); give a run folder or a file"
    )


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row's place, path:row, and its fields."""
    if file.suffix.lower() in _OTHER_FORMATS:
        for place, record in files.rows(FileSource((str(file),))):
            if isinstance(record, BadRow):
                raise record
            yield f"{file}:{place.row + 1}", record
        return
    try:
        # Not `str.splitlines`: a response may contain U+2028, which it takes for a line break.
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}:{number}", _parse(line, f"{file}:{number}")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({' '.join(str(error).split())})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, got {_shown(fields)}")
    return fields


class _File:
    """One file: the choices that its first row makes for all, and what is said about the others."""

    def __init__(self, file: Path, source: str, named: str | None) -> None:
        self.file, self.source, self.named = file, source, named
        self.field = named
        self.filter: Any = None  # of lm-eval
        self.verdict: str | None = None  # the field of another tool's verdicts
        self.graded: str | None = None  # the first value there that is none, and its row
        self.elsewhere: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.num_missing = 0

    def read(self, found: Found) -> None:
        """Add what the file holds. Raises UserError for a row that cannot be read."""
        responses: list[Response] = []
        for at, (where, fields) in enumerate(_rows(self.file)):
            record = _Record(where, fields)
            if at == 0:
                self._choose(record)
            if not self._repeats(record):
                responses += self._responses(record)
        if self.graded is not None:
            responses = [response._replace(correct=None) for response in responses]
        found.responses += responses
        found.num_missing += self.num_missing
        found.notes += self._notes()

    def _choose(self, record: "_Record") -> None:
        fields = record.fields
        self.field = self.field or record.response_field()
        self.filter = fields.get("filter") if "resps" in fields else None
        known = (name for name in VERDICTS if name in fields)
        self.verdict = None if "correct" in fields else next(known, None)

    def _repeats(self, record: "_Record") -> bool:
        """Whether it is a row of lm-eval for another filter, which has the same responses again."""
        mine = record.fields.get("filter")
        if not (isinstance(self.filter, str) and isinstance(mine, str)) or mine == self.filter:
            return False
        self.repeated[mine] += 1
        return True

    def _responses(self, record: "_Record") -> Iterator[Response]:
        name = self.field
        assert name is not None
        if name not in record.fields and self.named is None:
            other = next((known for known in FIELDS if known in record.fields), None)
            name = other or name
            self.elsewhere.update([other] if other else [])
        found = record.replies(name)
        for index, reply in enumerate(found):
            if reply.text is None:
                self.num_missing += 1
                continue
            response = record.response(reply, index, len(found), self.source)
            if response.correct is None and self.verdict is not None:
                verdict = self._verdict(record, index, len(found))
                response = response._replace(correct=verdict)
            yield response

    def _verdict(self, record: "_Record", index: int, size: int) -> bool | None:
        """Another tool's verdict on a response; one value for several responses is none."""
        value = record.fields.get(self.verdict or "")
        if isinstance(value, list) and len(value) == size:
            value = value[index]
        elif size > 1 or isinstance(value, list):
            return None
        if _is_absent(value):
            return None
        if value not in (True, False):  # 1 and 0 are equal to these
            self.graded = self.graded or f"{_shown(value)} in {record.where}"
            return None
        return bool(value)

    def _notes(self) -> Iterator[str]:
        if self.num_missing:
            yield f"{self.source}: responses that are null and left out: {self.num_missing:,}"
        for name, count in self.elsewhere.items():
            yield f"{self.source}: rows without `{self.field}`, read from `{name}`: {count:,}"
        for name, count in self.repeated.items():
            yield (
                f"{self.source}: rows of the filter {name}, which repeat the responses of "
                f"{self.filter} and are left out: {count:,}"
            )
        if self.graded is not None:
            yield (
                f"{self.source}: no accuracy: `{self.verdict}` is not a verdict of 0 or 1 "
                f"everywhere, got {self.graded}"
            )


@dataclass(frozen=True)
class _Record:
    """One row of a file, with its position for error messages."""

    where: str
    fields: Mapping[str, Any]

    def response_field(self) -> str:
        for name in FIELDS:
            if name in self.fields:
                return name
        has = ", ".join(self.fields) or "nothing"
        raise UserError(f"{self.where}: no response field among {has}; name it with --field")

    def replies(self, name: str) -> list[Reply]:
        """The responses in a field, each with the thinking beside it in the row."""
        if name not in self.fields:
            raise UserError(f"{self.where}: no field `{name}`; it has {', '.join(self.fields)}")
        try:
            found = replies(name, self.fields[name])
        except Misplaced as error:
            raise self._wrong(error.path, error.expected, error.got) from None
        size = len(found)
        thinking = [self._thinking(index, size) for index in range(size)]
        return [
            # Thinking that stands inside a choice or a message belongs to it, not to the row.
            reply if name in THINKING or reply.thinking else reply._replace(thinking=thought)
            for reply, thought in zip(found, thinking)
        ]

    def response(self, reply: Reply, index: int, size: int, source: str) -> Response:
        assert reply.text is not None
        system, question = self._asked()
        return Response(
            text=reply.text,
            source=source,
            where=self.where,
            question=question,
            system=self._text("system") or system,
            correct=self._flag("correct", index, size),
            finished=self._finished(reply, index, size),
            num_tokens=self._tokens(reply, index, size),
        )

    def _asked(self) -> tuple[str | None, str | None]:
        if text := self._text("question"):
            return None, text
        for name in ("prompt", "messages"):
            if (found := question_in(self.fields.get(name)))[1]:
                return found
        doc = self.fields.get("doc")  # of lm-eval
        question = doc.get("question") if isinstance(doc, Mapping) else None
        return None, question if isinstance(question, str) else None

    def _thinking(self, index: int, size: int) -> str | None:
        for name in THINKING:
            value = self.fields.get(name)
            if isinstance(value, list) and any(isinstance(each, str) for each in value):
                value = self._one(name, index, size)
            if isinstance(value, str) and size > 1 and not isinstance(self.fields[name], list):
                raise self._wrong(name, f"one text for each of {size} responses", value)
            if isinstance(value, str) and value.strip():
                return value
        return None

    def _finished(self, reply: Reply, index: int, size: int) -> bool | None:
        # `finished` of vLLM says that a request has ended, and not how its samples did.
        if reply.finished is not None:
            return reply.finished
        flag = self._flag("finished", index, size)
        return ended_by(self._one("finish_reason", index, size)) if flag is None else flag

    def _text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def _one(self, name: str, index: int, size: int) -> Any:
        value = self.fields.get(name)
        if not isinstance(value, list):
            return value
        if len(value) != size:
            raise self._wrong(name, f"one value, or one for each of {size} responses", value)
        return value[index]

    def _flag(self, name: str, index: int, size: int) -> bool | None:
        value = self._one(name, index, size)
        if _is_absent(value):
            return None
        if value not in (True, False):  # 1 and 0 are equal to these
            raise self._wrong(name, "true or false", value)
        return bool(value)

    def _tokens(self, reply: Reply, index: int, size: int) -> int | None:
        value = self._one("num_tokens", index, size)
        if _is_absent(value):
            alone = (count_ids(self.fields), used_tokens(self.fields)) if size == 1 else ()
            return next((n for n in (reply.num_tokens, *alone) if n is not None), None)
        is_number = not isinstance(value, str | bool | list | Mapping)
        if not (is_number and math.isfinite(value) and value >= 0 and value == int(value)):
            raise self._wrong("num_tokens", "a number of tokens", value)
        return int(value)  # pandas may write 12 as 12.0

    def _wrong(self, name: str, expected: str, got: Any) -> UserError:
        return UserError(f"{self.where}: field `{name}`: expected {expected}, got {_shown(got)}")


def _is_absent(value: Any) -> bool:
    """None, or the NaN that pandas writes for it."""
    # NaN alone differs from itself, in every kind of number.
    return value is None or (not isinstance(value, list | Mapping) and value != value)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."
