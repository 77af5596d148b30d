"""`sample` and `eval`: models, prompts and questions, and what is printed and written."""

import json
import re
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


def test_sample_says_where_a_response_was_cut():
    command = ["sample", "toy:main", *ONE_DEVICE, "--prompt", "9 4 2 -> 7", "--max-new-tokens", 2]
    code, out, _ = call(*command)
    assert code == 0
    assert out.startswith("# 9 4 2 -> 7 (cut at --max-new-tokens)\n")


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


def test_a_greedy_sample_of_a_run_is_that_of_its_export(run_dir):
    arguments = [*ONE_DEVICE, "--prompt", "9 4 2 -> 7", "--temperature", 0, "--max-new-tokens", 8]
    outs = [call("sample", folder, *arguments) for folder in (run_dir, run_dir / "export")]
    assert outs[0] == outs[1]
    assert outs[0][0] == 0


def test_eval_prints_and_writes_the_same_numbers(place):
    code, out, err = call(
        "eval", "toy:main", "--data", "toy:heldout", "--samples", 2, "--limit", 6, "--out", "found",
        "--max-new-tokens", 64, *ONE_DEVICE,
    )  # fmt: skip
    assert code == 0, err
    records = [
        json.loads(line) for line in (place / "found" / "heldout.jsonl").read_text().splitlines()
    ]
    assert len(records) == 12
    assert len({record["question_id"] for record in records}) == 6
    summary = json.loads((place / "found" / "summary.json").read_text())["heldout"]
    accuracy = sum(record["correct"] for record in records) / 12
    assert summary["accuracy"] == pytest.approx(accuracy)
    assert summary["n"] == 12
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    value, low, high = (float(x) for x in re.findall(r"[\d.]+", shown["avg@2"]))
    assert value == pytest.approx(100 * accuracy, abs=5e-2)
    assert 0 <= low <= value <= high <= 100
    assert float(shown["pass@2"].partition("%")[0]) >= value
    assert float(shown["length"]) == pytest.approx(summary["length"], rel=1e-3)
    assert out.endswith("found\n")


def test_eval_reads_a_run_and_a_question_file(place, run_dir):
    rows = [{"id": i, "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("eval", run_dir, "--data", "mine.jsonl", "--samples", 1, "--limit", 2,
                          "--max-new-tokens", 4, "--out", "found", *ONE_DEVICE)  # fmt: skip
    assert code == 0, err
    assert out.startswith("avg@1 ")
    assert len((place / "found" / "mine.jsonl").read_text().splitlines()) == 2


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


def test_eval_reads_the_columns_and_asks_with_the_instruction_that_it_is_told(place):
    rows = [{"ask": "1 + 1?", "say": 2}, {"ask": "1 + 2?", "say": None}]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "toy:main", "--data", "mine.jsonl", "--samples", 1, "--max-new-tokens", 4]
    command += ["--column", "question=ask", "--column", "answer=say", "--instruction", "none"]
    assert_mistake(command, "mine.jsonl: row 2: field `say`: expected text or a number")
    code, _, err = call(*command, "--bad-rows", "skip", "--out", "found")
    assert code == 0, err
    assert "mine.jsonl: 1 rows skipped: mine.jsonl: row 2: field `say`" in err
    (record,) = map(json.loads, (place / "found" / "mine.jsonl").read_text().splitlines())
    assert (record["question"], record["answer"]) == ("1 + 1?", "2")


def test_eval_takes_several_data_sets_and_says_how_each_was_read(place):
    for folder, answer in (("a", 7), ("b", "B")):
        (place / folder).mkdir()
        rows = [{"question": f"{n}? A: 1 B: 2", "answer": answer} for n in (1, 2, 1)]
        (place / folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("eval", "toy:main", "--data", "a/test.jsonl", "--data", "b/test.jsonl",
                          "--samples", 1, "--max-new-tokens", 4, "--out", "found")  # fmt: skip
    assert code == 0, err
    assert set(json.loads((place / "found" / "summary.json").read_text())) == {"a-test", "b-test"}
    assert [line for line in out.splitlines() if line.startswith("#")] == ["# a-test", "# b-test"]
    for name, task in (("a", "MathTask"), ("b", "ChoiceTask")):
        assert f"{name}/test.jsonl: 3 rows, 2 distinct prompts\n" in err
        assert f"{name}/test.jsonl: graded as {task}; see --kind\n" in err
        lines = (place / "found" / f"{name}-test.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["problem"] for record in records] == ["test:0", "test:1", "test:0"]
        assert len({record["question_id"] for record in records}) == 3
