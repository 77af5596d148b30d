"""Data sets as questions: real sets, repeated prompts, nested subsets, bad rows, and the notes."""

import itertools
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import SHARED_DATA

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources import Reading, read
from jaxdistill.tasks.sources.instruction import BOX, LETTER

SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(count, answer=lambda n: n + 1):
    return [{"question": f"{n}+1?", "answer": answer(n)} for n in range(count)]


def dapo_rows(count, num_problems):
    """Rows in the published layout of DAPO-Math-17k, each problem many times."""
    for row in range(count):
        n = row % num_problems
        yield {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO.format(f"What is {n}+1?"), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(n + 1), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"{n:08x}"},
        }


# ------------------------------------------------------------------------------------- real sets


def real(name):
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"no {SHARED_DATA / name}")
    return str(SHARED_DATA / name)


@pytest.mark.parametrize(
    ("name", "count", "num_distinct"),
    [
        ("aime24", 30, 30),
        ("amc23", 40, 40),
        ("seen_64", 64, 64),
        ("seen_1x64", 64, 1),
        ("seen_512", 512, 511),
    ],
)
def test_sets_of_mathematics_load_with_the_golds_of_the_file(name, count, num_distinct):
    path = real(f"math/{name}.parquet")
    loaded = read(Reading(path))
    stored = pq.read_table(path, columns=["reward_model"]).column(0).to_pylist()
    golds = [json.loads(value) if isinstance(value, str) else value for value in stored]
    assert [q.answer for q in loaded.questions] == [gold["ground_truth"] for gold in golds]
    assert all(q.answer.lstrip("-").isdigit() for q in loaded.questions)
    assert (loaded.num_rows, loaded.num_distinct) == (count, num_distinct)
    assert len({q.id for q in loaded.questions}) == count
    assert len({q.problem_id for q in loaded.questions}) == num_distinct
    assert all(q.system is None and q.prompt.endswith(SENTENCE) for q in loaded.questions)
    assert loaded.notes == [f"{path}: {count:,} rows, {num_distinct:,} distinct prompts"]
    assert len(read(Reading(path), repeats=False).questions) == num_distinct


@pytest.mark.parametrize(("name", "count"), [("test", 210), ("train", 1890)])
def test_the_chemistry_set_loads_with_system_turn_and_letter(name, count):
    path = real(f"sciknoweval_chemistry/{name}.json")
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    questions = read(Reading(path), LETTER).questions
    assert len(questions) == count
    assert [q.answer for q in questions] == [row["answer"] for row in rows]
    assert [q.prompt for q in questions] == [row["prompt"] for row in rows]  # nothing is added
    assert [q.system for q in questions] == [row["system"] for row in rows]
    with pytest.raises(
        UserError, match=r"row 1: the prompt asks for an answer tag.*use ChoiceTask"
    ):
        read(Reading(path), BOX)


def test_a_letter_may_be_stored_with_its_parentheses(tmp_path):
    rows = [{"question": "Which? (A) 4 (B) 5", "answer": answer} for answer in ("(B)", "B.", "B")]
    loaded = read(Reading(write(tmp_path / "a.jsonl", rows)), LETTER)
    assert [q.answer for q in loaded.questions] == ["B"] * 3


# --------------------------------------------------------------------------------------- repeats


@pytest.mark.long
def test_the_raw_dapo_layout_is_a_thousand_boxed_questions_and_says_so(tmp_path):
    path = str(tmp_path / "dapo.parquet")
    pq.write_table(pa.Table.from_pylist(list(dapo_rows(10_000, 1000))), path)
    loaded = read(Reading(path), repeats=False)
    assert [q.prompt for q in loaded.questions] == [
        f"What is {n}+1?\n{SENTENCE}" for n in range(1000)
    ]
    assert [q.answer for q in loaded.questions] == [str(n + 1) for n in range(1000)]
    assert loaded.notes == [
        f"{path}: 10,000 rows, 1,000 distinct prompts",
        f"{path}: instruction added to 0 prompts, in place of another in 10,000, already in 0",
    ]
    every = read(Reading(path)).questions
    assert len(every) == len({q.id for q in every}) == 10_000
    assert every[1003].problem_id == every[3].id
    assert every[1003].prompt == every[3].prompt


def test_a_prompt_of_nothing_but_the_sentence_is_refused(tmp_path):
    sentence = 'Remember to put your answer on its own line after "Answer:".'
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": sentence, "answer": "2"}))
    with pytest.raises(UserError, match="row 1: field `prompt`: expected text, got str ''"):
        read(Reading(str(path)))


def test_rows_are_repeats_where_all_that_is_asked_is_equal(tmp_path):
    row = {"question": "1+1?", "answer": "2"}
    rows = [row, {**row, "question": " 1+1? "}, {**row, "system": "Be brief."}, row]
    path = write(tmp_path / "a.jsonl", rows)
    assert [q.id for q in read(Reading(path), repeats=False).questions] == ["a:0", "a:2"]
    every = read(Reading(path)).questions
    assert [q.problem_id for q in every] == ["a:0", "a:0", "a:2", "a:0"]


def test_repeats_with_another_answer_are_counted_and_named(tmp_path):
    rows = [*sums(2), {"question": "0+1?", "answer": "7"}]
    path = write(tmp_path / "a.jsonl", rows)
    loaded = read(Reading(path))
    assert [q.answer for q in loaded.questions] == ["1", "2", "7"]
    (note,) = [note for note in loaded.notes if "another answer" in note]
    assert note.endswith(
        f"1 rows have another answer than an earlier row of the same prompt: {path} row 3"
    )
    assert [q.answer for q in read(Reading(path), repeats=False).questions] == ["1", "2"]


# ----------------------------------------------------------------------------------------- limit


def test_smaller_limits_are_subsets_of_larger_ones(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(100))
    found = [{q.id for q in read(Reading(path, limit=n)).questions} for n in (1, 8, 64, 100, 512)]
    assert [len(ids) for ids in found] == [1, 8, 64, 100, 100]
    assert all(small < large for small, large in itertools.pairwise(found[:4]))
    assert found[2] != {f"a:{n}" for n in range(64)}  # not the first ones
    questions = read(Reading(path, limit=8)).questions
    assert [int(q.id[2:]) for q in questions] == sorted(int(q.id[2:]) for q in questions)


def test_the_seed_and_not_the_order_of_rows_draws_the_subset(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(100))
    backwards = write(tmp_path / "b.jsonl", sums(100)[::-1])

    def prompts(path, seed):
        return {q.prompt for q in read(Reading(path, limit=20, limit_seed=seed)).questions}

    assert prompts(path, 0) == prompts(backwards, 0)
    # Of two independent draws of 20 out of 100 some 4 are shared; 14 or more in one case of 10^7.
    assert len(prompts(path, 0) & prompts(path, 1)) < 14


def test_a_limit_counts_distinct_prompts_in_training_and_rows_in_evaluation(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(10) * 10)
    distinct = read(Reading(path, limit=10), repeats=False).questions
    assert len({q.prompt for q in distinct}) == 10
    assert len(read(Reading(path, limit=10)).questions) == 10
    assert (
        f"{path}: 8 questions drawn (limit 8, limit_seed 0)" in read(Reading(path, limit=8)).notes
    )


# ---------------------------------------------------------------------------------------- bad rows


def test_a_bad_row_is_fatal_or_skipped_counted_and_listed(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [*sums(3), {"question": "", "answer": "1"}, {"question": "1", "answer": None}])
    path.write_text(path.read_text() + '{"question": "9+1?", "ans\n')
    with pytest.raises(UserError, match=r"a.jsonl: row 4: field `question`: expected text"):
        read(Reading(str(path)))
    loaded = read(Reading(str(path), bad_rows="skip"))
    assert [q.id for q in loaded.questions] == ["a:0", "a:1", "a:2"]
    assert [message.split(": ")[1] for message in loaded.skipped] == ["row 4", "row 5", "row 6"]
    assert loaded.notes[0] == f"{path}: 6 rows, 3 distinct prompts"
    assert loaded.notes[-1].startswith(f"{path}: 3 rows skipped: {path}: row 4: field `question`")


def test_a_data_set_without_a_good_row_is_refused_either_way(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    bad = write(tmp_path / "bad.jsonl", [{"question": "1+1?"}] * 7)
    for path, message in ((empty, "holds no questions"), (bad, "no column holds the answer")):
        for bad_rows in ("fatal", "skip"):
            with pytest.raises(UserError, match=message) as caught:
                read(Reading(path, bad_rows=bad_rows))
    assert "; and 2 more" in str(caught.value)


def test_several_files_and_several_answers(tmp_path):
    paths = (
        write(tmp_path / "a.jsonl", sums(2, lambda n: [str(n + 1), f"{n + 1}.0"])),
        write(tmp_path / "b.csv", []),
    )
    (tmp_path / "b.csv").write_text("problem,answer\n5+1?,6\n")
    loaded = read(Reading(paths))
    assert [q.id for q in loaded.questions] == ["a:0", "a:1", "b:0"]
    assert loaded.questions[0].alternatives == ("1.0",)
    assert "2 rows have several answers; any of them is right" in loaded.notes[-1]
    assert read(Reading(",".join(paths))).questions == loaded.questions


def test_mathematics_in_tags_needs_an_instruction_that_asks_for_a_box(tmp_path):
    tagged = {"question": "1+1?", "answer": 2, "system": "Use <think></think><answer></answer>."}
    path = write(tmp_path / "a.jsonl", [tagged])
    for instruction in ("default", None, "Be quick."):
        with pytest.raises(UserError, match="row 1: the prompt asks for an answer tag"):
            read(Reading(path, instruction=instruction))
    (question,) = read(Reading(path, instruction=r"Put a \boxed{} into the tag.")).questions
    assert question.prompt == "1+1?\nPut a \\boxed{} into the tag."


@pytest.mark.parametrize("instruction", [None, "Be quick."])
def test_prompts_that_do_not_ask_for_what_is_graded_are_counted(tmp_path, instruction):
    rows = [*sums(2), {"question": r"7+1? Use \boxed{}.", "answer": 8}]
    path = write(tmp_path / "a.jsonl", rows)
    note = read(Reading(path, instruction=instruction)).notes[-1]
    assert note.startswith(f"{path}: 2 prompts do not ask for a box, which is all that is graded")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "`limit` must be at least 1, got 0"),
        ({"limit": "8"}, "`limit` must be at least 1, got '8'"),
        ({"limit": 1.5}, "`limit` must be at least 1, got 1.5"),
        ({"limit": True}, "`limit` must be at least 1, got True"),
        ({"instruction": 5}, "`instruction` must be a text, default or None, got 5"),
        ({"instruction": True}, "`instruction` must be a text, default or None, got True"),
        ({"source": None}, "`source` must be a text or a tuple of texts, got None"),
        ({"source": ("a.jsonl", 5)}, "`source` must be a text or a tuple of texts"),
        ({"bad_rows": "ignore"}, "`bad_rows` must be fatal or skip, got 'ignore'"),
        ({"instruction": " "}, "`instruction` must be a text, default or None"),
        ({"columns": (("promt", "x"),)}, "'promt' is no field"),
        ({"columns": None}, "`columns` must be pairs .field, column., got None"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Reading(**{"source": "a.jsonl", **settings})


# ------------------------------------------------------------------------------------------- size

NUM_ROWS, NUM_PROBLEMS = 1_791_700, 17_398  # of the published DAPO-Math-17k


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_published_size_of_dapo_is_streamed(tmp_path):
    """Prints time and memory of a process of its own: `pytest -m slow -s -k published_size`."""
    path = tmp_path / "dapo.parquet"
    part = pa.Table.from_pylist(list(dapo_rows(NUM_PROBLEMS, NUM_PROBLEMS)))
    with pq.ParquetWriter(path, part.schema) as writer:
        for start in range(0, NUM_ROWS, NUM_PROBLEMS):
            writer.write_table(part.slice(0, min(NUM_PROBLEMS, NUM_ROWS - start)))
    # VmHWM and not getrusage: that counts the memory of the process that started this one too.
    code = (
        "import re, resource, sys\n"
        "from pathlib import Path\n"
        "from jaxdistill.tasks.sources import Reading, read\n"
        "import pyarrow.parquet\n"
        "peak = lambda: re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "before = peak()\n"
        "loaded = read(Reading(sys.argv[1]), repeats=False)\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "seconds = round(usage.ru_utime + usage.ru_stime)\n"
        "print(len(loaded.questions), loaded.num_rows, before, peak(), seconds)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    count, num_rows, before_kb, after_kb, cpu_s = map(int, done.stdout.split())
    print(f"{num_rows:,} rows: {cpu_s} s of CPU, peak {after_kb / 1e3:.0f} MB, of which")
    print(f"{before_kb / 1e3:.0f} MB before reading")
    assert (count, num_rows) == (NUM_PROBLEMS, NUM_ROWS)
    assert after_kb - before_kb < 300e3  # the rows as questions would be 1.5 GB
