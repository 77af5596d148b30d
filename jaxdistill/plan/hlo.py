"""Collectives in the text of a compiled program, and how often each is executed.

XLA's cost analysis counts the body of a loop once, and a TPU program's text has no trip counts; the
bound of a loop is read off its condition, where it is a constant.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What a device receives per byte of `Collective.bytes`: a sum of n parts over a ring is a
# reduce-scatter and an all-gather. A factor (n - 1) / n is left out.
RECEIVED = {"all-reduce": 2.0}

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip


class Collective(NamedTuple):
    """One collective of a program. trips: of the loops around it, outermost first; None: unknown
    to the compiler."""

    kind: str
    bytes: int  # of its result on one device; of a reduce-scatter, of the array that is summed
    trips: tuple[int | None, ...]

    def times(self, unknown: Sequence[float]) -> float:
        """Executions, with these trip counts for the loops that the compiler does not know."""
        left = list(unknown)
        known = [trip if trip is not None else (left.pop(0) if left else 1) for trip in self.trips]
        return math.prod(known)


# A TPU program spells most reduce-scatters as a fusion of an all-reduce and a slice, whose
# computation has this name; the all-reduce in it has the shape of the array that is summed.
SCATTER_FUSION = "all-reduce-scatter"


# Groups of one device: compiled with the least effort, such a sum stays in the program.
ALONE = re.compile(r"replica_groups=\{(\{\d+\},?)+\}")


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimised program's text.

    >>> collectives('''
    ... %body (x: f32[4]) -> f32[4] {
    ...   %g = bf16[8,2]{1,0} all-gather(%x), dimensions={0}
    ... }
    ... %cond (x: f32[4]) -> pred[] {
    ...   %n = s32[] constant(28)
    ...   ROOT %lt = pred[] compare(%i, %n), direction=LT
    ... }
    ... ENTRY %main (x: f32[4]) -> f32[4] {
    ...   %w = f32[4] while(%x), condition=%cond, body=%body
    ... }''')
    [Collective(kind='all-gather', bytes=32, trips=(28,))]
    """
    caller: dict[str, str] = {}
    loops: dict[str, str] = {}  # {body: condition}
    lines: dict[str, list[str]] = defaultdict(list)
    found: list[tuple[str, int, str]] = []
    sizes: dict[str, int] = {}
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        lines[computation].append(line)
        operation = re.match(
            r"\s+(?:ROOT )?%?(\S+) = (.*?[\])}]) ([a-z\-]+)\((?:[^\s,)]+ )?%?([\w.\-]*)", line
        )
        if operation:
            name, shapes, kind, operand = operation.groups()
            sizes[name] = _size(shapes, is_pair=False)
            is_pair = kind.endswith("-start") and kind != "all-reduce-start"
            kind = kind.removesuffix("-start")
            if kind in KINDS and not ALONE.search(line):
                size = _size(shapes, is_pair)
                if kind == "reduce-scatter":
                    size = max(size, sizes.get(operand, 0))
                elif computation.startswith(SCATTER_FUSION):
                    kind = "reduce-scatter"
                found.append((kind, size, computation))
        for callee in re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line):
            caller[callee] = computation
        if loop := re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
            loops[loop[2]] = loop[1]

    def trips(computation: str) -> tuple[int | None, ...]:
        around: list[int | None] = []
        while computation in caller:
            if computation in loops:
                around.append(_bound(lines[loops[computation]]))
            computation = caller[computation]
        return tuple(reversed(around))

    return [Collective(kind, size, trips(where)) for kind, size, where in found]


def _size(shapes: str, is_pair: bool) -> int:
    """Bytes of a result; of an asynchronous one that is a pair with its operand, the larger."""
    sizes = [
        int(_BYTES.get(kind, 1) * math.prod(int(n) for n in dims.split(",") if n))
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return max(sizes, default=0) if is_pair else sum(sizes)


def _bound(condition: Iterable[str]) -> int | None:
    """The constant that a loop's condition compares its counter with; None for any other."""
    constants, bounds = {}, []
    for line in condition:
        if found := re.match(r"\s+(?:ROOT )?%?(\S+) = [su]32\[\]\S* constant\((\d+)\)", line):
            constants[found[1]] = int(found[2])
        if found := re.search(r" compare\(([^)]*)\), direction=LT", line):
            names = [name.split()[-1].lstrip("%") for name in found[1].split(",")]
            bounds += [constants[name] for name in names if name in constants]
    return bounds[0] if len(bounds) == 1 else None


def summary(every: Iterable[Collective], unknown: Sequence[float]) -> dict[str, dict[str, Any]]:
    """{kind: how many the program's text has, their executions, the bytes of all of them}."""
    total: dict[str, dict[str, Any]] = {}
    for each in every:
        times = each.times(unknown)
        entry = total.setdefault(each.kind, {"in_text": 0, "executed": 0.0, "bytes": 0.0})
        entry["in_text"] += 1
        entry["executed"] += times
        entry["bytes"] += times * each.bytes
    return total


def received(by_kind: dict[str, dict[str, Any]]) -> float:
    """Bytes that a device receives in all of a program's collectives."""
    return sum(RECEIVED.get(kind, 1.0) * entry["bytes"] for kind, entry in by_kind.items())
