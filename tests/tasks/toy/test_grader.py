"""The toy world's grader: verdicts on ordinary and strange text, and statistics of traces."""

import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import grader, problems, traces
from jaxdistill.tasks.toy.grader import Trace, grade, read_trace

# 20 + 15 - 1 is the one chain that reaches 34.
QUESTION = Question("q", "20 15 1 -> 34", "20 + 15 - 1")
HIT = "20 + 15 = 35 - 1 = 34"
MISS = "20 - 15 = 5 + 1 = 6"
RIGHT = "</think> answer 20 + 15 - 1"


@pytest.mark.parametrize(
    ("response", "reason", "answer"),
    [
        # right
        (f"{HIT} {RIGHT}", "match", "20 + 15 - 1"),
        (RIGHT, "match", "20 + 15 - 1"),
        (f"{MISS} wait {HIT} check {HIT} {RIGHT}", "match", "20 + 15 - 1"),
        (f"{HIT}\n</think>\n\nanswer  20  +  15 - 1\n", "match", "20 + 15 - 1"),  # spacing
        # another answer
        (f"{HIT} </think> answer 20 + 15 + 1", "wrong answer", "20 + 15 + 1"),
        (f"{HIT} </think> answer 34", "wrong answer", "34"),
        (f"{HIT} </think> answer 15 + 20 - 1", "wrong answer", "15 + 20 - 1"),  # the order is fixed
        (f"{HIT} </think> answer {HIT}", "wrong answer", HIT),
        (f"{HIT} </think> answer 20 + 15", "wrong answer", "20 + 15"),
        (f"{HIT} </think> answer 20+15-1", "wrong answer", "20+15-1"),  # three words, not five
        (f"{HIT} </think> answer", "wrong answer", ""),
        # more than one answer, or something after it
        (f"{HIT} {RIGHT} {RIGHT}", "wrong answer", f"20 + 15 - 1 {RIGHT}"),
        (f"{HIT} </think> answer 20 + 1 {RIGHT}", "wrong answer", f"20 + 1 {RIGHT}"),
        (f"{HIT} {RIGHT} wait {MISS}", "wrong answer", f"20 + 15 - 1 wait {MISS}"),
        (f"{HIT} {RIGHT} - 1", "wrong answer", "20 + 15 - 1 - 1"),
        # none
        ("", "no answer", None),
        (" \n ", "no answer", None),
        (HIT, "no answer", None),
        ("</think>", "no answer", None),
        (f"{HIT} </think>", "no answer", None),
        (f"{HIT} </think> 20 + 15 - 1", "no answer", None),
        (f"{HIT} answer 20 + 15 - 1", "no answer", None),
        (f"{HIT} answer 20 + 15 - 1 </think>", "no answer", None),  # before the thinking ends
        (f"{HIT} </think> {RIGHT}", "no answer", None),
        (f"{HIT} </think> then answer 20 + 15 - 1", "no answer", None),
        (f"{HIT} < / think > answer 20 + 15 - 1", "no answer", None),
        (f"{HIT} </think> ANSWER 20 + 15 - 1", "no answer", None),
    ],
)
def test_only_the_one_solution_after_the_one_end_of_thinking_is_right(response, reason, answer):
    verdict = grade(QUESTION, response)
    assert (verdict.reason, verdict.answer) == (reason, answer)
    assert verdict.correct == (reason == "match")


@pytest.mark.timeout(60)
def test_a_huge_response_is_graded_at_once():
    # Two million words take about a second; quadratic work would take hours.
    for part in (f"{MISS} wait ", "</think> ", "answer ", "20 + ", "9" * 50):
        assert not grade(QUESTION, part * 100_000).correct
        read_trace(QUESTION, part * 100_000)


WORDS = st.sampled_from(
    ["20", "15", "1", "34", "+", "-", "*", "=", "check", "wait", "</think>", "answer", "+-", "²"]
)


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=30).map(" ".join)))
@example(f"</think> {RIGHT}")
@example(RIGHT)
def test_no_text_breaks_the_grader_and_no_other_is_right(text):
    verdict, trace = grade(QUESTION, text), read_trace(QUESTION, text)
    _, mark, tail = text.partition("</think>")
    assert verdict.correct == (mark != "" and tail.split() == RIGHT.split()[1:])
    assert 0 <= trace.tries <= len(text.split())
    assert trace.copied is None or (trace.reached and trace.copied == verdict.correct)


# ----------------------------------------------------------------------------------- reading traces


@pytest.mark.parametrize(
    ("response", "trace"),
    [
        # (tries, checks, whether the last try reaches the target, whether it was copied)
        (f"{HIT} {RIGHT}", Trace(1, 0, True, True)),
        (f"{HIT} check {HIT} {RIGHT}", Trace(2, 1, True, True)),
        (f"maybe {MISS} wait perhaps {HIT} check {HIT} {RIGHT}", Trace(3, 1, True, True)),
        # faulty copying: the answer is not the try that was verified
        (f"{HIT} </think> answer 20 - 15 - 1", Trace(1, 0, True, False)),
        (f"{HIT} {RIGHT} - 1", Trace(1, 0, True, False)),
        # reached only by a slip or wishfully, so there is no successful try to copy
        ("20 - 15 = 5 + 1 = 34 </think> answer 20 - 15 + 1", Trace(1, 0, False, None)),
        # a slip in the solution: computed without it, the try reaches the target
        (f"20 + 15 = 36 - 1 = 34 {RIGHT}", Trace(1, 0, True, True)),
        # closed early: the answer is correct although no try reached the target
        (f"{MISS} {RIGHT}", Trace(1, 0, False, None)),
        # reached, but followed by another try
        (f"{HIT} then {MISS} {RIGHT}", Trace(2, 0, False, None)),
        # no answer to compare
        (HIT, Trace(1, 0, True, None)),
        (f"{HIT} </think>", Trace(1, 0, True, None)),
        (f"{HIT} </think> 20 + 15", Trace(1, 0, True, None)),
        ("", Trace(0, 0, False, None)),
        (f"wait hmm {RIGHT}", Trace(0, 0, False, None)),
        # unfinished or strange tries reach nothing
        ("20 + 15 = 35 -", Trace(1, 0, False, None)),
        ("20 + 15 = 35", Trace(1, 0, False, None)),
        ("20 + 15 = 35 - 2 = 34 </think> answer 20 + 15 - 1", Trace(1, 0, False, None)),
        ("15 + 20 = 35 - 1 = 34 </think> answer 20 + 15 - 1", Trace(1, 0, False, None)),
        (f"{HIT} {HIT} {RIGHT}", Trace(1, 0, False, None)),
        ("20 +- 15 = 35", Trace(2, 0, False, None)),  # `+-` is not a word of the world
        # words after the thinking are not tries
        (f"{HIT} </think> check {MISS}", Trace(1, 0, True, None)),
    ],
)
def test_a_trace_shows_its_tries_checks_and_whether_success_was_copied(response, trace):
    assert read_trace(QUESTION, response) == trace


def test_unguided_traces_of_the_world_are_copied_faithfully():
    """Copying is perfect in the pretraining text, so any faulty copying is due to the model."""
    rng = random.Random(0)
    for problem in problems.draw_distinct(500, 4, "train", seed=0):
        question = Question(problem.text, problem.text, problem.answer)
        text = traces.unguided(problem, traces.MAIN, rng)
        trace = read_trace(question, text)
        assert trace.copied is (True if trace.reached else None)
        assert grade(question, text).correct == trace.reached
        assert trace.tries == len(re.findall(r"\d+(?: [-+*] \d+ = \d+)+", text))
        assert trace.checks == text.split().count("check")


@pytest.mark.parametrize("word", ["0", "99", "+", "-", "*", "="])
def test_arithmetic_is_what_tries_consist_of(word):
    assert grader.is_arithmetic(word)


@pytest.mark.parametrize("word", ["", "+-", "->", "wait", "</think>", "-1", "1.5"])
def test_other_words_are_not_arithmetic(word):
    assert not grader.is_arithmetic(word)
