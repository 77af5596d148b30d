"""Read the folder of an evaluation: what was asked of which model, and the records of responses.

`docs/evaluation.md` describes the files. This module does not import JAX, so that evaluations can
be compared where none is.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, parse_json

# Of the files of an evaluation; a reader refuses a later one, whose fields may mean something else.
FORMAT = 1
IDENTITY, QUESTIONS, SUMMARY = "evaluation.json", "questions.json", "summary.json"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SavedEvaluation:
    """An evaluation as it was written.

    identity: what decides the results (model, data, sampling, ...): the field `identity` of
    evaluation.json; empty for an evaluation of an earlier version, which wrote none.
    summary: summary.json, whose presence says that the evaluation is complete; None otherwise.
    records: for each data set one record per response, in the order of questions and rollouts.
    questions: for each data set one row per question, with `n` responses of which `correct` are
    right; empty unless the evaluation is complete.
    """

    folder: Path
    identity: Row
    summary: Row | None
    records: dict[str, list[Row]]
    questions: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.summary is not None

    def hash_of(self, name: str) -> str | None:
        """The hash of a data set's questions; None where the evaluation does not say it."""
        return self.identity.get("data", {}).get(name, {}).get("hash")


def read_evaluation(path: str | Path) -> SavedEvaluation:
    """The evaluation in a folder: of `eval`, of a step of a run, or of a run's last evaluated step.

    Raises UserError, which names file and line, for a folder without an evaluation and for damaged
    files.
    """
    folder = evaluation_of(local_path(path))
    identity = read_identity(folder) or {}
    summary = read_content(folder / SUMMARY) if (folder / SUMMARY).exists() else None
    if identity:
        names = list(identity["data"])
    else:  # of a version that wrote no identity
        names = sorted(file.stem for file in folder.glob("*.jsonl"))
    records = {name: _records(folder, name) for name in names}
    has_rows = summary is not None and (folder / QUESTIONS).exists()
    questions = read_content(folder / QUESTIONS) if has_rows else {}
    return SavedEvaluation(
        folder=folder, identity=identity, summary=summary, records=records, questions=questions
    )


def _records(folder: Path, name: str) -> list[Row]:
    """The records of a data set, or those there are of one that is not answered to the end."""
    part = folder / f"{name}.jsonl.part"
    if part.exists():
        return read_records(part, may_be_cut=True)
    return read_records(folder / f"{name}.jsonl")


def evaluation_of(folder: Path) -> Path:
    """The folder itself, or that of the last step that a run has evaluated to its end.

    Raises UserError if there is no evaluation.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that `eval` or `train` wrote")
    if (folder / IDENTITY).exists():
        return folder
    if (folder / SUMMARY).exists() and any(folder.glob("*.jsonl")):  # of an earlier version
        return folder
    matches = [(re.fullmatch(r"step_(\d+)", each.name), each) for each in folder.glob("evals/*")]
    steps = [(int(match[1]), each) for match, each in matches if match]
    complete = [(step, each) for step, each in steps if (each / SUMMARY).exists()]
    if not complete:
        raise UserError(
            f"{folder}: holds no evaluation; give a folder that `eval` wrote, or a run with evals/"
        )
    return max(complete)[1]


def read_identity(folder: Path) -> Row | None:
    """The field `identity` of a folder's evaluation.json; None without that file.

    Raises UserError for a damaged file and for one of a later format.
    """
    path = folder / IDENTITY
    if not path.exists():
        return None
    content = read_content(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f'{path}: field "format": expected {FORMAT}, got {content.get("format")!r}; it was '
            "written by another version of jaxdistill"
        )
    identity = content.get("identity")
    if not isinstance(identity, dict) or not isinstance(identity.get("data"), dict):
        raise UserError(f'{path}: field "identity": expected an object with "data"')
    return identity


def read_records(path: Path, *, may_be_cut: bool = False) -> list[Row]:
    """The records of a file, one per response; none if there is no such file.

    With `may_be_cut` a last line without its line break is dropped: a kill may leave one. Raises
    UserError that names the first line that is no record.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: a text may contain U+2028
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines[:-1] if may_be_cut else lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or "question_id" not in record:
                raise ValueError("expected an object with `question_id`")
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no record of a response ({error})") from None
        records.append(record)
    return records


def read_summary(folder: Path) -> dict[str, Row]:
    """The means of each data set, {name: {measure: mean}}. Raises UserError if there are none."""
    try:
        content = parse_json((folder / SUMMARY).read_bytes())
        if isinstance(content, dict) and "format" in content:
            return {name: row["measures"] for name, row in content["data"].items()}
        return content  # of an earlier version, which wrote nothing else
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"no readable evaluation in {folder}: {error}") from error


def read_content(path: Path) -> Row:
    """The JSON object in a file. Raises UserError that names the file."""
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{path}: not valid JSON ({said})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
