"""Numbers and verbs as text."""

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.report.words import change_text, movement, number_text


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
