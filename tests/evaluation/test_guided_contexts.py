"""What each context of guided generation shows, and settings that are refused."""

import dataclasses

import pytest

from jaxdistill.errors import UserError
from jaxdistill.evaluation.guided_contexts import (
    TEMPLATES,
    Chosen,
    Guided,
    compose,
    draw,
    ordered,
)
from jaxdistill.sampling import Sampling
from jaxdistill.tasks.contexts import Shown
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import MathTask, ToyTask
from jaxdistill.tasks.toy import tokenizer as toy_tokenizer

SETTINGS = Guided(sampling=Sampling(max_new_tokens=8), samples=4)
QUESTION = Question("q", "1 + 1?", "2")


def sample(rollout, response, correct):
    return {
        "question_id": "q", "rollout": rollout, "response": response, "correct": correct,
    }  # fmt: skip


BASE = [
    sample(0, "<think>so 3</think>3", False),
    sample(1, "<think>so 2</think>2", True),
    sample(2, "<think>hm</think>\n\n1 + 1 is 2", True),
]
PROBLEM = Chosen(QUESTION, BASE)
FIRST = dataclasses.replace(SETTINGS, choice="first")


def shown_by(name, settings=FIRST, under_solution=(), problem=PROBLEM):
    found = compose(settings, name, problem, list(under_solution))
    return found and (found.shown, found.shown_from, found.shown_correct)


def turn_of(settings):
    found = compose(settings, "stripped", PROBLEM, [])
    return found and found.turn


def test_each_context_shows_its_part_of_a_plain_sample():
    assert shown_by("solution") == ("<think>so 2</think>2", "none/1", True)
    assert shown_by("stripped") == ("2", "none/1", True)
    assert shown_by("answer") == ("2", None, None)
    assert shown_by("wrong") == ("<think>so 3</think>3", "none/0", False)
    assert shown_by("instruction") == (None, None, None)
    long = Chosen(QUESTION, [sample(0, "<think>x</think>a b c", True)])
    assert shown_by("part", problem=long) == ("a b", "none/0", True)


def test_a_solution_that_is_all_thinking_leaves_nothing_to_show_without_it():
    blank = Chosen(QUESTION, [sample(0, "<think>2</think> ", True)])
    assert shown_by("solution", problem=blank) is not None
    assert shown_by("stripped", problem=blank) is None
    assert shown_by("solution", problem=Chosen(QUESTION, BASE[:1])) is None


def test_a_regenerated_solution_is_the_first_correct_one_or_what_is_asked_for():
    under = [sample(0, "3", False), sample(1, "two", True), sample(2, "2", True)]
    assert shown_by("regenerated", under_solution=under) == ("two", "solution/1", True)
    assert shown_by("regenerated", under_solution=under[:1]) == ("3", "solution/0", False)
    dropping = dataclasses.replace(FIRST, unsolved="drop")
    assert shown_by("regenerated", dropping, under[:1]) is None
    assert shown_by("regenerated") is None  # the solution was not sampled for this problem


def test_the_solution_is_drawn_at_the_address_of_seed_and_question():
    def drawn(seed, name="q"):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        found = draw(settings, dataclasses.replace(QUESTION, id=name), BASE)
        assert found is not None
        return found["rollout"]

    draws = [drawn(seed) for seed in range(20)]
    assert draws == [drawn(seed) for seed in range(20)]
    assert set(draws) == {1, 2}
    assert {drawn(0, str(n)) for n in range(20)} == {1, 2}
    assert draw(FIRST, QUESTION, BASE, correct=False) == BASE[0]


def test_the_wording_of_the_papers_section_3_is_a_setting():
    settings = dataclasses.replace(FIRST, template=TEMPLATES["section3"])
    assert (
        turn_of(settings)
        == "1 + 1?\n\nCorrect solution: 2\n\nCorrectly solve the original question."
    )
    assert (
        turn_of(FIRST) == "1 + 1?\nCorrect solution:\n\n2\n\nCorrectly solve the original question."
    )


def test_names_of_contexts_are_checked_and_put_in_order():
    assert ordered(["regenerated", "answer"]) == ["none", "solution", "regenerated", "answer"]
    with pytest.raises(UserError, match="--contexts: 'hint' is unknown; known are none, solution"):
        ordered(["hint"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "--samples must be at least 1, got 0"),
        ({"accuracy": (0.5, 0.25)}, "--accuracy: expected 0 <= LOW <= HIGH <= 1, got 0.5,0.25"),
        ({"accuracy": (0.5, 2.0)}, "--accuracy"),
    ],
    ids=["samples", "order", "range"],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_an_example_is_a_correct_sample_of_another_chosen_problem():
    other = Question("other", "2 + 2?", "4")
    records = [sample(3, "4", True) | {"question_id": "other"}]
    chosen = [PROBLEM, Chosen(other, records)]
    found = compose(FIRST, "example", PROBLEM, [], chosen)
    assert found is not None
    assert (found.shown, found.shown_from, found.shown_correct) == (
        "2 + 2?\n\n4", "other/none/3", True,
    )  # fmt: skip
    assert "Another problem" in found.turn
    assert compose(FIRST, "example", PROBLEM, [], [PROBLEM]) is None


def test_the_toy_tokenizer_knows_the_words_around_an_example():
    known = set(toy_tokenizer.vocabulary())
    example = Shown("", solution="", is_example=True)
    assert not set(example.turn(FIRST.template).split()) <= known
    assert set(example.turn(FIRST.for_task(ToyTask()).template).split()) <= known
    assert FIRST.for_task(MathTask("x.jsonl")) is FIRST
