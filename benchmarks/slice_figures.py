"""What the text of a program of `compile_slices.py` says: its collectives and its largest arrays.

The texts of both trees are read by this tree's `plan/hlo.py`.
"""

import math
import re
import runpy
from pathlib import Path
from typing import Any

# By its path: the process may have imported the other tree's package.
READER = Path(__file__).resolve().parent.parent / "jaxdistill" / "plan" / "hlo.py"


def of_collectives(run: Any, mesh: Any, text: str) -> dict[str, Any]:
    """Counts and bytes by kind; the largest all-reduces; gathers in float32 and of heads."""
    hlo = runpy.run_path(str(READER))

    def some(kind: str, result: str) -> list[Any]:
        """Those of a kind whose result, its dtypes and shapes, begins with this pattern."""
        operation = re.compile(rf" = (.*?) {kind}(?:-start)?\(")
        lines = ((line, operation.search(line)) for line in text.splitlines())
        kept = [line for line, found in lines if not found or re.match(result, found[1])]
        return [each for each in hlo["collectives"]("\n".join(kept)) if each.kind == kind]

    found, D, tensor = hlo["collectives"](text), run.model.hidden_size, mesh.shape["tensor"]
    columns = {V // parts for V in vocabularies(run, mesh) for parts in (1, tensor)}
    heads = "|".join(f"{D},{V}|{V},{D}" for V in columns)
    gathers = some("all-gather", rf".*\[([\d,]*,)?({heads})(,[\d,]*)?\]")
    return {
        "kinds": hlo["summary"](found, []),
        "largest_all_reduce": largest(some("all-reduce", "")),
        "largest_float32_all_reduce": largest(some("all-reduce", r"\(?f32\[")),
        "float32_gathers": total(some("all-gather", r"\(?f32\[")),
        "head_gathers": [sum(x.times([]) for x in gathers), total(gathers)],
    }


def total(collectives: list[Any]) -> float:
    return sum(each.bytes * each.times([]) for each in collectives)


def largest(collectives: list[Any]) -> int:
    return max((each.bytes for each in collectives), default=0)


def vocabularies(run: Any, mesh: Any) -> set[int]:
    """Columns of the head as given, and with what this tree adds for `tensor` to divide them."""
    V, tile = run.model.vocab_size, 128 * mesh.shape["tensor"]
    return {V, -(-V // tile) * tile}


def largest_array(text: str, dims: set[int]) -> int:
    """Bytes of the largest array that has all of these dimensions."""
    largest = 0
    for dtype, numbers in set(re.findall(r"(bf16|f32)\[([\d,]+)\]", text)):
        shape = [int(n) for n in numbers.split(",")]
        if dims <= set(shape):
            largest = max(largest, math.prod(shape) * (2 if dtype == "bf16" else 4))
    return largest


def of_arrays(run: Any, mesh: Any, text: str, has_rows: bool) -> dict[str, Any]:
    """Bytes of the largest array that the mesh could split, and of a teacher's feed-forward.

    An array is looked for by two of its dimensions, also where a fusion does not write it.
    has_rows: the program has rows of a micro-batch.
    """
    from jaxdistill import sharding
    from jaxdistill.plan import programs

    D, F, tensor = run.model.hidden_size, run.model.intermediate_size, mesh.shape["tensor"]
    # The feed-forward's weights of all layers, gathered over fsdp. One layer's must be.
    whole = [{run.model.num_layers, D, F // tensor}] if mesh.shape["fsdp"] > 1 else []
    widths, teacher = [D], None
    if has_rows:
        with sharding.use_mesh(mesh):
            rows = programs.batch_of(run, mesh).rows
        widths.append(rows.plain.tokens_BS.shape[-1])
        if run.has_teacher:
            widths.append(rows.teacher.tokens_BS.shape[-1])
            teacher = largest_array(text, {widths[-1], F // tensor})
    if tensor > 1:
        whole += [{width, F} for width in widths]
        whole += [{V, n} for V in vocabularies(run, mesh) for n in (D, run.config.compute.chunk)]
    return {
        "teacher_rows": teacher,
        "whole": max((largest_array(text, dims) for dims in whole), default=0),
    }
