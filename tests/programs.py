"""What a compiled program does, read off its text; and the model that accelerators' tests compile.

Its width and vocabulary are those of Qwen3-0.6B. Of the 28 layers there are five, enough for
training to scan them.
"""

import re
from typing import NamedTuple

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope

MODEL = ModelConfig(
    vocab_size=151_936,
    hidden_size=1024,
    num_layers=5,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    rope=Rope(1e6),
    tie_embeddings=True,
)


class Operation(NamedTuple):
    kind: str
    shapes: list[tuple[int, ...]]  # of its results
    loop: str  # the innermost `while` around it, or none


COLLECTIVES = {"all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute"}


def operations_of(compiled) -> list[Operation]:
    """The optimised program's operations, from its text."""
    found, caller, computation, bodies = [], {}, "", set()
    for line in compiled.as_text().splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        if operation := re.match(r"\s+(?:ROOT )?%\S+ = (.*?[\])}]) ([a-z\-]+)\(", line):
            sizes = re.findall(r"\w\[([\d,]+)\]", operation[1])
            shapes = [tuple(map(int, size.split(","))) for size in sizes]
            found.append((operation[2].removesuffix("-start"), shapes, computation))
        for callee in re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line):
            caller[callee] = computation
        bodies.update(re.findall(r"body=%?([\w.\-]+)", line))

    def loop_around(computation: str) -> str:
        while computation in caller and computation not in bodies:
            computation = caller[computation]
        return computation if computation in bodies else ""

    return [Operation(kind, shapes, loop_around(where)) for kind, shapes, where in found]


def loop_bodies(text: str) -> list[str]:
    """The bodies of a compiled program's loops, without the computations that they call."""
    names = set(re.findall(r"body=%?([\w.\-]+)", text))
    parts = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", text)
    return [part for part in parts if re.match(r"(?:ENTRY )?%?([\w.\-]+)", part)[1] in names]
