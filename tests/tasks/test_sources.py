"""Question files: native and JSON columns, real data sets, and messages about invalid rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import SHARED_DATA

from jaxdistill.errors import UserError
from jaxdistill.tasks import sources

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
ROW = {
    "prompt": CHAT,
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "solution": "One and one."},
}


def _real(name):
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"no {SHARED_DATA / name}")
    return SHARED_DATA / name


def _parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _jsonl(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def _complaint(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ------------------------------------------------------------------------------------- real sets


@pytest.mark.parametrize(
    ("name", "count", "first_answer"),
    [
        ("math/aime24.parquet", 30, "540"),
        ("math/amc23.parquet", 40, "27"),
        ("math/seen_64.parquet", 64, "52"),
        ("math/seen_1x64.parquet", 64, "640"),
        ("math/seen_512.parquet", 512, "1"),
    ],
)
def test_the_papers_sets_load_whatever_their_storage(name, count, first_answer):
    questions = sources.read(_real(name))
    assert len(questions) == len({question.id for question in questions}) == count
    assert questions[0].answer == first_answer
    assert all(q.system is None for q in questions)
    assert all(q.prompt.endswith("put your final answer within \\boxed{}.") for q in questions)


def test_a_problem_repeated_in_the_file_is_as_many_questions():
    questions = sources.read(_real("math/seen_1x64.parquet"))
    assert len({question.prompt for question in questions}) == 1
    assert len({question.id for question in questions}) == 64


def test_multiple_choice_questions_bring_their_system_prompt():
    questions = sources.read(_real("sciknoweval_chemistry/test.json"))
    assert len(questions) == 210
    assert {question.answer for question in questions} <= set("ABCD")
    assert all("<answer>" in (question.system or "") for question in questions)


# ---------------------------------------------------------------------------------------- parquet


def test_native_columns_and_json_columns_give_the_same_questions(tmp_path):
    (tmp_path / "native").mkdir()
    (tmp_path / "json").mkdir()
    native = _parquet(tmp_path / "native" / "set.parquet", [ROW, ROW])
    as_json = [{name: json.dumps(value) for name, value in ROW.items()}] * 2
    strings = _parquet(tmp_path / "json" / "set.parquet", as_json)
    first, second = sources.read_parquet(native)
    assert [first, second] == sources.read_parquet(strings)
    assert (first.system, first.prompt, first.answer) == ("Be brief.", "1+1?", "2")
    assert first.solution == "One and one."
    assert (first.id, second.id) == ("set:0:7", "set:1:7")


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"prompt": "[{"}, "prompt", "valid JSON"),
        ({"prompt": '"1+1?"'}, "prompt", "a list of messages"),
        ({"prompt": '[{"role": "assistant", "content": "2"}]'}, "prompt", "a list of messages"),
        ({"prompt": "[]"}, "prompt", "a list of messages"),
        ({"prompt": '[{"role": "user", "content": null}]'}, "prompt[0].content", "text"),
        ({"prompt": '[{"role": "user", "content": "\\ud800"}]'}, "prompt[0].content", "surrogate"),
        ({"prompt": "[" * 100_000}, "prompt", "valid JSON"),
        ({"reward_model": "{}"}, "reward_model.ground_truth", "text"),
        ({"reward_model": "3"}, "reward_model", "an object"),
        ({"reward_model": '{"ground_truth": [2]}'}, "reward_model.ground_truth", "text"),
        ({"extra_info": "[1]"}, "extra_info", "an object"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path, change, field, expected):
    good = {name: json.dumps(value) for name, value in ROW.items()}
    path = _parquet(tmp_path / "set.parquet", [good, {**good, **change}])
    message = _complaint(sources.read_parquet, path)
    assert "row 2" in message
    assert f"`{field}`" in message
    assert expected in message
    assert len(message) < 400


def test_a_file_that_is_no_parquet_is_one_line(tmp_path):
    assert "no such file" in _complaint(sources.read, tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    _complaint(sources.read, tmp_path / "text.parquet")
    (tmp_path / "folder.parquet").mkdir()
    _complaint(sources.read, tmp_path / "folder.parquet")
    _complaint(sources.read, _parquet(tmp_path / "empty.parquet", [{"question": "1+1?"}]))
    _complaint(sources.read, tmp_path / "questions.csv")


# ----------------------------------------------------------------------------------- JSON lines


def test_json_lines_take_question_or_prompt_and_numbers_as_answers(tmp_path):
    path = _jsonl(
        tmp_path / "set.jsonl",
        {"question": "1+1?\u2028", "answer": 2, "solution": "One and one."},
        "",
        {"prompt": CHAT, "answer": "2", "id": "b"},
    )
    first, second = sources.read(path)
    assert (first.id, first.answer, first.solution) == ("set:0", "2", "One and one.")
    assert (second.id, second.prompt, second.system) == ("set:2:b", "1+1?", "Be brief.")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("{", "line"),
        ("[1]", "row"),
        ({"answer": "2"}, "prompt"),
        ({"question": "", "answer": "2"}, "question"),
        ({"question": "1+1?"}, "answer"),
        ({"question": "1+1?", "answer": True}, "answer"),
        ({"question": "1+1?", "answer": "2", "solution": 3}, "solution"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path, row, field):
    path = _jsonl(tmp_path / "set.jsonl", {"question": "1+1?", "answer": "2"}, row)
    message = _complaint(sources.read, path)
    assert "row 2" in message
    assert f"`{field}`" in message


def test_a_file_without_rows_and_a_file_that_is_no_text_are_refused(tmp_path):
    assert "no questions" in _complaint(sources.read, _jsonl(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "row 1" in _complaint(sources.read, tmp_path / "bytes.jsonl")


# ------------------------------------------------------------------------------------------- TFDS


def _prepare_sums(tfds, data_dir):
    """Build a data set of three questions as `tfds build` does."""

    class Sums(tfds.core.GeneratorBasedBuilder):
        __module__ = "sums"  # TFDS looks up the class's package, and the tests are not a package
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"question": text, "answer": text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(3):
                yield n, {"question": f"{n}+1 = 解?", "answer": str(n + 1)}

    Sums(data_dir=data_dir, file_format="array_record").download_and_prepare()


def test_a_tfds_set_gives_text_not_bytes(tmp_path):
    _prepare_sums(pytest.importorskip("tensorflow_datasets"), tmp_path)
    questions = sources.read_tfds("sums", tmp_path)
    assert {(q.prompt, q.answer) for q in questions} == {
        ("0+1 = 解?", "1"), ("1+1 = 解?", "2"), ("2+1 = 解?", "3")
    }  # fmt: skip
    assert len({question.id for question in questions}) == 3
    for name, split in (("absent", "train"), ("sums", "test")):
        with pytest.raises(UserError, match=name) as caught:
            sources.read_tfds(name, tmp_path, split)
        assert "\n" not in str(caught.value)
