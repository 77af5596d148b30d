"""The recipe for fine-tuning on a file: its loss, its length, what it says, and its resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from command_line import call
from tiny_run import ARCHITECTURE

from jaxdistill import api, overrides
from jaxdistill.config import RunConfig, load_recipe
from jaxdistill.errors import UserError
from jaxdistill.objectives import CrossEntropy
from jaxdistill.run.loop import run
from jaxdistill.run.study import Arm
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import Fresh
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.timing import TIMINGS
from jaxdistill.training.traces import Traces

pytestmark = pytest.mark.long

# Of different lengths, so that a packed row holds several and a padded one is not full.
ROWS = [
    {"question": "20 15 1 -> 34", "response": "20 + 15 = 35 - 1 = 34 </think> answer 34"},
    {"prompt": "2 3 4 -> 9", "completion": "2 + 3 = 5 wait hmm 5 + 4 = 9 </think> answer 9"},
    {
        "messages": [
            {"role": "user", "content": "1 2 -> 3"},
            {"role": "assistant", "content": "1 + 2 = 3 </think> answer 3"},
            {"role": "user", "content": "7 8 9 -> 24"},
            {"role": "assistant", "content": "7 + 8 = 15 + 9 = 24 </think> answer 24"},
        ]
    },
]
TOY = ["model=ToyBase()", "mesh.fsdp=1", "compute.dtype=float32", "experience.batch_size=3"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def recipe(source, *overrides) -> RunConfig:
    return load_recipe("sft", [f"experience.source={source}", *overrides])


def metrics_of(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in TIMINGS} for line in lines]


def mean_loss(model, rows) -> tuple[float, int]:
    """-log p of every token after the prompt, by the logits alone; the mean and their number."""
    losses = []
    for row in rows:
        turns = row.get("messages") or [
            {"role": "user", "content": row.get("question") or row.get("prompt")},
            {"role": "assistant", "content": row.get("response") or row.get("completion")},
        ]
        asked = " ".join(f"<|im_start|> {t['role']} {t['content']} <|im_end|>" for t in turns[:-1])
        prompt = f"{asked} <|im_start|> assistant <think>".split()
        tokens = [*prompt, *turns[-1]["content"].split(), "<|im_end|>"]
        ids = np.array([model.tokenizer.convert_tokens_to_ids(tokens)])
        logp_SV = jax.nn.log_softmax(model.logits(ids, dtype="float32")[0])
        losses += [-logp_SV[s - 1, ids[0, s]] for s in range(len(prompt), len(tokens))]
    return float(np.mean(losses)), len(losses)


@pytest.mark.parametrize(
    "layout", [0, pytest.param(64, marks=pytest.mark.slow)], ids=["padded", "packed"]
)
def test_the_first_loss_is_the_mean_log_prob_of_responses_by_the_models_logits(
    source, tmp_path, layout
):
    config = recipe(source, *TOY, f"compute.pack={layout}", "save_checkpoints=False")
    # A random model has the toy's vocabulary and compiles sooner.
    config = dataclasses.replace(config, model=Fresh(ARCHITECTURE))
    run(config, tmp_path / "run", quiet=True)
    (line,) = metrics_of(tmp_path / "run")
    policy = loading.load(config.model, config.seed, tmp_path / "run" / "model")
    model = api.Model(
        config=policy.config,
        params=policy.params,
        folder=tmp_path / "run" / "model",
        mesh=make_mesh("fsdp=1"),
    )
    expected, tokens = mean_loss(model, ROWS)
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["tokens"] == tokens == 13 + 16 + 13
    assert line["epoch"] == 1


def tiny_sft(source) -> RunConfig:
    """Three rows in batches of two: epochs end within a batch, and a checkpoint within an epoch."""
    return RunConfig(
        name="sft",
        model=Fresh(ARCHITECTURE),
        experience=Traces(str(source), batch_size=2, epochs=4),
        objective=CrossEntropy(),
        mesh=MeshConfig(fsdp=1),
        checkpoint=Steps(2),
        rollouts_every=0,
    )


def test_a_killed_run_resumes_to_the_bit_and_not_on_other_data(source, tmp_path, monkeypatch):
    config = tiny_sft(source)
    run(config, tmp_path / "whole", quiet=True)
    save = Checkpoints.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert len(metrics_of(tmp_path / "cut")) == 2

    text = source.read_text()
    for other in (text.replace("answer 34", "answer 35"), "".join(text.splitlines(True)[::-1])):
        assert other != text
        source.write_text(other)
        with pytest.raises(UserError, match="the data behind the same name has changed"):
            run(config, tmp_path / "cut", resume=True, quiet=True)
    source.write_text(text)
    run(config, tmp_path / "cut", resume=True, quiet=True)
    assert len(metrics_of(tmp_path / "whole")) == 6  # 4 epochs of 3 rows, 2 at a time
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    whole, cut = (tmp_path / name / "export" / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_the_command_tells_rows_and_lengths_before_it_trains(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [f"experience.source={source.name}", *TOY, "steps=2", "compute.pack=64"]
    flags = [part for text in overrides for part in ("--set", text)]
    code, out, err = call("train", "sft", *flags)
    assert (code, out) == (0, "runs/sft\n")
    devices, *lines = err.splitlines()
    assert devices.startswith("1 of 8 devices (cpu); mesh data=1, fsdp=1, tensor=1; float32; ")
    assert lines[:5] == [
        "traces.jsonl: 3 kept of 3 rows",
        "tokens of a prompt: min 11, median 11, p90 29, max 29",
        "tokens of a response: min 13, median 13, p90 16, max 16",
        "tokens of an epoch: 93, 42 of them in the loss",
        "length of the run: `steps=2` of 3 rows are 2 epochs; `epochs=1` is not used",
    ]
    assert len(metrics_of(tmp_path / "runs" / "sft")) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "`experience.source` is not set: name a file of traces"),
        (["experience.source=nowhere.jsonl", "model=ToyBase()"], "nowhere.jsonl: .*no such file"),
        (["experience.source=bad.jsonl", "model=ToyBase()"], "bad.jsonl: row 1: no column holds"),
        (["experience.source=empty.jsonl", "model=ToyBase()"], "empty.jsonl: no row is left of 0"),
    ],
)
def test_what_is_missing_is_one_line_and_leaves_no_folder(
    overrides, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "1+1? 2"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=message):
        run(load_recipe("sft", overrides), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_traces_go_with_cross_entropy_and_other_experiences_need_steps(source):
    with pytest.raises(UserError, match="CrossEntropy requires `experience` Supervised or Traces"):
        recipe(source, "objective=Distill()")
    with pytest.raises(UserError, match="must divide the 32 rows"):
        recipe(source, "compute=Compute(micro_batches=3)")
    with pytest.raises(UserError, match="`steps` must be set: the OnPolicy experience has no end"):
        load_recipe("toy_grpo", ["steps=None"])
    with pytest.raises(UserError, match="arm toy-sft-s0: a study's runs need `steps`"):
        _ = Arm(world="toy", method="sft", config=recipe(source)).steps


def test_a_source_may_be_several_files_and_a_tuple(source):
    for text in (f"{source},{source}", f'("{source}",)', "hub:open-r1/OpenR1-Math-220k:train"):
        config = load_recipe("sft", [f"experience.source={text}"])
        assert config.experience.source == ((str(source),) if text[0] == "(" else text)
        assert overrides.from_json(RunConfig, overrides.to_json(config)) == config
