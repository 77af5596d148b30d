"""Values that no data set should hold, in rows that nearly are questions or traces."""

import random
from decimal import Decimal
from typing import Any

import numpy as np

LEAVES = (
    None, True, False, 0, -1, 5, 1.5, float("nan"), float("inf"), 1e-300, 1j, ..., object(), set(),
    "", " ", "x", "A", "2", "[", "{", "[{", '["2"]', "['2' '3']", "\ud800", "\x00", "\u200b",
    "####", "\\boxed{", "\\boxed", "\\fbox{3}", "1e999", "user",
    b"x", b"\xff", (), {}, [], [()], {1, 2},
    Decimal("NaN"), Decimal("1e-400"), Decimal("Infinity"), np.float32(0.1), np.int64(3),
    np.bool_(True), np.str_("q"), np.array(5), np.array([]), np.array([0.5, 1]),
    np.array(["a", "b"], object),
)  # fmt: skip
KEYS = (
    "role", "content", "type", "text", "from", "value", "label", "ground_truth", "solution",
    "index", "A", "B", "reasoning_content", 5, None,
)  # fmt: skip


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """A leaf, or a list or an object of up to three odd values."""
    kind = rng.random()
    if depth > 2 or kind < 0.5:
        return rng.choice(LEAVES)
    inner = [odd_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return inner if kind < 0.75 else {rng.choice(KEYS): value for value in inner}


def odd_chat(rng: random.Random) -> list[dict[Any, Any]]:
    """Up to three messages, some of which are none."""
    roles = ("user", "assistant", "system", None, 5, "User", b"user")
    contents = ("q", [{"type": "text", "text": "q"}], odd_value(rng))
    return [
        {"role": rng.choice(roles), "content": rng.choice(contents), "name": odd_value(rng)}
        for _ in range(rng.randint(0, 3))
    ]


def odd_row(rng: random.Random, columns: list[str], good: dict[str, Any]) -> dict[str, Any]:
    """Some of the columns with odd values; half of `good` in place of theirs."""
    row = {}
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(("value", "chat", "text"))
        row[rng.choice(columns)] = (
            odd_value(rng)
            if kind == "value"
            else odd_chat(rng)
            if kind == "chat"
            else rng.choice(("q", "2", "B", 2))
        )
    return row | {name: value for name, value in good.items() if rng.random() < 0.5}
