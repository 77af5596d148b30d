"""Files of responses: which are found, how they are read, and messages about broken ones."""

import json

import pytest

from jaxdistill.errors import UserError
from jaxdistill.evaluation.responses import FIELDS, read_responses


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize("field", FIELDS)
def test_the_usual_fields_are_found(field, tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": 3, field: "hmm"}, {"id": 4, field: "go"})
    assert [each.text for each in read_responses([path])] == ["hmm", "go"]


def test_a_field_may_be_named_and_may_hold_a_list_with_a_verdict_each(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"response": "no", "mine": ["a", "b"], "correct": [True, 0], "num_tokens": [1, 2]},
        "",
        {"mine": [], "correct": None},
        {"mine": ["c", "d"], "finished": False, "question": "Q"},
    )
    found = read_responses([path], "mine")
    assert [each.text for each in found] == ["a", "b", "c", "d"]
    assert [each.correct for each in found] == [True, False, None, None]
    assert [each.num_tokens for each in found] == [1, 2, None, None]
    assert [each.finished for each in found] == [None, None, False, False]
    assert [each.where.rpartition(":")[2] for each in found] == ["1", "1", "4", "4"]
    assert [each.question for each in found] == [None, None, "Q", "Q"]


def test_a_line_separator_inside_a_response_does_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "wait\u2028\\nhmm"}\r\n{"text": "a"}', encoding="utf-8")
    assert [each.text for each in read_responses([path])] == ["wait\u2028\nhmm", "a"]


def test_a_run_folder_means_its_rollouts_or_else_its_evaluations(tmp_path):
    run = tmp_path / "run"
    write(run / "metrics.jsonl", {"step": 1})
    write(run / "evals" / "step_000002" / "heldout.jsonl", {"response": "b"})
    assert [each.source for each in read_responses([run])] == ["evals/step_000002/heldout.jsonl"]
    write(run / "rollouts" / "step_000000.jsonl", {"response": "a"})
    write(run / "rollouts" / "step_000010.jsonl", {"response": "a"})
    found = read_responses([run])
    assert [each.source for each in found] == [f"rollouts/step_0000{i}0.jsonl" for i in range(2)]
    both = read_responses([run, run / "evals"])
    assert len({each.source for each in both}) == len(both) == 3


BROKEN = {
    "empty": ("", "{file}: no responses; the file is empty"),
    "blank": ("\n \n", "{file}: no responses; the file is empty"),
    "no JSON": ('{"text": "a"}\n{"text":', "{file}:2: not valid JSON"),
    "no UTF-8": (b'{"text": "\xff"}', "{file}:1: not valid JSON"),
    "no object": ('["a"]', "{file}:1: expected a JSON object, got list ['a']"),
    "number": ('{"text": 5}', "{file}:1: field `text`: expected text or a list of texts, got int"),
    "null": ('{"text": null}', "field `text`: expected text or a list of texts, got nothing"),
    "list": ('{"text": ["a", 5]}', "{file}:1: field `text`: expected text or a list of texts"),
    "none": ('{"step": 1}', "{file}:1: no response field among step; name it with --field"),
    "missing": ('{"text": "a"}\n{"step": 1}', "{file}:2: no field `text`; it has step"),
    "verdict": ('{"text": "a", "correct": "yes"}', "field `correct`: expected true or false"),
    "verdicts": (
        '{"text": ["a", "b"], "correct": [true]}',
        "{file}:1: field `correct`: expected one value, or one for each of 2 responses",
    ),
    "length": ('{"text": "a", "num_tokens": -1}', "field `num_tokens`: expected a number of tok"),
    "deep": ('{"text": ' + "[" * 100_000, "{file}:1: not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_says_where(name, tmp_path):
    content, said = BROKEN[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_responses([path])
    assert said.format(file=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_fields_and_responses_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.jsonl: cannot be read: No such file"):
        read_responses([tmp_path / "no.jsonl"])
    with pytest.raises(UserError, match=r"a folder without \.jsonl files"):
        read_responses([tmp_path])
    with pytest.raises(UserError, match=r"empty\.jsonl: no responses"):
        read_responses([write(tmp_path / "a.jsonl", {"text": ""}), write(tmp_path / "empty.jsonl")])
    with pytest.raises(UserError, match="no field `other`; it has text"):
        read_responses([write(tmp_path / "a.jsonl", {"text": ""})], "other")
