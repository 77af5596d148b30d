"""The kind of task of a data set is told from its rows, or asked for."""

import json

import pytest
from places import SHARED_DATA

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources.kinds import kind_of, told_by
from jaxdistill.tasks.sources.reading import Reading

TAG = "Use <answer> and </answer>."
BOX = r"Use \boxed{}."
OPTIONS = "Which is prime?\nA: 4\nB: 5"


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([("1+1?", "2")], "math"),
        ([("1+1?", r"\frac{4}{2}")], "math"),
        ([("Solve.", "x"), ("Solve.", r"\pi"), ("Solve.", "pi")], "math"),
        ([("1+1? " + BOX, "two")], "math"),
        ([(f"{OPTIONS} {BOX}", "B")], "math"),  # a letter in a box
        ([(f"{OPTIONS} {TAG}", "B")], "choice"),
        ([(TAG, "B")], "choice"),
        ([(TAG, "(B)")], "choice"),
        ([(OPTIONS, "B"), ("Which? (A) x (B) y", "A")], "choice"),
        ([(f"Capital? {TAG}", "Paris")], "exact"),
        ([(f"1+1? {TAG}", "2")], "exact"),
        ([("Solve.", "π"), ("Solve.", "√2"), ("Solve.", "-x")], "math"),
        ([("Choose. a) 1 b) 2", "12"), ("Choose. a) 1 b) 2", "a")], "math"),
        # What does not tell, or tells two things.
        ([("Choose. a) 1 b) 2", "b"), ("Choose.\n(a) 1\n(b) 2", "(a)")], None),  # lower case
        ([("Capital?", "Paris")], None),
        ([("1+1?", "2"), ("Capital?", "Paris")], None),
        ([("Name a vertex.", "B")], None),  # a letter without options
        ([(OPTIONS, "B"), ("Name a vertex.", "B")], None),
        ([("1+1?", "2"), (f"Capital? {TAG}", "Paris")], None),
    ],
)
def test_rows_tell_their_kind(rows, kind):
    assert told_by([Question("q", prompt, answer) for prompt, answer in rows]) == kind


def test_what_no_row_tells_is_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "Capital?", "answer": "Paris"}))
    with pytest.raises(
        UserError, match=r"cannot tell its kind.*'Paris'; say math, choice or exact"
    ):
        kind_of(Reading(str(path)))
    path.write_text("{}")
    with pytest.raises(UserError, match="row 1: no column holds the question"):
        kind_of(Reading(str(path)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("math/aime24.parquet", "math"),
        ("math/seen_1x64.parquet", "math"),
        ("sciknoweval_chemistry/test.json", "choice"),
        ("sciknoweval_chemistry/train.json", "choice"),
    ],
)
def test_real_sets_tell_their_kind(name, kind):
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"no {SHARED_DATA / name}")
    assert kind_of(Reading(str(SHARED_DATA / name))) == kind
