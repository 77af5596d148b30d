"""`guide`: its mistakes, a model that solves nothing, and the toy world's table."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import time

import pytest
from command_line import ONE_DEVICE, assert_mistake, call, start
from places import SHARED_DATA
from tiny_run import ARCHITECTURE, tree_of

from jaxdistill.storage import hf_export, hf_files, loading
from jaxdistill.storage import tokenizer as tokenizers

TOKENIZER, PARQUET = SHARED_DATA / "qwen3_tokenizer", SHARED_DATA / "math" / "seen_64.parquet"

MISTAKES = {
    "guide toy:main": "one of the arguments --data --task is required",
    "guide nowhere --data toy:ood": "there is no folder nowhere",
    "guide toy:mars --data toy:ood": "toy base 'mars'",
    "guide toy:main --data no.jsonl": "no.jsonl.*no such file",
    "guide nowhere --data toy:ood --contexts hint": "--contexts: 'hint' is unknown; known are none",
    "guide nowhere --data toy:ood --accuracy 0.5": "expected LOW,HIGH as in 0.125,0.5, got '0.5'",
    "guide nowhere --data toy:ood --accuracy 0.5,0.1": "expected 0 <= LOW <= HIGH <= 1",
    "guide nowhere --data toy:ood --problems 0": "--problems must be at least 1, got 0",
    "guide nowhere --data toy:ood --limit 0": "--limit must be at least 1, got 0",
    "guide nowhere --data toy:ood --max-new-tokens 0": "--max-new-tokens 0: expected a value >= 1",
    "guide nowhere --data toy:ood --mesh rows=2": "mesh 'rows=2': expected devices along",
    "guide nowhere --task x.py:X --instruction none": "instruction: a --task says itself",
    f"guide toy:main --data toy:ood --limit 2 --out {__file__}": "--out .* is a file",
    f"guide toy:main --data toy:ood --limit 2 --out {os.path.dirname(__file__)}": "other files",
    "guide toy:main --data toy:ood --limit 2 --max-new-tokens 512": "beyond the model's 512 pos",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command):
    assert_mistake(command.split(), MISTAKES[command])


COIN = """
import dataclasses
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question

@dataclasses.dataclass(frozen=True)
class Coin:
    grading_workers = 0

    def questions(self):
        return [Question(f"sum:{n}", f"{n} + 1 -> {n}", str(n + 1)) for n in range(8)]

    def grade(self, question, response):
        return Verdict(sum(map(ord, response)) % 4 == 0, "by chance", None)
"""


@pytest.mark.long
def test_the_table_is_printed_and_printed_again_from_a_finished_folder(place, run_dir):
    (place / "coin.py").write_text(COIN)
    command = ["guide", run_dir, "--task", "coin.py:Coin", "--contexts", "solution,answer",
               "--samples", 4, "--accuracy", "0.25,0.75", "--problems", 2, "--batch", 4,
               "--max-new-tokens", 8, "--out", "found", *ONE_DEVICE]  # fmt: skip
    code, out, err = call(*command)
    assert code == 0, err
    assert err.startswith("1 of 8 devices (cpu); mesh data=1, fsdp=1, tensor=1; float32; ")
    assert out.endswith("found\n")
    rows = [line.split() for line in out.splitlines() if line]
    summary = json.loads((place / "found" / "summary.json").read_text())
    assert list(summary["contexts"]) == ["none", "solution", "answer"]
    for name, found in summary["contexts"].items():
        lines = (place / "found" / f"{name}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == found["responses"] == 8
        accuracy = sum(record["correct"] for record in records) / 8
        assert found["accuracy"]["value"] == accuracy
        shown = next(row for row in rows if row[0] == name)
        assert (shown[1], shown[3]) == ("2", f"{100 * accuracy:.1f}")
    assert summary["settings"]["sampling"]["temperature"] == 0.6
    before = tree_of(place)
    assert call(*command) == (0, out, "found is finished; nothing was sampled\n")
    assert tree_of(place) == before
    assert_mistake([*command, "--seed", 1], "--out found was sampled with seed=0 and not 1; name")


@pytest.mark.slow
@pytest.mark.skipif(not (PARQUET.exists() and TOKENIZER.exists()), reason="needs ../shared/data")
def test_a_model_that_solves_nothing_says_so_and_keeps_its_samples(place, monkeypatch):
    """A random Qwen3 with the real tokenizer, on eight questions."""
    # It takes a second to open, and two commands would open it five times.
    monkeypatch.setattr(tokenizers, "load", functools.cache(tokenizers.load))
    # The longest of these prompts has 805 tokens.
    architecture = dataclasses.replace(ARCHITECTURE, max_positions=2048)
    source = loading.Fresh(architecture, tokenizer=str(TOKENIZER))
    policy = loading.load(source, 0, place / "made")
    hf_export.export_folder(
        place / "qwen",
        policy.params,
        policy.config,
        tokenizer_from=place / "made",
        generation=hf_files.generation_config(place / "made"),
    )
    command = ["guide", "qwen", "--data", PARQUET, "--limit", 8, "--max-new-tokens", 4,
               "--samples", 2, *ONE_DEVICE]  # fmt: skip
    code, out, err = call(*command)
    assert (code, out) == (2, "")
    told = err.splitlines()[-1]
    assert told.startswith(
        "jaxdistill: none of 8 questions had 0.125 to 0.5 of 2 samples right (8 were never solved, "
        "0 always)"
    )
    folder = place / "guided" / "qwen-seen_64"
    assert str(folder.relative_to(place) / "base.jsonl") in told
    assert len((folder / "base.jsonl").read_text().splitlines()) == 16
    # Said again from the folder alone.
    again = call(*command)
    assert again[0] == 2
    assert again[2].splitlines()[-1] == told


SMALL = [
    "guide", "toy:main", "--data", "toy:ood", "--problems", 6, "--batch", 24, "--limit", 48,
    "--temperature", 1, "--top-p", 1, "--top-k", 0, *ONE_DEVICE,
]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_with_the_files_of_a_whole_one(place):
    code, out, err = call(*SMALL, "--out", "undisturbed")
    assert code == 0, err
    with start(*SMALL, "--out", "killed", cwd=place) as process:
        while not (place / "killed" / "base.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (place / "killed" / "summary.json").exists()
    shutil.copytree(place / "killed", place / "resumed")
    code, again, err = call(*SMALL, "--out", "resumed")
    assert code == 0, err
    assert again == out.replace("undisturbed", "resumed")
    assert tree_of(place / "resumed") == tree_of(place / "undisturbed")
    code, again, err = call(*SMALL, "--out", "resumed")
    assert (code, again) == (0, out.replace("undisturbed", "resumed"))
    assert err == "resumed is finished; nothing was sampled\n"


@pytest.mark.slow
def test_in_the_toy_world_a_richer_context_gives_shorter_answers_with_less_doubt(place):
    code, out, err = call(*SMALL, "--problems", 24, "--limit", 400, "--batch", 100, "--out", "g")
    assert code == 0, err
    summary = json.loads((place / "g" / "summary.json").read_text())
    found = summary["contexts"]
    for measure in ("length", "epistemic_paper"):
        value = {name: each[measure]["value"] for name, each in found.items()}
        assert value["none"] > 1.5 * value["stripped"]
        assert value["stripped"] > value["solution"]
    assert found["solution"]["accuracy"]["value"] > found["none"]["accuracy"]["value"] + 0.3
    assert found["none"]["richness"]["value"] == 0.0
    assert all(found[n]["richness"]["low"] > 0 for n in ("solution", "stripped", "regenerated"))
    assert out.endswith("g\n")
