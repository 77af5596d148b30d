"""The plan of sequence packing: every sequence is packed once, and few positions are padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.training import packing

# ------------------------------------------------------------------------------------ the plan


def long_tailed(rng, rows, mean=6000, sigma=0.8, most=20_000):
    """Log-normal lengths with this mean, truncated at `most`."""
    return np.minimum(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, rows), most).astype(int)


def lengths_of(kind, rows, seed):
    """Lengths [I, X] of completions, of the student's sequences and of the teacher's."""
    rng = np.random.default_rng(seed)
    completion_I = long_tailed(rng, rows, most=19_000) + 1
    prompt_I = long_tailed(rng, rows, 200, 0.4, 800) + 1
    shown_I = {
        "answer": np.full(rows, 60),
        "solution without thinking": long_tailed(rng, rows, 600, 0.5, 2000),
        "whole solution": long_tailed(rng, rows, most=16_000),
    }[kind]
    student_I = prompt_I + completion_I
    return np.stack([completion_I, student_I, student_I + shown_I], axis=1)


def padding_of(sizes_IX, pack, parts=1):
    capacity_X = packing.row_capacities(sizes_IX, pack)
    plan = packing.plan_rows(sizes_IX, capacity_X)
    num_rows = -(-len(plan) // parts) * parts
    each_X = 1 - sizes_IX.sum(axis=0) / (num_rows * capacity_X)
    return 1 - sizes_IX[:, 1:].sum() / (num_rows * capacity_X[1:].sum()), each_X


@pytest.mark.parametrize("rows", [256, 512])
@pytest.mark.parametrize("kind", ["answer", "solution without thinking", "whole solution"])
def test_padding_of_long_tailed_lengths_is_at_most_a_tenth(rows, kind):
    """Of the student's and the teacher's rows; padding each to the longest wastes over half."""
    found = [padding_of(lengths_of(kind, rows, seed), 20_480) for seed in range(10)]
    print(rows, kind, f"{np.mean([x for x, _ in found]):.3f} {max(x for x, _ in found):.3f}",
          np.max([each for _, each in found], axis=0).round(3))  # fmt: skip
    assert max(share for share, _ in found) <= 0.10
    assert max(each_X[1:].max() for _, each_X in found) <= 0.11
    lengths_IX = lengths_of(kind, rows, 0)
    assert 1 - lengths_IX.mean(axis=0)[1] / lengths_IX.max(axis=0)[1] > 0.5


@given(st.data())
def test_every_sequence_is_packed_once_and_no_row_exceeds_its_capacity(data):
    rows, kinds = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 4))
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    completion_I = rng.integers(0, 60, rows)
    sizes_IX = np.stack(
        [completion_I] + [completion_I + rng.integers(1, 90, rows)] * (kinds - 1), 1
    )
    capacity_X = packing.row_capacities(sizes_IX, data.draw(st.integers(1, 200)))
    plan = packing.plan_rows(sizes_IX, capacity_X, max_sequences=5)
    assert sorted(row for rows in plan for row in rows) == list(range(rows))
    assert all((sizes_IX[rows].sum(axis=0) <= capacity_X).all() for rows in plan)
    assert max(map(len, plan)) <= 5


def test_the_students_capacity_is_the_next_multiple_that_holds_its_longest_sequence():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert packing.row_capacities(sizes_IX, 128)[1] == 128
    assert packing.row_capacities(sizes_IX, 61)[1] == 61
    assert packing.row_capacities(sizes_IX, 32)[1] == 64
    # The teacher's holds its longest sequence too, though on average it needs less than that.
    assert packing.row_capacities(sizes_IX, 61)[2] >= 100


def test_a_batch_that_fills_no_row_takes_the_least_power_of_two_that_holds_it():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert packing.rooms(np.concatenate([sizes_IX] * 2), 4096)[1] == 256  # 2 x (20 + 61) = 162
    assert packing.rooms(np.concatenate([sizes_IX] * 60), 4096)[1] == 4096
    assert packing.rooms(sizes_IX, 4096)[1] == packing.rooms(np.array([[1, 1]]), 4096)[1] == 128


def test_the_sizes_of_batches_from_one_distribution_are_few():
    """Each distinct capacity is a compilation: at most two adjacent ones occur for the teacher."""
    capacities = {
        tuple(packing.row_capacities(lengths_of("solution without thinking", 512, seed), 20_480))
        for seed in range(40)
    }
    assert len(capacities) <= 2
