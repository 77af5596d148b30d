"""Steps that are not finite end a run, and a damaged checkpoint costs the steps after the last."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call
from tiny_run import tiny, tree_of, write_config

from jaxdistill.errors import RunStopped, UserError
from jaxdistill.run import programs
from jaxdistill.run.loop import run
from jaxdistill.run.skips import Skips, drop_after
from jaxdistill.sampling import engine
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training.batch import Batch, texts_of_ids
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.metrics import Sum
from jaxdistill.training.state import init_state
from jaxdistill.training.timing import TIMINGS

CONFIG = tiny(steps=3, checkpoint=Steps(1), rollouts_every=1, export=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints of steps 2 and 3."""
    return run(CONFIG, tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def flip(run_dir, step):
    """Change one bit of a checkpoint's largest file."""
    files = (run_dir / "checkpoints" / str(step) / "state").rglob("d/*")
    file = max(files, key=lambda path: (path.stat().st_size, path))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file.name


def everything(run_dir):
    """What two runs must have in common: all but times and the names of Orbax's files."""
    policy = loading.load(CONFIG.model, CONFIG.seed, run_dir / "model")
    example = init_state(policy.params, CONFIG.optimizer, CONFIG.teacher, CONFIG.steps)
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        state, host = checkpoints.restore(3, example._asdict())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
    trees = [tree_of(run_dir / name) for name in ("rollouts", "evals", "model")]
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], host, metrics, trees


# ------------------------------------------------------------------------------------------ damage


def test_a_resume_goes_on_from_the_newest_sound_checkpoint_and_says_so(whole, copied, capsys):
    name = flip(copied, 3)
    # What came after step 2 belongs to the damaged checkpoint; the resumed run may differ from it.
    (copied / "rollouts" / "step_000003.jsonl").write_text("other\n")
    (copied / "evals" / "step_000003" / "other.jsonl").write_text("other\n")
    assert (copied / "finished.json").exists()
    run(CONFIG, copied, resume=True, quiet=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    for part in (str(copied / "checkpoints" / "3"), name, "going on from step 2"):
        assert part in line
    assert everything(copied) == everything(whole)
    assert json.loads((copied / "finished.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("steps", "strict", "expected"),
    [
        ((3,), True, r"checkpoint of step 3 is damaged or incomplete \(state"),
        ((2, 3), False, r"step 3 is damaged or incomplete \(state.*none is sound \(steps 2, 3\)"),
    ],
)
def test_a_refused_resume_leaves_the_folder_as_it_was(copied, steps, strict, expected):
    for step in steps:
        flip(copied, step)
    before = tree_of(copied)
    with pytest.raises(UserError, match=expected) as caught:
        run(CONFIG, copied, resume=True, strict=strict, quiet=True)
    assert "\n" not in str(caught.value)
    assert tree_of(copied) == before


def test_results_of_later_steps_are_dropped_and_a_broken_end_is_named(tmp_path):
    names = ("rollouts/step_000002.jsonl", "rollouts/step_000003.jsonl", "rollouts/notes.jsonl",
             "evals/step_000002/a.jsonl", "evals/step_000004/a.jsonl")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "finished.json").write_text('{"step": 2}')
    drop_after(tmp_path, 2)
    assert sorted(tree_of(tmp_path)) == [names[3], "finished.json", names[2], names[0]]
    drop_after(tmp_path, 1)
    assert sorted(tree_of(tmp_path)) == [names[2]]
    (tmp_path / "finished.json").write_text("{}")
    with pytest.raises(UserError, match=r"finished\.json: expected a JSON object with a step"):
        drop_after(tmp_path, 1)


@pytest.mark.parametrize(
    ("module", "name", "advice"),
    [
        (programs, "make_train_step", r"while updating \(.*raise compute\.micro_batches"),
        (engine, "make_sampler", r"while sampling 2 prompts .*lower max_new_tokens"),
    ],
    ids=["update", "sampling"],
)
def test_a_full_device_is_one_line_by_phase_and_the_last_checkpoint_stands(
    copied, monkeypatch, module, name, advice
):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while\ntrying")

    monkeypatch.setattr(module, name, lambda *_, **settings: full)
    write_config(copied.parent / "config.json", dataclasses.replace(CONFIG, steps=4))
    before = tree_of(copied / "checkpoints")
    code, _, err = call(
        "train", copied.parent / "config.json", "--run-dir", copied, "--quiet", "--resume"
    )
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(f"jaxdistill: out of device memory {advice}", err)
    assert tree_of(copied / "checkpoints") == before


# ------------------------------------------------------------------------------------------ skips


class Letters:
    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)


BATCH = Batch(
    prompt=texts_of_ids([[1], [2, 3]]),
    completion=texts_of_ids([[4, 5], [6]]),
    behaviour_logp_BT=np.array([[-1.0, np.nan], [-np.inf, 0.0]], np.float32),
    advantage_B=np.array([1.0, np.nan], np.float32),
    row_weight_B=np.ones(2, np.float32),
    correct_B=np.zeros(2, np.float32),
)


def test_only_skipped_steps_in_a_row_end_a_run_and_their_last_batch_is_kept(tmp_path):
    skips = Skips(tiny(max_skipped_steps=3), tmp_path, Letters(), print)
    for step, skipped in enumerate((1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0)):
        skips.note(step, {"skipped": skipped}, BATCH)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "skipped" / "step_000009.jsonl"
    with pytest.raises(RunStopped, match=r"stopped at step 9: 3 steps in a row") as caught:
        skips.note(9, {"skipped": 1.0}, BATCH)
    assert str(file) in str(caught.value)
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {
        "advantage": 1.0, "row_weight": 1.0, "correct": 0.0,
        "prompt": "a", "prompt_ids": [1], "completion": "de", "completion_ids": [4, 5],
        "behaviour_logp": [-1.0, "nan"],
    }  # fmt: skip
    assert (second["advantage"], second["behaviour_logp"]) == ("nan", ["-inf"])
    endless = Skips(tiny(max_skipped_steps=None), tmp_path, Letters(), print)
    for step in range(100):
        endless.note(step, {"skipped": 1.0}, BATCH)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    said = []
    skips = Skips(tiny(), tmp_path, Letters(), said.append)
    params = {"embed": jnp.ones(3)}
    assert skips.may_save(2, params, is_last=False)
    assert said == []
    broken = {"embed": jnp.array([1.0, jnp.inf])}
    assert not skips.may_save(2, broken, is_last=False)
    assert said == [
        "tiny, step 2: no checkpoint is written, because parameters are not finite (embed); the "
        "last checkpoint stands"
    ]
    with pytest.raises(RunStopped, match="step 3: no checkpoint is written"):
        skips.may_save(3, broken, is_last=True)


def test_a_run_of_skipped_steps_ends_with_3_and_goes_on_from_its_last_checkpoint(
    tmp_path, monkeypatch
):
    """The step is replaced by one that skips from the second on, as `training.step` does."""
    config = dataclasses.replace(CONFIG, steps=6, checkpoint=Steps(2), max_skipped_steps=3)
    made = programs.make_train_step

    def make(**settings):
        real, calls = made(**settings), []

        def step(state, reference, *batches):
            calls.append(state)
            if len(calls) == 1:
                return real(state, reference, *batches)
            skipped = {"loss": Sum(math.nan, 1.0), "skipped": Sum(1.0, 1.0)}
            return state._replace(step=state.step + 1), skipped

        return step

    monkeypatch.setattr(programs, "make_train_step", make)
    write_config(tmp_path / "config.json", config)
    run_dir = tmp_path / "run"
    code, out, err = call("train", tmp_path / "config.json", "--run-dir", run_dir, "--quiet")
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert lines[-1].startswith("jaxdistill: tiny stopped at step 4: 3 steps in a row were skipped")
    assert str(run_dir / "skipped" / "step_000004.jsonl") in lines[-1]
    assert sum("an update was skipped" in line for line in lines) == 1
    assert len((run_dir / "skipped" / "step_000004.jsonl").read_text().splitlines()) == 4
    assert Checkpoints(run_dir / "checkpoints").newest_sound_step(strict=True, say=print) == 2
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 4
    assert not (run_dir / "finished.json").exists()
