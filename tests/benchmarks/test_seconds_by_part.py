"""The comparison of wall time and parts, on a model of tiny sizes."""

import importlib.util
import json
import sys

import pytest
from places import ROOT, SHARED_DATA

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope

TINY = ModelConfig(
    vocab_size=151_936,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    rope=Rope(1_000_000.0),
    tie_embeddings=True,
    max_positions=40_960,
)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.exists(), reason=f"needs {SHARED_DATA}")
def test_the_parts_of_a_step_add_up_to_its_wall_time(monkeypatch, capsys):
    path = ROOT / "benchmarks" / "seconds_by_part.py"
    spec = importlib.util.spec_from_file_location("seconds_by_part", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "preset", {"tiny": TINY}.__getitem__)
    monkeypatch.setattr(sys, "argv", [
        "seconds_by_part", "--model", "tiny", "--data", str(SHARED_DATA / "math/seen_64.parquet"),
        "--tokenizer", str(SHARED_DATA / "qwen3_tokenizer"), "--questions", "2", "--rollouts", "2",
        "--new", "4", "--steps", "2",
    ])  # fmt: skip
    script.main()
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert step["step"] == 2
    assert step["sampling"] > 0
    assert step["update"] > 0
    # No second of the loop is outside all parts.
    assert step["difference"] < 0.03
