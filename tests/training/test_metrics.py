"""Means are divided once; the metrics file stays readable whatever happens to the run."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.errors import UserError
from jaxdistill.training.metrics import MetricsWriter, Sum, means


def _lines(folder):
    def refuse(constant):
        raise ValueError(f"not strict JSON: {constant}")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 12),
)
@settings(deadline=None)
def test_splitting_the_values_does_not_change_the_mean(pairs, cut):
    def total(part):
        return Sum(float(sum(v * w for v, w in part)), float(sum(w for _, w in part)))

    whole, split = total(pairs).mean, (total(pairs[:cut]) + total(pairs[cut:])).mean
    # Sums of small integers are exact in float64, so the means are equal to the last bit.
    assert whole == split or (math.isnan(whole) and math.isnan(split))


def test_an_empty_sum_has_the_mean_nan_on_the_host_and_under_jit():
    assert math.isnan(Sum(0.0, 0).mean)
    assert math.isnan(Sum(np.float32(0), np.float32(0)).mean)
    assert math.isnan(jax.jit(lambda s: s.mean)(Sum(jnp.float32(0), jnp.float32(0))))


def test_the_gradient_of_an_empty_mean_is_zero_and_not_nan():
    gradient = jax.grad(lambda x: Sum(x, jnp.float32(0)).mean)(jnp.float32(1))
    assert gradient == 0.0


def test_plus_adds_and_does_not_concatenate():
    assert Sum(1.0, 2.0) + Sum(3.0, 4.0) == Sum(4.0, 6.0)
    assert sum([Sum(1.0, 2.0), Sum(3.0, 4.0)], Sum(0.0, 0.0)) == Sum(4.0, 6.0)


def test_means_fetches_device_scalars():
    assert means({"a": Sum(jnp.float32(3), jnp.float32(2))}) == {"a": 1.5}


def test_every_line_is_strict_json_even_with_nan_and_infinity(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"a": math.nan, "b": jnp.float32(np.inf), "c": Sum(0, 0), "d": "text"})
    writer.write(1, {"a": np.float32(0.5), "b": 3, "c": Sum(3, 2), "d": None, "e": True})
    assert _lines(tmp_path) == [
        {"step": 0, "a": None, "b": None, "c": None, "d": "text"},
        {"step": 1, "a": 0.5, "b": 3, "c": 1.5, "d": None, "e": True},
    ]


def test_a_line_can_be_read_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()  # nothing is measured yet
    writer.write(7, {"loss": 1.0})
    assert _lines(tmp_path) == [{"step": 7, "loss": 1.0}]


def test_resuming_drops_the_steps_that_run_again_and_a_incomplete_last_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(5):
        writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    writer = MetricsWriter(tmp_path, resume_step=3)
    writer.write(3, {"loss": -3.0})
    assert [(row["step"], row["loss"]) for row in _lines(tmp_path)] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, -3.0),
    ]


def test_opening_again_without_resuming_appends(tmp_path):
    for step in range(2):
        writer = MetricsWriter(tmp_path)
        writer.write(step, {})
    assert [row["step"] for row in _lines(tmp_path)] == [0, 1]


def test_a_damaged_line_is_reported_with_file_and_line_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        MetricsWriter(tmp_path)
