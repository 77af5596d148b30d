"""`eval`: what is printed and written, which settings decide, and what continues."""

import json
import re

import pytest
from command_line import ONE_DEVICE, assert_mistake, call
from tiny_run import tree_of

import jaxdistill
from jaxdistill.evaluation.saved import read_evaluation, read_summary

SHORT = ["--samples", 2, "--limit", 6, "--max-new-tokens", 64, *ONE_DEVICE]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation, what was printed, and how it began."""
    folder = tmp_path_factory.mktemp("evaluated") / "found"
    code, out, err = call("eval", "toy:main", "--data", "toy:heldout", *SHORT, "--out", folder)
    assert code == 0, err
    return folder, out, err


def test_eval_prints_and_writes_the_same_numbers(evaluated):
    folder, out, _ = evaluated
    records = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    assert len(records) == 12
    assert len({record["question_id"] for record in records}) == 6
    summary = json.loads((folder / "summary.json").read_text())["data"]["heldout"]
    accuracy = sum(record["correct"] for record in records) / 12
    assert summary["accuracy"] == pytest.approx(accuracy)
    assert (summary["n"], summary["k"], summary["responses"]) == (6, 2, 12)
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    value, low, high = (float(x) for x in re.findall(r"[\d.]+", shown["avg@2"]))
    assert value == pytest.approx(100 * accuracy, abs=5e-2)
    assert 0 <= low <= value <= high <= 100
    assert float(shown["pass@2"].partition("%")[0]) >= value
    assert float(shown["length"]) == pytest.approx(summary["length"]["response"]["mean"], rel=1e-3)
    assert out.endswith("found\n")


def test_eval_reads_a_run_and_a_question_file(place, run_dir):
    rows = [{"id": i, "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("eval", run_dir, "--data", "mine.jsonl", "--samples", 1, "--limit", 2,
                          "--max-new-tokens", 4, "--out", "found", *ONE_DEVICE)  # fmt: skip
    assert code == 0, err
    assert out.startswith("avg@1 ")
    assert len((place / "found" / "mine.jsonl").read_text().splitlines()) == 2


def test_the_folder_says_what_was_evaluated_how_and_where(evaluated):
    folder, _, err = evaluated
    read = read_evaluation(folder)
    assert read.summary is not None
    assert read.summary["model"]["name"] == "toy:main"
    assert re.fullmatch("[0-9a-f]{16}", read.summary["model"]["revision"])
    assert read.summary["sampling"]["temperature"] == 1.0
    assert (read.summary["k"], read.summary["seed"], read.summary["protocol"]) == (2, 0, None)
    assert read.summary["versions"]["jax"]
    # Also from a source tree that is not installed.
    assert read.summary["versions"]["jaxdistill"] == jaxdistill.__version__
    assert read.summary["devices"]["platform"] == "cpu"
    assert re.match(r"20\d\d-", read.summary["date"])
    assert len(read.questions["heldout"]) == 6
    row = read.questions["heldout"][0]
    assert row["correct"] == sum(r["correct"] for r in read.records["heldout"][:2])
    assert "2 responses per question, temperature 1 (default), 64 new tokens (flags)\n" in err


def test_a_finished_evaluation_is_printed_again_and_another_one_is_refused(evaluated, monkeypatch):
    folder, out, _ = evaluated
    before = tree_of(folder)

    def read(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("jaxdistill.storage.hf_import.import_folder", read)
    command = ["eval", "toy:main", "--data", "toy:heldout", *SHORT, "--out", folder]
    code, again, err = call(*command)
    assert (code, again) == (0, out)
    assert err.endswith("found is finished; nothing was sampled\n")
    for more, expected in (
        (["--temperature", 0.5], "sampling.temperature=1.0 and not 0.5; name another folder"),
        (["--seed", 1], "seed=0 and not 1"),
        (["--data", "toy:ood"], "holds another evaluation: data.ood.source=None"),
        (["--limit", 5], "data.heldout.settings.count=6 and not 5"),
        (["--cache-dtype", "int8"], "cache_dtype='auto' and not 'int8'"),
        (["--token-ids"], "token_ids=False and not True"),
        (["--system", "Be brief."], "system=None and not 'Be brief.'"),
    ):
        assert_mistake([*command, *more], expected)
    assert tree_of(folder) == before


@pytest.mark.long
def test_an_evaluation_without_out_finds_its_folder_again(place):
    command = ["eval", "toy:main", "--data", "toy:heldout", "--limit", 2, *ONE_DEVICE]
    command += ["--max-new-tokens", 4, "--samples"]
    outs = [call(*command, samples)[1].splitlines()[-1] for samples in (1, 1, 2)]
    assert outs[0] == outs[1] != outs[2]
    assert len(list((place / "evaluations").iterdir())) == 2
    for folder in outs:
        assert re.fullmatch(r"evaluations/toy-main-heldout-[0-9a-f]{8}", folder)
        assert read_evaluation(place / folder).is_complete


@pytest.mark.long
def test_greedy_takes_one_response_and_refuses_several(place):
    command = ["eval", "toy:main", "--data", "toy:heldout", "--limit", 2, "--max-new-tokens", 4]
    for how in (["--protocol", "greedy"], ["--temperature", 0]):
        equal = "--samples 4 with temperature 0: greedy decoding gives 4 equal responses"
        assert_mistake([*command, *how, "--samples", 4], equal)
    code, _, err = call(*command, "--protocol", "greedy", "--out", "found", *ONE_DEVICE)
    assert code == 0
    assert "1 responses per question, temperature 0 (--protocol greedy), 4 new tokens" in err
    summary = read_evaluation(place / "found").summary
    assert summary is not None
    assert (summary["k"], summary["protocol"]) == (1, "greedy")


def test_a_number_of_tokens_is_refused_before_the_model_is_looked_for():
    assert_mistake(["eval", "nowhere", "--data", "toy:heldout", "--max-new-tokens", 0],
                   "--max-new-tokens")  # fmt: skip


def test_a_protocols_length_is_checked_against_the_models_positions():
    command = ["eval", "toy:main", "--data", "toy:heldout", "--protocol", "paper-thinking"]
    assert_mistake(command, "max_new_tokens=38912 .* beyond the model's 512 positions")


@pytest.mark.long
def test_the_models_own_settings_decide_where_no_flag_does(place, run_dir):
    from command_line import copied

    copied(run_dir, place)
    for part in ("model", "export"):
        file = place / "run" / part / "generation_config.json"
        own = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
        file.write_text(json.dumps(json.loads(file.read_text()) | own))
    command = ["eval", "run", "--data", "toy:heldout", "--limit", 1, *ONE_DEVICE]
    code, _, err = call(*command, "--out", "found", "--top-k", 5)
    assert code == 0, err
    named = "generation_config.json"
    assert (
        f"4 responses per question, temperature 0.6 ({named}), top-p 0.95 ({named}), "
        "top-k 5 (flags), " in err
    )
    identity = read_evaluation(place / "found").identity
    # The positions of the tiny model, less those of the prompt.
    assert 200 < identity["sampling"]["max_new_tokens"] < 256
    assert identity["model"]["step"] == 2
    file.write_text(json.dumps({"temperature": "hot"}))
    (place / "run" / "model" / "generation_config.json").write_text(file.read_text())
    assert_mistake(command, "field `temperature`: expected a number, got 'hot'")


# The tests from here on evaluate the run of two steps: its model has one layer, and compiles sooner
# than the toy's own.


@pytest.mark.long
def test_a_system_turn_and_the_graded_text_are_the_commands(place, run_dir):
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", run_dir, "--data", "mine.jsonl", "--samples", 1, "--max-new-tokens", 4]
    code, _, err = call(*command, "--system", "Be brief.", "--graded", "whole", "--token-ids",
                        "--out", "found", *ONE_DEVICE)  # fmt: skip
    assert code == 0, err
    read = read_evaluation(place / "found")
    record = read.records["mine"][0]
    assert record["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(record["token_ids"]) == record["num_tokens"]
    assert read.identity["system"] == "Be brief."
    assert read.identity["data"]["mine"]["settings"] == {"thinking_tags": []}
    toy = ["eval", "toy:main", "--data", "toy:heldout", "--graded", "whole"]
    assert_mistake(toy, "--graded whole: ToyTask says itself what of a response is graded")


@pytest.mark.long
def test_eval_reads_the_columns_and_asks_with_the_instruction_that_it_is_told(place, run_dir):
    rows = [{"ask": "1 + 1?", "say": 2}, {"ask": "1 + 2?", "say": None}]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", run_dir, "--data", "mine.jsonl", "--samples", 1, "--max-new-tokens", 4]
    command += ["--column", "question=ask", "--column", "answer=say", "--instruction", "none"]
    assert_mistake(command, "mine.jsonl: row 2: field `say`: expected text or a number")
    code, _, err = call(*command, "--bad-rows", "skip", "--out", "found", *ONE_DEVICE)
    assert code == 0, err
    assert "mine.jsonl: 1 rows skipped: mine.jsonl: row 2: field `say`" in err
    (record,) = map(json.loads, (place / "found" / "mine.jsonl").read_text().splitlines())
    assert (record["question"], record["answer"]) == ("1 + 1?", "2")


@pytest.mark.long
def test_eval_takes_several_data_sets_and_says_how_each_was_read(place, run_dir):
    for folder, answer in (("a", 7), ("b", "B")):
        (place / folder).mkdir()
        rows = [{"question": f"{n}? A: 1 B: 2", "answer": answer} for n in (1, 2, 1)]
        (place / folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("eval", run_dir, "--data", "a/test.jsonl", "--data", "b/test.jsonl",
                          "--samples", 1, "--max-new-tokens", 4, "--out", "found",
                          *ONE_DEVICE)  # fmt: skip
    assert code == 0, err
    assert set(read_summary(place / "found")) == {"a-test", "b-test"}
    assert [line for line in out.splitlines() if line.startswith("#")] == ["# a-test", "# b-test"]
    for name, task in (("a", "MathTask"), ("b", "ChoiceTask")):
        assert f"{name}/test.jsonl: 3 rows, 2 distinct prompts\n" in err
        assert f"{name}/test.jsonl: graded as {task}; see --kind\n" in err
        lines = (place / "found" / f"{name}-test.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["problem"] for record in records] == ["test:0", "test:1", "test:0"]
        assert len({record["question_id"] for record in records}) == 3
