"""An evaluation that is stopped again and again ends with the files of an undisturbed one."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxdistill.evaluation.progress import Progress

COMMAND = [
    "eval", "toy:main", "--data", "toy:heldout", "--data", "toy:ood", "--limit", "15", "--samples",
    "2", "--batch", "2", "--max-new-tokens", "128", "--mesh", "fsdp=1", "--out", "found",
]  # fmt: skip
STOPS = 10


def start(folder):
    """The command, which writes `folder`: from within its parent, so that its text is the same."""
    folder.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "jaxdistill", *COMMAND]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, err = process.communicate()
    assert process.returncode == 0, err


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.jsonl*")) if folder.exists() else 0


def without_times(folder):
    """The contents of all files, but for what says when and with which command."""
    found = {}
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name != "lock.json":  # a kill leaves it, and the next start removes it
            found[path.name] = re.sub(r'"(date|time_utc)": "[^"]*"', "", text)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.slow  # two minutes on two quiet cores: eleven starts of the command
def test_an_evaluation_stopped_ten_times_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    whole, folder = tmp_path / "whole" / "found", tmp_path / "stopped" / "found"
    since = time.monotonic()
    finish(start(whole))
    took = time.monotonic() - since
    rng = random.Random(0)
    within = 0
    for stop in range(STOPS):
        process, before = start(folder), size_of(folder)
        # Half of the stops at any moment since the start, half while responses are written.
        ends = time.monotonic() + rng.uniform(0, took)
        if stop % 2:
            while process.poll() is None and size_of(folder) == before:
                time.sleep(0.002)
            ends = time.monotonic() + rng.uniform(0, 0.3)
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.002)
        process.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL]))
        process.communicate()
        assert process.returncode in (0, 143, -signal.SIGKILL)
        within += 0 < size_of(folder) < size_of(whole)
        if (folder / "summary.json").exists():  # it was faster; once more from the start
            assert without_times(folder) == without_times(whole)
            shutil.rmtree(folder)
    assert within >= STOPS // 3, "nearly all stops came before any response, or after all"
    finish(start(folder))
    assert without_times(folder) == without_times(whole)
    places = json.loads((folder / "evaluation.json").read_text())["places"]
    assert len(places) == 1


def test_the_bar_says_responses_tokens_per_second_and_the_rest(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress(total=8, done=4, shows=True) as progress:
        progress.add("heldout", [{"num_tokens": 50}, {"num_tokens": 70}])
        time.sleep(0.2)
        progress.add("heldout", [{"num_tokens": 80}])
    last = shown.getvalue().split("\r")[-1]
    assert re.search(r"heldout: +8[78]%.* 7/8 \[.*<.*response.*, [\d,]+ tokens/s\]", last), last
