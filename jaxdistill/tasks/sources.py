"""Question sets from parquet files with verl's columns, JSON lines, and TFDS."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.questions import Question

# Error messages of Arrow and TFDS run to pages. Chosen, not measured.
_MAX_ERROR_CHARS = 200


def read(path: str | Path) -> list[Question]:
    """Read a question file by its suffix: `.parquet`, or JSON lines in `.jsonl` or `.json`.

    Raises UserError as `read_parquet` and `read_jsonl` do, and for any other suffix.
    """
    suffix = Path(path).suffix
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix in (".jsonl", ".json"):
        return read_jsonl(path)
    raise UserError(f"{path}: unknown format; expected .parquet, .jsonl or .json")


def read_parquet(path: str | Path) -> list[Question]:
    """Read verl's columns: prompt, reward_model.ground_truth, extra_info, problem_id.

    `prompt`, `reward_model` and `extra_info` may be native lists and structs or JSON strings.
    `extra_info.solution`, if present, becomes the reference solution.
    Raises UserError if the file cannot be read, and names row and field if a row is invalid.
    """
    import pyarrow.parquet

    path = Path(path)
    wanted = ("prompt", "reward_model", "extra_info", "problem_id")
    try:
        with path.open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            columns = parquet.schema_arrow.names
            rows = parquet.read(columns=[name for name in wanted if name in columns]).to_pylist()
    except (OSError, ValueError) as error:  # Arrow's own exceptions are subclasses of these two
        raise _unreadable(path, error, "a parquet file") from error
    for name in ("prompt", "reward_model"):
        if name not in columns:
            raise UserError(f"{path}: no column `{name}`; the columns are {', '.join(columns)}")
    return _numbered(path, enumerate(rows), _from_verl_columns)


def read_jsonl(path: str | Path) -> list[Question]:
    """Read one JSON object per line, with the fields `question` or `prompt`, and `answer`.

    `solution` and `system` are optional. A `problem_id`, `id` or `idx` becomes part of the
    question's id. Blank lines are skipped.
    Raises UserError if the file cannot be read, and names row and field if a row is invalid.
    """
    path = Path(path)
    try:
        # Not `str.splitlines`: JSON strings may contain U+2028, which it takes for a line break.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(path, error, "a JSON-lines file") from error
    # Blank lines are counted, so that a row's number in a message is its line number.
    rows = ((number, line) for number, line in enumerate(lines) if line.strip())
    return _numbered(path, rows, lambda row, line: _from_object(row, row.json("line", line)))


def read_tfds(name: str, data_dir: str | Path, split: str = "train") -> list[Question]:
    """Read a prepared TFDS data set (ArrayRecord files) whose features are `read_jsonl`'s fields.

    Raises UserError if it has not been prepared under `data_dir` or has no such split.
    """
    import tensorflow_datasets as tfds

    where = f"{data_dir}/{name}[{split}]"
    try:
        builder: Any = tfds.builder(name, data_dir=str(data_dir))
        source = builder.as_data_source(split=split)
        rows = [source[index] for index in range(len(source))]
    except Exception as error:  # TFDS raises its own, KeyError, ValueError, AssertionError, ...
        reason = in_one_line(error)[:_MAX_ERROR_CHARS]
        raise UserError(
            f"cannot read the TFDS data set {where}: {reason}; prepare it with "
            "file_format='array_record'"
        ) from error
    return _numbered(Path(where), enumerate(rows), lambda row, record: _from_object(row, record))


def _numbered(
    path: Path, rows: Iterable[tuple[int, Any]], convert: Callable[["_Row", Any], Question]
) -> list[Question]:
    questions = [convert(_Row(path, number), row) for number, row in rows]
    if not questions:
        raise UserError(f"{path}: no questions in it")
    return questions


def _unreadable(path: Path, error: Exception, expected: str) -> UserError:
    is_absent = isinstance(error, FileNotFoundError)
    reason = "no such file" if is_absent else in_one_line(error)[:_MAX_ERROR_CHARS]
    return UserError(f"{path}: cannot read it as {expected}: {reason}")


# ------------------------------------------------------------------------------- one row


def _from_verl_columns(row: "_Row", record: dict[str, Any]) -> Question:
    system, prompt = row.chat("prompt", row.json("prompt", record["prompt"]))
    reward = row.object("reward_model", row.json("reward_model", record["reward_model"]))
    extra = row.json("extra_info", record.get("extra_info"))
    extra = {} if extra is None else row.object("extra_info", extra)
    return Question(
        id=row.id(record.get("problem_id"), extra.get("index")),
        prompt=prompt,
        answer=row.answer("reward_model.ground_truth", reward.get("ground_truth")),
        system=system,
        solution=row.optional_text("extra_info.solution", extra.get("solution")),
    )


def _from_object(row: "_Row", record: Any) -> Question:
    record = row.object("row", record)
    prompt_field = "question" if "question" in record else "prompt"
    system = row.optional_text("system", record.get("system"))
    prompt = _decoded(record.get(prompt_field))
    if isinstance(prompt, list):
        system_turn, prompt = row.chat(prompt_field, prompt)
        system = system_turn if system_turn is not None else system
    return Question(
        id=row.id(*(record.get(name) for name in ("problem_id", "id", "idx"))),
        prompt=row.text(prompt_field, prompt),
        answer=row.answer("answer", record.get("answer")),
        system=system,
        solution=row.optional_text("solution", record.get("solution")),
    )


@dataclass(frozen=True)
class _Row:
    """A row's position in its file, which its id and its error messages give."""

    path: Path
    index: int  # from 0

    def id(self, *names: Any) -> str:
        """Return file stem, row index and the first of `names` that is not None.

        The index makes ids differ even if a file repeats a row.
        """
        given = [str(_decoded(name)) for name in names if name is not None]
        return ":".join([self.path.stem, str(self.index), *given[:1]])

    def wrong(self, field: str, expected: str, got: Any) -> UserError:
        shown = "nothing" if got is None else f"{type(got).__name__} {_shown(got)}"
        return UserError(
            f"{self.path}: row {self.index + 1}: field `{field}`: expected {expected}, got {shown}"
        )

    def text(self, field: str, value: Any) -> str:
        value = _decoded(value)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, "text", value)
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may contain "\ud800", which no tokenizer accepts
            raise self.wrong(field, "text without lone surrogates", value) from None
        return value

    def optional_text(self, field: str, value: Any) -> str | None:
        return None if value is None or _decoded(value) == "" else self.text(field, value)

    def answer(self, field: str, value: Any) -> str:
        value = value.item() if hasattr(value, "item") else value  # NumPy scalars, from TFDS
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else self.text(field, value)

    def object(self, field: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(field, "an object with named fields", value)
        return value

    def json(self, field: str, value: Any) -> Any:
        """Decode JSON text. Any other value is a native one and is returned unchanged."""
        if not isinstance(value, str | bytes):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # RecursionError: brackets nested too deeply
            raise self.wrong(field, "valid JSON", value) from None

    def chat(self, field: str, value: Any) -> tuple[str | None, str]:
        """Return (system turn or None, user turn) of a list of messages."""
        expected = "a list of messages {role, content}: at most one system, then one user message"
        if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
            raise self.wrong(field, expected, value)
        if [turn.get("role") for turn in value] not in (["user"], ["system", "user"]):
            raise self.wrong(field, expected, value)
        contents = [
            self.text(f"{field}[{index}].content", turn.get("content"))
            for index, turn in enumerate(value)
        ]
        return (None if len(contents) == 1 else contents[0]), contents[-1]


def _decoded(value: Any) -> Any:
    """Decode bytes, the form in which TFDS and ArrayRecord give text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
