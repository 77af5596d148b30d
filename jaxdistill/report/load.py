"""Read study and run folders into plain rows; a missing or broken file is a one-line UserError."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.evaluation.measures import study_row, summarize
from jaxdistill.files import local_path, parse_json
from jaxdistill.report import checks
from jaxdistill.report.methods import is_method, method_of
from jaxdistill.report.words import METHOD_LABELS, SPLIT_LABELS, WORLD_LABELS

Row = dict[str, Any]
RunKey = tuple[str, str, int]  # world, method, seed

BASE = "base"
# Axes along which a full study departs from its main grid of world x method x seed.
AXES = ("coverage", "context")


@dataclass(frozen=True)
class Run:
    """A run folder, with the metrics that it logged at each step."""

    folder: Path
    metrics: list[Row]

    @property
    def method(self) -> str | None:
        """What its objective is called, whatever the folder is; None if that has no name."""
        path = self.folder / "config.json"
        return method_of(read_object(path)) if path.is_file() else None

    def records(self, step: int, split: str) -> list[Row] | None:
        """The per-response records of one evaluation; None where the run kept none."""
        path = self.folder / "evals" / f"step_{step:06d}" / f"{split}.jsonl"
        return read_records(path) if path.is_file() else None


@dataclass(frozen=True)
class StudyResults:
    """All data of a report; `sweep_rows` are the rows outside the main grid."""

    folder: Path
    info: Row
    rows: list[Row]
    runs: dict[RunKey, Run]
    sweep_rows: list[Row] = field(default_factory=list)
    probe: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def worlds(self) -> list[str]:
        names = [row["world"] for row in self.rows] + [world for world, _, _ in self.runs]
        return in_order(names, WORLD_LABELS)

    @property
    def methods(self) -> list[str]:
        names = [row["method"] for row in self.rows] + [method for _, method, _ in self.runs]
        return in_order(names, METHOD_LABELS)

    @property
    def splits(self) -> list[str]:
        return in_order((row["split"] for row in self.rows), SPLIT_LABELS)

    def select(self, **wanted: Any) -> list[Row]:
        """The main-grid rows whose fields have these values."""
        return [r for r in self.rows if all(r[key] == value for key, value in wanted.items())]


def in_order(names: Iterable[str], order: Collection[str]) -> list[str]:
    """Distinct names: those in `order` first, then the others in order of first appearance."""
    distinct = list(dict.fromkeys(names))
    return [n for n in order if n in distinct] + [n for n in distinct if n not in order]


def load_study_results(study_dir: str | Path) -> StudyResults:
    """Read a study folder. Raises UserError, one line, for a missing or malformed file."""
    folder = local_path(study_dir)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such study folder; give the one `jaxdistill study` wrote")
    info, probe_path = read_object(folder / "study.json"), folder / "probe.json"
    checks.check_study(folder / "study.json", info)
    rows = read_study_json(folder / "summary.json")
    checks.check_summary(folder / "summary.json", rows)
    # A study of earlier versions has no such file.
    probe = read_object(probe_path) if probe_path.exists() else {}
    checks.check_probe(probe_path, probe)
    main, sweep = split_grid(rows)
    keys = dict.fromkeys((row["world"], row["method"], row["seed"]) for row in main)
    # A study may have been copied without its runs; its page then has no intervals.
    folders = {key: folder / "runs" / "{}-{}-s{}".format(*key).removeprefix("-") for key in keys}
    return StudyResults(
        folder=folder,
        info=info,
        rows=main,
        runs={key: load_run(path) for key, path in folders.items() if path.is_dir()},
        sweep_rows=sweep,
        probe=probe,
    )


def load_runs(run_dirs: Sequence[str | Path]) -> StudyResults:
    """Read plain run folders as a study of one world in which each run is a method.

    Raises UserError for a folder that is no run, or that is given twice.
    """
    if not run_dirs:
        raise UserError("report: no run folder given; name at least one")
    folders = [local_path(run_dir) for run_dir in run_dirs]
    rows: list[Row] = []
    runs: dict[RunKey, Run] = {}
    for folder, name in zip(folders, _distinct_names(folders)):
        if not (folder / "config.json").exists():
            raise UserError(
                f"{folder}: not a run folder (no config.json); give one that `train` wrote"
            )
        config = read_object(folder / "config.json")
        run = load_run(folder)
        # A folder may be called after a method, or `base`, without being one.
        known = name.partition("-")[0] if "=" in name else name
        is_it = not run.metrics if name == BASE else is_method(known, config)
        if known in METHOD_LABELS and not is_it:
            name = f"{folder.resolve().parent.name}/{name}"
        runs["", name, 0] = run
        rows += _rows_of_evals(run, name)
    return StudyResults(folders[0].parent, {"name": ", ".join(key[1] for key in runs)}, rows, runs)


def load_run(folder: Path) -> Run:
    """Read one run folder; a run that never trained (the base) has no metrics."""
    path = folder / "metrics.jsonl"
    metrics = read_rows(path, may_be_cut=True) if path.exists() else []
    checks.check_metrics(path, metrics)
    return Run(folder, metrics)


def split_grid(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Separate the rows of the main grid from those of a sweep over coverage or context.

    On each axis the main grid is the rows without a value or, if every row has one, those with the
    most common value.
    """
    common = {}
    for axis in AXES:
        values = [row.get(axis) for row in rows]
        common[axis] = None if None in values else Counter(values).most_common(1)[0][0]
    on_grid = [all(row.get(axis) == common[axis] for axis in AXES) for row in rows]
    return (
        [r for r, on in zip(rows, on_grid) if on],
        [r for r, on in zip(rows, on_grid) if not on],
    )


def read_study_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError that names the file if it is missing or malformed."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the report needs it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_rows(path: Path, *, may_be_cut: bool = False) -> list[Row]:
    """Parse a JSONL file. Raises UserError that names the first malformed line.

    With `may_be_cut`, a last line without its line break is dropped: a killed run leaves one.
    """
    rows = []
    try:
        # Not splitlines(): a response may contain U+2028, which is no line break in JSON.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
    for number, line in enumerate(lines[:-1] if may_be_cut else lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            said = getattr(error, "msg", error)  # JSONDecodeError's without its place
            raise UserError(f"{path}: line {number} is not valid JSON ({said})") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: line {number}: expected a JSON object, got {type(row).__name__}"
            )
        rows.append(row)
    return rows


def read_records(path: Path) -> list[Row]:
    """Per-response records. Raises UserError if the report could not show one."""
    records = read_rows(path)
    checks.check_records(path, records)
    return records


def read_object(path: Path) -> Row:
    """Parse a JSON object. Raises UserError that names the file if it is none."""
    value = read_study_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _rows_of_evals(run: Run, name: str) -> list[Row]:
    """The rows that a study's summary.json would have, one per evaluation and split."""
    rows = []
    names = (path.name for path in (run.folder / "evals").glob("step_*"))
    matches = (re.fullmatch(r"step_(\d+)", name) for name in names)
    for step in sorted(int(match[1]) for match in matches if match):
        for path in sorted((run.folder / "evals" / f"step_{step:06d}").glob("*.jsonl")):
            records = read_records(path)
            rows.append(
                {
                    "world": "",
                    "method": name,
                    "seed": 0,
                    "step": step,
                    "split": path.stem,
                }
                | study_row(summarize(records))
            )
    return rows


def _distinct_names(folders: list[Path]) -> list[str]:
    """Folder names, each preceded by its parent's name if another folder has the same name."""
    counts = Counter(folder.resolve().name for folder in folders)
    names = []
    for folder in (f.resolve() for f in folders):
        clash = counts[folder.name] > 1
        names.append(f"{folder.parent.name}/{folder.name}" if clash else folder.name)
    if len(set(names)) < len(names):
        raise UserError(f"report: the same run folder is given twice ({', '.join(names)})")
    return names
