"""The measurement at full size, at a tiny one."""

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.long
def test_a_tiny_checkpoint_goes_in_and_out_to_the_byte(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "full_size.py", "--tiny", "--tokens", "16",
               "--shard-gb", "0.001", "--cold", "--folder", tmp_path]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes_equal"]
    assert found["files"] > 2
    assert found["forward"]["spread_of_logits"] > 0
    assert min(found[step]["gb_per_s"] for step in ("import", "export")) > 0
    assert list(tmp_path.iterdir()) == []
