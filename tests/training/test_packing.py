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


def capacities(sizes_IX, pack):
    return packing.row_capacities(sizes_IX.sum(axis=0), sizes_IX.max(axis=0), pack)


def padding_of(sizes_IX, pack, parts=1):
    capacity_X = capacities(sizes_IX, pack)
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
    capacity_X = capacities(sizes_IX, data.draw(st.integers(1, 200)))
    plan = packing.plan_rows(sizes_IX, capacity_X, max_sequences=5)
    assert sorted(row for rows in plan for row in rows) == list(range(rows))
    assert all((sizes_IX[rows].sum(axis=0) <= capacity_X).all() for rows in plan)
    assert max(map(len, plan)) <= 5


def test_the_students_capacity_is_the_next_multiple_that_holds_its_longest_sequence():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert capacities(sizes_IX, 128)[1] == 128
    assert capacities(sizes_IX, 61)[1] == 61
    assert capacities(sizes_IX, 32)[1] == 64
    # The teacher's holds its longest sequence too, though on average it needs less than that.
    assert capacities(sizes_IX, 61)[2] >= 100


def test_a_batch_that_fills_no_row_takes_the_least_power_of_two_that_holds_it():
    sizes_IX = np.array([[10, 20, 30], [50, 61, 100]])
    assert capacities(np.concatenate([sizes_IX] * 2), 4096)[1] == 256  # 2 x (20 + 61) = 162
    assert capacities(np.concatenate([sizes_IX] * 60), 4096)[1] == 4096
    assert capacities(sizes_IX, 4096)[1] == capacities(np.array([[1, 1]]), 4096)[1] == 128


# ---------------------------------------------------------------------------- from batch to batch


def plan_batch(sizes_IX, pack, parts, kept):
    (plan,) = packing.plan_batches([sizes_IX], pack, parts, kept)
    return plan


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("kind", ["answer", "solution without thinking", "whole solution"])
def test_one_shape_serves_many_batches_with_no_more_padding_than_a_shape_for_each(kind, parts):
    kept, own, shapes, padding, padding_alone = packing.KeptPacking(), set(), set(), [], []
    for seed in range(25):
        lengths_IX = lengths_of(kind, 256, seed)
        plan = plan_batch(lengths_IX, 40_960, parts, kept)
        alone = plan_batch(lengths_IX, 40_960, parts, packing.KeptPacking())
        shapes.add(plan.shape)
        own.add(alone.shape)
        padding.append(packing.padding_of([plan]))
        padding_alone.append(packing.padding_of([alone]))
    print(kind, parts, len(own), f"{np.mean(padding):.3f} {np.mean(padding_alone):.3f}")
    assert len(shapes) == 1
    assert len(own) > 1 or kind != "whole solution"
    # Eight rows in a micro-batch: one more or less of seven is decided by few sequences.
    assert np.mean(padding) <= np.mean(padding_alone) + (0.005 if parts == 1 else 0.01)


def test_a_single_batch_of_other_lengths_makes_no_new_shape_and_a_lasting_change_few():
    kept = packing.KeptPacking()
    usual_IX, other_IX = np.full((64, 3), (50, 100, 110)), np.full((64, 3), (50, 100, 200))
    first = plan_batch(usual_IX, 400, 1, kept)
    assert first.shape.capacity_X == (200, 400, 450)
    # In this shape only two of the others share a row, because of the teacher's.
    single, again = (plan_batch(lengths_IX, 400, 1, kept) for lengths_IX in
                     (other_IX, usual_IX))  # fmt: skip
    assert (single.num_in_use, again.num_in_use) == (32, 16)
    assert len(kept.shapes) == 1
    plans = [plan_batch(other_IX, 400, 1, kept) for _ in range(60)]
    assert (plans[-1].num_in_use, plans[-1].shape.capacity_X[2]) == (16, 800)
    assert len(kept.shapes) <= 4  # each needs twice the waste of the one before


def test_a_sequence_that_fits_no_kept_row_makes_a_shape_that_holds_all_before():
    kept = packing.KeptPacking()
    for longest in (300, 120):
        lengths_IX = np.full((64, 3), (50, 100, 110))
        lengths_IX[0, 2] = longest
        plan_batch(lengths_IX, 200, 1, kept)
    lengths_IX[0, 1:] = 250
    plan = plan_batch(lengths_IX, 200, 1, kept)
    assert plan.shape.capacity_X[1] == 400
    assert plan.shape.capacity_X[2] >= 300
    assert len(kept.shapes) == 2


def test_a_batch_that_fills_more_micro_batches_gets_enough_for_any_batch():
    kept = packing.KeptPacking()
    short_IX = np.full((64, 2), (5, 10))
    few = plan_batch(short_IX, 40, 2, kept)
    assert (few.num_in_use, few.shape.micro_batches) == (8, 12)
    many = plan_batch(np.full((64, 2), (10, 21)), 40, 2, kept)
    assert (many.num_in_use, many.shape.micro_batches) == (32, 32)
    assert plan_batch(short_IX, 40, 2, kept).shape == many.shape


def test_rows_may_hold_the_sequences_of_the_first_plan_and_a_quarter_more_until_lengths_change():
    """On a GPU attention takes memory for each sequence that a row may hold."""
    kept = packing.KeptPacking()
    long_IX, other_IX, short_IX = (
        np.full((64, 2), sizes) for sizes in ((300, 400), (150, 200), (50, 100))
    )
    usual = plan_batch(long_IX, 4096, 1, kept)
    assert (max(map(len, usual.rows)), usual.shape.sequences) == (10, 16)
    other = plan_batch(other_IX, 4096, 1, kept)
    assert other.shape == usual.shape
    assert max(map(len, other.rows)) == 16  # 20 would have had space, and taken as many rows
    # Here the limit would double the number of rows.
    short = plan_batch(short_IX, 4096, 1, kept)
    assert (max(map(len, short.rows)), short.shape.sequences) == (32, 32)
    assert plan_batch(long_IX, 4096, 1, kept).shape == short.shape
    assert len(kept.shapes) == 1


def test_the_padding_of_a_plan_is_that_of_the_micro_batches_in_use():
    plan = plan_batch(np.full((6, 3), (5, 10, 20)), 40, 2, packing.KeptPacking())
    assert plan.shape.capacity_X == (20, 40, 80)
    assert sorted(map(len, plan.rows)) == [2, 4]
    assert (plan.num_in_use, packing.padding_of([plan])) == (
        1,
        pytest.approx(1 - 6 * 30 / (2 * 120)),
    )


# --------------------------------------------------------------------- several batches of one step


def test_batches_of_one_step_share_a_shape_that_holds_the_longest_of_them():
    short_IX, long_IX = np.full((64, 3), (5, 10, 20)), np.full((64, 3), (30, 60, 70))
    kept = packing.KeptPacking()
    few, many = packing.plan_batches([short_IX, long_IX], 120, 2, kept)
    assert few.shape == many.shape == kept.shapes[0]
    # 120 tokens of the student are 60 of completions and 154 of the teacher in the mean of both,
    # rounded up to sixteenths of 120 (7). A row then holds 8 short sequences or 2 long ones.
    assert few.shape.capacity_X == (63, 120, 161)
    assert (few.num_in_use, many.num_in_use) == (4, 16)
    assert few.shape.micro_batches >= many.num_in_use
    positions = (4 + 16) * 2 * (120 + 161)
    assert packing.padding_of([few, many]) == pytest.approx(1 - 64 * (30 + 130) / positions)


@pytest.mark.parametrize("parts", [1, 8])
def test_a_joint_shape_has_no_more_padding_than_a_shape_for_each_mini_batch(parts):
    kept, shapes, padding, padding_alone = packing.KeptPacking(), set(), [], []
    for seed in range(20):
        halves = np.split(lengths_of("whole solution", 256, seed), 2)
        plans = packing.plan_batches(halves, 40_960, parts, kept)
        alone = [plan_batch(half, 40_960, parts, packing.KeptPacking()) for half in halves]
        shapes |= {plan.shape for plan in plans}
        padding.append(packing.padding_of(plans))
        padding_alone.append(packing.padding_of(alone))
    print(parts, f"{np.mean(padding):.3f} {np.mean(padding_alone):.3f}")
    assert len(shapes) == 1
    assert np.mean(padding) <= np.mean(padding_alone) + 0.015


def test_a_new_shape_for_small_batches_is_no_larger_than_they_need():
    kept = packing.KeptPacking()
    small_IX = np.full((8, 3), (5, 10, 20))
    for _ in range(40):  # many batches, each of 80 tokens
        assert plan_batch(small_IX, 20_000, 1, kept).shape.capacity_X[1] == 128
    longer_IX = small_IX.copy()
    longer_IX[0] = (5, 130, 140)
    assert plan_batch(longer_IX, 20_000, 1, kept).shape.capacity_X[1] == 256
