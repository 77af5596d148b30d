"""Packed rows: who stands where, how little is padding, and the same step as with padded rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.training import packing

# ------------------------------------------------------------------------------------ the plan


def long_tailed(rng, rows, mean=6000, sigma=0.8, most=20_000):
    """Log-normal lengths with this mean, cut at `most`."""
    return np.minimum(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, rows), most).astype(int)


def lengths_of(kind, rows, seed):
    """Lengths [I, N] of completions, and of prompts with them: the student's and a teacher's."""
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
    room_N = packing.rooms(sizes_IX, pack)
    plan = packing.plan_rows(sizes_IX, room_N)
    num_rows = -(-len(plan) // parts) * parts
    each_N = 1 - sizes_IX.sum(axis=0) / (num_rows * room_N)
    return 1 - sizes_IX[:, 1:].sum() / (num_rows * room_N[1:].sum()), each_N


@pytest.mark.parametrize("rows", [256, 512])
@pytest.mark.parametrize("kind", ["answer", "solution without thinking", "whole solution"])
def test_a_long_tail_of_lengths_is_padded_by_a_tenth_at_most(rows, kind):
    """For student and teacher alike; rows padded to the longest would waste more than half."""
    found = [padding_of(lengths_of(kind, rows, seed), 20_480) for seed in range(10)]
    print(rows, kind, f"{np.mean([x for x, _ in found]):.3f} {max(x for x, _ in found):.3f}",
          np.max([each for _, each in found], axis=0).round(3))  # fmt: skip
    assert max(share for share, _ in found) <= 0.10
    assert max(each_N[1:].max() for _, each_N in found) <= 0.11
    lengths_IX = lengths_of(kind, rows, 0)
    assert 1 - lengths_IX.mean(axis=0)[1] / lengths_IX.max(axis=0)[1] > 0.5


@given(st.data())
def test_every_row_stands_once_and_none_beyond_its_room(data):
    rows, kinds = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 4))
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    completion_I = rng.integers(0, 60, rows)
    sizes_IX = np.stack(
        [completion_I] + [completion_I + rng.integers(1, 90, rows)] * (kinds - 1), 1
    )
    room_N = packing.rooms(sizes_IX, data.draw(st.integers(1, 200)))
    plan = packing.plan_rows(sizes_IX, room_N, most=5)
    assert sorted(row for rows in plan for row in rows) == list(range(rows))
    assert all((sizes_IX[rows].sum(axis=0) <= room_N).all() for rows in plan)
    assert max(map(len, plan)) <= 5


def test_the_students_room_grows_to_the_next_multiple_that_holds_its_longest_row():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert packing.rooms(sizes_IX, 128)[1] == 128
    assert packing.rooms(sizes_IX, 61)[1] == 61
    assert packing.rooms(sizes_IX, 32)[1] == 64
    # The teacher's too holds its longest, though its rows are not twice the student's on average.
    assert packing.rooms(sizes_IX, 61)[2] >= 100


def test_a_batch_that_fills_no_row_takes_the_least_power_of_two_that_holds_it():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert packing.rooms(np.concatenate([sizes_IX] * 2), 4096)[1] == 256  # 2 x (20 + 61) = 162
    assert packing.rooms(np.concatenate([sizes_IX] * 60), 4096)[1] == 4096
    assert packing.rooms(sizes_IX, 4096)[1] == packing.rooms(np.array([[1, 1]]), 4096)[1] == 128


def test_the_sizes_of_batches_from_one_distribution_are_few():
    """A size is a compilation: two neighbours for the teacher, at most."""
    rooms = {
        tuple(packing.rooms(lengths_of("solution without thinking", 512, seed), 20_480))
        for seed in range(40)
    }
    assert len(rooms) <= 2
