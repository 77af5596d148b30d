"""Countdown in a fixed order: which operations between the numbers reach the target?

A problem is `20 15 1 -> 34`; its answer `20 + 15 - 1` is a left-to-right chain whose every value
lies in 0..99, where `-` is the absolute difference. The order of the numbers is fixed, and only
problems with exactly one reaching chain are kept. So every correct derivation ends in the same
tokens: a teacher that knows another correct solution cannot contradict what the student verified.

Three numbers of 1..30 give 132,824 distinct problems; four numbers are the larger,
out-of-distribution kind. A hash of the problem, not a file, says to which pool it belongs.
"""

import functools
import itertools
import random
from dataclasses import dataclass

import numpy as np

from jaxdistill.errors import UserError

OPERATIONS = "+-*"
MAX_NUMBER = 30
MAX_VALUE = 99
POOLS = {"pretrain": (0, 70), "train": (70, 90), "heldout": (90, 100)}  # per cent of the hash
Pool = str


@dataclass(frozen=True)
class Problem:
    numbers: tuple[int, ...]
    target: int

    @property
    def text(self) -> str:
        """The user's turn, e.g. `20 15 1 -> 34`."""
        return f"{' '.join(map(str, self.numbers))} -> {self.target}"

    @functools.cached_property
    def chains(self) -> dict[str, int]:
        """Every legal chain, as a string of operations (`+-`), and the value it reaches."""
        return legal_chains(self.numbers)

    @functools.cached_property
    def solution(self) -> str:
        """The operations of the one chain that reaches the target."""
        (ops,) = (ops for ops, value in self.chains.items() if value == self.target)
        return ops

    @property
    def answer(self) -> str:
        """The expression to be found, e.g. `20 + 15 - 1`."""
        return expression(self.numbers, self.solution)


def expression(numbers: tuple[int, ...], ops: str) -> str:
    return " ".join([str(numbers[0]), *(f"{op} {n}" for op, n in zip(ops, numbers[1:]))])


def apply(op: str, a: int, b: int) -> int:
    return a + b if op == "+" else abs(a - b) if op == "-" else a * b


def chain_values(numbers: tuple[int, ...], ops: str) -> list[int]:
    """The running values after each operation."""
    pairs = zip(ops, numbers[1:])
    return list(
        itertools.accumulate(pairs, lambda v, on: apply(on[0], v, on[1]), initial=numbers[0])
    )[1:]


def legal_chains(numbers: tuple[int, ...]) -> dict[str, int]:
    """Operations -> final value, for the chains that stay within 0..MAX_VALUE."""
    frontier = {"": numbers[0]}
    for n in numbers[1:]:
        frontier = {
            ops + op: value
            for ops, before in frontier.items()
            for op in OPERATIONS
            if (value := apply(op, before, n)) <= MAX_VALUE
        }
    return frontier


def parse(text: str) -> Problem:
    """Read `20 15 1 -> 34` back. Raises ValueError when the text is no problem."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"expected 'NUMBERS -> TARGET', got {text!r}")
    return Problem(tuple(map(int, left.split())), int(right))


def hash_percent(keys: np.ndarray) -> np.ndarray:
    """A number in 0..99 from each integer key (splitmix64): the same on every machine, for ever."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z % np.uint64(100)).astype(np.int64)


def _keys(numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[problems, k] numbers and [problems] targets -> one integer each, unique over all sizes."""
    key = np.ones(len(targets), np.int64)
    for column in range(numbers.shape[1]):
        key = key * 100 + numbers[:, column]
    return key * 100 + targets


def pools_of(problems: list[Problem]) -> list[Pool]:
    """The pool of each of several problems of equally many numbers."""
    if not problems:
        return []
    numbers, targets = (np.array(x) for x in zip(*((p.numbers, p.target) for p in problems)))
    percents = hash_percent(_keys(numbers, targets)).tolist()
    return [
        next(pool for pool, (low, high) in POOLS.items() if low <= percent < high)
        for percent in percents
    ]


@functools.cache
def all_problems() -> dict[Pool, tuple[np.ndarray, np.ndarray]]:
    """Every problem of three numbers, by pool: (numbers [problems, 3], targets [problems])."""
    grid = np.arange(1, MAX_NUMBER + 1)
    numbers = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    operations = (np.add, lambda a, b: np.abs(a - b), np.multiply)
    reached = []
    for first, second in itertools.product(operations, repeat=2):
        middle = first(numbers[:, 0], numbers[:, 1])
        value = second(middle, numbers[:, 2])
        reached.append(np.where((middle <= MAX_VALUE) & (value <= MAX_VALUE), value, -1))
    counts = np.zeros((len(numbers), MAX_VALUE + 1), np.int8)
    for value in reached:
        rows = np.flatnonzero(value >= 0)
        counts[rows, value[rows]] += 1
    rows, targets = np.nonzero(counts[:, 1:] == 1)
    targets, numbers = targets + 1, numbers[rows]
    percent = hash_percent(_keys(numbers, targets))
    picks = {pool: (percent >= low) & (percent < high) for pool, (low, high) in POOLS.items()}
    return {pool: (numbers[pick], targets[pick]) for pool, pick in picks.items()}


def draw(rng: random.Random, size: int, pool: Pool) -> Problem:
    """One random problem of `size` numbers from a pool, as `rng` decides."""
    if size == 3:
        numbers, targets = all_problems()[pool]
        i = rng.randrange(len(targets))
        return Problem(tuple(map(int, numbers[i])), int(targets[i]))
    while True:
        numbers = tuple(rng.randint(1, MAX_NUMBER) for _ in range(size))
        values = sorted(legal_chains(numbers).values())
        unique = [v for v in dict.fromkeys(values) if v > 0 and values.count(v) == 1]
        unique = [Problem(numbers, v) for v in unique]
        candidates = [p for p, its in zip(unique, pools_of(unique), strict=True) if its == pool]
        if candidates:
            return rng.choice(candidates)


def draw_distinct(count: int, size: int, pool: Pool, seed: int) -> list[Problem]:
    """The first `count` distinct problems that the address (pool, size, seed) draws.

    Smaller counts are beginnings of larger ones. Raises UserError when the pool holds fewer.
    """
    available = len(all_problems()[pool][1]) if size == 3 else count  # larger sizes: millions
    if count > available:
        raise UserError(
            f"`count={count}` is too large: the toy pool {pool!r} holds {available} problems of "
            "three numbers; use fewer, or more numbers"
        )
    rng = random.Random(f"jaxdistill-toy/{pool}/{size}/{seed}")
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[draw(rng, size, pool)] = None
    return list(found)
