"""Numbers and verbs as text."""

import pytest

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.report.words import change_text, marked, movement, number_text


def test_the_verb_follows_the_interval_not_the_value():
    assert movement(Interval(-0.1, -0.2, -0.01, 9)) == "fell"
    assert movement(Interval(0.1, 0.01, 0.2, 9)) == "rose"
    assert "not clearly" in movement(Interval(-0.1, -0.2, 0.01, 9))


def test_numbers_read_as_percent_points_with_a_true_minus_and_no_negative_zero():
    assert number_text("accuracy", -0.2114, signed=True) == "−21.1"
    assert number_text("accuracy", -0.0001, signed=True) == "0.0"
    assert number_text("epistemic_per_response", 0.601) == "0.60"
    text = change_text("accuracy", Interval(-0.211, -0.25, -0.172, 9)).replace("\xa0", " ")
    assert text == "−21.1 points [−25.0, −17.2]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, WAIT", "<mark>Wait</mark>, <mark>WAIT</mark>"),
        ("waiter await wait2", "waiter await <mark>wait</mark>2"),
        ("a<b & wait", "a&lt;b &amp; <mark>wait</mark>"),
        ("éwait wait.", "éwait <mark>wait</mark>."),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_whole_words_are_marked_after_escaping(text, expected):
    assert marked(text, ["wait"]) == expected


def test_a_word_list_cannot_break_an_entity_or_match_inside_one():
    assert marked("<amp> don't", ["lt", "gt", "amp", "don't", "x27"]) == (
        "&lt;<mark>amp</mark>&gt; <mark>don&#x27;t</mark>"
    )


def test_the_longest_of_overlapping_words_is_marked():
    assert marked("let me check", ["let me", "let me check"]) == "<mark>let me check</mark>"
