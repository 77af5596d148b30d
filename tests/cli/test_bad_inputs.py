"""Every row of the table of bad inputs: one line on stderr, its exit code, and nothing left."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from bad_inputs import Shelf, listing
from bad_inputs.table import ROWS, is_chosen
from command_line import besides_warnings, call
from tiny_run import tiny

import jaxdistill as jd
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.run.loop import run
from jaxdistill.storage.convert import convert

VERBS = (
    "train",
    "study",
    "sample",
    "eval",
    "guide",
    "grade",
    "analyze",
    "compare",
    "report",
    "bench",
    "convert",
    "list",
    "push",
)


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


# The operating system takes no null character and no lone surrogate in an argument.
IN_PROCESSES = [
    row
    for row in ROWS
    if is_chosen(row, 40) and not any(set(word) & {"\0", "\ud800"} for word in row.command)
]


@pytest.mark.slow
@pytest.mark.parametrize("row", params(IN_PROCESSES))
def test_a_bad_input_is_one_line_in_a_process_of_its_own(row, place, shelf, monkeypatch):
    """What libraries print at C level or at exit is seen here alone."""
    monkeypatch.setenv("HOME", str(place))
    row.build(shelf)
    before = listing(place)
    command = [sys.executable, "-m", "jaxdistill", *row.command]
    path = os.pathsep.join([str(Path(tiny_run.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    check(row, done.returncode, done.stderr, before)


def test_the_table_is_large_names_each_row_once_and_knows_every_verb():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) > 1500
    default = [row for row in ROWS if not row.slow]
    assert len(default) >= 300
    verbs = set(VERBS) | {"data"}
    assert verbs <= {row.command[0] for row in default if row.command}


def test_a_broken_math_verify_ends_an_evaluation_at_its_start(place, tmp_path_factory, monkeypatch):
    """Before the model is looked for, in one line, and as no verdict."""
    broken = tmp_path_factory.mktemp("broken")  # not in `place`: Python writes a __pycache__ there
    (broken / "math_verify.py").write_text("raise ImportError('Unsupported ANTLR')")
    (place / "d.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    monkeypatch.syspath_prepend(broken)
    before = listing(place)
    code, out, err = call("eval", "nowhere", "--data", "d.jsonl", "--kind", "math")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Unsupported ANTLR" in err
    assert "install math-verify again" in err
    assert listing(place) == before


def test_a_tilde_is_the_home_folder_wherever_a_path_is_written(place, shelf, monkeypatch):
    home = place / "home"
    monkeypatch.setenv("HOME", str(home))
    home.mkdir()
    shelf.copy("model", "home/m")
    (home / "r.jsonl").write_text('{"response": "wait"}\n')
    (home / "mine.py").write_text("from tiny_run import tiny\ndef mine(): return tiny(steps=0)\n")
    assert call("convert", "~/m", "~/run")[0] == 0
    assert call("convert", "~/run", "~/again")[0] == 0
    assert call("analyze", "~/r.jsonl", "--model", "~/m", "--out", "~/found.json")[0] == 0
    assert call("analyze", "~/r.jsonl", "--control=1", "--model=~/m", "--out=~/l.json")[0] == 0
    assert call("analyze", "~/r.jsonl", "--lexicon=~/l.json", "--model=~/m")[0] == 0
    settings = [
        "evaluation.splits=()",
        "model=Pretrained('~/m')",
        "lexicon=LexiconFile('~/l.json')",
    ]
    changes = [word for setting in settings for word in ("--set", setting)]
    code, _, err = call("train", "~/mine.py", "--quiet", "--run-dir=~/trained", *changes)
    assert code == 0, err
    model = jd.load("~/m", mesh="fsdp=1")
    model.save("~/saved")
    expected = {"m", "run", "again", "found.json", "l.json", "trained", "saved"}
    assert expected <= {path.name for path in home.iterdir()}
    assert not (place / "~").exists()
