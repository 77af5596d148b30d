"""Countdown problems: each has one solution, and its pool never changes."""

import collections
import itertools
import random

import numpy as np
import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.toy.problems import Problem

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: abs(a - b), "*": lambda a, b: a * b}


def reached_values(numbers: tuple[int, ...]) -> collections.Counter[int]:
    """Count by brute force how many chains within 0..99 end in each value."""
    ends = collections.Counter()
    for ops in itertools.product(OPERATIONS.values(), repeat=len(numbers) - 1):
        value = numbers[0]
        for op, number in zip(ops, numbers[1:], strict=True):
            value = op(value, number) if value <= 99 else value
        ends[value] += value <= 99
    return ends


def test_the_three_number_problems_are_exactly_those_with_one_reaching_chain():
    expected = {
        (*numbers, target)
        for numbers in itertools.product(range(1, 31), repeat=3)
        for target, ways in reached_values(numbers).items()
        if ways == 1 and target >= 1
    }
    found = [
        (*row, target)
        for numbers, targets in problems.all_problems().values()
        for row, target in zip(numbers.tolist(), targets.tolist(), strict=True)
    ]
    assert len(found) == len(set(found)) == len(expected) > 50_000
    assert set(found) == expected


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_a_drawn_problem_has_one_solution_and_its_answer_reaches_the_target(size):
    for problem in problems.draw_distinct(100, size, "heldout", seed=1):
        assert len(problem.numbers) == size
        assert all(1 <= number <= 30 for number in problem.numbers)
        assert 1 <= problem.target <= 99
        assert reached_values(problem.numbers)[problem.target] == 1
        first, *rest = problem.answer.split()
        value = int(first)
        for op, number in zip(rest[::2], rest[1::2], strict=True):
            value = OPERATIONS[op](value, int(number))
        assert value == problem.target
        assert [int(first), *map(int, rest[1::2])] == list(problem.numbers)


def test_legal_chains_are_those_that_never_leave_the_range():
    # 20 * 15 leaves the range at once, (20 + 15) * 3 = 105 at the end. |15 - 20| is 5.
    assert problems.legal_chains((15, 20, 3)) == {"++": 38, "+-": 32, "-+": 8, "--": 2, "-*": 15}
    assert problems.chain_values((15, 20, 3), "-*") == [5, 15]
    assert problems.expression((15, 20, 3), "-*") == "15 - 20 * 3"


def test_a_problem_is_read_back_from_its_text():
    problem = Problem((20, 15, 1), 34)
    assert problem.text == "20 15 1 -> 34"
    assert problems.parse(problem.text) == problem
    assert problem.answer == "20 + 15 - 1"
    for text in ("20 15 1", "20 x 1 -> 34", "20 15 1 ->", ""):
        with pytest.raises(ValueError, match=r"expected|invalid literal"):
            problems.parse(text)


# ----------------------------------------------------------------------------------------- pools


def test_the_hash_and_the_pools_are_the_same_for_ever():
    # splitmix64 of 0 and 1 (Vigna's reference code), modulo 100. The shipped bases were pretrained
    # with this split; if it changes, they have seen some of the held-out problems.
    outputs = (0xE220A8397B1DCDAF, 0x910A2DEC89025CC1)
    assert problems.hash_percent(np.array([0, 1])).tolist() == [x % 100 for x in outputs]
    pinned = {
        "16 4 19 -> 31": "pretrain",
        "18 19 1 -> 37": "train",
        "5 4 3 -> 6": "heldout",
        "25 17 6 20 -> 18": "pretrain",
        "22 21 18 16 -> 33": "train",
        "15 10 2 27 -> 23": "heldout",
    }
    assert {text: problems.pools_of([problems.parse(text)])[0] for text in pinned} == pinned


def test_an_enumerated_pool_is_the_pool_that_the_hash_names():
    for pool, (numbers, targets) in problems.all_problems().items():
        drawn = zip(numbers[::997].tolist(), targets[::997].tolist(), strict=True)
        some = [Problem(tuple(numbers), target) for numbers, target in drawn]
        assert problems.pools_of(some) == [pool] * len(some)


def test_pools_have_the_shares_that_they_are_meant_to_have():
    sizes = {pool: len(targets) for pool, (_, targets) in problems.all_problems().items()}
    total = sum(sizes.values())
    for pool, (low, high) in problems.POOLS.items():
        share = (high - low) / 100
        # For random draws the share is binomial with a standard deviation of at most 0.0013; the
        # tolerance is five of them.
        assert abs(sizes[pool] / total - share) < 5 * (share * (1 - share) / total) ** 0.5


@pytest.mark.parametrize("size", [3, 4])
def test_no_problem_is_in_two_pools(size):
    # An earlier test shows that whole pools of three numbers are disjoint; this one tests draws.
    pools = [set(problems.draw_distinct(1000, size, pool, seed=0)) for pool in problems.POOLS]
    assert sum(map(len, pools)) == len(set().union(*pools))
    for pool, drawn in zip(problems.POOLS, pools, strict=True):
        assert set(problems.pools_of([*drawn][:300])) == {pool}


def test_four_number_problems_with_the_same_numbers_fall_into_all_pools():
    """The hash includes the target, so no pool contains all problems of a tuple of numbers."""
    rng, seen = random.Random(0), set()
    for _ in range(20):
        numbers = tuple(rng.randint(1, 30) for _ in range(4))
        unique = [t for t, ways in reached_values(numbers).items() if ways == 1 and t >= 1]
        seen.update(problems.pools_of([Problem(numbers, target) for target in unique]))
    assert seen == set(problems.POOLS)


# --------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("size", [3, 4])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(size):
    large = problems.draw_distinct(300, size, "train", seed=3)
    assert len(set(large)) == 300
    for count in (1, 8, 64):
        assert problems.draw_distinct(count, size, "train", seed=3) == large[:count]
    assert problems.draw_distinct(300, size, "train", seed=4) != large


def test_what_an_address_draws_is_pinned():
    # These are the study's questions; if they change, published figures refer to other questions.
    drawn = [p.text for p in problems.draw_distinct(3, 3, "heldout", seed=0)]
    assert drawn == ["5 4 3 -> 6", "18 23 24 -> 19", "9 14 25 -> 30"]
    drawn = [p.text for p in problems.draw_distinct(3, 4, "heldout", seed=0)]
    assert drawn == ["4 5 5 2 -> 27", "15 10 2 27 -> 23", "11 29 6 14 -> 60"]


def test_a_whole_pool_can_be_drawn_and_no_more():
    numbers, _ = problems.all_problems()["heldout"]
    size = len(numbers)
    assert len(set(problems.draw_distinct(size, 3, "heldout", seed=0))) == size
    with pytest.raises(UserError, match=f"`count={size + 1}`.*'heldout' holds {size}"):
        problems.draw_distinct(size + 1, 3, "heldout", seed=0)
