"""The simulation of slots and pages, against the sampler's own counts on a tiny model."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
from places import ROOT

from jaxdistill import cli
from jaxdistill.bench import decode as bench
from jaxdistill.models import presets

TINY = dataclasses.replace(
    presets.PRESETS["Qwen3-1.7B"],
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=32,
)  # fmt: skip


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_the_simulation_counts_what_the_sampler_counts(monkeypatch, capsys):
    """Two slots, for which there are too few pages: rows are preempted."""
    flags = "--model tiny --rows 6 --rollouts 2 --slots 2 --pages 12 --prompt 5 --new 900"
    arguments = f"bench decode {flags} --mean 850 --repeats 1 --in-steps 512 --mesh fsdp=1"
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    assert cli.main(arguments.split()) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    laps, slots = result["programs"], result["slots"]
    assert sum(lap["steps"] for lap in laps) == slots["steps"]
    assert sum(lap["tokens"] for lap in laps) == result["tokens"] + slots["redrawn_tokens"]
    assert max(lap["steps"] for lap in laps) == 512
    assert f"{result['tokens']:,} of {result['tokens']:,} tokens" in captured.err.splitlines()[-1]

    long_tail = script("long_tail")
    lengths_B = bench.long_tailed(6, 900, 850)
    options = SimpleNamespace(rollouts=2, prompt=5, counts=1)
    cost = long_tail.Cost(fixed=1.0, per_slot=0.0, per_position=0.0)
    found = long_tail.simulated(options, lengths_B, 2, 12, order="given", cost=cost)
    assert found["preempted"] == slots["preempted"] > 0
    assert found["seconds"] == slots["steps"], "a second per step"
    assert found["occupied"] == pytest.approx(slots["mean_occupied"], rel=1e-5)
    assert found["mean_positions"] == pytest.approx(slots["mean_positions"], rel=1e-5)


def test_what_is_lost_to_admission_and_drain_is_what_busy_slots_would_save():
    """Four slots, rows of 32, 32, 32, 32, 64 tokens; by hand."""
    long_tail = script("long_tail")
    options = SimpleNamespace(rollouts=1, prompt=1, counts=1)
    cost = long_tail.Cost(fixed=1.0, per_slot=0.0, per_position=0.0)
    lengths_B = np.array([32, 32, 32, 32, 64])
    found = long_tail.simulated(options, lengths_B, 4, 0, order="given", cost=cost)
    # 32 steps with all four slots, then 64 with one of them, where 48 busy steps would do.
    assert found["seconds"] == 96
    assert found["share_of_busy"] == 48 / 96
    assert found["lost_to_admission"] == 0
    assert found["lost_to_drain"] == 48 / 96
    options.counts = 4
    assert (
        long_tail.simulated(options, lengths_B, 4, 0, order="longest", cost=cost)["seconds"] == 64
    )
