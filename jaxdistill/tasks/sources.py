"""Question sets: parquet in verl's columns, JSON lines, and TFDS."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.questions import Question

_MOST = 200  # characters of an error: Arrow's and TFDS's run to pages


def read(path: str | Path) -> list[Question]:
    """Read a question file by its suffix: `.parquet`, `.jsonl` or `.json` (one object a line)."""
    suffix = Path(path).suffix
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix in (".jsonl", ".json"):
        return read_jsonl(path)
    raise UserError(f"{path}: cannot tell its format; expected .parquet, .jsonl or .json")


def read_parquet(path: str | Path) -> list[Question]:
    """Read verl's columns: prompt, reward_model.ground_truth, extra_info, problem_id.

    `prompt`, `reward_model` and `extra_info` may be native lists and structs or JSON strings.
    `extra_info.solution`, where there is one, becomes the reference solution.
    Raises UserError for a file that cannot be read and for a bad row, with its number and field.
    """
    import pyarrow.parquet

    path = Path(path)
    wanted = ("prompt", "reward_model", "extra_info", "problem_id")
    try:
        with path.open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            columns = parquet.schema_arrow.names
            rows = parquet.read(columns=[name for name in wanted if name in columns]).to_pylist()
    except (OSError, ValueError) as error:  # Arrow's own errors are kinds of these two
        raise _unreadable(path, error, "a parquet file") from error
    for name in ("prompt", "reward_model"):
        if name not in columns:
            raise UserError(f"{path}: no column `{name}`; the columns are {', '.join(columns)}")
    return _numbered(path, enumerate(rows), _from_verl_columns)


def read_jsonl(path: str | Path) -> list[Question]:
    """Read one JSON object a line: `question` or `prompt`, `answer`, perhaps `solution`, `system`.

    A `problem_id`, `id` or `idx` becomes part of the question's id. Blank lines are skipped.
    Raises UserError for a file that cannot be read and for a bad row, with its line and field.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: a U+2028 is no line's end
    except OSError as error:
        raise _unreadable(path, error, "a JSON-lines file") from error
    rows = ((number, line) for number, line in enumerate(lines) if line.strip())
    return _numbered(path, rows, lambda row, line: _from_object(row, row.json("line", line)))


def read_tfds(name: str, data_dir: str | Path, split: str = "train") -> list[Question]:
    """Read a prepared TFDS data set (ArrayRecord files) with `read_jsonl`'s features.

    Raises UserError when it is not prepared under `data_dir` or has no such split.
    """
    import tensorflow_datasets as tfds

    where = f"{data_dir}/{name}[{split}]"
    try:
        builder: Any = tfds.builder(name, data_dir=str(data_dir))
        source = builder.as_data_source(split=split)
        rows = [source[index] for index in range(len(source))]
    except Exception as error:  # TFDS raises its own, KeyError, ValueError, AssertionError, ...
        raise UserError(
            f"cannot read the TFDS data set {where}: {in_one_line(error)[:_MOST]}; prepare it with "
            "file_format='array_record'"
        ) from error
    return _numbered(Path(where), enumerate(rows), lambda row, record: _from_object(row, record))


def _numbered(
    path: Path, rows: Iterable[tuple[int, Any]], convert: Callable[["_Row", Any], Question]
) -> list[Question]:
    questions = [convert(_Row(path, number), row) for number, row in rows]
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def _unreadable(path: Path, error: Exception, expected: str) -> UserError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else in_one_line(error)[:_MOST]
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
    asked = "question" if "question" in record else "prompt"
    system = row.optional_text("system", record.get("system"))
    prompt = _decoded(record.get(asked))
    if isinstance(prompt, list):
        system_turn, prompt = row.chat(asked, prompt)
        system = system_turn if system_turn is not None else system
    return Question(
        id=row.id(*(record.get(name) for name in ("problem_id", "id", "idx"))),
        prompt=row.text(asked, prompt),
        answer=row.answer("answer", record.get("answer")),
        system=system,
        solution=row.optional_text("solution", record.get("solution")),
    )


@dataclass(frozen=True)
class _Row:
    """A row's place in its file, for its id and for what is said when a field is wrong."""

    path: Path
    index: int  # from 0

    def id(self, *names: Any) -> str:
        """The row's place, since rows may be duplicates, and the first name that it has."""
        named = [str(_decoded(name)) for name in names if name is not None]
        return ":".join([self.path.stem, str(self.index), *named[:1]])

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
        except UnicodeEncodeError:  # JSON may hold "\ud800", which no tokenizer takes
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
        """Decode JSON text; anything else is stored natively and stays."""
        if not isinstance(value, str | bytes):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # RecursionError: brackets nested too deeply
            raise self.wrong(field, "valid JSON", value) from None

    def chat(self, field: str, value: Any) -> tuple[str | None, str]:
        """Return (system, user turn) of a list of messages."""
        expected = "a list of messages {role, content}: perhaps one of system, then one of user"
        if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
            raise self.wrong(field, expected, value)
        if [turn.get("role") for turn in value] not in (["user"], ["system", "user"]):
            raise self.wrong(field, expected, value)
        contents = [
            self.text(f"{field}[{place}].content", turn.get("content"))
            for place, turn in enumerate(value)
        ]
        return (None if len(contents) == 1 else contents[0]), contents[-1]


def _decoded(value: Any) -> Any:
    """TFDS and ArrayRecord hand text over as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
