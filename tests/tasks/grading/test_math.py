"""Verdicts on mathematics: right, wrong, malformed, adversarial, slow."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.tasks.grading import GradingPool, Verdict, grade_all
from jaxdistill.tasks.grading.choice import grade_choice
from jaxdistill.tasks.grading.math import boxed, grade_math, normalise
from jaxdistill.tasks.questions import Question

RIGHT = [
    ("5", r"\boxed{5}"),
    ("5", r"\boxed{5.0}"),
    ("5", r"\boxed{05}"),
    ("073", r"\boxed{73}"),
    ("5", r"\boxed{ 5 }."),
    ("5", r"\boxed {5}"),
    ("5", r"\boxed{+5}"),
    ("5", r"\boxed{\frac{10}{2}}"),
    ("5", r"\boxed{x=5}"),
    ("5", r"\boxed{\text{5}}"),
    ("5", r"\boxed{5\text{ cm}}"),
    ("5", r"\boxed{\boxed{5}}"),
    ("5", r"$$\boxed{5}$$"),
    ("5", r"first \boxed{4}, no: \boxed{5}"),
    ("1000", r"\boxed{1,000}"),
    ("45", r"\boxed{45^\circ}"),
    ("1/2", r"\boxed{0.5}"),
    ("0.5", r"\boxed{1/2}"),
    (r"\frac12", r"\boxed{\dfrac{1}{2}}"),
    (r"\frac{1}{2}", r"\boxed{\tfrac{2}{4}}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    (r"(3,\frac{\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}"),
    (r"\{1,2\}", r"\boxed{\{ 1, 2 \}}"),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"),
    (r"\text{Evelyn}", r"\boxed{Evelyn}"),
    (r"[0,1)", r"\boxed{[0, 1)}"),
]
WRONG = [
    ("5", r"\boxed{500}", "different"),
    ("500", r"\boxed{5}", "different"),
    ("5", r"\boxed{0.05}", "different"),
    ("5", r"\boxed{-5}", "different"),
    ("53", r"\boxed{5 3}", "different"),
    ("11/2", r"\boxed{1 1/2}", "different"),
    ("204", r"\boxed{204.0002}", "different"),
    ("5", r"\boxed{5 \text{ or } 500}", "different"),
    ("5", r"\boxed{5,500}", "different"),
    ("5", r"\boxed{\{5,500\}}", "different"),
    ("5", r"\boxed{5\text{ and }6}", "different"),
    ("(1,3)", r"\boxed{(3,1)}", "different"),
    ("[0,1)", r"\boxed{(0,1)}", "different"),
    ("5", r"first \boxed{5}, no: \boxed{4}", "different"),
    ("5", "The answer is 5.", "no box"),
    ("5", r"\boxed 5", "no box"),
    ("5", "", "no box"),
    ("5", r"\boxed{5} " + "and so on " * 40, "no box"),
    ("5", r"\boxed{5", "unclosed box"),
    ("5", r"\boxed{5} or \boxed{5", "unclosed box"),
    ("5", r"\boxed{5\}", "unclosed box"),
    ("5", r"\boxed{}", "empty box"),
    ("5", r"\boxed{ }", "empty box"),
]
STRANGE = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{9**9**9**9}",
    r"\boxed{\sum_{i=1}^{10000000} \sin(i!)^{i}}",
    r"\boxed{(x+1)^{100000}}",
    r"\boxed{" + r"\frac{1}{" * 20 + "2" + "}" * 21,
    r"\boxed{" + "(" * 200 + "}",
    r"\boxed{" + r"\{" * 100 + "}",
    r"\boxed{__import__('os').getcwd()}",
    r"\boxed{\x00\uffff 解 ∞ 💡}",
    "\x00\ud800" * 50,
    "\\boxed{\ud800}",
    r"\boxed{\int_0^1 e^{e^{e^x}} dx}",
]


def _question(gold):
    return Question("q", "", gold)


@pytest.mark.parametrize(("gold", "response"), RIGHT)
def test_an_equal_answer_is_right(gold, response):
    verdict = grade_math(_question(gold), response)
    assert verdict.correct, verdict
    assert verdict.reason in ("exact", "equivalent")


@pytest.mark.parametrize(("gold", "response", "reason"), WRONG)
def test_a_wrong_or_missing_answer_is_wrong_and_says_why(gold, response, reason):
    verdict = grade_math(_question(gold), response)
    assert (verdict.correct, verdict.reason) == (False, reason)
    assert (verdict.answer is None) == ("box" in reason)


def test_the_window_is_the_callers_choice():
    response = r"\boxed{5}" + "." * 120
    assert grade_math(_question("5"), response).correct
    assert not grade_math(_question("5"), response, last_chars=100).correct


def test_what_the_verdict_calls_the_answer_is_what_the_box_holds():
    assert boxed(r"a \boxed{\left\{ x : x > \frac{1}{2} \right.} b")[0] == (
        r"\left\{ x : x > \frac{1}{2} \right."
    )


@given(st.text(alphabet="\\{}$., 15ax=()tefr[]", max_size=30))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text):
    assert not grade_math(_question("5"), text).correct or "boxed" in text


# ------------------------------------------------------------------------------- the process pool


def _stuck(question, response):
    """For "stuck", spend seconds in one C call that no signal handler interrupts."""
    if response == "stuck":
        sum(range(10**11))
    if response == "dies":
        os._exit(3)
    if response == "raises":
        raise KeyError("oh")
    return Verdict(response == question.answer, "compared", response)


def test_the_pool_and_this_process_agree_and_keep_the_order():
    table = RIGHT + [(gold, response) for gold, response, _ in WRONG]
    questions = [_question(gold) for gold, _ in table]
    responses = [response for _, response in table]
    inline = grade_all(grade_math, questions, responses)
    assert inline == grade_all(grade_math, questions, responses, workers=2)
    assert [verdict.correct for verdict in inline] == [True] * len(RIGHT) + [False] * len(WRONG)


@pytest.mark.timeout(60)
def test_strange_text_gets_a_verdict_in_time():
    with GradingPool(grade_math, workers=2, timeout_s=1.0) as pool:
        pool.grade([_question("5")], [r"\boxed{5}"])  # start the workers before the clock
        started = time.monotonic()
        verdicts = pool.grade([_question("5")] * len(STRANGE), STRANGE)
        # Two workers take at most 1 s per response, and replacing a late worker a second or two.
        assert time.monotonic() - started < 4 * len(STRANGE)
    assert not any(verdict.correct for verdict in verdicts)
    assert "too slow" in {verdict.reason for verdict in verdicts}


@pytest.mark.timeout(60)
def test_a_stuck_or_dying_worker_costs_its_own_response_alone():
    responses = ["5", "stuck", "6", "dies", "raises", "5"]
    with GradingPool(_stuck, workers=1, timeout_s=1.0) as pool:
        verdicts = pool.grade([_question("5")] * 6, responses)
        again = pool.grade([_question("5")], ["5"])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, True]
    assert verdicts[1].reason == "too slow"
    assert "died" in verdicts[3].reason
    assert "KeyError" in verdicts[4].reason
    assert again[0].correct
    inline = grade_all(_stuck, [_question("5")], ["raises"])
    assert inline == [verdicts[4]]


def test_a_thread_gets_the_same_verdict():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(grade_math(_question("0.5"), r"\boxed{1/2}"))
    )
    thread.start()
    thread.join()
    assert found == [Verdict(True, "equivalent", "1/2")]


# ------------------------------------------------------------------------------- multiple choice


@pytest.mark.parametrize(
    ("response", "correct", "reason"),
    [
        ("<answer>\nB\n</answer>", True, "exact"),
        ("<answer>B</answer> no, <answer>A</answer>", False, "different"),
        ("<answer>B: 1.1</answer>", False, "not one letter"),
        ("<answer>b</answer>", False, "not one letter"),
        ("<answer>B", False, "unclosed answer tag"),
        ("B", False, "no answer tag"),
    ],
)
def test_the_letter_in_the_last_answer_tag_counts(response, correct, reason):
    verdict = grade_choice(_question("B"), response)
    assert (verdict.correct, verdict.reason) == (correct, reason)


def test_each_of_several_gold_letters_is_right():
    question = Question("q", "", "A", alternatives=("C",))
    graded = [grade_choice(question, f"<answer>{letter}</answer>").correct for letter in "ABCD"]
    assert graded == [True, False, True, False]
