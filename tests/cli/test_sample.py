"""`sample`, and the models and prompts that it and `eval` refuse."""

import json
import shutil

import pytest
from command_line import ONE_DEVICE, TRAIN, assert_mistake, call, copied
from tiny_run import tree_of

from jaxdistill.errors import UserError


def test_unreadable_parquet_is_refused_wherever_it_is_named(place):
    (place / "bad.parquet").write_bytes(b"PAR1 this is none PAR1")
    refused = "bad.parquet: cannot read it as a parquet file"
    for setting in (
        "experience.task=MathTask('bad.parquet')",
        # Before the first step, although it is read after the last one.
        "evaluation.splits=(Split('x',MathTask('bad.parquet')),)",
    ):
        assert_mistake([*TRAIN.split(), "--set", setting], refused)
    assert_mistake(["eval", "toy:main", "--data", "bad.parquet"], refused)


def test_folders_that_are_no_models_are_refused(place, run_dir):
    (place / "empty").mkdir()
    assert_mistake(["sample", "empty", "--prompt", "hi"], "no config.json; is it a model folder")
    assert_mistake(["convert", "empty", "out"], "no config.json; is it a model folder")
    assert_mistake(["sample", "tiny.json", "--prompt", "hi"], "is a file; expected a folder")
    (place / "cut").mkdir()
    for name, content in tree_of(run_dir / "export").items():
        (place / "cut" / name).write_bytes(content[:1000])
    assert_mistake(["sample", "cut", "--prompt", "hi"], "truncated or not safetensors")
    assert_mistake([*TRAIN.split(), "--set", "model=Pretrained('cut')"], "truncated or not")


def test_a_cut_off_checkpoint_is_named(place, run_dir):
    copied(run_dir, place)
    files = (path for path in (place / "run" / "checkpoints").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    damaged = "the checkpoint of step 2 is damaged"
    assert_mistake([*TRAIN.split(), "--resume", "--set", "steps=3"], damaged)
    assert_mistake(["sample", "run", "--prompt", "hi"], damaged)
    assert_mistake(["convert", "run", "out"], damaged)


def test_a_run_without_weights_says_so(place, run_dir):
    copied(run_dir, place)
    shutil.rmtree(place / "run" / "export")
    shutil.rmtree(place / "run" / "checkpoints")
    (place / "run" / "checkpoints").mkdir()
    assert_mistake(["sample", "run", "--prompt", "hi"], "run has no checkpoint yet")
    (place / "run" / "checkpoints").rmdir()
    for arguments in (["sample", "run", "--prompt", "hi"], ["convert", "run", "out"]):
        assert_mistake(arguments, "run folder run holds no export")


@pytest.mark.long
def test_sample_prints_each_prompt_with_its_responses():
    command = ["sample", "toy:main", "--prompt", "20 15 1 -> 34", "--prompt", "9 4 2 -> 7"]
    command += ONE_DEVICE
    code, out, err = call(*command, "--samples", 2, "--seed", 3)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("1 of 8 devices (cpu); mesh data=1, fsdp=1, tensor=1; float32; ")
    assert out.count("# 20 15 1 -> 34\n") == out.count("# 9 4 2 -> 7\n") == 2
    assert out.index("# 20 15") < out.index("# 9 4")
    assert call(*command, "--samples", 2, "--seed", 3)[1] == out
    assert call(*command, "--samples", 2, "--seed", 4)[1] != out
    # The first sample of a prompt does not depend on how many follow.
    assert call(*command, "--seed", 3)[1].split("\n\n")[0] == out.split("\n\n")[0]


@pytest.mark.long
def test_sample_says_where_a_response_was_cut():
    command = ["sample", "toy:main", *ONE_DEVICE, "--prompt", "9 4 2 -> 7", "--max-new-tokens", 2]
    code, out, _ = call(*command)
    assert code == 0
    assert out.startswith("# 9 4 2 -> 7 (cut at --max-new-tokens)\n")


@pytest.mark.long
@pytest.mark.parametrize(
    "command", ["sample toy:main --prompt x", "eval toy:main --data toy:heldout"]
)
def test_an_int8_cache_is_asked_for(command, monkeypatch):
    def refuse(*_, cache_dtype, **__):
        raise UserError(f"asked for {cache_dtype}")

    monkeypatch.setattr("jaxdistill.sampling.engine.make_sampler", refuse)
    for more, name in (([], "auto"), (["--cache-dtype", "int8"], "int8")):
        lines = call(*command.split(), *more)[2].splitlines()
        assert lines[-1] == f"jaxdistill: asked for {name}"  # after eval's progress bar
        (first,) = [line for line in lines if "devices (cpu)" in line]
        assert ("int8 cache, read by XLA" in first) == (name == "int8")


@pytest.mark.long
def test_a_greedy_sample_of_a_run_is_that_of_its_export(run_dir):
    arguments = [*ONE_DEVICE, "--prompt", "9 4 2 -> 7", "--temperature", 0, "--max-new-tokens", 8]
    outs = [call("sample", folder, *arguments) for folder in (run_dir, run_dir / "export")]
    assert outs[0] == outs[1]
    assert outs[0][0] == 0


LONG = "9 " * 500  # of the toy's 512 positions


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_prompts_beyond_the_models_positions_are_refused_before_its_weights_are_read(
    verb, place, monkeypatch
):
    def read(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("jaxdistill.storage.hf_import.import_folder", read)
    if verb == "sample":
        command = ["sample", "toy:main", "--prompt", "1 2 -> 3", "--prompt", LONG]
        name = "prompt:1"
    else:
        rows = [{"question": text, "answer": "3"} for text in ("1 2 -> 3", LONG)]
        (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command, name = ["eval", "toy:main", "--data", "mine.jsonl"], "mine:1"
    refused = rf"question '{name}': its prompt has 5\d\d tokens, .*max_new_tokens=8 .*512 positions"
    assert_mistake([*command, "--max-new-tokens", 8], refused)
    assert_mistake([*command[:4], "--max-new-tokens", 510], "max_new_tokens=510")


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(place, run_dir):
    import transformers

    copied(run_dir, place)
    shutil.rmtree(place / "run" / "checkpoints")
    shutil.rmtree(place / "run" / "model")
    export = place / "run" / "export"
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(export)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(export)
    refused = "1 entries beyond the model's `vocab_size` of .* first '<tool>'"
    assert_mistake(["sample", "run", "--prompt", "1 2 -> 3 <tool>"], refused)
    train = "train tiny.json --quiet --run-dir other --set model=Pretrained('run/export')"
    assert_mistake(train.split(), refused)
