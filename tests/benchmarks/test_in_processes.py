"""Measurements in processes: what one of them costs the others, and what is kept."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from benchmark_scripts import script
from places import ROOT

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"tokens\": 7}')"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    in_processes = script("in_processes")
    monkeypatch.setattr(in_processes, "LEAST", 0)
    return in_processes.Measurements(
        tmp_path / "found.json", seconds=40, limit=2, scratch=tmp_path / "scratch"
    )


def of_file(runs):
    return json.loads(runs.file.read_text())["measured"]


def test_one_that_hangs_costs_its_own_limit_and_the_next_is_measured(runs):
    out = runs.scratch / "result.json"
    began = time.monotonic()
    runs.run("hangs", [["-c", HANGS]], out=out)
    assert time.monotonic() - began < 20
    runs.limit = 40
    runs.run("writes", [["-c", WRITES, str(out)]], out=out)
    assert of_file(runs)["hangs"]["failed"] == "ended after 2 s"
    assert of_file(runs)["writes"]["tokens"] == 7


def test_what_was_written_before_the_limit_counts_and_says_so(runs):
    out = runs.scratch / "result.json"
    runs.limit = 4
    runs.run("slow", [["-c", f"{WRITES}; {HANGS}", str(out)]], out=out)
    assert of_file(runs)["slow"]["tokens"] == 7
    assert of_file(runs)["slow"]["ended"] == "ended after 4 s"


def test_if_one_of_several_fails_the_others_do_not_wait_for_it(runs):
    runs.limit = 40
    began = time.monotonic()
    both = [["-c", HANGS], ["-c", "raise ValueError('lost')"]]
    found = runs.run("both", both, out=runs.scratch / "none.json", environments=[{}, {}])
    assert time.monotonic() - began < 30
    assert found["failed"] == "ValueError: lost"
    # Whoever reads the file elsewhere sees where it happened, and of which process.
    quiet, traceback = found["log"]
    assert not quiet
    assert "Traceback" in traceback


def test_whoever_ends_the_benchmark_ends_what_it_measures(tmp_path):
    """A process that lived on would keep the GPU's memory."""
    says = (
        f"import os, pathlib; pathlib.Path('{tmp_path}/id').write_text(str(os.getpid())); {HANGS}"
    )
    driver = f"""
import sys; sys.path[:0] = [{str(ROOT / "benchmarks")!r}, {str(ROOT)!r}]
from pathlib import Path
from in_processes import Measurements
runs = Measurements(Path("found.json"), seconds=90, limit=90)
runs.run("hangs", [["-c", {says!r}]], out=Path("none.json"))
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=tmp_path)
    deadline = time.monotonic() + 50
    while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
        assert time.monotonic() < deadline, "the measurement has not begun"
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_what_stands_in_the_file_is_not_measured_again_and_what_failed_is(runs):
    out = runs.scratch / "result.json"
    runs.keep("done", {"tokens": 3})
    runs.keep("failed", {"failed": "no memory"})
    again = type(runs)(runs.file, seconds=40, limit=40, scratch=runs.scratch)
    command = [["-c", WRITES, str(out)]]
    assert again.run("done", command, out=out)["tokens"] == 3
    assert again.run("failed", command, out=out)["tokens"] == 7


def test_nothing_is_started_once_the_time_is_over(runs):
    runs.seconds = -1
    found = runs.run("late", [["-c", WRITES]], out=runs.scratch / "result.json")
    assert found == {"failed": "not run: no time left"}
