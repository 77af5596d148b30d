"""Every row of the table of bad inputs: one line on stderr, its exit code, and nothing left."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import Shelf, listing
from bad_inputs.table import ROWS
from command_line import besides_warnings, call
from tiny_run import tiny

from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.run.loop import run
from jaxdistill.storage.convert import convert


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    run(tiny(steps=0, evaluation=Evaluation()), folder / "run", quiet=True)
    convert(folder / "run" / "export", folder / "converted")
    return Shelf(folder / "run", folder / "converted")


def params(rows):
    return [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in rows
    ]


def check(row, code, err, before):
    after = listing(Path.cwd())
    lines = [line for line in besides_warnings(err).splitlines() if line.strip()]
    assert "Traceback" not in err
    assert code == row.code, err[-2000:]
    assert len(lines) == 1, err[-2000:]
    assert lines[0].startswith("jaxdistill"), err[-2000:]
    assert "internal error" not in err
    assert re.search(row.expected, lines[0]), lines[0]
    assert after == before, sorted(after.keys() ^ before.keys())


@pytest.mark.parametrize("row", params(ROWS))
def test_a_bad_input_is_one_line_and_leaves_nothing_behind(row, place, shelf, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    row.build(shelf)
    before = listing(place)
    code, _, err = call(*row.command)
    check(row, code, err, before)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if sum(row.name.encode()) % 10 == 0], ids=str)
def test_a_bad_input_is_one_line_in_a_process_of_its_own(row, place, shelf, monkeypatch):
    """A tenth of the table: what libraries print at C level or at exit is seen here alone."""
    monkeypatch.setenv("HOME", str(place))
    row.build(shelf)
    before = listing(place)
    command = [sys.executable, "-m", "jaxdistill", *row.command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    check(row, done.returncode, done.stderr, before)


def test_the_table_is_as_large_as_it_is_said_to_be_and_names_each_row_once():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) >= 300
    verbs = {row.command[0] for row in ROWS if row.command}
    assert {
        "train",
        "study",
        "sample",
        "eval",
        "data",
        "analyze",
        "report",
        "bench",
        "convert",
        "list",
    } <= verbs
