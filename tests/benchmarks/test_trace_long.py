"""The measurement of a long trace, at a tiny size."""

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.slow
def test_a_tiny_measurement_runs_and_compiles_one_program_for_chunks(tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, ROOT / "benchmarks" / "trace_long.py", "--tiny", "--layers", "2",
               "--mesh", "fsdp=1", "--out", page]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout)["runs"]
    assert short["compiled_chunk_programs"] == long["compiled_chunk_programs"] == 1
    assert "of 300 tokens" in page.read_text()
