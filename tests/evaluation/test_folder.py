"""The folder of an evaluation: what it takes for its own, and what is left of a stopped one."""

import dataclasses
import json

import pytest

from jaxdistill.errors import UserError
from jaxdistill.evaluation.folder import EvaluationFolder
from jaxdistill.evaluation.saved import read_evaluation
from jaxdistill.tasks.questions import Question

QUESTIONS = [Question(f"q{n}", f"{n}+1?", str(n + 1)) for n in range(3)]
IDENTITY = {
    "model": {"name": "m", "revision": "abc"},
    "sampling": {"temperature": 0.6, "max_new_tokens": 64},
    "k": 2,
    "data": {"sums": {"hash": "123", "questions": 3}},
}
PLACE = {
    "time_utc": "now", "command": ["eval"], "packages": {"jax": "1"}, "devices": {"kind": "cpu"}
}  # fmt: skip


def records_of(question, text="2\u2028 = 2"):
    return [
        {
            "question_id": question.id,
            "rollout": rollout,
            "response": text,
            "correct": True,
            "finished": True,
            "num_tokens": 3,
            "epistemic": 0,
        }
        for rollout in range(2)
    ]


@pytest.fixture
def folder(tmp_path):
    return EvaluationFolder(path=tmp_path / "found", identity=IDENTITY, place=PLACE)


def stopped(folder, questions=2):
    folder.begin()
    for question in QUESTIONS[:questions]:
        folder.append("sums", records_of(question))
    return folder.part("sums")


def test_whatever_a_kill_leaves_whole_questions_are_kept(folder):
    whole = stopped(folder).read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole) + 1):
        folder.part("sums").write_bytes(whole[:size])
        records = folder.kept("sums", QUESTIONS)
        complete = whole[:size].count(b"\n") // 2 * 2
        assert len(records) == complete
        assert folder.part("sums").read_bytes() == b"".join(lines[:complete])
        for question in QUESTIONS[complete // 2 : 2]:
            folder.append("sums", records_of(question))
        assert folder.part("sums").read_bytes() == whole


def test_a_file_appears_when_all_of_its_questions_are_answered(folder):
    stopped(folder)
    assert not list(folder.path.glob("*.jsonl"))
    assert not folder.is_finished
    read = read_evaluation(folder.path)
    assert (len(read.records["sums"]), read.is_complete, read.questions) == (4, False, {})
    folder.append("sums", records_of(QUESTIONS[2]))
    folder.complete("sums")
    summary = folder.finish({"sums": folder.kept("sums", QUESTIONS)})
    assert folder.is_finished
    read = read_evaluation(folder.path)
    assert (read.summary, read.identity, read.hash_of("sums")) == (summary, IDENTITY, "123")
    assert [row["correct"] for row in read.questions["sums"]] == [2, 2, 2]
    assert summary["data"]["sums"]["n"] == 3
    assert {"date", "versions", "devices", "model", "sampling", "k"} <= summary.keys()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("k",), 4, "k=2 and not 4; name another folder"),
        (("model", "revision"), "xyz", "model.revision='abc' and not 'xyz'"),
        (("sampling", "temperature"), 0.7, "sampling.temperature=0.6 and not 0.7"),
        (("data", "sums", "hash"), "9", "data.sums.hash='123' and not '9'"),
        (("seed",), 1, "seed=None and not 1"),
    ],
)
def test_another_evaluation_is_refused_with_what_differs(folder, path, value, message):
    stopped(folder)
    folder.check()
    other = json.loads(json.dumps(IDENTITY))
    inner = other
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        dataclasses.replace(folder, identity=other).check()
    assert "holds another evaluation" in str(error.value)


@pytest.mark.parametrize("name", ["notes.jsonl", "summary.json", "x.jsonl.part"])
def test_a_folder_with_other_files_is_refused(folder, name):
    folder.path.mkdir()
    folder.check()  # an empty one is not
    (folder.path / name).write_text("{}")
    with pytest.raises(UserError, match="holds other files; name a new or empty folder"):
        folder.check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "evaluation.json: not valid JSON"),
        ("[]", "evaluation.json: expected a JSON object"),
        ('{"format": 2}', 'field "format": expected 1, got 2'),
        ('{"format": 1}', 'field "identity": expected an object'),
    ],
)
def test_a_damaged_identity_is_named(folder, content, message):
    folder.path.mkdir()
    (folder.path / "evaluation.json").write_text(content)
    for read in (folder.check, lambda: read_evaluation(folder.path)):
        with pytest.raises(UserError, match=message):
            read()


def test_damaged_or_foreign_records_are_named(folder):
    part = stopped(folder)
    whole = part.read_text()
    for text, message in (
        ("{\n" + whole, "line 1 is no record of a response"),
        (whole.replace("q0", "q7"), "holds other questions; remove it"),
        ("[]\n[]\n", "line 1 is no record"),
    ):
        part.write_text(text)
        with pytest.raises(UserError, match=message):
            folder.kept("sums", QUESTIONS)


def test_one_place_stands_once_however_often_it_starts_again(folder):
    for start in range(3):
        dataclasses.replace(folder, place=PLACE | {"time_utc": f"day {start}"}).begin()
    assert folder.places == [PLACE | {"time_utc": "day 0"}]
    dataclasses.replace(folder, place=PLACE | {"devices": {"kind": "H200"}}).begin()
    assert [each["devices"]["kind"] for each in folder.places or ()] == ["cpu", "H200"]


def test_a_run_is_read_at_its_last_complete_evaluation_and_old_ones_without_identity(tmp_path):
    for step, summary in ((0, {"sums": {"n": 2}}), (5, {"sums": {"n": 2}}), (9, None)):
        place = tmp_path / "evals" / f"step_{step:06d}"
        place.mkdir(parents=True)
        lines = [json.dumps(record) for record in records_of(QUESTIONS[0], f"at {step}")]
        (place / "sums.jsonl").write_text("\n".join(lines))
        if summary is not None:
            (place / "summary.json").write_text(json.dumps(summary))
    read = read_evaluation(tmp_path)
    assert read.folder.name == "step_000005"
    assert read.identity == {}
    assert [record["response"] for record in read.records["sums"]] == ["at 5", "at 5"]
    with pytest.raises(UserError, match="holds no evaluation"):
        read_evaluation(tmp_path / "evals")
    with pytest.raises(UserError, match="no such folder"):
        read_evaluation(tmp_path / "nowhere")
