"""`grade`: verdicts on the rows of a file, in their order."""

import json

import pytest
from command_line import assert_mistake, call

ROWS = [
    {"gold": r"\frac{1}{2}", "response": r"so \boxed{0.5}", "id": 7},
    {"gold": "3", "response": r"\boxed{4}"},
    {"gold": 0.00001, "response": r"\boxed{10^{-5}}"},
    {"gold": "72 boys", "response": r"\boxed{72}"},
    {"gold": ["1", "2"], "response": r"<think> \boxed{2}. Wait"},
    {"gold": "5", "response": "解 \ud800 5"},
]
REASONS = ["correct", "different", "correct", "unreadable gold", "unfinished", "no answer"]


def write(place, rows, name="rows.jsonl"):
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
def test_the_same_rows_come_out_in_order_with_their_verdicts(place):
    write(place, ROWS)
    code, out, err = call("grade", "rows.jsonl", "--task", "math", "--out", "out.jsonl")
    assert code == 0, err
    graded = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in graded] == REASONS
    assert [row["correct"] for row in graded] == [True, False, True, False, True, False]
    assert [row["extracted"] for row in graded] == ["0.5", "4", "10^{-5}", "72", "2", None]
    for row, given in zip(graded, ROWS, strict=True):
        assert list(row)[-3:] == ["correct", "reason", "extracted"]
        assert {name: row[name] for name in given} == given
    assert "6 rows, 3 correct (50.0%)" in out
    assert "       2  correct\n" in out
    assert "       1  unfinished, of which 1 correct\n" in out
    assert out.endswith("out.jsonl\n")
    assert "gold answers that cannot be read: rows 4" in err
    assert "6/6" in err  # progress


def test_letters_are_graded_and_printed_without_a_file_to_write(place):
    answers = ["(b) because", "A", "B or C", "none"]
    rows = [{"gold": "B", "response": f"<answer>{answer}</answer>"} for answer in answers]
    write(place, [*rows, {"gold": "(a)", "response": "A"}])
    code, out, err = call("grade", "rows.jsonl", "--task", "choice", "--workers", 1)
    assert code == 0, err
    graded = [json.loads(line) for line in out.splitlines()]
    reasons = [row["reason"] for row in graded]
    assert reasons == ["correct", "different", "no answer", "malformed", "no answer"]
    assert "5 rows, 1 correct (20.0%)" in err


@pytest.mark.long
def test_the_window_and_the_tags_are_options(place):
    write(place, [{"gold": "1", "response": "[T]" + r"\boxed{2}[/T] \boxed{1}" + "." * 90}])
    found = []
    for option in ([], ["--thinking-tags", "[T]", "[/T]"], ["--last-chars", 92]):
        code, out, err = call("grade", "rows.jsonl", "--task", "math", *option, "--workers", 1)
        assert code == 0, err
        found.append(json.loads(out)["reason"])
    assert found == ["correct", "correct", "no answer"]


BAD = {
    "": "holds no rows",
    "{": r"rows.jsonl: row 1: expected a JSON object, got '\{'",
    "[1]": "row 1: expected a JSON object",
    '{"gold": "1"}': "row 1: field `response`: expected text, got nothing",
    '{"gold": "1", "response": 3}': "row 1: field `response`: expected text, got int 3",
    '{"response": "x"}': "row 1: field `gold`: expected .*got nothing",
    '{"gold": true, "response": "x"}': "row 1: field `gold`: expected text or a number",
    '{"gold": "1", "response": "x"}\n\n{"gold": [], "response": "x"}': "row 3: field `gold`",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_row_is_named_in_one_line(place, text):
    (place / "rows.jsonl").write_text(text)
    assert_mistake(["grade", "rows.jsonl", "--task", "math"], BAD[text])


MISTAKES = {
    "grade": "the following arguments are required: FILE, --task",
    "grade no.jsonl --task math": "no.jsonl: cannot be read: No such file",
    "grade rows.jsonl --task spelling": "invalid choice: 'spelling'",
    "grade rows.jsonl --task math --out rows.jsonl": "rows.jsonl is also read",
    "grade rows.jsonl --task math --out no/where": "--out no/where: expected a file",
    "grade rows.jsonl --task math --workers 0": "--workers must be at least 1, got 0",
    "grade rows.jsonl --task math --last-chars 0": "--last-chars must be at least 1, got 0",
    "grade rows.jsonl --task math --timeout 0": "--timeout must be above 0, got 0",
    "grade rows.jsonl --task choice --last-chars 9": "--last-chars is for --task math",
    "grade rows.jsonl --task choice": "row 1: field `gold`: expected the letter of an option",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(place, command):
    write(place, ROWS)
    assert_mistake(command.split(), MISTAKES[command])
