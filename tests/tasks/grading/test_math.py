r"""Verdicts on mathematics: the table, where the answer stands, reasons, hostile answers."""

import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_table import HELD_OUT, table

from jaxdistill.tasks.grading import GradingPool, Verdict, grade_all
from jaxdistill.tasks.grading.compare import equivalent
from jaxdistill.tasks.grading.math import fault_in_gold, grade_math
from jaxdistill.tasks.grading.normalise import normalise
from jaxdistill.tasks.grading.tokens import NeedsAlgebra, Unreadable
from jaxdistill.tasks.grading.verdict import REASONS
from jaxdistill.tasks.questions import Question

ROWS = table()
FAMILIES = sorted({row.family for row in ROWS})
# Only these families ask math_verify, whose imports take seconds.
ALGEBRA = ("sums, integrals, limits", "expressions with letters")


def _question(gold, *others):
    return Question("q", "", gold, alternatives=others)


def verdict(gold, response, **how):
    found = grade_math(_question(gold), response, **how)
    return found.correct, found.reason


# ------------------------------------------------------------------------------------ the table


def test_the_table_has_right_and_wrong_answers_in_every_family():
    assert len(ROWS) >= 600
    for family in FAMILIES:
        kinds = {row.is_right for row in ROWS if row.family == family}
        assert kinds == {True, False}, family
    answers = {}
    for row in ROWS:  # no answer stands on both sides
        assert answers.setdefault((row.gold, row.response), row.is_right) == row.is_right, row


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_are_right_and_near_misses_are_not(family):
    wrong = []
    for row in ROWS:
        if row.family == family:
            found = grade_math(_question(row.gold), row.response)
            if found.correct != row.is_right or found.reason not in REASONS:
                wrong.append((row.gold, row.response, found.reason))
    assert not wrong


def test_the_verdicts_on_the_held_out_table_are_right():
    wrong = [
        (row.gold, row.response, found.reason)
        for row in table(HELD_OUT)
        if (found := grade_math(_question(row.gold), row.response)).correct != row.is_right
    ]
    assert not wrong


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ALGEBRA])
def test_an_equivalence_is_reflexive_and_symmetric(family):
    for row in ROWS:
        if row.family == family and "think" not in row.response:
            given = row.response.removeprefix(r"\boxed{").removesuffix("}")
            there, back = _equivalent(row.gold, given), _equivalent(given, row.gold)
            assert there == back, row
            assert _equivalent(given, f" {given}") is not False, row


def _equivalent(a, b):
    try:
        return equivalent(a, b)
    except Unreadable:
        return None


# ----------------------------------------------------------------------------- where it stands


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (r"<think>\boxed{4}</think> \boxed{5}", (True, "correct")),
        (r"<think>\boxed{5}</think> \boxed{4}", (False, "different")),
        (r"Hmm \boxed{4}</think> \boxed{5}", (True, "correct")),  # the prompt opened it
        (r"<think>\boxed{5}</think> five", (False, "no answer")),
        (r"<think>a</think><think>\boxed{4}</think>\boxed{5}", (True, "correct")),
        (r"<think> so \boxed{5}. Wait", (True, "unfinished")),
        (r"<think> so \boxed{4}. Wait", (False, "unfinished")),
        ("<think> so", (False, "unfinished")),
        (r"<think>a</think><think>\boxed{5}", (True, "unfinished")),
        (r"first \boxed{4}, no: \boxed{5}", (True, "correct")),
        (r"\boxed{5}" + " and so on" * 400, (True, "correct")),
        (r"\boxed{\boxed{5}}", (True, "correct")),
        (r"\boxed{x = \fbox{5}}", (True, "correct")),
        (r"\boxed{\boxed{5} + 1}", (False, "different")),
        (r"\fbox{5}", (True, "correct")),
        (r"\boxed 5", (True, "correct")),
        (r"so $\boxed 5$.", (True, "correct")),
        (r"\boxed{5}, which I put in a \boxed to show it", (True, "correct")),
        (r"\boxed{5}" + r" \boxed," * 20, (True, "correct")),
        (r"\boxedsomething{5}", (False, "no answer")),
        ("The answer is 5.", (False, "no answer")),
        ("", (False, "no answer")),
        (r"\boxed{5", (False, "malformed")),
        (r"\boxed{5} or \boxed{5", (False, "malformed")),
        (r"\boxed{5\}", (False, "malformed")),
        (r"\boxed{}", (False, "malformed")),
        (r"\boxed{ }", (False, "malformed")),
        (r"\boxed{5}}", (True, "correct")),
        (r"\boxed{\left\{5\right.}", (False, "malformed")),
        (r"\boxed{\frac{5}{}", (False, "malformed")),
    ],
)
def test_the_last_box_after_the_thinking_is_the_answer(response, found):
    assert verdict("5", response) == found


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (r"\boxed 12", "12"),
        (r"\boxed -3.5", "-3.5"),
        (r"\boxed{1{2}3}", "1{2}3"),
        (r"\boxed \frac{1}{2}", r"\frac{1}{2}"),
        (r"$\boxed x+1$", "x+1"),
        (r"\fbox {7}", "7"),
        (r"\boxed{\left\{ x : x > \frac{1}{2} \right.} b", r"\left\{ x : x > \frac{1}{2} \right."),
    ],
)
def test_a_verdict_names_what_the_box_holds(written, answer):
    assert grade_math(_question("1"), f"so {written} b").answer == answer


def test_the_window_and_the_tags_are_the_callers_choice():
    response = r"\boxed{5}" + "." * 120
    assert verdict("5", response, last_chars=100) == (False, "no answer")
    assert verdict("5", response, last_chars=200) == (True, "correct")
    response = r"[THINK]\boxed{5}[/THINK] \boxed{4}"
    assert verdict("4", response, thinking_tags=(("[THINK]", "[/THINK]"),)) == (True, "correct")
    response = r"<thought>\boxed{5} so"
    assert verdict("5", response, thinking_tags=(("<thought>", "</thought>"),))[1] == "unfinished"


# ----------------------------------------------------------------------------------- gold answers


@pytest.mark.parametrize(
    "gold",
    [
        *("The answer is 72.", "72 boys", "seventy-two", "Answer: 72", "so x is 5", "", "5 5"),
        *("twenty one", r"\frac{1}", r"\unknown{3}", "(1,2", "x + ", "12 big dogs", "5..6"),
    ],
)
def test_a_gold_answer_with_which_nothing_can_be_compared_is_named(gold):
    assert fault_in_gold(gold) is not None
    assert verdict(gold, r"\boxed{72}") == (False, "unreadable gold")


def test_what_is_written_as_the_gold_answer_is_right_even_if_nothing_else_can_be():
    assert verdict("The answer is 72.", r"\boxed{The answer is 72}") == (True, "correct")


@pytest.mark.parametrize(
    "gold",
    [
        *("72", "-3", "Paris", r"\text{June 20}", r"72\text{ boys}", "72 km/h", r"\$5", "1,000"),
        *(r"\int_0^1 x dx", r"\text{no solution}", "x=5", "A", r"3 \pmod{7}", "2:3", "12:30 PM"),
        *(
            r"y = 2x + 3",
            r"\text{Evelyn}",
            r"\emptyset",
            "(1,2)",
            "52_8",
            "5 cm",
            "two-thirds full",
            "是",
            "星期三",
            "75个",
        ),
    ],
)
def test_a_gold_answer_that_can_be_read_has_no_fault(gold):
    assert fault_in_gold(gold) is None


def test_each_of_several_gold_answers_is_right():
    question = _question("1", "2", r"\frac{1}{2}")
    found = [grade_math(question, rf"\boxed{{{answer}}}") for answer in ("1", "2.0", "0.5", "3")]
    assert [each.correct for each in found] == [True, True, True, False]
    assert found[-1].reason == "different"


# ------------------------------------------------------------------------------- hostile answers

NESTED = "(1," * 200 + "1" + ")" * 200
BOXED = [
    *("9^{9^{9^9}}", "9**9**9**9", "9^9^9^9", r"2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "9999999!"),
    *("((9!)!)!", "10^{10^5}!", r"(10^{100})!", "5!!!!!!!", "9" * 1_000_000, "0." + "3" * 100_000),
    *("__import__('os').system('touch PWNED')", 'eval(\'open("PWNED","w")\')', "0/0", "1/0"),
    *("exec(\"import os; os.system('touch PWNED')\")", r"\write18{touch PWNED}", "0^0", "\x00"),
    *(
        r"\input{/etc/passwd}",
        "5\x006",
        "\ud800",
        "\udfff5",
        NESTED,
        "1," * 5_000 + "1",
        "-" * 5_000,
    ),
    *(r"\frac{1}{" * 200 + "2" + "}" * 200, "(" * 200, r"\{" * 100, "(x+1)^{100000}", "|" * 3_001),
    *("(a+b+c+d+e+f)^{500}", r"\sin(10^{10^{6}})", r"\sqrt[10^9]{2}", r"\pm" * 300 + "1"),
    *(
        r"\binom{10^9}{5\cdot10^8}",
        "1/" * 400 + "1",
        "1e999999999",
        r"0.\overline{" + "3" * 5_000 + "}",
    ),
    *(
        r"\begin{pmatrix}" + "1&" * 3_000 + r"1\end{pmatrix}",
        r"\text{" * 900,
        "a_{" * 900,
        "½" * 900,
    ),
    *("+".join(f"x^{{{n}}}" for n in range(200)), "=".join("x" * 900), "^" * 900, r"\sin" * 300),
    *("1 " * 900, "and " * 900, "{" * 900 + "}" * 900, r"\infty-\infty", "\\" * 1_001, "$" * 1_001),
    *(
        r"5\text{cm^2cm}",
        "75" + "个" * 3_000,
        "或" * 3_000,
        r"x\ne" * 600,
        r"\approx" * 500,
        r"10^{10^{9}}\approx 3.0",
        r"\mathbb{R}" + r"\setminus\{1\}" * 300,
        r"\mathbb{R}\setminus\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(99)) + r"\}",
        r"\mathrm i" * 600,
        ">=" * 1_900,
        r"\begin{array}" + "{*{20}{c}}" * 200,
    ),
    *(r"\log_{1}(5)", r"\x00\uffff 解 ∞ 💡", "1e-999999999", "(x+y)^{300}(x-y)^{300}"),
]
WHOLE = [
    *("\\boxed{" * 40_000, "\\boxed{1} " * 200_000, "\x00\ud800" * 50, "<think>" * 100_000),
    *("a" * 10_000_000 + r"\boxed{6}", r"\boxed{6}" + "a" * 10_000_000, "{" * 10_000_000),
    *("\\boxed" * 100_000, "</think>" * 100_000 + r"\boxed{6}", "\\fbox{\\boxed{6}" * 20_000),
    "\\boxed{" + "{" * 1_000_000 + "}" * 1_000_000 + "}",
]
# Computer algebra works on these until it is stopped.
HANGING = [
    r"\boxed{\sum_{i=1}^{10000000} \sin(i!)^{i}}",
    r"\boxed{\sum_{n=1}^{\infty}\frac{1}{n^{\sin n}}}",
    r"\boxed{\int_0^{\infty}\frac{\sin(x^x)}{\ln(1+x^{x^x})}dx}",
    r"\boxed{\prod_{k=1}^{10^9} k^k}",
]


def test_hostile_answers_are_judged_at_once_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    responses = [rf"\boxed{{{answer}}}" for answer in BOXED] + WHOLE
    assert len(responses) >= 40
    for gold in ("5", r"x^2+\sqrt{2}"):
        for response in responses:
            started = time.process_time()
            found = grade_math(_question(gold), response)
            # A pool's limit is 5 s; the slowest takes a quarter of a second.
            assert time.process_time() - started < 2.5, response[:60]
            assert not found.correct, response[:60]
            assert found.reason in REASONS
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ properties

_MARKS = (
    r"\frac \sqrt \text \left \right \pi \cdot \boxed \cup \{ \} { } ( ) [ ] ^ _ + - * / = < > , . "
    r": ; | ! % $ \$ \% \, 0 1 2 15 0.5 x y e i A cm or and \circ \le \infty \begin{pmatrix} & \\ "
    r"½ ² √ − ° １"
)
PIECES = st.sampled_from([*_MARKS.split(), " ", "\n", "\u200b"])
TEXTS = st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=40))


@settings(max_examples=300)
@given(TEXTS)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@settings(max_examples=300)
@given(TEXTS, TEXTS)
def test_any_text_gets_a_verdict_that_its_own_copy_passes(gold, given):
    try:
        assert equivalent(given, given)
        assert equivalent(gold, given) == equivalent(given, gold)
    except (Unreadable, NeedsAlgebra):
        return
    found = grade_math(_question(gold), rf"\boxed {{{given}}}")
    assert found.reason in REASONS


@given(st.text(max_size=60))
def test_a_response_without_a_box_is_never_right(text):
    found = grade_math(_question("5"), text)
    assert found.reason in REASONS
    assert not found.correct or "box" in text


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
    rows = table()[::60]
    questions = [_question(row.gold) for row in rows]
    responses = [row.response for row in rows]
    inline = grade_all(grade_math, questions, responses)
    assert inline == grade_all(grade_math, questions, responses, workers=2)
    assert [verdict.correct for verdict in inline] == [row.is_right for row in rows]


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_a_hanging_comparison_gets_a_verdict_in_time():
    with GradingPool(grade_math, workers=2, timeout_s=1.0) as pool:
        pool.grade([_question("5")], [r"\boxed{5}"])  # start the workers before the clock
        started = time.monotonic()
        verdicts = pool.grade([_question("5")] * len(HANGING), HANGING)
        # Two workers take at most 1 s per response, and replacing a late worker a second or two.
        assert time.monotonic() - started < 4 * len(HANGING) + 10
    assert not any(verdict.correct for verdict in verdicts)
    assert "too slow" in {verdict.reason for verdict in verdicts}


@pytest.mark.long
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
        target=lambda: found.append(grade_math(_question("0.5"), r"\boxed{\int_0^1 x\,dx}"))
    )
    thread.start()
    thread.join()
    assert found == [Verdict(True, "correct", r"\int_0^1 x\,dx")]
