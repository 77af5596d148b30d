"""What the trackers hold of a run, read back from their own files, without our code."""

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

Values = dict[tuple[int, str], float]  # {(step, name): value}


def expected(run_dir: Path) -> Values:
    """Every metric of metrics.jsonl and every measure of every evaluation.

    The names end in the names of the files: `GROUP/METRIC`, and `eval/DATA/MEASURE`.
    """
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        found |= {(step, name): value for name, value in row.items() if value is not None}
    for file in run_dir.glob("evals/step_*/summary.json"):
        step = int(file.parent.name.removeprefix("step_"))
        for data, summary in json.loads(file.read_text())["data"].items():
            for name, value in summary["measures"].items():
                if value is not None:
                    found[step, f"eval/{data}/{name}"] = value
    return found


def without_groups(values: Values) -> Values:
    """Names as in the run's files. Of an evaluation, pass@k is in no measure."""
    names = {
        (step, name): name if name.startswith("eval/") else name.partition("/")[2]
        for step, name in values
    }
    return {(step, names[step, name]): x for (step, name), x in values.items()}


def records(file: Path, header: int, block: int | None = None):
    """The records of a TFRecord file (header 12), or of a LevelDB log in blocks (header 7)."""
    data, at, part = file.read_bytes(), 0, b""
    if block is None:
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield data[at + header : at + header + length]
            at += header + length + 4
        return
    at = header  # the log's own header is as long as that of a record
    while at + header <= len(data):
        left = block - at % block
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if left < header or kind == 0:
            at += left
            continue
        part += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def of_tensorboard(folder: Path) -> tuple[Values, dict[int, list[str]]]:
    """(scalars, {step: texts}) as TensorBoard shows them: a START drops what comes at its step."""
    from tensorboardX.proto import event_pb2

    scalars, texts = {}, {}
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        for record in records(file, 12):
            event: Any = event_pb2.Event.FromString(record)
            if event.HasField("session_log"):
                scalars = {key: x for key, x in scalars.items() if key[0] < event.step}
                texts = {step: x for step, x in texts.items() if step < event.step}
            for value in event.summary.value:
                if value.HasField("tensor"):
                    shown = value.tensor.string_val[0].decode()
                    texts.setdefault(event.step, []).append(shown)
                else:
                    assert (event.step, value.tag) not in scalars, "written twice"
                    scalars[event.step, value.tag] = value.simple_value
    return scalars, texts


def of_wandb(run_dir: Path) -> tuple[Values, list[Any]]:
    """(values, all records) of a run that W&B has kept offline."""
    from wandb.proto import wandb_internal_pb2

    values, everything = {}, []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file, 7, 32768):
            record: Any = wandb_internal_pb2.Record.FromString(data)
            everything.append(record)
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in items.items():
                if isinstance(value, int | float) and name[0] != "_" and name != "step":
                    assert (items["step"], name) not in values, "written twice"
                    values[items["step"], name] = value
    return values, everything


def of_trackio(folder: Path, project: str) -> Values:
    """The values in Trackio's data base."""
    (file,) = folder.glob(f"{project}*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select step, metrics from metrics").fetchall()
    values = {}
    for step, text in rows:
        for name, value in json.loads(text).items():
            if isinstance(value, int | float):
                assert (step, name) not in values, "written twice"
                values[step, name] = value
    return values
