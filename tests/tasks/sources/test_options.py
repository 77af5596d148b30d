"""Options of multiple choice in the layouts of MMLU, ARC, CommonsenseQA and lettered columns."""

import numpy as np
import pytest

from jaxdistill.tasks.sources.columns import question_of
from jaxdistill.tasks.sources.options import Options, with_options
from jaxdistill.tasks.sources.place import BadRow, Place

PLACE = Place("a.jsonl", "a", 0)
TEXTS = ["4", "5", "6"]


@pytest.mark.parametrize(
    "row",
    [
        {"choices": TEXTS, "answer": 1},  # MMLU
        {"choices": np.array(TEXTS, object), "answer": np.int64(1)},
        {"options": TEXTS, "answer": "B"},
        {"options": TEXTS, "answer": "(B)"},
        {"options": TEXTS, "answer": "5"},
        {"choices": {"text": TEXTS, "label": ["A", "B", "C"]}, "answerKey": "B"},  # ARC
        {"choices": {"text": TEXTS, "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"choices": {"text": TEXTS, "label": [1, 2, 3]}, "answerKey": 2},
        {"choices": {"A": "4", "B": "5", "C": "6", "D": None}, "answer": "B"},
        {"choices": '{"A": "4", "B": "5", "C": "6"}', "answer": "B"},
        {"choices": [{"label": x, "text": t} for x, t in zip("ABC", TEXTS)], "answer": "B"},
        {"options": ["A)4", "B)5", "C)6"], "answer": "B"},  # AQuA
        {"A": "4", "B": "5", "C": "6", "answer": "B"},
        {"options": TEXTS, "answer": ["B"]},
        {"options": TEXTS, "answer": "B) 5"},
        {"options": TEXTS, "answer": "(B) 5"},
        {"options": ["A. 4", "B. 5", "C. 6"], "answer": "B. 5"},
        {"A": "4", "B": "5", "C": "6", "D": None, "answer": "(B)"},
        {"A": "4", "B": "5", "C": None, "D": "6", "answer": "B"},
        {"A": "4", "B": None, "C": "5", "D": "6", "answer": "C"},  # without a gap C is the second
    ],
)
def test_options_are_asked_below_the_question_and_the_gold_is_a_letter(row):
    question = question_of(PLACE, {"question": "Which is prime?", **row})
    assert question.prompt == "Which is prime?\n\nA: 4\nB: 5\nC: 6"
    assert question.answer == "B"
    assert question.alternatives == ()


@pytest.mark.parametrize(
    "row",
    [
        {"choices": TEXTS, "answer": 3},
        {"choices": TEXTS, "answer": -1},
        {"choices": TEXTS, "answer": True},
        {"choices": TEXTS, "answer": "D"},
        {"choices": TEXTS, "answer": None},
        {"choices": TEXTS, "answer": ["A", "B"]},
        {"choices": ["4", "4"], "answer": "4"},
        {"choices": ["4"], "answer": 0},
        {"choices": "4 or 5", "answer": "A"},
        {"choices": {"text": TEXTS, "label": ["A", "A", "C"]}, "answer": "A"},
        {"choices": {"text": TEXTS, "label": ["A"]}, "answer": "A"},
        {"choices": ["4", None], "answer": "A"},
        {"choices": TEXTS, "answer": "B) 6"},
        {"choices": 5, "answer": "A"},
        {"A": "4", "B": "5", "C": "6", "answer": "E"},
        {"choices": True, "answer": "A"},
        {"choices": [["A", "4"], ["B", "5"]], "answer": "A"},  # pairs, and no texts
        {"choices": {"text": TEXTS, "label": 5}, "answer": "A"},
        {"choices": {"text": "456"}, "answer": "A"},
    ],
)
def test_options_and_golds_that_do_not_fit_are_refused(row):
    with pytest.raises(BadRow, match=r"a.jsonl: row 1: field `(choices|answer)"):
        question_of(PLACE, {"question": "Which is prime?", **row})


@pytest.mark.parametrize("gold", ["12", "5", 5, 1.5, r"\frac{1}{2}"])
def test_lettered_columns_beside_another_answer_are_no_options(gold):
    row = {"problem": "The sides are A, B, C.", "A": 3, "B": 4, "C": 5, "answer": gold}
    question = question_of(PLACE, row)
    assert question.prompt == "The sides are A, B, C."
    assert question.answer == str(gold)


@pytest.mark.parametrize("mark", ["A: {} B: {}", "(A) {}\n(B) {}", "A. {}\nB. {}", "A) {}, B) {}"])
def test_a_prompt_that_lists_its_options_is_left_alone(mark):
    listed = "Which is prime? " + mark.format("4", "5")
    assert with_options(listed, Options(("A", "B"), ("4", "5"))) == listed


def test_a_prompt_that_merely_mentions_its_options_is_given_them():
    asked = with_options("Which of 4 and 5 is prime?", Options(("A", "B"), ("4", "5")))
    assert asked.endswith("\n\nA: 4\nB: 5")
