"""Weighted means that are divided once, and the files that a run's metrics are written to."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.errors import UserError
from jaxdistill.files import naming, parse_json, sync, write_whole


class Sum(NamedTuple):
    """A mean before its division: `total` = sum of value x weight, `weight` = sum of weights.

    Sums of micro-batches, hosts or chunks are added and divided once, so that the way the work was
    split cannot change the mean. Both fields are Python numbers or scalar arrays; a `Sum` is a
    pytree.

    >>> (Sum(3.0, 2.0) + Sum(1.0, 2.0)).mean
    1.0
    """

    total: Any
    weight: Any

    @property
    def mean(self) -> Any:
        """total / weight, nan if the weight is 0: a float for Python numbers, else an array."""
        if any(isinstance(x, jax.Array) for x in self):
            is_empty = jnp.equal(self.weight, 0)
            # The inner `where` keeps 0/0 out of the gradient: the outer one selects a value, but
            # autodiff would still multiply its zero cotangent by the NaN.
            return jnp.where(is_empty, jnp.nan, self.total / jnp.where(is_empty, 1, self.weight))
        return float(self.total) / float(self.weight) if self.weight else math.nan

    def add(self, other: "Sum") -> "Sum":
        """The mean over both sets of values."""
        return Sum(self.total + other.total, self.weight + other.weight)

    # A tuple's own `+` would concatenate silently.
    __add__ = add  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


def means(sums: Mapping[str, Sum]) -> dict[str, float]:
    """Fetch a dict of sums from the devices and divide: {name: float}, nan if a weight is 0."""
    host = jax.device_get(dict(sums))  # one transfer for all of them
    return {name: float(value.mean) for name, value in host.items()}


class MetricsWriter:
    """Writes `RUN/metrics.jsonl`, one strict JSON object per step.

    The file is created with its first line, and nan or infinite values become null. With
    `resume_step` the lines of that step and later ones are dropped first, since those steps run
    again; an incomplete last line, left by a killed process, is always dropped. Of several hosts
    only the first may write (`open_writer`).
    """

    def __init__(self, run_dir: str | os.PathLike[str], resume_step: int | None = None) -> None:
        """Prepare for appending; raises UserError if an existing line is not a JSON object."""
        self._path = Path(run_dir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            _drop_lines(self._path, resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append and return {"step": step, **values}.

        Values are numbers, scalar arrays, Sums or text.
        """
        row = {"step": int(step), **{name: _plain(value) for name, value in values.items()}}
        # Opened for each line: a step takes seconds, and a crash then loses no buffered lines.
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        return row

    def sync(self) -> None:
        """Wait until all lines are on the disk, as before a checkpoint of their step."""
        if self._path.exists():
            sync(self._path)
            sync(self._path.parent)


class NoMetrics:
    """In the place of a `MetricsWriter`, on a host that writes nothing."""

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def sync(self) -> None:
        pass


def open_writer(run_dir: Path, resume_step: int, is_first: bool) -> MetricsWriter | NoMetrics:
    """The run's writer on the first host, and one that writes nothing on the others."""
    return MetricsWriter(run_dir, resume_step=resume_step) if is_first else NoMetrics()


def _plain(value: Any) -> float | int | str | bool | None:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Sum):
        value = value.mean
    if hasattr(value, "item"):  # numpy and JAX scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl; empty without the file. Raises UserError."""
    path = run_dir / "metrics.jsonl"
    return [parse_json(line) for _, line in _steps(path)] if path.exists() else []


def check_lines(run_dir: Path) -> None:
    """Raise UserError unless each complete line of a run's metrics.jsonl, if any, has a step."""
    path = run_dir / "metrics.jsonl"
    if path.exists():
        _steps(path)


def _drop_lines(path: Path, resume_step: int | None) -> None:
    kept = [line for step, line in _steps(path) if resume_step is None or step < resume_step]
    if "".join(kept) != path.read_text(encoding="utf-8"):
        write_whole(path, "".join(kept))


def _steps(path: Path) -> list[tuple[int, str]]:
    """The step and text of each complete line. Raises UserError for one that is none of ours."""
    try:
        # Every complete line ends in a newline; what follows the last one was being written.
        whole, _, _incomplete = path.read_text(encoding="utf-8").rpartition("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; remove the file") from None
    found = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            step = parse_json(line)["step"]
            if type(step) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: expected a JSON object with a 'step', got {line[:60]!r}; "
                "remove the line or the file"
            ) from None
        found.append((step, line + "\n"))
    return found
