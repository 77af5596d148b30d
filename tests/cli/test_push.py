"""`push`: what arrives at the hub is the run's weights and its card, in one commit or none."""

import json
import re
import shutil
import socket

import numpy as np
import pytest
import yaml
from command_line import assert_mistake, call, copied
from push_stand_in import direct, serving
from tiny_run import tiny, tree_of

from jaxdistill.storage.safetensors_io import DTYPES, read_header
from jaxdistill.tasks.questions import fingerprint

# 2026-11-30: the hub's client hands its HTTP library files in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DRY = ("--dry-run", "--quiet")


@pytest.fixture
def hub(monkeypatch):
    with serving(monkeypatch) as running:
        yield running


@pytest.fixture
def run(run_dir, place):
    """A copy of the run, to be changed."""
    copied(run_dir, place)
    return place / "run"


def test_what_arrives_is_the_export_and_the_card_that_a_dry_run_shows(hub, run_dir, monkeypatch):
    given = ("push", run_dir, "me/tiny", "--license", "mit")
    with monkeypatch.context() as patch:
        # Not even a name is looked up, and nothing on the disk changes.
        patch.setattr(socket, "getaddrinfo", None)
        patch.setattr(socket.socket, "connect", None)
        before = tree_of(run_dir)
        code, shown, _ = call(*given, *DRY)
    assert (code, hub.requests, tree_of(run_dir)) == (0, [], before)
    code, out, err = call(*given)
    (commit,) = hub.commits
    assert (code, out) == (0, f"{hub.url}/me/tiny/commit/{hub.head('me/tiny')}\n")
    listed, card = shown.split("\n\n", 1)
    sizes = {name: int(size.replace(",", "")) for size, name in map(str.split, listed.splitlines())}
    assert sizes == {path: len(content) for path, content in commit["files"].items()}
    assert commit["files"].pop("README.md").decode() == card
    assert commit["files"] == tree_of(run_dir / "export")
    assert "vllm serve me/tiny\n" in err
    assert 'pipeline("text-generation", "me/tiny")' in err


def test_the_card_says_what_the_run_measured(run_dir):
    card = call("push", run_dir, "me/tiny", "--base-model", "org/base", *DRY)[1].partition("\n\n")[
        2
    ]
    told = yaml.safe_load(card.split("---\n")[1])
    assert told == {
        "base_model": "org/base",
        "tags": ["jaxdistill", "self-distillation", "sdpo"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        assert f"| {row['step']} | {row['loss']:.4g} |" in card
    summary = json.loads((run_dir / "evals" / "step_000002" / "summary.json").read_text())
    (low, high) = (100 * end for end in summary["data"]["heldout"]["accuracy_interval"])
    accuracy = 100 * summary["data"]["heldout"]["accuracy"]
    assert f"| held-out | 2 | {accuracy:.1f} [{low:.1f}, {high:.1f}] |" in card
    assert summary["data"]["heldout"]["hash"] in card
    assert json.loads((run_dir / "provenance.json").read_text())["packages"]["jax"] in card
    asked = tiny().experience.task.questions()
    assert f"| training | `toy:train` | {len(asked)} | {fingerprint(asked)} |" in card
    assert "stop doubting its own steps" in card
    assert "these weights: not known" in card


def test_text_of_the_users_stays_text(run):
    """In a setting, a command or a name: no cell, tag, link, code or YAML key comes from it."""
    evil = "a|b `c` <img src=x> [d](http://e)\n---\nlicense: stolen"
    file = run / "provenance.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "command": ["jaxdistill", "train", evil]}))
    card = call("push", "run", "me/tiny", *DRY)[1].partition("\n\n")[2]
    (line,) = [line for line in card.splitlines() if "| command |" in line]
    # Two backticks open and close the code, so that the one inside does not; bars are escaped.
    assert re.fullmatch(r"\| command \| ``( (?!``)([^|]|(?<=\\)\|)*? )`` \|", line)
    assert r"a\|b `c` <img src=x>" in line
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_the_checkpoint_of_an_earlier_step_is_pushed_in_the_dtype_of_the_export(hub, run):
    """`best` is the step with the highest accuracy that has weights."""
    shutil.rmtree(run / "export")
    (run / "finished.json").unlink()
    assert_mistake(("push", "run", "me/tiny"), r"run is not finished; finish it .* \(saved: 2\)")
    assert_mistake(("push", "run", "me/tiny", "--step", "1"), "no weights of step 1; saved: 2")
    assert call("push", "run", "me/tiny", "--step", "best", "--quiet")[0] == 0
    assert hub.commits[0]["summary"] == "Step 2 of a jaxdistill run"
    assert hub.commits[0]["files"]["model.safetensors"]


def test_nothing_is_pushed_of_what_is_no_sound_run(hub, run, place):
    tensor = next(iter(read_header(run / "export" / "model.safetensors").values()))
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.array([np.nan], DTYPES[tensor.dtype]).tobytes())
    assert_mistake(("push", "run", "me/tiny"), "1 values of .* are NaN or infinite: nothing is")
    tensor.file.write_bytes(tensor.file.read_bytes()[:-8])
    assert_mistake(("push", "run", "me/tiny"), "truncated")
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints")
    assert_mistake(("push", "run", "me/tiny"), "neither an export nor a checkpoint")
    (place / "empty").mkdir()
    assert_mistake(("push", "empty", "me/tiny"), "empty is no run folder")
    assert_mistake(("push", "nowhere", "me/tiny"), "there is no folder nowhere")
    assert_mistake(("push", "run", "tiny"), "'tiny' is no name on the hub; expected OWNER/NAME")
    assert_mistake(("push", "run", "me/tiny", "--license", "a\nb"), "--license: expected an ident")
    assert hub.repositories == {}


def test_a_refusal_is_one_line_and_the_same_command_can_be_run_again(hub, run_dir, monkeypatch):
    given = ("push", run_dir, "me/tiny", "--license", "mit", "--quiet")
    for part, state in (
        ("/api/repos/create", "creating it"),
        ("/preupload/", "uploading.*; nothing was committed; me/tiny is there now, and empty"),
        ("/objects/", "nothing was committed"),
        ("/commit/", "nothing was committed"),
    ):
        hub.fails = {part: 400}
        assert_mistake(given, f"pushing to me/tiny, .*{state}")
        assert not hub.commits
    hub.fails = {}
    assert_mistake(
        ("push", run_dir, "you/tiny", *given[3:]), "this account or token may not write to you/"
    )
    assert call(*given)[0] == 0
    assert_mistake(given, r"me/tiny is on the hub and holds \d+ files; add --update")
    assert_mistake((*given, "--update", "--private"), "me/tiny is public; omit --private")
    assert call(*given, "--update")[0] == 0
    assert len(hub.commits) == 2
    direct(monkeypatch, hub.url, token="hf_other")
    assert_mistake(given, "the hub does not accept the token")
    direct(monkeypatch, hub.url, token=None)
    assert_mistake(given, "no token for the hub, which pushing to me/tiny needs: set HF_TOKEN")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        direct(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert_mistake(given, "pushing to me/tiny, .*the hub cannot be reached: ")
