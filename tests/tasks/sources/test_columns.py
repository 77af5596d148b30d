"""Rows of public layouts as questions, and what is said of a row that is none."""

import json
import random
from decimal import Decimal

import pytest
from odd_values import odd_row

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import is_text
from jaxdistill.tasks.sources.columns import FIELDS, check_mapping, question_of
from jaxdistill.tasks.sources.place import BadRow, Place

PLACE = Place("set.parquet", "set", 2)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
USER = [{"role": "user", "content": "1+1?"}]
BOXED = "One and one are \\boxed{2}."
GSM8K = "One and one are <<1+1=2>>2.\n#### 2"


def fields(row, mapping=()):
    """(id, system, prompt, answer, solution) of a row."""
    q = question_of(PLACE, row, mapping)
    return q.id, q.system, q.prompt, q.answer, q.solution


VERL = {
    "data_source": "math_dapo",
    "prompt": CHAT,
    "ability": "MATH",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "solution": "One and one."},
}
LAYOUTS = {
    "verl": (VERL, ("set:2:7", "Be brief.", "1+1?", "2", "One and one.")),
    "verl as JSON": (
        {name: json.dumps(value) for name, value in VERL.items() if name != "data_source"},
        ("set:2:7", "Be brief.", "1+1?", "2", "One and one."),
    ),
    "verl with a problem id": (
        {**VERL, "problem_id": "p1"},
        ("set:2:p1", "Be brief.", "1+1?", "2", "One and one."),
    ),
    "verl without extras": (
        {"prompt": USER, "reward_model": {"ground_truth": 2.0}, "extra_info": None},
        ("set:2", None, "1+1?", "2", None),
    ),
    "verl with plain text": (
        {"prompt": "1+1?", "reward_model": {"ground_truth": ["2"]}},
        ("set:2", None, "1+1?", "2", None),
    ),
    "verl with a Decimal": (
        {"prompt": USER, "reward_model": {"ground_truth": Decimal("2.0")}},
        ("set:2", None, "1+1?", "2", None),
    ),
    "verl with maps of Arrow": (
        {"prompt": USER, "reward_model": [("ground_truth", "2"), ("style", "rule")]},
        ("set:2", None, "1+1?", "2", None),
    ),
    "verl GSM8K": (
        {
            "prompt": USER,
            "reward_model": {"ground_truth": "2"},
            "extra_info": {"answer": GSM8K, "question": "1+1?", "index": 0, "split": "test"},
        },
        ("set:2:0", None, "1+1?", "2", None),
    ),
    "DAPO-Math-17k-Processed": (
        {
            "prompt": "1+1?",
            "solution": "2",
            "source_prompt": CHAT,
            "reward_model": {"ground_truth": "2"},
            "extra_info": {"index": "u-1"},
        },
        ("set:2:u-1", None, "1+1?", "2", None),
    ),
    "Skywork": (
        {"prompt": USER, "reward_model": {"ground_truth": '["2"]'}},
        ("set:2", None, "1+1?", "2", None),
    ),
    "MATH-500": (
        {"problem": "1+1?", "solution": BOXED, "answer": "2", "subject": "Algebra", "level": 1,
         "unique_id": "test/1.json"},
        ("set:2:test/1.json", None, "1+1?", "2", BOXED),
    ),
    "MATH": (
        {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": BOXED},
        ("set:2", None, "1+1?", "2", BOXED),
    ),
    "AIME 2024": (
        {"ID": "2024-I-1", "Problem": "1+1?", "Solution": BOXED, "Answer": 2},
        ("set:2:2024-I-1", None, "1+1?", "2", BOXED),
    ),
    "aime_2024": (
        {"id": 60, "problem": "1+1?", "solution": BOXED, "answer": "2", "url": "u", "year": "2024"},
        ("set:2:60", None, "1+1?", "2", BOXED),
    ),
    "AIME2025": ({"question": "1+1?", "answer": "2"}, ("set:2", None, "1+1?", "2", None)),
    "GSM8K": ({"question": "1+1?", "answer": GSM8K}, ("set:2", None, "1+1?", "2", GSM8K)),
    "NuminaMath-CoT": (
        {"source": "s", "problem": "1+1?", "solution": BOXED,
         "messages": [*USER, {"role": "assistant", "content": BOXED}]},
        ("set:2", None, "1+1?", "2", BOXED),
    ),
    "NuminaMath-1.5": (
        {"problem": "1+1?", "solution": BOXED, "answer": "2", "problem_type": "Algebra"},
        ("set:2", None, "1+1?", "2", BOXED),
    ),
    "OlympiadBench": (
        {"id": 1, "question": "1+1?", "solution": [BOXED, "Count."], "final_answer": ["$2$"]},
        ("set:2:1", None, "1+1?", "$2$", BOXED),
    ),
    "DeepMath": (
        {"question": "1+1?", "final_answer": "2", "r1_solution_1": "..."},
        ("set:2", None, "1+1?", "2", None),
    ),
    "OpenMathReasoning": (
        {"problem": "1+1?", "expected_answer": "2", "generated_solution": "..."},
        ("set:2", None, "1+1?", "2", None),
    ),
    "messages": (
        {"messages": CHAT, "ground_truth": 2},
        ("set:2", "Be brief.", "1+1?", "2", None),
    ),
    "SciKnowEval": (
        {"idx": 743, "kind": "mcq", "answer": "A", "prompt": "Which? A: 1 B: 2", "elo": 1500,
         "description": "Which? The solution will be evaluated.", "tests": "-", "embedding": [],
         "system": "\nUse <answer>.\n"},
        ("set:2:743", "\nUse <answer>.\n", "Which? A: 1 B: 2", "A", None),
    ),
    "TFDS bytes": (
        {"question": b"1+1?", "answer": b"2", "id": b"x"},
        ("set:2:x", None, "1+1?", "2", None),
    ),
    "two columns that agree": (
        {"question": "+1?", "prompt": "1+1?", "answer": "1,000", "final_answer": "$1000$"},
        ("set:2", None, "1+1?", "1,000", None),
    ),
    "an empty solution": (
        {"question": "1+1?", "answer": "2", "solution": "", "system": float("nan")},
        ("set:2", None, "1+1?", "2", None),
    ),
    "system beside messages": (
        {"prompt": CHAT, "system": "Be brief.", "answer": "2"},
        ("set:2", "Be brief.", "1+1?", "2", None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_public_layout_is_recognised_by_what_it_holds(layout):
    row, expected = LAYOUTS[layout]
    assert fields(row) == expected


@pytest.mark.parametrize(
    ("mapping", "row"),
    [
        ((("question", "q"), ("answer", "a")), {"q": "1+1?", "a": 2}),
        ((("question", "q"), ("answer", "r.gold")), {"q": CHAT[1:], "r": {"gold": 2}}),
        ((("question", "q"), ("answer", "r.gold")), {"q": "1+1?", "r": '{"gold": "2"}'}),
        ((("question", "q"), ("answer", "r.gold")), {"q": "1+1?", "r.gold": "2"}),
        ((("answer", "label"),), {"question": "1+1?", "answer": "3", "label": "2"}),
        ((("question", "question"),), {"question": "1+1?", "prompt": "2+2?", "answer": "2"}),
    ],
)
def test_columns_of_any_name_are_read_where_they_are_named(mapping, row):
    assert fields(row, mapping) == ("set:2", None, "1+1?", "2", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "1+1?", "label": "2"}, "no column holds the question; the columns are text, lab"),
        ({"question": "1+1?", "target": "2"}, "no column holds the answer; the columns are ques"),
        ({"instruction": "Add.", "input": "1+1?", "answer": "2"}, "`instruction` and `input`"),
        ({"question": "1+1?", "answer": None}, "`answer`: expected text or a number, got nothing"),
        ({"question": "1+1?", "answer": None, "solution": BOXED}, "field `answer`"),
        ({"question": "1+1?", "answer": True}, "`answer`: expected text or a number, got bool"),
        ({"question": "1+1?", "answer": float("nan")}, "`answer`: expected a finite number"),
        ({"question": "1+1?", "answer": GSM8K.replace("#### 2", "####")}, "field `answer`"),
        ({"question": "1+1?", "answer": "so \\boxed{2"}, "field `answer`"),
        ({"question": "1+1?", "answer": "2", "final_answer": "3"}, "'2', `final_answer` '3'"),
        (
            {"prompt": USER, "reward_model": {"ground_truth": "2"}, "answer": "3"},
            "columns hold different answers: `answer` '3', `reward_model.ground_truth` '2'",
        ),
        ({"question": "1+1?", "prompt": "2+2?", "answer": "2"}, "`prompt` and `question` hold"),
        ({"question": None, "answer": "2"}, "`question`: expected text or messages, got noth"),
        ({"question": " ", "answer": "2"}, "field `question`: expected text"),
        ({"question": "1+1?", "answer": "2", "solution": True}, "field `solution`: expected text"),
        ({"question": "1+1?", "answer": "2", "solution": {"a": 3}}, "field `solution`: expected"),
        ({"question": "1+1?", "answer": "0.5", "ground_truth": 0.50001}, "hold different answers"),
        ({"question": "1+1?", "answer": "20", "ground_truth": 2}, "hold different answers"),
        ({"question": "1+1?", "options": 5, "answer": "A"}, "field `options`: expected 2 to 10"),
        ({"problem": "1+1?", "solution": "so $\\boxed$."}, "a solution that ends in a box"),
        ({"question": "1+1?", "answer": "2", "system": ["x"]}, "field `system`: expected text"),
        ({"prompt": CHAT, "system": "Be long.", "answer": "2"}, "`system` and the system turn"),
        ({"problem": "1+1?", "solution": "One and one are two."}, "a solution that ends in a box"),
        ({"problem": "1+1?", "solution": "1+1\n=2"}, "a solution that ends in a box"),
        ({"problem": "1+1?", "solution": None}, "no column holds the answer"),
        ({**VERL, "reward_model": "{}"}, "field `reward_model.ground_truth`"),
        ({**VERL, "reward_model": None}, "field `reward_model.ground_truth`"),
        ({**VERL, "reward_model": "3"}, "field `reward_model`: expected an object"),
        ({**VERL, "reward_model": "{"}, "field `reward_model`: expected valid JSON"),
        ({**VERL, "reward_model": {"ground_truth": {"a": 1}}}, "field `reward_model.ground_truth`"),
        (
            {"messages": [*USER, {"role": "assistant", "content": "2"}], "answer": "2"},
            "expected a user turn last, got an assistant turn",
        ),
    ],
)  # fmt: skip
def test_a_near_miss_is_named_with_its_row_and_field(row, message):
    with pytest.raises(BadRow) as caught:
        question_of(PLACE, row)
    assert str(caught.value).startswith("set.parquet: row 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("extra", [None, "", "train", "[1]", ["train"], 7, True, "{"])
def test_extra_information_that_is_no_struct_does_not_matter(extra):
    row = {**VERL, "extra_info": extra}
    assert fields(row) == ("set:2", "Be brief.", "1+1?", "2", None)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [(34, "34"), (0.5, "0.5"), (Decimal("1e-5"), "0.00001"), ("34", "34"), (["34", "35"], "34")],
)
def test_a_solution_that_is_a_number_is_the_answer(solution, answer):
    assert fields({"problem": "1+1?", "solution": solution}) == (
        "set:2",
        None,
        "1+1?",
        answer,
        None,
    )


@pytest.mark.parametrize("stored", ["", b"", [], (), {}, None, float("nan")], ids=repr)
def test_empty_options_and_solutions_are_none(stored):
    row = {"question": "1+1?", "answer": "2", "options": stored, "solution": stored}
    assert fields(row) == ("set:2", None, "1+1?", "2", None)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2", 2.0), (".5", 0.5), ("073", 73), ("1,000", 1000), ("$2$", "2."), ("+3", Decimal("3.00"))],
)
def test_columns_that_write_one_number_differently_agree(one, other):
    assert fields({"question": "1+1?", "answer": one, "ground_truth": other})[3] == one


def test_an_id_that_no_file_can_hold_is_escaped():
    row = {"question": "1+1?", "answer": "2", "id": "\ud800"}
    assert fields(row)[0] == "set:2:\\ud800"


def test_whatever_a_row_holds_it_is_a_question_or_a_bad_row():
    rng = random.Random(0)
    columns = [name.partition(".")[0] for names in FIELDS.values() for name in names]
    found, messages = 0, []
    for _ in range(10_000):
        row = odd_row(rng, [*columns, *"ABCDE"], {"question": "q", "answer": "B"})
        try:
            question = question_of(PLACE, row)
        except BadRow as error:
            messages.append(str(error))
            continue
        found += 1
        assert all(map(is_text, (question.id, question.prompt, question.answer)))
        assert question.prompt.strip()
        assert question.answer.strip()
        assert question.answer not in ("nan", "inf", "None", "True", "False")
    assert 100 < found < 9_000
    assert not any("\n" in message for message in messages)


def test_a_column_that_is_named_and_missing_is_refused_with_those_there_are():
    with pytest.raises(
        BadRow, match="no column 'q', the question; the columns are question, answer"
    ):
        question_of(PLACE, {"question": "1+1?", "answer": "2"}, (("question", "q"),))
    wide = Place("set.parquet", "set", 2, columns=("text", "label", "embedding"))
    with pytest.raises(BadRow, match="the columns are text, label, embedding"):
        question_of(wide, {})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ((("questoin", "q"),), "did you mean question"),
        ((("prompt", "q"),), "the fields are question, answer"),
        ((("question", "a"), ("question", "b")), "names a field twice"),
        ((("question",),), "must be pairs"),
        (("question", "q"), "must be pairs"),
    ],
)
def test_a_mapping_of_no_field_is_refused(mapping, message):
    with pytest.raises(UserError, match=message):
        check_mapping(mapping)


def test_earlier_turns_and_further_answers_are_kept():
    shots = [{"role": "user", "content": "0+1?"}, {"role": "assistant", "content": "1"}]
    question = question_of(PLACE, {"messages": [*shots, *USER], "answer": ["2", "two"]})
    assert question.earlier == (("user", "0+1?"), ("assistant", "1"))
    assert (question.answer, question.alternatives) == ("2", ("two",))
