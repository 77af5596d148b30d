"""A run goes on with another mesh, other settings of its computation, or other versions."""

import dataclasses
import json
import shutil

import pytest
from same_run import metrics_of
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.run import folder
from jaxdistill.run.loop import run
from jaxdistill.run.provenance import changes_of_place, current_provenance
from jaxdistill.run.study import Arm, Study, prepare
from jaxdistill.sharding import MeshConfig
from jaxdistill.training.compute import Compute


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of a run whose start is complete."""
    run_dir = tmp_path_factory.mktemp("started")
    folder.start_folder(tiny(), run_dir, resume=False)
    return run_dir


COMPUTE = tiny().compute
ELSEWHERE = {
    "mesh.fsdp 1 -> 2": {"mesh": MeshConfig(fsdp=2)},
    "compute.chunk 8 -> 4": {"compute": dataclasses.replace(COMPUTE, chunk=4)},
    "compute.pack 'auto' -> 128": {"compute": dataclasses.replace(COMPUTE, pack=128)},
    "compute.micro_batches 1 -> 2": {"compute": dataclasses.replace(COMPUTE, micro_batches=2)},
    "compute.remat 'auto' -> 'all'": {"compute": dataclasses.replace(COMPUTE, remat="all")},
    "compute.attention 'auto' -> 'xla'": {"compute": dataclasses.replace(COMPUTE, attention="xla")},
    "compute.cache_dtype 'auto' -> 'int8'": {
        "compute": dataclasses.replace(COMPUTE, cache_dtype="int8")
    },
    "compute.weights_dtype 'auto' -> 'int8'": {
        "compute": dataclasses.replace(COMPUTE, weights_dtype="int8")
    },
}


@pytest.mark.parametrize("said", ELSEWHERE)
def test_where_and_how_a_step_is_computed_may_change_and_is_said(said, started):
    config = tiny(**ELSEWHERE[said])
    assert folder.start_folder(config, started, resume=True) is False
    assert folder.changes_of_rounding(config, started) == [said]


def test_what_changes_no_number_is_not_mentioned(started):
    config = tiny(steps=9, grace_seconds=60.0, keep_checkpoints=5)
    assert folder.start_folder(config, started, resume=True) is False
    assert folder.changes_of_rounding(config, started) == []


def test_the_dtype_of_the_computation_defines_the_experiment(started):
    config = tiny(compute=Compute(chunk=8, dtype="bfloat16"))
    with pytest.raises(UserError, match=r"`compute.dtype` is 'auto' in .* and 'bfloat16' now"):
        folder.start_folder(config, started, resume=True)


def test_other_versions_and_devices_since_the_last_start_are_named(started, tmp_path):
    now = current_provenance()
    then = json.loads(json.dumps(now))
    then["packages"]["jax"] = "0.9"
    then["devices"] |= {"count": 4}
    then["git"] = {"commit": "0" * 40, "dirty": False}
    now["git"] = {"commit": "1" * 40, "dirty": False}
    kind = now["devices"]["kind"]
    assert changes_of_place(then, now) == [
        f"jax 0.9 -> {now['packages']['jax']}",
        "commit 0000000000 -> 1111111111",
        f"devices 4 x {kind} -> 8 x {kind}",
    ]
    assert changes_of_place({}, now) == []
    # What counts is the last start, here one with another version.
    shutil.copytree(started, tmp_path / "run")
    resumed = {"resumed": [{"step": 1, **then, "git": None, "devices": now["devices"]}]}
    file = tmp_path / "run" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | resumed))
    (said,) = folder.changes_of_rounding(tiny(), tmp_path / "run")
    assert said.startswith("jax 0.9 -> ")


def test_what_a_killed_start_left_is_removed(started, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(started, run_dir)
    kept = {path for path in run_dir.rglob("*")}
    for name in (".export.new.x7", "export.new", "checkpoints/4.orbax-checkpoint-tmp", "evals/a"):
        (run_dir / name).mkdir(parents=True)
        (run_dir / name / "file").touch()
    (run_dir / ".export.new.x7" / "config.json.tmp").touch()
    for name in ("finished.json.tmp", "evals/a/summary.json.tmp", "rollouts.tmp"):
        (run_dir / name).touch()
    folder.remove_leftovers(run_dir)
    left = {path for path in run_dir.rglob("*")} - kept
    assert left == {run_dir / name for name in ("checkpoints", "evals", "evals/a", "evals/a/file")}


def test_files_that_a_killed_start_was_writing_do_not_hinder_the_next(tmp_path):
    run_dir, study_dir = tmp_path / "run", tmp_path / "study"
    left = ("provenance.json", "config.json.tmp", "recipe.py.tmp", "lock.json", "lock.json.77")
    for name, names in ((run_dir, left), (study_dir, ("arms.json.tmp", "lock.json"))):
        name.mkdir()
        for file in names:
            (name / file).touch()
    assert folder.start_folder(tiny(), run_dir, resume=True)
    arms = (Arm(world="main", method="sdpo", config=tiny()),)
    prepare(Study(name="mine", profile="quick", arms=arms, workers=1), study_dir)
    # Another's files are not taken for leftovers, which a run deletes.
    for made in (run_dir, study_dir):
        shutil.rmtree(made)
        made.mkdir()
        (made / "notes.tmp").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        folder.start_folder(tiny(), run_dir, resume=True)
    with pytest.raises(UserError, match="is not empty and holds no study"):
        prepare(Study(name="mine", profile="quick", arms=arms, workers=1), study_dir)


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_back(tmp_path, capsys):
    one, eight = MeshConfig(fsdp=1), MeshConfig(fsdp=8)
    packed = dataclasses.replace(COMPUTE, pack=128)
    run(tiny(steps=1, mesh=eight, compute=packed), tmp_path / "run", quiet=True)
    capsys.readouterr()
    run(tiny(steps=2, mesh=one), tmp_path / "run", resume=True, quiet=True)
    assert (
        "changed since the last start: mesh.fsdp 8 -> 1, compute.pack 128 -> 'auto'; by rounding, "
        "the steps after 1 may differ from those of an undisturbed run\n"
    ) in capsys.readouterr().err
    run(tiny(steps=3, mesh=eight), tmp_path / "run", resume=True, quiet=True)
    assert "mesh.fsdp 1 -> 8;" in capsys.readouterr().err
    run(tiny(steps=3), tmp_path / "one", quiet=True)
    for there, here in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "one"), strict=True):
        for name in here.keys() & there.keys():
            assert there[name] == pytest.approx(here[name], rel=1e-3, abs=1e-5), name
