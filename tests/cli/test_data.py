"""`data prepare` and `data check`: what they print, and what they leave behind."""

import json
import re

import numpy as np
import pytest
from command_line import assert_mistake, call
from tiny_run import tree_of

from jaxdistill.cli.data import answer_kinds
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import tokenizer_folder


@pytest.fixture(autouse=True)
def sums(place, monkeypatch):
    """`sums.jsonl`: ten rows of six problems. Data sets are prepared in `tfds`."""
    monkeypatch.setenv("TFDS_DATA_DIR", "tfds")
    rows = [{"question": f"{n % 6} + {10 ** (n % 6)}?", "answer": n % 6} for n in range(10)]
    write(place / "sums.jsonl", rows)
    return place / "sums.jsonl"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


PREPARE = "data prepare aime25 --from sums.jsonl"

MISTAKES = {
    "data": "the following arguments are required: WHAT",
    "data prepare": "the following arguments are required: NAME",
    "data prepare aime26": "unknown data set 'aime26': known are dapo_math_17k, aime24, ",
    "data prepare coverage --from sums.jsonl": "'coverage': expected one of coverage/1, coverage/8",
    "data prepare aime25": "hub:math-ai/aime25: not all of it is in the local cache, and",
    "data prepare aime25 --from no.jsonl": "no.jsonl: cannot read .*: no such file",
    "data prepare aime25 --from hub:a/b": "hub:a/b: not all of it is in the local cache",
    f"{PREPARE} --from sums.jsonl": "--from sums.jsonl: the split test is given twice",
    f"{PREPARE} --data-dir sums.jsonl": "sums.jsonl: (File exists|Not a directory)",
    "data prepare sciknoweval_chemistry --from sums.jsonl": "write train=FILE or test=FILE",
    "data prepare sciknoweval_chemistry --from train=sums.jsonl": "is choice, got rows of math",
    "data check no.jsonl": "no.jsonl: cannot read .*: no such file",
    "data check tfds:aime25": "tfds:aime25 is not in tfds; prepare it with: jaxdistill data",
    "data check sums.jsonl --kind mathematics": "invalid choice: 'mathematics'",
    "data check sums.jsonl --column ask=question": "`columns`: 'ask' is no field of a question",
    "data check sums.jsonl --column question": r"must be pairs \(field, column\)",
    "data check sums.jsonl --tokenizer nowhere": "there is no folder nowhere",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command):
    assert_mistake(command.split(), MISTAKES[command])


def test_a_prepared_set_is_read_by_its_name(place):
    code, out, err = call(*PREPARE.split())
    assert (code, out) == (0, "tfds:aime25:test  10 questions\ntfds/aime25/1.0.0\n")
    assert err == (
        "sums.jsonl: 10 rows, 6 distinct prompts\n"
        "sums.jsonl: 10 questions, but aime25 as it is published has 30\n"
    )
    code, by_name, _ = call("data", "check", "tfds:aime25")
    assert code == 0
    _, by_file, _ = call("data", "check", "sums.jsonl")
    pattern = r"(?s)rows .*?(?=# \w+:0)"  # without the columns and the ids
    assert re.search(pattern, by_name)[0] == re.search(pattern, by_file)[0]


def test_another_folder_is_named_with_the_variable_that_reads_it(place):
    code, out, err = call(*PREPARE.split(), "--data-dir", "mine")
    assert code == 0, err
    assert out.splitlines()[1:] == ["mine/aime25/1.0.0", "read it with TFDS_DATA_DIR=mine"]


# ------------------------------------------------------------------------------------------- check


def test_check_shows_counts_and_one_row_as_it_is_asked():
    code, out, err = call("data", "check", "sums.jsonl")
    assert code == 0
    assert out == (
        "columns   question, answer\n"
        "rows      10\n"
        "prompts   6 distinct; 4 rows repeat one of them\n"
        "task      MathTask: a box is graded (recognised, see --kind)\n"
        "answers   6 integers\n"
        "lengths   characters per prompt: min 77, median 79, 95th percentile 82, max 82\n"
        "# sums:0, as the model is asked it\n"
        "[user]\n"
        "0 + 1?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "# gold answer: 0\n"
    )
    assert err == (
        "sums.jsonl: 10 rows, 6 distinct prompts\n"
        "sums.jsonl: instruction added to 10 prompts, in place of another in 0, already in 0\n"
    )


def test_check_counts_the_tokens_of_a_models_own_chat(place):
    rows = [{"prompt": "1 " * n + "->", "answer": "1", "system": "2 3"} for n in range(1, 41)]
    write(place / "rows.jsonl", rows)
    code, out, err = call(
        "data", "check", "rows.jsonl", "--tokenizer", "toy:main", "--kind", "math"
    )
    assert code == 0, err
    tokenizer = tokenizers.load(tokenizer_folder("toy:main"))
    sentence = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    chats = [
        [
            {"role": "system", "content": row["system"]},
            {"role": "user", "content": row["prompt"] + sentence},
        ]
        for row in rows
    ]
    lengths = [len(ids) for ids in tokenizers.prompt_ids(tokenizer, chats)]
    least, median, most = np.percentile(lengths, [0, 50, 100], method="inverted_cdf").astype(int)
    p95 = int(np.percentile(lengths, 95, method="inverted_cdf"))
    assert (
        f"lengths   tokens per prompt: min {least}, median {median}, 95th percentile {p95}, max "
        f"{most}\n" in out
    )
    rendered = tokenizers.prompt_text(tokenizer, chats[0])
    assert f"as the model is asked it\n{rendered}\n# gold answer: 1\n" in out
    assert "task      MathTask: a box is graded (--kind)\n" in out


def test_check_reads_the_columns_that_it_is_told(place):
    write(place / "rows.jsonl", [{"ask": "Which?\nA: x\nB: y", "say": "B"}])
    code, out, _ = call("data", "check", "rows.jsonl",
                        "--column", "question=ask", "--column", "answer=say")  # fmt: skip
    assert code == 0
    assert "columns   ask, say\n" in out
    assert "task      ChoiceTask: an answer tag is graded" in out
    assert "answers   1 letters\n" in out


def test_check_lists_bad_rows_and_fails(place):
    write(place / "rows.jsonl", [{"question": "1+1?", "answer": a} for a in (2, None, 2, [])])
    code, out, err = call("data", "check", "rows.jsonl")
    assert code == 2
    assert "rows      4\nprompts   1 distinct; 1 rows repeat one of them\n" in out
    assert "rows.jsonl: 2 rows skipped: rows.jsonl: row 2: field `answer`" in err
    assert err.splitlines()[-1].startswith(
        "jaxdistill: rows.jsonl: 2 of 4 rows cannot be used, the first: rows.jsonl: row 2: field"
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["7", "-12", "1,000"], "3 integers"),
        (["0.5", ".5", "-1.25"], "3 decimals"),
        (["A", "(B)"], "2 letters"),
        ([r"\frac{1}{2}", "1/2", "x=5", "{1,2}", "2^{10}", "52_8"], "6 formulas"),
        (["east", "Both\nof them"], "2 texts"),
        (["7", "east", "8"], "2 integers, 1 texts"),
    ],
)
def test_answers_are_counted_by_how_they_are_written(answers, expected):
    assert answer_kinds(answers) == expected


# ---------------------------------------------------------------------------- training, evaluation


@pytest.mark.long
def test_train_and_eval_run_from_a_prepared_set(place):
    call(*PREPARE.split())
    source = "tfds:aime25:test"
    code, _, err = call(
        "train", "tiny.json", "--quiet", "--run-dir", "run", "--set", "steps=1",
        "--set", f"experience.task=MathTask({source!r})", "--set", "evaluation.splits=()",
        "--set", "experience.sampling.max_new_tokens=2", "--set", "rollouts_every=1",
    )  # fmt: skip
    assert code == 0, err
    rows = (place / "run" / "rollouts" / "step_000000.jsonl").read_text().splitlines()
    ids = {json.loads(row)["question_id"] for row in rows}
    assert len(ids) == 2
    assert all(re.fullmatch(r"aime25-test:\d:\d", name) for name in ids)

    code, _, err = call("eval", "run", "--data", source, "--samples", 1,
                          "--max-new-tokens", 2, "--out", "found")  # fmt: skip
    assert code == 0, err
    assert "tfds:aime25:test: 10 rows, 6 distinct prompts\n" in err
    assert "tfds:aime25:test: graded as MathTask; see --kind\n" in err
    records = (place / "found" / "aime25-test.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in records] == [str(n % 6) for n in range(10)]


FAILURES = {
    OSError(28, "No space left on device", "tfds"): (
        2,
        r"tfds: No space left on device; free space on that disk",
    ),
    KeyboardInterrupt(): (130, "interrupted"),
}


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_while_writing_is_one_line_and_leaves_nothing_behind(place, monkeypatch, error):
    from jaxdistill.tasks.sources import builders

    def fail(*_):
        raise error

    monkeypatch.setattr(builders.QuestionsBuilder, "_generate_examples", fail)
    before = tree_of(place)
    code, out, err = call(*PREPARE.split())
    expected_code, message = FAILURES[error]
    assert (code, out, err.count("\n")) == (expected_code, "", 1)
    assert re.match(f"jaxdistill: {message}", err)
    assert tree_of(place) == before
    assert not (place / "tfds").exists()
