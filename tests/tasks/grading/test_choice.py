"""Letters of options as people write them, and texts in an answer tag."""

import pytest

from jaxdistill.tasks.grading.choice import grade_choice, grade_exact, letters_of
from jaxdistill.tasks.questions import Question

ONE_LETTER = [
    *("B", "b", "(B)", "(b)", "B.", "B)", "b)", "[B]", '"B"', "**B**", "`B`", "B\n", "Ｂ", "B、"),
    *("Option B", "option b", "The answer is B.", "Answer: B", "the correct option is (B)"),
    *(r"\boxed{B}", r"\text{B}", "$B$", r"$\mathbf{B}$", "<b>B</b>", "Letter B", "B is correct"),
    *("B: 1.1", "B. Carbon dioxide", "B) 3 mol", "(B) CO2", "B - because", "B：水", "B (ammonia)"),
    *("B, B", "B) A gas", "B. C2H4", "B.\nExplanation: A is wrong", "B because A is wrong"),
    *(
        "So the answer is B",
        "答案：B",
        "正确答案是 (B)",
        "选B",
        "选项B",
        "B) 2-butanol",
        "(B)  H2SO4",
        "B. Both of them",
        "B: A and C react",
    ),
]
NO_LETTER = [
    *(
        "",
        "--",
        "AB",
        "ABCD",
        "none",
        "neither",
        "not A",
        "A molecule",
        "a molecule",
        "Carbon",
        "B2",
    ),
    *("Acetone", "I think B", "B+", "e.g. B", "B cells", "I am not sure", "As", "5", "b2", "bc"),
]
SEVERAL = [
    *("A and B", "A or B", "A, B", "A/B", "A B", "(A) and (B)", "A, not B", "B. C", "A & B"),
    *("A;B", "A\nB", "A, B, C", "(A)(B)", "A or (B)", "a) or b)", "[A] [B]"),
]


@pytest.mark.parametrize("text", ONE_LETTER)
def test_a_letter_is_read_however_it_is_written(text):
    assert letters_of(text) == {"B"}


@pytest.mark.parametrize("text", NO_LETTER)
def test_what_is_no_letter_is_not_guessed(text):
    assert letters_of(text) == set()


@pytest.mark.parametrize("text", SEVERAL)
def test_two_different_letters_are_no_answer(text):
    assert len(letters_of(text)) > 1
    found = grade_choice(Question("q", "", "A"), f"<answer>{text}</answer>")
    assert (found.correct, found.reason) == (False, "no answer")


@pytest.mark.parametrize(
    ("response", "correct", "reason"),
    [
        ("<answer>\nB\n</answer>", True, "correct"),
        ("<answer>A</answer> no, <answer>B</answer>", True, "correct"),
        ("<answer>B</answer> no, <answer>A</answer>", False, "different"),
        ("<think><answer>A</answer></think><answer>B</answer>", True, "correct"),
        ("<think><answer>B</answer></think>", False, "no answer"),
        ("<think><answer>B</answer> or", True, "unfinished"),
        ("<answer>none</answer>", False, "malformed"),
        ("<answer></answer>", False, "malformed"),
        ("<answer>B", False, "malformed"),
        ("<Answer>B</ANSWER>", True, "correct"),
        ("B", False, "no answer"),
        ("", False, "no answer"),
    ],
)
def test_the_letter_in_the_last_answer_tag_counts(response, correct, reason):
    found = grade_choice(Question("q", "", "B"), response)
    assert (found.correct, found.reason) == (correct, reason)


def test_each_of_several_gold_letters_is_right():
    question = Question("q", "", "A", alternatives=("C",))
    graded = [grade_choice(question, f"<answer>{letter}</answer>").correct for letter in "ABCD"]
    assert graded == [True, False, True, False]


def test_an_exact_answer_is_compared_after_the_thinking():
    question = Question("q", "", "Na+")
    whole = grade_exact(question, "<think>K+?</think> Na+ ", in_tag=False)
    assert (whole.correct, whole.reason) == (True, "correct")
    cut = grade_exact(question, "<think>Na+", in_tag=False)
    assert (cut.correct, cut.reason) == (False, "unfinished")
