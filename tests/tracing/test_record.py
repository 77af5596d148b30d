"""What a trace says of itself, and that its JSON holds all of it."""

import dataclasses
import json

import numpy as np
import pytest
from made_trace import made_trace

from jaxdistill.errors import UserError
from jaxdistill.tracing.record import Trace


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


@pytest.mark.parametrize("reference", ["base", ""])
def test_json_holds_everything(reference, tmp_path):
    trace = made_trace(reference=reference)
    trace = dataclasses.replace(trace, kl=np.where(trace.kl > 2, np.inf, trace.kl))
    text = trace.to_json(tmp_path / "new" / "trace.json")
    assert (tmp_path / "new" / "trace.json").read_text(encoding="utf-8") == text
    tokens = json.loads(text)["tokens"]
    assert "".join(tokens["text"]) == "".join(trace.texts)
    assert None in tokens["kl"]
    assert ("reference" in tokens) == bool(reference)
    again = Trace.from_json(text)
    assert again.to_json() == text
    for name in ("ids", "logp", "entropy", "mass", "push", "top_ids", "top_logp"):
        mine, yours = getattr(trace, name), getattr(again, name)
        kept = np.s_[:, : 3 if reference else 2] if mine.ndim > 1 else np.s_[:]
        np.testing.assert_allclose(yours[kept], mine[kept], rtol=1e-6)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_what_is_no_trace_is_refused(content):
    with pytest.raises(UserError, match="not a trace"):
        Trace.from_json(content)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        made_trace().to_json(tmp_path / "file" / "trace.json")
