"""A run with every tracker and a best checkpoint shows what its files say; a profile its scopes."""

import dataclasses
import gzip
import importlib.util
import json
import math
import shutil

import jax
import numpy as np
import own_tracker
import pytest
from tiny_run import tiny
from tracked_values import (
    expected,
    of_tensorboard,
    of_trackio,
    of_wandb,
    without_groups,
)

from jaxdistill.errors import RunStopped, UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.run.folder import finished_step
from jaxdistill.run.loop import run
from jaxdistill.run.profiled_steps import ProfiledSteps
from jaxdistill.sampling import Sampling
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.tracking import TensorBoard, Trackio, WandB
from jaxdistill.training.checkpointing import KeepBest, Steps
from jaxdistill.training.stop_rules import MetricFalls, Value

INSTALLED = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name)]
needs_wandb = pytest.mark.skipif("wandb" not in INSTALLED, reason="wandb is not installed")
needs_trackio = pytest.mark.skipif("trackio" not in INSTALLED, reason="trackio is not installed")

# Never a round number of steps per checkpoint: the best step is saved because it is the best.
KEPT = {"checkpoint": Steps(3), "keep_checkpoints": 1, "export": False}


def trackers(place):
    services = {"wandb": WandB("tested"), "trackio": Trackio("tested")}
    found = [services[name] for name in INSTALLED]
    return (TensorBoard(), own_tracker.Lines(str(place / "lines")), *found)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def tracked(place):
    """Four steps, evaluated at 2 and 4; then resumed without a step left."""
    config = tiny(
        steps=4,
        tracking=trackers(place),
        # A length is never equal to another one by accident of the toy's accuracy of 0.
        keep_best=KeepBest("heldout", "epistemic_per_1k", "lower"),
        **KEPT,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(place / "trackio"))
        run(config, place / "run", quiet=True)
        run(config, place / "run", quiet=True, resume=True)
    return place / "run"


def close(found, wanted):
    """Every wanted value is there, to the precision of the tracker's numbers (float32)."""
    missing = wanted.keys() - found.keys()
    assert not missing
    for key, value in wanted.items():
        assert math.isclose(found[key], value, rel_tol=1e-6, abs_tol=1e-12), key


def test_tensorboard_holds_every_metric_and_every_evaluation_once(tracked):
    scalars, texts = of_tensorboard(tracked / "tensorboard")
    close(without_groups(scalars), expected(tracked))
    assert {"train/learning_rate", "speed/tokens_per_second", "time/seconds_sampling"} <= {
        name for _, name in scalars
    }
    for step, shown in texts.items():
        rows = (tracked / "rollouts" / f"step_{step - 1:06d}.jsonl").read_text().splitlines()
        record = json.loads(rows[0])
        assert f"({record['verdict']}), {record['num_tokens']} tokens" in shown[0]
        assert len(shown) == len({json.loads(row)["question_id"] for row in rows}) <= 4
    assert sorted(texts) == [1, 3]


@needs_wandb
def test_an_offline_run_of_wandb_holds_every_metric_and_every_evaluation_once(tracked):
    values, records = of_wandb(tracked)
    close(without_groups(values), expected(tracked))
    assert len({record.run.run_id for record in records if record.HasField("run")}) == 1
    exits = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert exits == [0, 0]


@needs_trackio
def test_trackio_holds_every_metric_and_every_evaluation_once(tracked, place):
    close(without_groups(of_trackio(place / "trackio", "tested")), expected(tracked))


def test_a_tracker_of_ones_own_gets_the_same_and_a_resumed_run_is_the_same_run(tracked, place):
    calls = own_tracker.read(place / "lines")
    values = {(c[1], name): x for c in calls if c[0] == "log" for name, x in c[2].items()}
    assert without_groups(values).keys() >= expected(tracked).keys()
    (first, second) = [call for call in calls if call[0] == "open"]
    assert (first[1], first[4], second[4]) == ("tiny", False, True)
    assert first[2] == second[2] == json.loads((tracked / "tracking.json").read_text())["id"]
    assert [call[1] for call in calls if call[0] == "finish"] == ["finished", "finished"]


# ------------------------------------------------------------------------------------- profile


@pytest.mark.slow
def test_a_profile_names_the_scopes_of_all_phases_of_a_step(tmp_path):
    # Programs of its own: those of other tests in this process may come from a cache that other
    # names were compiled into.
    experience = dataclasses.replace(tiny().experience, sampling=Sampling(max_new_tokens=7))
    plain = {"evaluation": Evaluation(), "save_checkpoints": False, "export": False}
    config = tiny(steps=2, experience=experience, tracking=(), **plain)
    traced = run(config, tmp_path / "run", quiet=True, profile=ProfiledSteps(2, 2))
    (trace,) = (traced / "profile" / "plugins" / "profile").iterdir()
    assert list(trace.glob("*.trace.json.gz"))
    assert list(trace.glob("*.xplane.pb"))
    written = trace / "scopes.trace.json.gz"
    events = json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert names >= {
        "sample/prefill", "sample/decode", "score/teacher", "step/forward", "step/loss",
        "step/backward", "step/update", "host/sampling", "host/grading", "host/update",
    }  # fmt: skip
    # A part of the loop lasts as long as the clock says.
    row = json.loads((traced / "metrics.jsonl").read_text().splitlines()[1])
    update = sum(event["dur"] for event in events if event["name"] == "host/update") / 1e6
    assert update == pytest.approx(row["seconds_update"], rel=0.2, abs=0.02)


# ------------------------------------------------------------------------------------- the best


def test_the_best_evaluated_step_is_kept_beside_the_latest_and_opened_by_name(tracked):
    values = {
        int(file.parent.name.removeprefix("step_")): json.loads(file.read_text())["data"][
            "heldout"
        ]["measures"]["epistemic_per_1k"]
        for file in tracked.glob("evals/step_*/summary.json")
    }
    assert sorted(values) == [2, 4]
    best = min(values, key=lambda step: (values[step], step))
    found = json.loads((tracked / "checkpoints" / "best.json").read_text())
    assert (found["step"], found["value"]) == (best, values[best])
    with Checkpoints(tracked / "checkpoints") as checkpoints:
        assert checkpoints.steps() == sorted({best, 4})
    _, params, _ = loading.open_weights(f"{tracked}:best")
    _, same, _ = loading.open_weights(tracked, step=best)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    with pytest.raises(UserError, match=r"jaxdistill convert .*:best FOLDER"):
        loading.model_folder(f"{tracked}:best")


def test_a_run_that_went_back_before_its_best_step_forgets_it(tracked, tmp_path):
    shutil.copytree(tracked / "checkpoints", tmp_path / "checkpoints")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.best() is not None
        checkpoints.forget_best()
        assert checkpoints.best() is None
        with pytest.raises(UserError, match="has no best checkpoint"):
            loading.step_named(f"{tmp_path}:best", checkpoints)


# ------------------------------------------------------------------------------------- the rules


def test_a_rule_ends_the_run_saved_and_the_resumed_run_goes_on(tmp_path):
    lines = own_tracker.Lines(str(tmp_path / "lines"))
    rule = MetricFalls("length", Value(1e6), patience=2)
    config = tiny(steps=3, tracking=(lines,), stop_when=(rule,), checkpoint=Steps(10), export=False)
    with pytest.raises(RunStopped) as caught:
        run(config, tmp_path / "run", quiet=True)
    assert str(caught.value).startswith("tiny stopped at step 2: MetricFalls: length is ")
    assert "in 2 measurements in a row" in str(caught.value)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [2]
    assert finished_step(tmp_path / "run") is None
    # Only what is measured from now on counts: step 3 is one measurement, and the last step.
    run(config, tmp_path / "run", quiet=True, resume=True)
    assert finished_step(tmp_path / "run") == 3
    calls = own_tracker.read(tmp_path / "lines")
    assert [call[1] for call in calls if call[0] == "finish"] == ["ended itself", "finished"]
