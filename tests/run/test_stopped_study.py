"""A study that is stopped or killed leaves no process, and the same command completes it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT
from stop_server import is_alive

STUDY = """
import dataclasses
from tiny_run import tiny
from jaxdistill.objectives import GRPO
from jaxdistill.run.study import Arm, Study

def mine(profile="quick"):
    evaluation = dataclasses.replace(tiny().evaluation, every=100)
    config = tiny(steps=300, evaluation=evaluation, export=False)
    arms = tuple(
        Arm(world="main", method=method, config=dataclasses.replace(config, objective=objective))
        for method, objective in (("sdpo", config.objective), ("grpo", GRPO()))
    )
    return Study(name="mine", profile=profile, arms=arms, workers=2)
"""


class Started:
    """A study in a process of its own, stopped once both of its runs have made steps."""

    def __init__(self, place: Path, name: str) -> None:
        (place / "mine.py").write_text(STUDY)
        self.folder = place / name
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "from jaxdistill.cli import entry; entry()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "study", "mine.py", "--quiet", "--run-dir", name],
            cwd=place,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def stop(self, number: int, rows: int) -> tuple[int, list[str]]:
        """Returns the exit code and the lines on stderr, and asserts that no process is left."""
        files = [self.folder / "runs" / f"main-{name}-s0" / "metrics.jsonl" for name in METHODS]
        deadline = time.monotonic() + 300
        while min(f.read_bytes().count(b"\n") if f.exists() else 0 for f in files) < rows:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        children = list(map(int, text.split()))
        assert len(children) >= 2
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_alive, children))
        return self.process.returncode, err.splitlines()


METHODS = ("sdpo", "grpo")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_study_is_stopped_by_each_signal_and_ends_as_one_that_was_not(tmp_path):
    code, said = Started(tmp_path, "study").stop(signal.SIGTERM, rows=3)
    assert (code, said[-1]) == (
        0,
        "stopped with 0 of 2 runs finished; the same command continues it",
    )
    assert not list((tmp_path / "study").rglob("lock.json"))
    for name in METHODS:
        folder = tmp_path / "study" / "runs" / f"main-{name}-s0"
        rows = (folder / "metrics.jsonl").read_text().count("\n")
        assert (folder / "checkpoints" / str(rows)).is_dir()  # its last step, as of a single run
    code, _ = Started(tmp_path, "study").stop(signal.SIGKILL, rows=8)
    assert code == -9
    code, said = Started(tmp_path, "study").stop(signal.SIGINT, rows=12)
    assert code == 130
    assert re.fullmatch(
        r"stopped with \d of 2 runs finished; the same command continues it", said[-1]
    )
    for name in ("study", "whole"):
        process = Started(tmp_path, name).process
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    read = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("study", "whole")
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 2 * 3
