"""Countdown in a fixed order: which operations between the numbers reach the target?

A problem is `20 15 1 -> 34`. Its answer `20 + 15 - 1` is a chain of operations from left to right
in which every value is in 0..99; `-` is the absolute difference. The order of the numbers is fixed,
and only problems with exactly one solution are kept. All correct responses therefore give the same
answer, and a teacher that knows a solution cannot contradict one that the student has verified.

Three numbers in 1..30 give 132,824 distinct problems; problems of four numbers are used out of
distribution. A problem's pool is determined by a hash of the problem, not by a file. The pool
`validation` is for choosing settings: no table reports an accuracy on it but that of the choice.
"""

import functools
import itertools
import random
from dataclasses import dataclass

import numpy as np

from jaxdistill.errors import UserError

OPERATIONS = "+-*"
MAX_NUMBER = 30
# Two decimal digits, on which `_keys` relies. Chosen.
MAX_VALUE = 99
# [low, high) of `hash_percent`.
POOLS = {"pretrain": (0, 70), "train": (70, 85), "validation": (85, 90), "heldout": (90, 100)}
# Problems of three numbers in 70..90 are of `train` if they are among the first NUM_TRAIN that
# its seed 0 draws from there, and else of `validation`. That pool came later, and so every training
# set that had been measured is still the same. 15 %, as of the larger sizes.
NUM_TRAIN = 20_000
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
        """{operations: value reached} for every legal chain, with operations such as `+-`."""
        return legal_chains(self.numbers)

    @functools.cached_property
    def solution(self) -> str:
        """The operations of the one chain that reaches the target."""
        (ops,) = (ops for ops, value in self.chains.items() if value == self.target)
        return ops

    @property
    def answer(self) -> str:
        """The expression that solves the problem, e.g. `20 + 15 - 1`."""
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
    """Return {operations: final value} for the chains that stay within 0..MAX_VALUE."""
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
    """Parse a problem such as `20 15 1 -> 34`. Raises ValueError for any other text."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"expected 'NUMBERS -> TARGET', got {text!r}")
    return Problem(tuple(map(int, left.split())), int(right))


def hash_percent(keys: np.ndarray) -> np.ndarray:
    """Hash each integer key to 0..99 with splitmix64.

    It is written out because the pools must never change: Python's `hash` of text is salted per
    process, and NumPy's generators may change between versions.
    """
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        z = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z % np.uint64(100)).astype(np.int64)


def _keys(numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Encode numbers [problems, k] and targets [problems] as integers [problems].

    They are unique across all k, because the digits after the leading 1 come in pairs.
    """
    key = np.ones(len(targets), np.int64)
    for column in range(numbers.shape[1]):
        key = key * 100 + numbers[:, column]
    return key * 100 + targets


def pools_of(problems: list[Problem]) -> list[Pool]:
    """Return the pool of each problem. All must have the same number of numbers."""
    if not problems:
        return []
    numbers, targets = (np.array(x) for x in zip(*((p.numbers, p.target) for p in problems)))
    keys = _keys(numbers, targets)
    percents = hash_percent(keys).tolist()
    pools = [
        next(pool for pool, (low, high) in POOLS.items() if low <= percent < high)
        for percent in percents
    ]
    if numbers.shape[1] != 3 or not {"train", "validation"}.intersection(pools):
        return pools
    left = np.isin(keys, _keys(*all_problems()["validation"])).tolist()
    in_either = {"train": "train", "validation": "train"}
    return ["validation" if is_left else in_either.get(p, p) for p, is_left in zip(pools, left)]


@functools.cache
def all_problems() -> dict[Pool, tuple[np.ndarray, np.ndarray]]:
    """Return every problem of three numbers as {pool: (numbers [problems, 3], targets [problems])}.

    Vectorised: the search of `legal_chains` in Python would take 27,000 calls.
    """
    found = dict(_by_hash())
    numbers, targets = found.pop("70..90")
    is_train = _is_train()
    return {
        "pretrain": found["pretrain"],
        "train": (numbers[is_train], targets[is_train]),
        "validation": (numbers[~is_train], targets[~is_train]),
        "heldout": found["heldout"],
    }


@functools.cache
def _by_hash() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`all_problems` by the hash alone, with those of 70..90 together."""
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
    # A target of 0 is not used, hence the shift by one.
    rows, targets = np.nonzero(counts[:, 1:] == 1)
    targets, numbers = targets + 1, numbers[rows]
    percent = hash_percent(_keys(numbers, targets))
    ranges = {"pretrain": POOLS["pretrain"], "70..90": (70, 90), "heldout": POOLS["heldout"]}
    picks = {name: (percent >= low) & (percent < high) for name, (low, high) in ranges.items()}
    return {name: (numbers[pick], targets[pick]) for name, pick in picks.items()}


@functools.cache
def _is_train() -> np.ndarray:
    """Which problems of three numbers in 70..90 are of `train` [problems]."""
    size = len(_by_hash()["70..90"][1])
    rng, found = _rng("train", 3, 0), set()
    while len(found) < NUM_TRAIN:
        found.add(rng.randrange(size))
    is_train = np.zeros(size, bool)
    is_train[list(found)] = True
    return is_train


def _rng(pool: Pool, size: int, seed: int) -> random.Random:
    return random.Random(f"jaxdistill-toy/{pool}/{size}/{seed}")


def draw(rng: random.Random, size: int, pool: Pool) -> Problem:
    """Draw one random problem of `size` numbers from a pool."""
    if size == 3:
        numbers, targets = _by_hash()["70..90"] if pool == "train" else all_problems()[pool]
        i = rng.randrange(len(targets))
        while pool == "train" and not _is_train()[i]:
            i = rng.randrange(len(targets))
        return Problem(tuple(map(int, numbers[i])), int(targets[i]))
    # Larger sizes are too many to enumerate: draw the numbers, then a target within the pool.
    while True:
        numbers = tuple(rng.randint(1, MAX_NUMBER) for _ in range(size))
        # Sorted, so that the draw does not depend on the order in which chains are found.
        values = sorted(legal_chains(numbers).values())
        unique = [v for v in dict.fromkeys(values) if v > 0 and values.count(v) == 1]
        unique = [Problem(numbers, v) for v in unique]
        candidates = [p for p, its in zip(unique, pools_of(unique), strict=True) if its == pool]
        if candidates:
            return rng.choice(candidates)


def require_drawable(*, pool: str, numbers: int, count: int) -> None:
    """Raise UserError unless a task can ask for `count` problems of a pool, of `numbers` each."""
    if pool not in POOLS:
        raise UserError(f"`pool` must be one of {', '.join(POOLS)}, got {pool!r}")
    # Drawing a million takes minutes; the pools of four numbers and more are larger.
    if not 1 <= count <= 1_000_000:
        raise UserError(f"`count` must be at least 1 and at most 1000000, got {count}")
    # With fewer than three numbers there is nothing to search; six have up to 3^5 = 243 chains,
    # all of which are enumerated for each problem drawn. Chosen, not measured.
    if not 3 <= numbers <= 6:
        raise UserError(f"`numbers` must lie in 3..6, got {numbers}")


def draw_distinct(count: int, size: int, pool: Pool, seed: int) -> list[Problem]:
    """Draw the first `count` distinct problems at the address (pool, size, seed).

    The problems of a smaller count are a prefix of those of a larger one. Raises UserError if the
    pool holds fewer than `count`.
    """
    # Only three numbers can run out: larger sizes have millions of problems.
    available = len(all_problems()[pool][1]) if size == 3 else count
    if count > available:
        raise UserError(
            f"`count={count}` is too large: the toy pool {pool!r} holds {available} problems of "
            "three numbers; use a smaller `count` or more `numbers`"
        )
    rng = _rng(pool, size, seed)
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[draw(rng, size, pool)] = None
    return list(found)
