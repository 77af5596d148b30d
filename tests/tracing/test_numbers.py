"""What a trace says of its own numbers, and how it writes texts that would act on a page."""

import dataclasses

import numpy as np
import pytest
from made_trace import HOSTILE, made_trace

from jaxdistill.tracing.numbers import visible


def with_masses(student, teacher, reference=None):
    T = len(student)
    mass = np.stack([student, teacher, student if reference is None else reference], axis=1)
    trace = made_trace(T, reference="" if reference is None else "base")
    return dataclasses.replace(trace, mass=mass)


@pytest.mark.parametrize(
    ("masses", "sentence"),
    [
        (([0.9, 0.2, 0.0, 0.0, 0.0], [0.2, 0.15, 0.0, 0.0, 0.0]), "At 1 of 5 tokens the teacher t"),
        (([0.1] * 5, [0.6, 0.1, 0.1, 0.1, 0.1]), "At 1 of 5 tokens the teacher would voice more"),
        (([0.1] * 5, [0.1] * 5), "At none of 5 tokens"),
        (([0.0] * 5, [0.0] * 5, [0.9, 0.9, 0.0, 0.0, 0.0]), "At 2 of 5 tokens the student no"),
    ],
)  # fmt: skip
def test_the_finding_counts_the_tokens_at_which_doubt_falls(masses, sentence):
    trace = with_masses(*map(np.array, masses))
    assert trace.finding().startswith(sentence)


def test_forks_are_where_a_tenth_of_the_doubt_is_taken_or_lost():
    trace = with_masses(
        np.array([0.5, 0.5, 0.0, 0.0, 0.2]),
        np.array([0.1, 0.45, 0.0, 0.3, 0.2]),
        np.array([0.5, 0.5, 0.3, 0.0, 0.25]),
    )
    assert trace.forks() == [0, 2]
    assert "student 1.2, teacher 1.1, reference 1.6" in trace.expectation()
    assert repr(trace).count("\n  token ") == 2


def test_control_and_direction_characters_are_shown_as_symbols():
    assert visible(HOSTILE).endswith("&\ufffd␀")
    assert visible("e\u0301 👩\u200d🔬\n") == "e\u0301 👩\u200d🔬\n"
