"""A whole run with two optimizer updates per rollout batch."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_run import tiny, tree_of

from jaxdistill.objectives import importance
from jaxdistill.run.loop import run
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training.state import init_state
from jaxdistill.training.timing import TIMINGS

pytestmark = pytest.mark.long


def twice(steps, **changes):
    experience = dataclasses.replace(tiny().experience, updates=2)
    evaluation = dataclasses.replace(tiny().evaluation, splits=())
    return tiny(experience=experience, steps=steps, evaluation=evaluation, **changes)


def metrics_of(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(twice(2), tmp_path_factory.mktemp("whole") / "run", quiet=True)


def test_a_run_counts_rollout_batches_and_its_optimizer_updates(whole):
    config = twice(2)
    policy = loading.load(config.model, config.seed, whole / "model")
    example = init_state(policy.params, config.optimizer, config.teacher, config.steps)
    with Checkpoints(whole / "checkpoints") as checkpoints:
        state, host = checkpoints.restore(2, example._asdict())
    assert state["step"] == 2
    assert host["data"]["next_batch"] == 2
    assert state["opt_state"][1][0].count == 4
    lines = metrics_of(whole)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        # float32 on both sides: the sampler and the trainer differ by rounding alone.
        assert 0 <= line["sampler_gap"] <= line["sampler_gap_p99"] <= line["sampler_gap_max"] < 1e-4
        assert line["skipped"] == 0


@pytest.mark.slow
def test_a_resumed_run_of_two_updates_is_the_uninterrupted_one(whole, tmp_path):
    run(twice(1), tmp_path / "run", quiet=True)
    run(twice(2), tmp_path / "run", resume=True, quiet=True)
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    assert tree_of(tmp_path / "run" / "export") == tree_of(whole / "export")


def test_a_run_whose_sampler_and_trainer_disagree_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importance, "LARGEST_USUAL_GAP", 0.0)  # rounding is then too much
    run(twice(1, save_checkpoints=False, export=False), tmp_path / "run", quiet=True)
    (line,) = metrics_of(tmp_path / "run")
    assert line["sampler_gap"] > 0
    said = capsys.readouterr().err
    off_policy = "step 1: the samples are off-policy: the sampler's and the trainer's "
    assert f"{off_policy}log-probabilities differ by" in said
    assert np.isfinite(line["loss"])
