"""Whether the files of a run or study hold what a report reads from them, of the right types.

Each function takes parsed rows and the file's name, and raises a one-line UserError that names the
file, the row and the field.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.evaluation.measures import MEASURES

Row = dict[str, Any]

# Fields that every row of summary.json must have besides the required measures.
ROW_TEXT = ("world", "method", "split")
ROW_NUMBERS = ("seed", "step", "n")
LABELS = ("coverage", "context")  # of rows outside the main grid

# Metrics are float32, whose largest number is 3.4e38; axes cannot be drawn for much larger ones.
_LARGEST = 1e39


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be averaged and drawn; NaN and infinity are gaps.

    >>> is_number(3), is_number(True), is_number(1e300), is_number(float("nan"))
    (True, False, False, True)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value != value or abs(value) == math.inf or abs(value) < _LARGEST


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 0, and small enough to be one of ours."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def is_finite(value: Any) -> bool:
    """Whether a value is a number and neither NaN nor infinite; true and false are 1 and 0."""
    return isinstance(value, bool) or (is_number(value) and math.isfinite(value))


def _refuse(place: str, name: str, expected: str, got: Any) -> UserError:
    found = "nothing" if got is None else repr(got)
    return UserError(f'{place}: field "{name}" must be {expected}, got {found[:80]}')


def check_metrics(path: Path, rows: Iterable[Row]) -> None:
    """Each line of metrics.jsonl has a step, and numbers that can be drawn."""
    for number, row in enumerate(rows, start=1):
        place = f"{path}: line {number}"
        if not is_count(row.get("step")):
            raise _refuse(place, "step", "an integer of at least 0", row.get("step"))
        for name, value in row.items():
            is_ours = value is None or isinstance(value, str | bool) or is_number(value)
            if not is_ours:
                raise _refuse(place, name, f"a number below {_LARGEST:g}", value)


def check_records(path: Path, records: list[Row]) -> None:
    """Each record of a response has the texts and numbers that the report shows."""
    optional = [m.field for m in MEASURES.values() if not m.required]
    required = [m.field for m in MEASURES.values() if m.required]
    for number, record in enumerate(records, start=1):
        place = f"{path}: record {number}"
        for name in ("question_id", "question", "response", *required):
            if record.get(name) is None:
                raise UserError(f'{place}: field "{name}" is missing')
        if not isinstance(record["question_id"], str | int):
            raise _refuse(place, "question_id", "text", record["question_id"])
        for name in ("question", "response"):
            if not isinstance(record[name], str):
                raise _refuse(place, name, "text", record[name])
        for name in (*required, *optional, "rollout"):
            if record.get(name) is not None and not is_finite(record[name]):
                raise _refuse(place, name, "a finite number", record[name])
    if not records:
        raise UserError(f"{path}: no records; evaluate again or remove the file")


def check_summary(path: Path, rows: Any) -> None:
    """summary.json is a list of rows with labels and finite measures."""
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a non-empty list of rows, got {type(rows).__name__}")
    required = [m.name for m in MEASURES.values() if m.required]
    for number, row in enumerate(rows, start=1):
        place = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object, got {type(row).__name__}")
        for name in ROW_TEXT:
            if not isinstance(row.get(name), str):
                raise _refuse(place, name, "text", row.get(name))
        for name in ROW_NUMBERS:
            if not is_count(row.get(name)):
                raise _refuse(place, name, "an integer of at least 0", row.get(name))
        for name in MEASURES:
            value = row.get(name)
            if not is_finite(value) and (value is not None or name in required):
                raise _refuse(place, name, "a finite number", value)
        for name in LABELS:
            if not isinstance(row.get(name), str | int | None):
                raise _refuse(place, name, "text or an integer", row.get(name))


def check_probe(path: Path, probe: Row) -> None:
    """probe.json has, for each world, a list of rows of probabilities."""
    for world, rows in probe.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _refuse(str(path), world, "a list of objects", rows)
        for row in rows:
            for name in ("epistemic", "answer", "then", "check"):
                if row.get(name) is not None and not is_finite(row[name]):
                    raise _refuse(f"{path}: {world}", name, "a finite number", row[name])


def check_study(path: Path, info: Row) -> None:
    """The facts of study.json that the page shows have their types."""
    seconds = info.get("seconds")
    if seconds is not None and not (is_finite(seconds) and 0 <= seconds < 1e12):
        raise _refuse(str(path), "seconds", "a number of at least 0", seconds)
    if not isinstance(info.get("versions"), dict | None):
        raise _refuse(str(path), "versions", "an object", info["versions"])
