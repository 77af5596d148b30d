"""Rules that end a run look at what was measured, and not at what ended it before."""

import math

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.training.checkpointing import KeepBest
from jaxdistill.training.stop_rules import EvaluationFalls, History, MetricFalls, OfStart, Value


def history(*values, since=0):
    rows = [{"step": step, "mass": value} for step, value in enumerate(values, start=1)]
    return History(metrics=rows, since=since)


RULE = MetricFalls("mass", OfStart(0.5), patience=2)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([1.0, 0.4], False),  # once is noise
        ([1.0, 0.4, 0.4], True),
        ([1.0, 0.4, 0.6, 0.4], False),
        ([1.0, 0.5, 0.5], False),  # below, not at
        ([1.0, 0.4, None, 0.4], True),  # a step without the metric is none
        ([None, 1.0, 0.6, 0.4, 0.4], True),  # the first that was measured
        ([0.1], False),
        ([], False),
    ],
)
def test_a_share_of_the_start_must_be_missed_in_a_row(values, holds):
    assert (RULE.reason(history(*values)) is not None) == holds


def test_the_line_names_value_limit_and_start():
    assert RULE.reason(history(1.0, 0.4, 0.25)) == (
        "mass is 0.25, below 0.5 (0.5 of 1 at step 1), in 2 measurements in a row"
    )


def test_what_stopped_a_run_before_does_not_stop_it_again():
    collapsed = [1.0, 0.4, 0.4]
    assert RULE.reason(history(*collapsed, 0.4, since=3)) is None
    assert RULE.reason(history(*collapsed, 0.4, 0.4, since=3)) is not None


def test_an_evaluation_is_compared_with_that_of_step_0_or_with_a_value():
    evaluations = {0: {"heldout": {"accuracy": 0.8}}, 40: {"heldout": {"accuracy": 0.3}}}
    past = History(evaluations=evaluations)
    assert EvaluationFalls("heldout").reason(past) == (
        "accuracy on heldout is 0.3, below 0.4 (0.5 of 0.8 at step 0)"
    )
    assert EvaluationFalls("heldout", below=Value(0.2)).reason(past) is None
    assert EvaluationFalls("ood").reason(past) is None


def test_a_misspelt_metric_names_the_nearest():
    with pytest.raises(UserError, match="no metric 'mas'; nearest: mass"):
        MetricFalls("mas").reason(history(1.0))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stop_when": (EvaluationFalls("held"),)}, r"stop_when\[0\]\.data='held'.*heldout"),
        ({"stop_when": (EvaluationFalls("heldout", "acuracy"),)}, "nearest: accuracy"),
        ({"stop_when": MetricFalls()}, "expected a tuple of rules"),
        ({"stop_when": ("collapse",)}, r"stop_when\[0\]: expected one of .*MetricFalls"),
        ({"keep_best": KeepBest("ood")}, r"keep_best\.data='ood'.*heldout"),
        ({"keep_best": "accuracy"}, r"keep_best: expected KeepBest"),
        ({"keep_best": KeepBest("heldout"), "save_checkpoints": False}, "needs checkpoints"),
    ],
)
def test_a_rule_that_could_never_hold_is_refused_before_the_run(changes, expected):
    with pytest.raises(UserError, match=expected):
        tiny(**changes)


@pytest.mark.parametrize(
    ("measure", "better", "expected"),
    [
        ("length", None, "neither higher nor lower length is better in itself"),
        ("lenght", "lower", "nearest: length"),
        ("length", "smaller", "expected higher, lower or None"),
    ],
)
def test_the_best_needs_a_measure_with_a_direction(measure, better, expected):
    with pytest.raises(UserError, match=expected):
        KeepBest("heldout", measure, better)


def test_of_equal_values_the_first_is_the_best_and_nan_never_is():
    rule = KeepBest("heldout")
    assert rule.is_better(0.5, None)
    assert rule.is_better(0.6, 0.5)
    assert not rule.is_better(0.5, 0.5)
    assert not any(rule.is_better(value, 0.1) for value in (None, math.nan, math.inf))
    assert KeepBest("heldout", "length", "lower").is_better(3.0, 4.0)
