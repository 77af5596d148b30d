"""The task in words: its pools, its verdicts, and its own numbers about responses."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask, questions_of
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.words import texts
from jaxdistill.tasks.words.task import WordsTask, facts, grade

QUESTION = Question("20 15 1 -> 34", "", "34")
HIT = "20 plus 15 is 35. Minus 1 is 34."
MISS = "20 minus 15 is 5. Plus 1 is 6."
SLIP = "20 plus 15 is 36. Minus 1 is 35."
RIGHT = r"So the answer is \boxed{20 + 15 - 1}."


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (r"\boxed{20 + 15 - 1}", "correct"),
        (r"\boxed{15+20-1}", "correct"),  # the order is asked for, and not graded
        (r"\boxed{(20 + 15) - 1}", "correct"),
        (r"\boxed{20 - (1 - 15)}", "correct"),
        (r"\boxed{20 + 15 − 1}", "correct"),  # U+2212
        (r"\boxed{$\left(20 + 15\right) - 1$}", "correct"),
        (r"\boxed{1} \boxed{", "malformed"),
        (r"\boxed{20 + 15 - 1} \boxed{34}", "other numbers"),
        (r"\boxed{1} Wait, \boxed{20 + 15 - 1}.", "correct"),  # the last box
        (r"\boxed{20 + 15 + 1}", "different"),
        (r"\boxed{20 * 15 - 1}", "different"),
        (r"\boxed{20 + 14 - 0}", "other numbers"),
        (r"\boxed{34}", "other numbers"),
        (r"\boxed{20 + 15 - 1 + 0}", "other numbers"),
        (r"\boxed{20 + 15 - 1 - 1 + 1}", "other numbers"),
        (r"\boxed{2015 - 1}", "other numbers"),
        (r"\boxed{20 + 15 - 1 = 34}", "malformed"),
        (r"\boxed{20 + 15^1}", "malformed"),
        (r"\boxed{20 + 15 - 1 apples}", "malformed"),
        (r"\boxed{20 + 15 -}", "other numbers"),
        (r"\boxed{20 + 15 - 1", "malformed"),
        (r"\boxed{}", "malformed"),
        (HIT, "no answer"),
        ("", "no answer"),
    ],
)
def test_a_box_is_right_by_its_value_and_its_numbers(box, reason):
    verdict = grade(QUESTION, f"{HIT} {box}")
    assert (verdict.reason, verdict.correct) == (reason, reason == "correct")


def test_times_may_be_written_as_in_mathematics():
    question = Question("20 15 2 -> 70", "", "70")
    for sign in ("*", r"\times", r"\cdot", "×", "·", ""):
        assert grade(question, rf"\boxed{{(20 + 15) {sign} 2}}").correct
    assert not grade(question, r"\boxed{20 + 15 * 2}").correct  # precedence is the usual one
    power = Question("2 3 4 -> 12", "", "12")  # with plus, minus and times alone
    for sign in ("**", "* *", "^", "²"):
        assert grade(power, rf"\boxed{{2{sign}3 + 4}}").reason == "malformed"
    assert grade(Question("2 3 4 -> 27", "", "27"), r"\boxed{2 3 + 4}").reason == "malformed"


@settings(max_examples=40)
@given(st.text(max_size=60), st.text(alphabet="0123456789+-*() ", max_size=60))
@example("", "-" * 50)
@example("", "(" * 50 + "20+15-1")
def test_no_response_breaks_the_grader(before, inside):
    response = rf"{before}\boxed{{{inside}}}"
    assert isinstance(grade(QUESTION, response).correct, bool)
    assert (facts(QUESTION, response)["slips"] or 0) >= 0


@pytest.mark.parametrize("how", [texts.unguided, texts.guided])
@pytest.mark.parametrize("numbers", [3, 4])
def test_written_texts_are_correct_without_slips_and_copied(how, numbers):
    rng = random.Random(numbers)
    for question in questions_of(WordsTask("heldout", numbers, count=200)):
        text = how(problems.parse(question.id), rng)
        assert grade(question, text).correct, text
        found = facts(question, text)
        assert found["slips"] == 0
        assert found["checks"] == text.count("Let me check")
        if how is texts.unguided:
            assert found["copy"] == 1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f"{HIT} {RIGHT}", (1, 0, 0, 1.0)),
        (f"{MISS} Wait, {HIT} Let me check: {HIT} {RIGHT}", (3, 1, 0, 1.0)),
        (f"{HIT} " + r"\boxed{20 + 15 + 1}", (1, 0, 0, 0.0)),  # copied wrongly
        (f"{MISS} {RIGHT}", (1, 0, 0, None)),  # closed after a miss
        (f"{SLIP} {RIGHT}", (1, 0, 1, 1.0)),  # without its slip the try reaches the target
        (f"{SLIP} Let me check: {HIT} {RIGHT}", (2, 1, 1, 1.0)),
        ("20 plus 15 is 35. 35 minus 1 is 34. " + RIGHT, (1, 0, 0, 1.0)),
        ("15 minus 1 is 14. 20 minus 14 is 6. " + RIGHT, (1, 0, 0, None)),
        ("Plus 1 is 2. " + RIGHT, (1, 0, 0, None)),  # begins nowhere
        (HIT, (1, 0, 0, None)),  # no box
        ("", (0, 0, 0, None)),
    ],
)
def test_facts_count_tries_checks_slips_and_copies(response, expected):
    found = facts(QUESTION, response)
    assert tuple(found[name] for name in ("tries", "checks", "slips", "copy")) == expected


def test_pools_are_disjoint_by_content_and_those_of_the_toy_world():
    sizes = [(pool, numbers) for pool in problems.POOLS for numbers in (3, 4)]
    ids = {at: {q.id for q in WordsTask(at[0], at[1], count=400).questions()} for at in sizes}
    assert all(len(found) == 400 for found in ids.values())
    assert len(set().union(*ids.values())) == 400 * len(sizes)
    toys = {q.id for q in ToyTask("heldout", 3, count=400).questions()}
    assert ids["heldout", 3] == toys


def test_a_smaller_count_is_a_prefix_and_reference_solutions_are_right():
    questions = WordsTask("train", count=60).questions()
    assert WordsTask("train", count=20).questions() == questions[:20]
    assert all(grade(question, question.solution or "").correct for question in questions)
    assert len({question.prompt for question in questions}) == 60


@pytest.mark.parametrize("field", [{"pool": "test"}, {"count": 0}, {"numbers": 2}, {"numbers": 7}])
def test_an_invalid_task_is_refused_by_the_fields_name(field):
    with pytest.raises(UserError, match=f"`{next(iter(field))}` must"):
        WordsTask(**field)
