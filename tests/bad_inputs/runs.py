"""Folders of runs and studies whose files have other fields, types and numbers than ours."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bad_inputs import Build, Row, changed, put, row
from bad_inputs.texts import SUMMARY, whole_study

RESUME = "train run/config.json --resume --quiet"
RECORD = {"question_id": "q", "question": "1", "response": "2", "correct": True, "num_tokens": 3,
          "epistemic": 0}  # fmt: skip

# {kind: (a line after a good one, what is said)}
METRICS: dict[str, tuple[str, str]] = {
    "a step of text": ('{"step": "a"}', "step"),
    "a step of true": ('{"step": true}', "step"),
    "a step of 1.5": ('{"step": 1.5}', "step"),
    "no step": ('{"loss": 1}', "step"),
    "a list": ("[1]", "line 2"),
}
ODD_METRICS: dict[str, tuple[str, str]] = {
    "a negative step": ('{"step": -1}', "step"),
    "a huge step": ('{"step": 1' + "0" * 400 + "}", "step"),
    "a huge loss": ('{"step": 2, "loss": 1e308}', "loss.*below"),
    "a huge negative loss": ('{"step": 2, "loss": -1e300}', "loss.*below"),
    "a huge integer": ('{"step": 2, "loss": 1' + "0" * 400 + "}", "loss.*below"),
    "a loss that is a list": ('{"step": 2, "loss": [1]}', "loss"),
    "a loss that is an object": ('{"step": 2, "loss": {"a": 1}}', "loss"),
}
RECORDS: dict[str, dict[str, Any]] = {
    "question_id": {"question_id": ["q"]},
    "question": {"question": 3},
    "response": {"response": {"a": 1}},
    "correct": {"correct": "yes"},
    "num_tokens": {"num_tokens": "9"},
    "epistemic": {"epistemic": 1e308},
    "checks": {"checks": "none"},
    "copy": {"copy": [1]},
    "finished": {"finished": float("inf")},
    "rollout": {"rollout": "first"},
}
ROWS: dict[str, Any] = {
    "world": 3, "method": None, "split": ["a"], "seed": "0", "step": 1.5, "n": True,
    "accuracy": "high", "length": None, "epistemic_per_response": float("nan"),
    "check_rate": "half", "copy_fidelity": [1], "finished": 1e308, "coverage": [1],
    "context": {"a": 1},
}  # fmt: skip
PROBES = {
    "rows that are a number": {"main": 3},
    "a row that is a number": {"main": [3]},
    "a mass that is text": {"main": [{"context": "None", "epistemic": "high"}]},
    "an infinite mass": {"main": [{"check": float("inf")}]},
}
STUDIES = {
    "seconds that are text": {"seconds": "long"},
    "negative seconds": {"seconds": -1},
    "infinite seconds": {"seconds": float("inf")},
    "versions that are text": {"versions": "0.1"},
}
FINISHED: dict[str, Any] = {
    "no step": {}, "a step of text": {"step": "2"}, "a negative step": {"step": -1},
    "a step of true": {"step": True}, "a null step": {"step": None},
}  # fmt: skip
LEXICONS: dict[str, dict[str, Any]] = {
    "no ids": {"ids": ...},
    "ids that are text": {"ids": ["a"]},
    "ids twice": {"ids": [5, 5]},
    "negative ids": {"ids": [-1]},
    "ids that are true": {"ids": [True]},
    "words that are numbers": {"words": [3]},
    "a hash that is a number": {"tokenizer_hash": 3},
    "ids beyond the vocabulary": {"ids": [10**6]},
    "another tokenizer": {"tokenizer_hash": "0" * 16},
}


def run(change: Callable[[Path], object]) -> Build:
    return lambda shelf: change(shelf.copy("run", "run"))


def study(change: Callable[[Path], object]) -> Build:
    def build(shelf: Any) -> None:
        whole_study("s")
        change(Path("s"))

    return build


def with_metrics(line: str) -> Build:
    return run(lambda folder: put(folder / "metrics.jsonl", f'{{"step": 1, "loss": 1}}\n{line}\n'))


def with_record(**fields: Any) -> Build:
    place = "evals/step_000002/heldout.jsonl"
    return run(lambda folder: put(folder / place, json.dumps(RECORD | fields) + "\n"))


def with_lexicon(**fields: Any) -> Build:
    def build(shelf: Any) -> None:
        shutil.copy(shelf.run / "lexicon.json", "l.json")
        changed(Path("l.json"), **fields)

    return build


def rows() -> Iterator[Row]:
    for name, (line, expected) in METRICS.items():
        yield row(
            f"train --resume: metrics with {name}",
            RESUME,
            f"metrics.jsonl.*{expected}",
            with_metrics(line),
        )
    for name, (line, expected) in (METRICS | ODD_METRICS).items():
        yield row(
            f"report: metrics with {name}",
            "report run",
            f"metrics.jsonl.*{expected}",
            with_metrics(line),
        )
    for name, fields in RECORDS.items():
        expected = f'heldout.jsonl: record 1: field "{name}" must be'
        yield row(
            f"report: a record with another {name}", "report run", expected, with_record(**fields)
        )
    for name in ("question_id", "question", "response", "correct", "num_tokens", "epistemic"):
        expected = f'heldout.jsonl: record 1: field "{name}" is missing'
        yield row(
            f"report: a record without {name}", "report run", expected, with_record(**{name: None})
        )
    for name, value in ROWS.items():
        summary = [SUMMARY[0] | {name: value}]
        build = study(lambda folder, summary=summary: put(folder / "summary.json", summary))
        for command in ("report s", "report s --markdown"):
            expected = f's/summary.json: row 1: field "{name}" must be'
            yield row(f"{command}: a row with another {name}", command, expected, build)
    for name, probe in PROBES.items():
        build = study(lambda folder, probe=probe: put(folder / "probe.json", probe))
        yield row(f"report: a probe with {name}", "report s", "s/probe.json.*must be", build)
    for name, fields in STUDIES.items():
        build = study(lambda folder, fields=fields: changed(folder / "study.json", **fields))
        yield row(f"report: a study with {name}", "report s", "s/study.json: field", build)
    for name, fields in FINISHED.items():
        build = run(lambda folder, fields=fields: put(folder / "finished.json", fields))
        yield row(
            f"train --resume: finished.json with {name}", RESUME, "finished.json: `step`", build
        )
    for value in (3, {"a": 1}, "x"):
        build = run(lambda folder, value=value: changed(folder / "provenance.json", resumed=value))
        yield row(
            f"train --resume: resumed is {value}", RESUME, "provenance.json: `resumed`", build
        )
    for name, fields in LEXICONS.items():
        for verb, command in (
            ("train", "train tiny.json --quiet --set \"lexicon=LexiconFile('l.json')\""),
            ("analyze", "analyze tiny.json --field name --model toy:main --lexicon l.json"),
        ):
            yield row(f"{verb}: a lexicon with {name}", command, "l.json", with_lexicon(**fields))
    yield row(
        "train: a run folder that is taken",
        "train tiny.json --quiet --run-dir run",
        "add --resume",
        run(lambda _: None),
    )
    yield row(
        "train --resume: another config",
        "train tiny.json --quiet --run-dir run --resume --set experience.rollouts=3",
        "was started with another|`",
        run(lambda _: None),
    )
    yield row(
        "convert: a folder that is taken", "convert run run", "run exists", run(lambda _: None)
    )
    yield row(
        "train: a folder of something else",
        "train tiny.json --quiet --run-dir run",
        "is not empty and holds no run",
        lambda shelf: put(Path("run/notes.txt"), "mine"),
    )
    yield row(
        "study: a folder of something else",
        "study toy_study --quiet --run-dir run",
        "not empty and holds no study",
        lambda shelf: put(Path("run/notes.txt"), "mine"),
    )
    yield row(
        "study: a folder of another study",
        "study toy_study --quiet --run-dir s",
        "holds another study",
        lambda shelf: put(Path("s/arms.json"), "[]"),
    )
    yield row(
        "study: arms.json of bytes",
        "study toy_study --quiet --run-dir s",
        "holds another study",
        lambda shelf: put(Path("s/arms.json"), bytes(range(256))),
    )
    yield row(
        "sample: a run without a checkpoint",
        "sample run --prompt 1",
        "holds no export|no checkpoint",
        run(lambda folder: shutil.rmtree(folder / "export")),
    )
    yield row("report: a run of no steps", "report run", "train first", run(lambda _: None))
    yield row("report: a run twice", "report run run", "given twice", run(lambda _: None))
    yield row(
        "report: a run as Markdown",
        "report run --markdown",
        "a study's tables",
        run(lambda _: None),
    )
    yield row(
        "report: a study with --out",
        "report s --out x",
        "is for run folders",
        study(lambda _: None),
    )
    yield row("report: a study that is not there", "report s --markdown", "no such study", None)
