"""The real vocabulary and file format, from parquet to a folder that transformers reads."""

import functools
import json

import jax
import numpy as np
import pytest
from places import SHARED_DATA

from jaxdistill import cli
from jaxdistill.models import decoder, parameters
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import open_model

PARQUET, TOKENIZER = SHARED_DATA / "math" / "seen_64.parquet", SHARED_DATA / "qwen3_tokenizer"

pytestmark = [
    pytest.mark.slow,  # test_paper_runs.py has the same in small
    pytest.mark.skipif(
        not (PARQUET.exists() and TOKENIZER.exists()), reason="needs ../shared/data"
    ),
]


def train(run_dir, *extra):
    """Three steps with a checkpoint each, on the same two questions, so that one shape compiles."""
    return cli.main([
        "train", "dapo_smoke", "--quiet", "--run-dir", str(run_dir), "--set", "steps=3",
        "--mesh", "fsdp=1",
        "--set", f"experience.task.source={PARQUET}", "--set", f"model.tokenizer={TOKENIZER}",
        "--set", "experience.task.limit=2", "--set", "experience.sampling.max_new_tokens=16",
        *extra,
    ])  # fmt: skip


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _open_each_tokenizer_once():
    """The real tokenizer takes a second to open, and these tests open it eleven times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "load", functools.cache(tokenizers.load))
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Interrupted after its second step, then resumed."""
    folder, save = tmp_path_factory.mktemp("dapo") / "run", Checkpoints.save

    def save_and_stop(checkpoints, step, *arguments):
        save(checkpoints, step, *arguments)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        assert train(folder) == 130
    assert [line["step"] for line in lines_of(folder / "metrics.jsonl")] == [1, 2]
    assert train(folder, "--resume") == 0
    return folder


@pytest.fixture(scope="module")
def policy(run_dir):
    return open_model(run_dir)


def test_a_resume_takes_the_third_step_and_no_other(run_dir):
    metrics = lines_of(run_dir / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    # Every row is distilled (the teacher sees the answer), and one step has learning rate 0.
    assert all(line["distilled"] == 1 and line["skipped"] == 0 for line in metrics)
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics)
    assert json.loads((run_dir / "finished.json").read_text())["step"] == 3
    saved = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert saved == [2, 3]  # keep_checkpoints=2


def test_rollouts_answer_the_files_questions(run_dir):
    for step in range(3):
        records = lines_of(run_dir / "rollouts" / f"step_{step:06d}.jsonl")
        assert len(records) == 4
        assert len({record["question_id"] for record in records}) == 2
        assert all(record["question_id"].startswith("seen_64:") for record in records)
        assert all(record["answer"].lstrip("-").isdigit() for record in records)
        assert all(record["verdict"] for record in records)


def test_transformers_reads_the_export_and_finds_our_logits(run_dir, policy):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids_BS = np.random.default_rng(0).integers(0, 151_643, (2, 40))
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            run_dir / "export", dtype=torch.float32
        )
        theirs_BSV = model(torch.tensor(ids_BS)).logits.numpy()
    mask_BS = np.ones_like(ids_BS)
    hidden_BSD = decoder.hidden_states(policy.params, policy.config, ids_BS, mask_BS)
    with jax.default_matmul_precision("highest"):
        ours_BSV = np.asarray(hidden_BSD @ parameters.head(policy.params, policy.config))
    # float32 sums in another order over 64 channels and 40 positions.
    np.testing.assert_allclose(ours_BSV, theirs_BSV, atol=1e-4)
    assert np.abs(theirs_BSV).max() > 0.1


def test_transformers_reads_the_tokenizer_of_the_export(run_dir, policy):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(run_dir / "export")
    ours = policy.tokenizer
    chat = [{"role": "user", "content": "Wait, is 7 prime? 中文"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert theirs.apply_chat_template(chat, **options) == ours.apply_chat_template(chat, **options)
    assert theirs(chat[0]["content"])["input_ids"] == ours(chat[0]["content"])["input_ids"]


def test_the_verbs_read_the_run(run_dir, tmp_path, capsys):
    shared = ["--max-new-tokens", "4", "--seed", "1", "--mesh", "fsdp=1"]
    for thinking in ("--thinking", "--no-thinking"):
        assert cli.main(["sample", str(run_dir), "--prompt", "1+1?", thinking, *shared]) == 0
    assert capsys.readouterr().out.count("# 1+1? (cut at --max-new-tokens)\n") == 2
    arguments = ["eval", str(run_dir), "--data", str(PARQUET), "--limit", "2", "--samples", "2"]
    assert cli.main([*arguments, "--out", str(tmp_path), *shared]) == 0
    out = capsys.readouterr().out
    assert out.startswith("avg@2 ")
    records = lines_of(tmp_path / "seen_64.jsonl")
    assert len(records) == 4
    assert all(record["verdict"] and not record["finished"] for record in records)
