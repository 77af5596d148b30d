"""`train` and `study`: recipes by name, path and config, run folders, Ctrl-C."""

import json
import os
import signal
import subprocess
import time

import pytest
from command_line import TRAIN, assert_mistake, besides_warnings, call, copied, start
from tiny_run import tree_of

from jaxdistill import epistemic


def test_a_folder_that_is_taken_is_not_touched(place, run_dir):
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")
    assert_mistake(TRAIN.split(), "is not empty and holds no run")
    assert_mistake([*TRAIN.split(), "--resume"], "is not empty and holds no run")
    assert_mistake(["study", "toy_study", "--run-dir", "run"], "not empty and holds no study")
    assert_mistake(["convert", run_dir / "export", "run"], "run exists; choose another name")
    assert_mistake(["convert", run_dir, "run"], "run exists; choose another name")
    assert_mistake(["train", "tiny.json", "--run-dir", "tiny.json"], "tiny.json: Not a directory")


def test_a_run_folder_is_not_overwritten_and_not_resumed_as_another(place, run_dir):
    before = tree_of(run_dir)
    assert_mistake(["train", "tiny.json", "--run-dir", run_dir], "exists; add --resume to continue")
    changed = ["--resume", "--set", "experience.rollouts=4"]
    assert_mistake(
        ["train", "tiny.json", "--run-dir", run_dir, *changed],
        "`experience.rollouts` is 2 in its config.json and 4 now",
    )
    typed = f"use `jaxdistill train {run_dir}/config.json --resume`"
    assert_mistake(["train", run_dir, "--resume"], f"did you mean {run_dir}/config.json.*{typed}")
    assert tree_of(run_dir) == before


def test_a_cut_off_config_is_named(place, run_dir):
    copied(run_dir, place)
    (place / "run" / "config.json").write_text('{"name":')
    assert_mistake([*TRAIN.split(), "--resume"], "run/config.json is not readable JSON")
    assert_mistake(["train", "run/config.json"], "run/config.json is not JSON")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def mine():\n    raise KeyError('no such thing')", "KeyError: 'no such thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def mine(:", "SyntaxError"),
        ("def other(): ...", "expected a function named 'mine'"),
        ("def mine(): return 3", "returned int, not a RunConfig"),
        ("from jaxdistill.errors import UserError\ndef mine(): raise UserError('so')", "l: so$"),
    ],
)
def test_a_broken_recipe_is_its_authors_to_mend(text, expected, place):
    (place / "mine.py").write_text(text)
    assert_mistake(["train", "mine.py"], expected)


def test_a_broken_study_recipe_too(place):
    (place / "mine.py").write_text("def mine(profile='quick'): return [][1]")
    assert_mistake(["study", "mine.py"], "mine.py cannot be run: IndexError")
    (place / "mine.py").write_text("def mine(profile='quick'): return 3")
    assert_mistake(["study", "mine.py"], "returned int, not a Study")


@pytest.mark.long
def test_ctrl_c_while_training_saves_the_last_step_and_resumes(place):
    # As many devices as here, or the resumed run says that they are others.
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [*TRAIN.split(), "--set", "steps=100000"]
    process = start(*command, stdout=subprocess.PIPE, env=environment)
    metrics = place / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert err.endswith(f"stopped at step {done} of 100000; --resume goes on\n")
    assert not (place / "run" / "lock.json").exists()
    code, _, err = call(*TRAIN.split(), "--resume", "--set", f"steps={done + 2}")
    assert (code, besides_warnings(err)) == (0, "")


def test_train_runs_a_recipe_file_with_overrides_and_prints_the_folder(place):
    (place / "mine.py").write_text("from tiny_run import tiny\ndef mine(): return tiny()\n")
    code, out, err = call("train", "mine.py", "--quiet", "--set", "steps=1", "--set", "name=me")
    assert (code, out, besides_warnings(err)) == (0, "runs/me\n", "")
    assert json.loads((place / "runs" / "me" / "config.json").read_text())["steps"] == 1


def test_train_takes_a_runs_own_config(place, run_dir):
    code, _, err = call("train", run_dir / "config.json", "--quiet", "--run-dir", "again")
    assert (code, besides_warnings(err)) == (0, "")
    exports = [tree_of(folder / "export") for folder in (place / "again", run_dir)]
    assert exports[0] == exports[1]


def test_a_runs_own_config_resumes_in_its_folder(place, run_dir):
    copied(run_dir, place)
    assert call("train", "run/config.json", "--resume", "--quiet") == (0, "run\n", "")
    assert len(json.loads((place / "run" / "provenance.json").read_text())["resumed"]) == 1
    assert not (place / "runs").exists()


def test_a_resume_of_nothing_says_so_and_starts(place):
    arguments = ["train", "tiny.json", "--resume", "--quiet", "--set", "steps=0"]
    said = "no run to resume in {}: starting a new one there\n"
    assert call(*arguments) == (0, "runs/tiny\n", said.format("runs/tiny"))
    # A config.json that is no run's is a recipe like any other.
    (place / "mine").mkdir()
    (place / "tiny.json").rename(place / "mine" / "config.json")
    arguments[1] = "mine/config.json"
    said = "run runs/tiny has no checkpoint yet and starts at step 0\n"
    assert call(*arguments) == (0, "runs/tiny\n", said)
    assert [file.name for file in (place / "mine").iterdir()] == ["config.json"]


def test_a_deleted_recipe_with_a_bundled_ones_name_goes_on_with_the_runs_config(place, run_dir):
    copied(run_dir, place)
    command = ["train", "toy_grpo.py", "--resume", "--quiet", "--run-dir", "run"]
    said = "no toy_grpo.py: the run continues with its own run/config.json\n"
    assert call(*command) == (0, "run\n", said)
    assert_mistake([*command[:-1], "nowhere"], "no recipe 'toy_grpo.py'; did you mean toy_grpo")


def test_a_run_keeps_its_lexicon(place, run_dir):
    kept = (run_dir / "lexicon.json").read_bytes()
    assert json.loads(kept)["words"] == list(epistemic.TEN_WORDS)
    assert epistemic.read_lexicon(run_dir / "lexicon.json").tokenizer_hash in str(kept)
    copied(run_dir, place)
    (place / "run" / "lexicon.json").unlink()
    assert call(*TRAIN.split(), "--resume") == (0, "run\n", "")
    assert (place / "run" / "lexicon.json").read_bytes() == kept


@pytest.mark.slow
def test_a_run_goes_on_with_other_tensor_parallel_devices(place):
    """Two devices pad the vocabulary of 133 and repeat the only key/value head; one does not."""
    for steps, mesh, first in (
        (2, "tensor=2", True),
        (4, "tensor=1", False),
        (6, "tensor=2", False),
    ):
        resume = [] if first else ["--resume"]
        where = ["--mesh", f"data=1,fsdp=1,{mesh}", "--set", f"steps={steps}"]
        code, _, err = call(*TRAIN.split(), *resume, *where)
        assert code == 0, err
    whole = ["--run-dir", "whole", "--mesh", "fsdp=1", "--set", "steps=6"]
    assert call("train", "tiny.json", "--quiet", *whole)[0] == 0
    found, expected = (
        [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "whole")
    )
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-6)
