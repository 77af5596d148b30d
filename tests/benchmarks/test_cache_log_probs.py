"""The measurement of the int8 cache, on a few problems."""

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.slow
def test_an_int8_cache_moves_log_probs_a_little():
    command = [sys.executable, ROOT / "benchmarks" / "cache_log_probs.py", "--problems", "6",
               "--rollouts", "2", "--new", "40"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["float32"]["largest"] < 1e-4
    assert found["float32"]["tokens"] > 100
    for dtype in ("float32", "bfloat16"):
        int8 = found[f"{dtype}, int8"]
        assert found["float32"]["mean"] < int8["mean"] < 5e-3
        assert 0 <= int8["same_completions"] <= 1
