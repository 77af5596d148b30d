"""Read responses from JSON-lines files of this or any other tool.

Their text is only counted and encoded, never interpreted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.storage import tokenizer as tokenizers

# The fields in which evaluation tools store responses, in order of preference.
FIELDS = (
    "response",
    "responses",
    "generated_responses",
    "output",
    "outputs",
    "completion",
    "completions",
    "generated_text",
    "generation",
    "generations",
    "text",
    "answer_responses",
    "prediction",
    "predictions",
)


class Response(NamedTuple):
    """One response with the fields of its record; None for a field that the record lacks."""

    text: str
    source: str  # the file's path, relative to the folder if a single one was given
    where: str  # path:line
    question: str | None
    system: str | None
    correct: bool | None
    finished: bool | None  # False: cut at the token limit
    num_tokens: int | None


def encode(tokenizer: Any, responses: Sequence[Response]) -> list[list[int]]:
    """Encode each response's text. The ids lack the stop token, which is not part of the text."""
    # JSON may contain a lone surrogate ("\ud800"), which no tokenizer accepts: it becomes "?".
    texts = [each.text.encode("utf-8", "replace").decode() for each in responses]
    return tokenizers.encode(tokenizer, texts)


# ------------------------------------------------------------------------------------ files


def read_responses(paths: Sequence[Path], field: str | None = None) -> list[Response]:
    """Read JSONL files and folders of them. The response is in `field`, or in one of `FIELDS`.

    For a run folder its `rollouts/` are read, or its `evals/` if it has none. A field may contain a
    list of responses; `correct`, `finished` and `num_tokens` are then a list with one value per
    response, or one value for all. Raises UserError naming file and line for invalid input.
    """
    found: list[Response] = []
    for path in paths:
        before = len(found)
        for file in _files(path):
            # With a single folder, short names are still unambiguous.
            is_inside = len(paths) == 1 and file != path
            source = str(file.relative_to(path)) if is_inside else str(file)
            found += _read_file(file, source, field)
        if len(found) == before:
            raise UserError(f"{path}: no responses; the file is empty")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for pattern in ("rollouts/*.jsonl", "evals/**/*.jsonl", "**/*.jsonl"):
        if files := sorted(path.glob(pattern)):
            return files
    raise UserError(f"{path}: a folder without .jsonl files; give a run folder or a file")


def _read_file(file: Path, source: str, field: str | None) -> Iterator[Response]:
    try:
        # Not `str.splitlines`: a response may contain U+2028, which it takes for a line break.
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _Record(f"{file}:{number}", _parse(line, f"{file}:{number}"))
            field = field or record.response_field()  # the first line decides for the whole file
            yield from record.responses(field, source)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({' '.join(str(error).split())})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, got {_shown(fields)}")
    return fields


@dataclass(frozen=True)
class _Record:
    """One line of a file, with its position for error messages."""

    where: str
    fields: dict[str, Any]

    def response_field(self) -> str:
        for name in FIELDS:
            if name in self.fields:
                return name
        has = ", ".join(self.fields) or "nothing"
        raise UserError(f"{self.where}: no response field among {has}; name it with --field")

    def responses(self, field: str, source: str) -> Iterator[Response]:
        if field not in self.fields:
            raise UserError(f"{self.where}: no field `{field}`; it has {', '.join(self.fields)}")
        texts = self.fields[field] if isinstance(self.fields[field], list) else [self.fields[field]]
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise self._wrong(field, "text or a list of texts", text)
            yield Response(
                text=text,
                source=source,
                where=self.where,
                question=self._text("question") or self._text("prompt"),
                system=self._text("system"),
                correct=self._flag("correct", index, len(texts)),
                finished=self._flag("finished", index, len(texts)),
                num_tokens=self._tokens(index, len(texts)),
            )

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
        if value is not None and value not in (True, False):  # 1 and 0 are equal to these
            raise self._wrong(name, "true or false", value)
        return None if value is None else bool(value)

    def _tokens(self, index: int, size: int) -> int | None:
        value = self._one("num_tokens", index, size)
        is_whole = type(value) in (int, float) and float(value).is_integer() and value >= 0
        if value is not None and not is_whole:
            raise self._wrong("num_tokens", "a number of tokens", value)
        return None if value is None else int(value)  # pandas may write 12 as 12.0

    def _wrong(self, name: str, expected: str, got: Any) -> UserError:
        return UserError(f"{self.where}: field `{name}`: expected {expected}, got {_shown(got)}")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."
