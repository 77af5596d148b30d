"""Which sibling is shown: by verdict, by length, or by a vote that sees no gold answer."""

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.errors import UserError
from jaxdistill.tasks.demonstrations import (
    First,
    Group,
    Longest,
    Majority,
    Random,
    Shortest,
    choose_siblings,
    votes_of,
    winner_of,
)
from jaxdistill.tasks.grading import grade_all
from jaxdistill.tasks.grading.choice import grade_choice
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import grader as toy_grader

CHOICES = st.sampled_from([Random(), First(), Shortest(), Longest()])


def judged(is_correct, lengths=None):
    lengths = [1] * len(is_correct) if lengths is None else lengths
    return Group([True] * len(is_correct), lengths, is_correct)


@given(st.lists(st.booleans(), max_size=9), CHOICES, st.integers(1, 4))
def test_a_row_is_shown_different_eligible_rows_but_never_itself(is_eligible, choice, count):
    lengths = [7 * row % 5 for row in range(len(is_eligible))]
    rng = np.random.default_rng(0)
    chosen = choose_siblings(judged(is_eligible, lengths), choice, rng, count=count)
    assert len(chosen) == len(is_eligible)
    for row, others in enumerate(chosen):
        siblings = [j for j, is_one in enumerate(is_eligible) if is_one and j != row]
        assert len(others) == len(set(others)) == min(count, len(siblings))
        assert set(others) <= set(siblings)
        if choice == First():
            assert others == siblings[:count]
        if choice == Shortest():
            assert others == sorted(siblings, key=lambda j: lengths[j])[:count]
        if choice == Longest():
            assert others == sorted(siblings, key=lambda j: -lengths[j])[:count]


def test_a_lone_winner_learns_nothing_and_teaches_the_rest():
    group = judged([False, True, False])
    assert choose_siblings(group, Random(), np.random.default_rng(0)) == [[1], [], [1]]


@pytest.mark.parametrize("count", [1, 2])
def test_siblings_are_drawn_uniformly_and_the_same_again_for_the_same_seed(count):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return choose_siblings(judged([True] * 4), Random(), rng, count=count)

    draws = [draw(seed) for seed in range(600)]
    for place in range(count):
        counts = np.bincount([rows[0][place] for rows in draws], minlength=4)
        # 600 draws of probability 1/3 have mean 200 and standard deviation 11.5; 60 is five of it.
        assert counts[0] == 0
        assert (abs(counts[1:] - 200) < 60).all()
    assert draws[7] == draw(7)


def test_without_verdicts_the_shortest_and_the_longest_are_of_all_that_were_not_cut():
    group = Group([True, True, True, False], [5, 3, 8, 99])  # no verdicts to read
    rng = np.random.default_rng(0)
    assert choose_siblings(group, Shortest(judged=False), rng) == [[1], [0], [1], [1]]
    assert choose_siblings(group, Longest(judged=False), rng) == [[2], [2], [0], [2]]
    nothing = choose_siblings(group, Shortest(judged=False), rng, correct=False)
    assert nothing == [[], [], [], []]


# ------------------------------------------------------------------------------------ the vote

VOTES = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=9)
PICKS = st.sampled_from(["random", "first", "shortest", "longest"])


@given(VOTES, st.sampled_from([0.0, 0.3, 0.5, 0.75]), PICKS, st.booleans())
def test_the_majority_is_what_counting_by_hand_finds(answers, min_share, pick, correct):
    """A row is shown another with the most frequent answer, where it is frequent enough."""
    votes = [None if answer is None else answers.index(answer) for answer in answers]
    lengths = [5 * row % 7 for row in range(len(votes))]
    group = Group([True] * len(votes), lengths, votes=votes)
    choice = Majority(min_share, pick)
    chosen = choose_siblings(group, choice, np.random.default_rng(0), correct=correct)
    counts = Counter(answer for answer in answers if answer is not None)
    most = max(counts.values(), default=0)
    first = next((answer for answer in answers if counts[answer] == most > 0), None)
    has_winner = first is not None and most / len(answers) >= min_share - 1e-9
    for row, shown in enumerate(chosen):
        others = [
            other
            for other, answer in enumerate(answers)
            if other != row and has_winner and answer is not None and (answer == first) == correct
        ]
        assert len(shown) == min(len(others), 1)
        if not others:
            continue
        assert shown[0] in others
        by_length = {"shortest": min(others, key=lambda o: (lengths[o], o)),
                     "longest": min(others, key=lambda o: (-lengths[o], o)),
                     "first": others[0]}  # fmt: skip
        assert shown[0] == by_length.get(pick, shown[0])


def math(question, response):
    return grade_math(question, response)


def grade(questions, responses):
    return grade_all(math, questions, responses)


def test_answers_are_equal_where_the_grader_finds_them_equal():
    """Halves in three spellings are one answer of three votes, and no box is no vote."""
    questions = [Question("a", "?", "7"), Question("b", "?", "8")]
    of_a = [r"\boxed{0.5}", r"\boxed{2}", r"\boxed{\frac12}", "no box", r"\boxed{1/2}"]
    of_b = [r"\boxed{3}", r"\boxed{x+1}", r"\boxed{ 3 }", r"\boxed{1+x}", r"\boxed{}"]
    assert votes_of(questions, of_a + of_b, grade) == [0, 1, 0, None, 0, 0, 1, 0, 1, None]
    assert votes_of([], [], grade) == []


def test_an_answer_that_names_two_options_does_not_vote():
    letters = ["B", "A or C", "(b)", "A or C", "A or C"]
    responses = [f"<answer>{text}</answer>" for text in letters]
    votes = votes_of(
        [Question("q", "?", "C")], responses, functools.partial(grade_all, grade_choice)
    )
    assert votes == [0, None, 0, None, None]


TOY = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=6, max_size=6)


@settings(max_examples=50)
@given(TOY, st.permutations(range(3)))
def test_no_vote_depends_on_a_gold_answer(answers, order):
    """Any permutation of the gold answers, and their loss, leaves every vote as it is."""
    golds = ["a", "b", "c"]
    questions = [Question(str(q), "?", golds[q], solution=golds[q]) for q in range(3)]
    others = [dataclasses.replace(x, answer=golds[order[q]]) for q, x in enumerate(questions)]
    blind = [dataclasses.replace(x, answer="", solution=None) for x in questions]
    responses = [f"</think> answer {answer}" for answer in answers]

    def seen(questions, responses):
        assert all(x.solution is None and not x.alternatives for x in questions)
        return grade_all(toy_grader.grade, questions, responses)

    votes = votes_of(questions, responses, seen)
    assert votes == votes_of(others, responses, seen) == votes_of(blind, responses, seen)
    by_hand = [
        None if not answer else answers[row // 2 * 2 : row // 2 * 2 + 2].index(answer)
        for row, answer in enumerate(answers)
    ]
    assert votes == by_hand


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(UserError, match=r"min_share must lie in \[0, 1\], got 1.5"):
        Majority(1.5)
    assert winner_of([0, 0, None], 2 / 3) == 0
