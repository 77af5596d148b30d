"""Real processes as the hosts of one run; tests/test_hosts.py has their start and messages."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from same_run import final_state, metrics_of
from several_hosts import TRAIN, Hosts
from tiny_run import ARCHITECTURE, tiny, tree_of, write_config

from jaxdistill.evaluation.evaluate import Split
from jaxdistill.run.loop import run
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.tasks import MathTask, ToyTask
from jaxdistill.training.checkpointing import KeepBest, Steps
from jaxdistill.training.stop_rules import MetricFalls, Value

DATA = Path(__file__).parents[3] / "shared" / "data"
# Differences of rounding alone: its last digits depend on the order of sums.
ROUNDING = ("sampler_gap", "sampler_gap_max")


def config_of(steps, **changes):
    """Sixteen rows per step over eight devices; questions run over the ends of epochs.

    Training and evaluation have one program of the sampler: compiling is most of these tests' time.
    """
    evaluation = dataclasses.replace(
        tiny().evaluation, splits=(Split("heldout", ToyTask(pool="heldout", count=4)),), samples=4
    )
    config = tiny(
        mesh=MeshConfig(data=2, fsdp=-1), steps=steps, rollouts_every=1, evaluation=evaluation
    )
    experience = dataclasses.replace(
        config.experience, questions=4, rollouts=4, task=changes.pop("task", ToyTask(count=9))
    )
    return dataclasses.replace(config, experience=experience, **changes)


def start(num, place, config, name, *more, devices=8):
    """`num` hosts, eight devices together, that train in the folder `name`."""
    file = write_config(place / "config.json", config)
    arguments = (*TRAIN, file, "--run-dir", place / name, "--quiet", *more)
    return Hosts(num, *arguments, devices=devices // num)


def without_revision(folder):
    """All files, but for the hash of parameters, whose last bits depend on the order of sums."""
    files = tree_of(folder).items()
    return {name: re.sub(rb'"revision": "\w+"', b"", content) for name, content in files}


def assert_as_one_host(config, run_dir, one):
    """What is drawn, judged and written is equal; sums are, but for the order of their terms."""
    for name in ("rollouts", "evals"):
        assert without_revision(run_dir / name) == without_revision(one / name), name
    rows, expected = metrics_of(run_dir), metrics_of(one)
    assert [row["step"] for row in rows] == list(range(1, config.steps + 1))
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {*ROUNDING}:
            both = row[name], other[name]
            # 1e-6: float32 has seven digits.
            assert both[0] == both[1] or math.isclose(*both, rel_tol=1e-6), (name, *both)
    (state, host), (other_state, other_host) = (final_state(config, x) for x in (run_dir, one))
    assert host == other_host

    def close(x, y):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * float(np.abs(y).max(initial=1)))

    jax.tree.map(close, state, other_state)


@pytest.mark.long
@pytest.mark.parametrize("devices", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_two_hosts_train_like_one_with_the_same_devices_and_write_everything_once(
    tmp_path, devices
):
    config = config_of(2, mesh=MeshConfig(data=2, fsdp=devices // 2))
    with start(2, tmp_path, config, "two", devices=devices) as hosts:
        texts = hosts.all_ended()
    for index, text in enumerate(texts):
        assert f"host {index} of 2" in text
        assert f"{devices // 2} of {devices} devices, cpu" in text
    run(config, tmp_path / "one", quiet=True)
    assert_as_one_host(config, tmp_path / "two", tmp_path / "one")
    names = [sorted(x.name for x in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    # All of it is the first host's line on stdout and its warnings; the other one says nothing.
    assert "no response was correct" in texts[0]
    assert "no response" not in texts[1]


@pytest.mark.slow
def test_hosts_agree_on_the_best_step_and_on_a_rule_and_the_first_alone_tracks(tmp_path):
    """The rule holds at step 3; the best step is 2, which is saved for no other reason."""
    config = config_of(
        5,
        mesh=MeshConfig(data=2, fsdp=2),
        checkpoint=Steps(10),
        keep_checkpoints=1,
        keep_best=KeepBest("heldout", "length", "lower"),
        stop_when=(MetricFalls("length", Value(1e6), patience=3),),
        export=False,
    )
    with start(2, tmp_path, config, "two", devices=4) as hosts:
        ends = [hosts.ended(i, 500) for i in (0, 1)]
    assert [code for code, _ in ends] == [3, 3], ends
    assert "tiny stopped at step 3: MetricFalls: length is " in ends[0][1]
    run_dir = tmp_path / "two"
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert best["step"] == 2
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [2, 3]
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    sent = json.loads((run_dir / "tracking.json").read_text())["sent"]
    assert sent == {"TensorBoard": {"step": 3, "evaluations": [2]}}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "math").is_dir(), reason="needs ../shared/data")
def test_two_hosts_train_a_qwen3_on_mathematics_like_one(tmp_path):
    architecture = dataclasses.replace(ARCHITECTURE, max_positions=2048, tie_embeddings=False)
    config = config_of(
        2,
        model=Fresh(architecture, tokenizer=str(DATA / "qwen3_tokenizer")),
        task=MathTask(str(DATA / "math" / "seen_64.parquet")),
    )
    with start(2, tmp_path, config, "two") as hosts:
        hosts.all_ended(1500)
    with start(1, tmp_path, config, "one") as host:
        host.all_ended(1500)
    assert_as_one_host(config, tmp_path / "two", tmp_path / "one")


def resume(num, place, config, steps):
    """Resume the run "two" with `num` hosts up to a step."""
    with start(num, place, dataclasses.replace(config, steps=steps), "two", "--resume") as hosts:
        texts = hosts.all_ended()
    assert [row["step"] for row in metrics_of(place / "two")] == list(range(1, steps + 1))
    assert json.loads((place / "two" / "finished.json").read_text())["step"] == steps
    return texts


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on_with_what_the_first_host_has_kept(tmp_path):
    config = config_of(1, export=False)
    # Batches of three questions: the second one has others' places to fill.
    evaluation = dataclasses.replace(config.evaluation, questions_per_batch=3)
    config = dataclasses.replace(config, evaluation=evaluation)
    with start(2, tmp_path, config, "two") as hosts:
        hosts.all_ended()
    folder = tmp_path / "two" / "evals" / "step_000001"
    (folder / "summary.json").unlink()
    (tmp_path / "two" / "finished.json").unlink()
    whole = (folder / "heldout.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "heldout.jsonl").unlink()
    # The first question's records, told apart from those of a second sampling, and half of another.
    kept = [json.dumps(json.loads(line) | {"response": "kept"}).encode() + b"\n" for line in whole]
    part = b"".join(kept[:4]) + whole[4][:20]
    (folder / "heldout.jsonl.part").write_bytes(part)
    resume(2, tmp_path, config, 1)
    found = (folder / "heldout.jsonl").read_bytes().splitlines(keepends=True)
    assert found == kept[:4] + whole[4:]
    assert (folder / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(0,), (1,), (1, 0)])
def test_hosts_save_the_same_step_when_they_are_asked_to_stop_and_any_number_goes_on(
    tmp_path, asked
):
    config = config_of(400, checkpoint=Steps(1000))
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=0))
    with start(2, tmp_path, config, "two") as hosts:
        hosts.wait_for(tmp_path / "two" / "metrics.jsonl", 3)
        for index in asked:  # as a slice is preempted, one second apart
            hosts.send(index, signal.SIGTERM)
            time.sleep(1.2)
        texts = hosts.all_ended(90)
    ends = [text.splitlines()[-1] for text in texts]
    assert ends[0] == ends[1], texts
    (step,) = [int(path.name) for path in (tmp_path / "two" / "checkpoints").iterdir()]
    assert ends[0] == f"stopped at step {step} of 400; --resume goes on"
    assert step >= 3
    assert not (tmp_path / "two" / "finished.json").exists()
    if len(asked) > 1:
        return
    resume(2, tmp_path, config, step + 1)
    resume(1, tmp_path, config, step + 2)
    resume(4, tmp_path, config, step + 3)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_is_killed_is_named_within_two_minutes_and_both_go_on(tmp_path, index):
    config = config_of(400, checkpoint=Steps(1))
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=0))
    with start(2, tmp_path, config, "two") as hosts:
        hosts.wait_for(tmp_path / "two" / "metrics.jsonl", 3)
        killed = hosts.send(index)
        code, text = hosts.ended(1 - index, 120)
        assert time.monotonic() - killed < 120
    (line,) = [line for line in text.splitlines() if line.startswith("jaxdistill: ")]
    assert code == 1
    assert f"host {index} (" in line
    assert "is lost" in line
    names = [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()]
    done = max(int(name) for name in names if name.isdecimal())
    resume(2, tmp_path, config, done + 2)


@pytest.mark.slow
def test_hosts_that_were_started_differently_end_with_one_line_and_leave_nothing(tmp_path):
    config = config_of(3)
    files = [
        write_config(tmp_path / f"{i}.json", dataclasses.replace(config, seed=i)) for i in (0, 1)
    ]
    arguments = (*TRAIN, "--run-dir", tmp_path / "two", "--quiet")
    with Hosts(2, *arguments, devices=4, each=lambda i: (files[i],)) as hosts:
        ends = [hosts.ended(i, 120) for i in (0, 1)]
    assert [code for code, _ in ends] == [2, 2]
    for _, text in ends:
        assert "host 1 (" in text.splitlines()[-1]
        assert "settings.seed=1" in text.splitlines()[-1]
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_the_time_limit_of_the_first_host_stops_both(tmp_path):
    config = config_of(400, checkpoint=Steps(1000))
    with start(2, tmp_path, config, "two", "--time-limit", "60s") as hosts:
        texts = hosts.all_ended(200)
    for text in texts:
        assert "of 400; --resume goes on" in text.splitlines()[-1]


def on_a_disk_of_its_own(folder):
    """The beginning of a command that sees another, empty disk in the place of `folder`."""
    script = f'mount -t tmpfs tmpfs "{folder}" && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@pytest.mark.slow
def test_hosts_without_a_shared_place_for_checkpoints_end_with_one_line_at_the_start(tmp_path):
    (tmp_path / "runs").mkdir()
    alone = on_a_disk_of_its_own(tmp_path / "runs")
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    file = write_config(tmp_path / "config.json", config_of(3))
    arguments = (*TRAIN, file, "--run-dir", tmp_path / "runs" / "two", "--quiet")
    with Hosts(2, *arguments, devices=4, before=lambda i: alone if i else ()) as hosts:
        ends = [hosts.ended(i, 300) for i in (0, 1)]
    assert [code for code, _ in ends] == [2, 2]
    for _, text in ends:
        (line,) = [line for line in text.splitlines() if line.startswith("jaxdistill: ")]
        assert "is not seen by host 1 (" in line
        assert "--checkpoints" in line
    assert not (tmp_path / "runs" / "two").exists()
