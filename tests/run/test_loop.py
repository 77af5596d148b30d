"""A run that was interrupted and resumed equals a run that was never interrupted."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from same_run import assert_same_run, final_state, metrics_of
from tiny_run import tiny, tree_of, write_config

from jaxdistill.errors import UserError
from jaxdistill.models.students import ExpectedModel
from jaxdistill.objectives import CrossEntropy
from jaxdistill.run import folder
from jaxdistill.run import loop as runs
from jaxdistill.run.loop import run
from jaxdistill.sampling import engine
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.experience import Supervised
from jaxdistill.training.teachers import Frozen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never interrupted."""
    return run(tiny(), tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same run with three steps. Tests continue from copies of it."""
    return run(tiny(steps=3), tmp_path_factory.mktemp("three") / "run", quiet=True)


def test_a_run_folder_holds_everything(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"config.json", "provenance.json", "metrics.jsonl", "rollouts", "evals",
                     "checkpoints", "export", "model", "finished.json", "prompts.json"}  # fmt: skip
    assert folder.finished_step(whole) == 6
    assert sorted(p.name for p in (whole / "evals").iterdir()) == [
        "step_000002", "step_000004", "step_000006"]  # fmt: skip
    assert "resumed" not in json.loads((whole / "provenance.json").read_text())


def test_the_steps_of_a_run_change_its_parameters_and_its_teacher(whole):
    """Otherwise the comparisons below would prove nothing."""
    state, host = final_state(tiny(), whole)
    first = loading.load(tiny().model, 0, whole / "model").params
    for moved in (state.params, state.teacher):
        pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(first))
        assert any(np.abs(np.asarray(a - b)).max() > 1e-3 for a, b in pairs)
    assert host["data"]["next_batch"] == 6  # 12 questions of 5: in the middle of the third epoch
    assert all(line["distilled"] == 1 for line in metrics_of(whole))


def test_a_run_of_three_steps_resumed_to_six_is_the_run_of_six(whole, three, tmp_path):
    """Steps 3 and 6 lie inside epochs of five questions in batches of two."""
    assert folder.finished_step(three) == 3
    shutil.copytree(three, tmp_path / "run")
    run(tiny(), tmp_path / "run", resume=True, quiet=True)
    # The shorter run ended, and was evaluated, at a step where the longer run is not evaluated.
    for file in (tmp_path / "run" / "evals" / "step_000003").iterdir():
        file.unlink()
    assert_same_run(tiny(), tmp_path / "run", whole)
    (note,) = json.loads((tmp_path / "run" / "provenance.json").read_text())["resumed"]
    assert note["step"] == 3


@pytest.mark.long
def test_checkpoints_in_another_place_are_found_from_the_run_folder_alone(whole, three, tmp_path):
    here, there = tmp_path / "run", tmp_path / "disk" / "there"
    there.parent.mkdir()
    shutil.copytree(three, here)
    with pytest.raises(UserError, match=rf"are in .*, and {there} has none; copy them there"):
        run(tiny(), here, checkpoints=there, resume=True, quiet=True)
    (here / "checkpoints").rename(there)
    with pytest.raises(UserError, match=r"has checkpoints already \(steps 2, 3\)"):
        run(tiny(), tmp_path / "other", checkpoints=there, quiet=True)
    assert not (tmp_path / "other").exists()
    run(tiny(), here, checkpoints=there, resume=True, quiet=True)
    for file in (here / "evals" / "step_000003").iterdir():
        file.unlink()
    assert_same_run(tiny(), here, whole)
    # Without the flag too.
    run(tiny(), here, resume=True, quiet=True)
    assert not (here / "checkpoints").exists()
    _, params, _ = loading.open_weights(here)
    saved = final_state(tiny(), whole)[0].params
    jax.tree.map(np.testing.assert_array_equal, params, saved)


KILLED_IN = ["a save", "an evaluation", "the export"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of a run that SIGKILL ended: at step 4 in a save, in an evaluation, or at the end.

    One process gives all three. What lies on the disk at a moment is what SIGKILL would leave, half
    a checkpoint included: two are copies of such moments, and the third is the process's own end.
    """
    place = tmp_path_factory.mktemp("killed")
    write_config(place / "tiny.json", tiny())
    script = """
        import os, signal, subprocess
        from pathlib import Path
        from jaxdistill.config import load_recipe
        from jaxdistill.run import loop as runs
        from jaxdistill.storage.checkpoint import Checkpoints

        folder = Path("the export")

        def before(function, act):
            def acting(*args, **kwargs):
                if (folder / "metrics.jsonl").read_text().count("\\n") == act.step:
                    act()
                return function(*args, **kwargs)
            return acting

        def snapshot(name):
            def act():
                # cp ignores files that vanish meanwhile: a checkpoint is being written
                subprocess.run(["cp", "-r", folder, name], stderr=subprocess.DEVNULL)
            act.step = 4
            return act

        def kill():
            os.kill(os.getpid(), signal.SIGKILL)

        kill.step = 6
        Checkpoints.save = before(Checkpoints.save, snapshot("a save"))
        runs.evaluate_run = before(runs.evaluate_run, snapshot("an evaluation"))
        runs.export = before(runs.export, kill)
        runs.run(load_recipe("tiny.json", []), folder, quiet=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(command, env=environment, cwd=place, check=False)
    assert done.returncode == -signal.SIGKILL
    return place


@pytest.mark.parametrize("place", KILLED_IN)
def test_a_run_killed_within(place, killed, whole):
    """Then resume: nothing is lost or done twice."""
    assert not (killed / place / "finished.json").exists()
    assert len(metrics_of(killed / place)) == (6 if place == "the export" else 4)
    run(tiny(), killed / place, resume=True, quiet=True)
    assert_same_run(tiny(), killed / place, whole)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(whole, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "run", quiet=True)
    assert len(metrics_of(tmp_path / "run")) == 2
    monkeypatch.undo()
    run(tiny(), tmp_path / "run", resume=True, quiet=True)
    assert "has no checkpoint yet and starts at step 0\n" in capsys.readouterr().err
    assert_same_run(tiny(), tmp_path / "run", whole)


def test_a_start_that_was_killed_can_be_started_again(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    run(tiny(steps=0), tmp_path, quiet=True)
    assert folder.finished_step(tmp_path) == 0


@pytest.mark.slow  # three more programs
def test_the_drift_on_base_samples_is_measured_at_evaluations_and_survives_a_resume(tmp_path):
    config = tiny(steps=4)
    evaluation = dataclasses.replace(config.evaluation, base_questions=2)
    config = dataclasses.replace(config, evaluation=evaluation)
    run(config, tmp_path / "whole", quiet=True)
    cut = tmp_path / "cut"
    run(dataclasses.replace(config, steps=2), cut, quiet=True)
    kept = (cut / "base_samples.json").read_bytes()
    assert kept == (tmp_path / "whole/base_samples.json").read_bytes()
    for remove in (False, True):  # read again, and drawn again
        here = tmp_path / f"resumed {remove}"
        shutil.copytree(cut, here)
        if remove:
            (here / "base_samples.json").unlink()
        run(config, here, resume=True, quiet=True)
        assert (here / "base_samples.json").read_bytes() == kept
        assert metrics_of(here) == metrics_of(tmp_path / "whole")
    kls = [line.get("kl_reference_student") for line in metrics_of(tmp_path / "whole")]
    assert kls[0] is kls[2] is None
    assert 0 < kls[1] < kls[3]


def test_resuming_a_finished_run_changes_nothing(whole):
    before = {name: text for name, text in tree_of(whole).items() if "tensorboard" not in name}
    run(tiny(), whole, resume=True, quiet=True)
    after = {name: text for name, text in tree_of(whole).items() if "tensorboard" not in name}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"provenance.json"}  # it records the resumption


def test_an_export_of_an_earlier_end_is_replaced(three, tmp_path, monkeypatch):
    """Finished at 3, resumed to 6 and stopped just before the export: the old one is stale."""
    shutil.copytree(three, tmp_path / "run")
    before = tree_of(tmp_path / "run" / "export")["model.safetensors"]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "run", resume=True, quiet=True)
    monkeypatch.undo()
    run(tiny(), tmp_path / "run", resume=True, quiet=True)
    assert tree_of(tmp_path / "run" / "export")["model.safetensors"] != before


@pytest.mark.long
def test_pretraining_resumes_to_the_bit_too(tmp_path, monkeypatch):
    config = tiny(
        experience=Supervised(examples=7, batch_size=2),
        objective=CrossEntropy(),
        teacher=Frozen(),
        checkpoint=Steps(3),
        rollouts_every=0,
    )
    run(config, tmp_path / "whole", quiet=True)
    save = Checkpoints.save

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert len(metrics_of(tmp_path / "cut")) == 3
    run(config, tmp_path / "cut", resume=True, quiet=True)
    states = [final_state(config, tmp_path / name) for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, states[0][0], states[1][0])
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


@pytest.mark.slow  # steps: training/test_micro_batches.py; a packed run: configs/test_sft.py
def test_a_packed_run_is_a_padded_one_that_says_how_much_is_padding(whole, tmp_path):
    """Equal up to rounding in the first step; later ones may sample another likely token."""
    packed = tiny(steps=2, compute=dataclasses.replace(tiny().compute, pack=128))
    run(packed, tmp_path / "run", quiet=True)
    first, second = metrics_of(tmp_path / "run")
    assert 0 <= first["padding"] < 1
    expected = metrics_of(whole)[0]
    assert first.keys() - {"padding"} == expected.keys()
    for name, value in expected.items():
        if name.startswith("sampler_gap"):  # a difference of roundings itself
            assert max(first[name], value) < 1e-5
        else:
            assert first[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert np.isfinite(second["loss"])


@pytest.mark.long
def test_the_sampler_has_the_dtypes_of_the_run_and_evaluations_exact_weights(tmp_path, monkeypatch):
    asked, make = [], engine.make_sampler

    def record(*arguments, **options):
        asked.append((options["cache_dtype"], options["weights_dtype"]))
        return make(*arguments, **options)

    monkeypatch.setattr(engine, "make_sampler", record)
    rounded = {"cache_dtype": "int8", "weights_dtype": "int8"}
    config = tiny(steps=1, compute=dataclasses.replace(tiny().compute, **rounded))
    run(config, tmp_path / "run", quiet=True)
    assert sorted(asked) == [("int8", "auto"), ("int8", "int8")]
    (line,) = metrics_of(tmp_path / "run")
    assert np.isfinite(line["loss"])
    # Rounding shows in the gap of behaviour and re-scored log-probs, which is 1e-6 without it.
    assert 1e-5 < line["sampler_gap"] <= line["sampler_gap_max"] < 0.1


# ------------------------------------------------------------------------------- what is refused


def test_a_run_of_no_steps_is_evaluated_and_exported(tmp_path):
    run(tiny(steps=0), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "evals" / "step_000000" / "summary.json").exists()
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


def test_a_resume_of_another_config_names_the_setting(whole):
    before = tree_of(whole)
    other = tiny(optimizer=dataclasses.replace(tiny().optimizer, peak_lr=0.5))
    with pytest.raises(
        UserError, match=r"`optimizer.peak_lr` is 0.01 in its config.json and 0.5 now"
    ):
        run(other, whole, resume=True, quiet=True)
    with pytest.raises(UserError, match="`teacher` is"):
        run(tiny(teacher=Frozen()), whole, resume=True, quiet=True)
    with pytest.raises(UserError, match="is already at step 6"):
        run(tiny(steps=5), whole, resume=True, quiet=True)
    assert {k: v for k, v in tree_of(whole).items() if "tensorboard" not in k} == {
        k: v for k, v in before.items() if "tensorboard" not in k
    }


def test_a_run_of_an_older_version_that_lacked_a_setting_goes_on(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    saved = json.loads((folder / "config.json").read_text())
    del saved["compute"]["attention"], saved["expected"], saved["seed"]
    del saved["evaluation"]["splits"][0]["task"]["count"]
    (folder / "config.json").write_text(json.dumps(saved))
    expected = ExpectedModel(student="S", family="qwen3", stop_ids=(1,), max_positions=8)
    run(tiny(steps=6), folder, resume=True, quiet=True)
    run(tiny(steps=6, expected=expected), folder, resume=True, quiet=True)
    written = json.loads((folder / "config.json").read_text())
    assert (written["compute"]["attention"], written["expected"]["student"]) == ("auto", "S")
    said = capsys.readouterr().err
    for added in ("seed=0", 'compute.attention="auto"', "evaluation.splits.0.task.count=3"):
        assert f" {added}" in said


@pytest.mark.long
def test_a_base_that_changed_since_the_start_is_refused(whole, tmp_path):
    """A frozen teacher is read from the base model again, so another base would change the run."""
    base = tmp_path / "base"
    base.mkdir()
    for name, content in tree_of(whole / "export").items():
        (base / name).write_bytes(content)
    config = tiny(model=loading.Pretrained(str(base)), steps=1)
    run(config, tmp_path / "run", quiet=True)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"is not the one that run .* started from"):
        run(config, tmp_path / "run", resume=True, quiet=True)


@dataclasses.dataclass(frozen=True)
class Weightless:
    def networks(self, models):
        return ((models.reference, float("nan")),)


def test_unusable_input_leaves_no_folder(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no folder"):
        run(tiny(model=loading.Fresh(tiny().model.architecture, "none")), tmp_path / "run")
    small = dataclasses.replace(tiny().model.architecture, vocab_size=5)
    with pytest.raises(UserError, match="vocab_size=5"):
        run(tiny(model=loading.Fresh(small)), tmp_path / "run")
    # A recipe's own teacher is tried before the first rollout and the first evaluation.
    monkeypatch.setattr(engine, "make_sampler", None)
    with pytest.raises(UserError, match=r"^teacher: Weightless.networks: expected .* nan\),\)"):
        run(tiny(teacher=Weightless()), tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_rollouts_carry_verdicts(whole):
    folder = whole / "rollouts"
    assert sorted(p.name for p in folder.iterdir()) == [f"step_00000{i}.jsonl" for i in (0, 2, 4)]
    records = [json.loads(line) for line in (folder / "step_000002.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert records[0].keys() >= {"question", "answer", "response", "correct", "verdict"}
    ids = [record["question_id"] for record in records]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert {record["rollout"] for record in records} == {0, 1}


def test_a_smaller_task_than_a_batch_repeats_its_questions_with_other_samples(tmp_path):
    experience = dataclasses.replace(tiny().experience, task=ToyTask(count=1))
    run(tiny(experience=experience, steps=1, rollouts_every=1), tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "rollouts" / "step_000000.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert len({record["question"] for record in records}) == 1
    assert len({record["response"] for record in records}) == 4
