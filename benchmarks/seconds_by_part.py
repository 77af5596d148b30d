"""Train a random model on a file of questions, and compare each step's wall time with its parts.

    PYTHONPATH=. python benchmarks/seconds_by_part.py --data seen_64.parquet --tokenizer FOLDER

The wall time is taken from outside the loop: between the moments at which two rows of metrics are
written. Each row of the JSON has that time, the parts that the run itself reports, the share of the
wall time by which they differ, tokens/s, MFU and, where rows are packed, padding. `host_share` is
the part of the wall time in which no program runs on the device: the parts "host" and "grading".
The medians are those of the steps that compiled nothing. `--free` lets the loop go on without
waiting for the device, so that two calls show what waiting costs; `--while-decoding` reads and
grades responses as they end, so that two calls show what the overlap of both saves.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from jaxdistill.config import RunConfig
from jaxdistill.models.presets import preset
from jaxdistill.objectives import sdpo
from jaxdistill.run import loop
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.contexts import AnswerOnly
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.metrics import MetricsWriter
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.timing import PARTS

# The run's own figures beside the times; `padding` is there where rows are packed.
MEASURES = ("seconds_compiling", "tokens_per_second", "mfu", "padding")


def main() -> None:
    options = parse()
    times: list[float] = []
    write = MetricsWriter.write

    def write_and_note(self: MetricsWriter, step: int, values: Any) -> Any:
        times.append(time.perf_counter())
        return write(self, step, values)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.object(MetricsWriter, "write", write_and_note))
        if options.free:
            jax.block_until_ready = lambda arrays: arrays
        run_dir = loop.run(config_of(options), Path(folder) / "run", quiet=True)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    walls = [after - before for before, after in itertools.pairwise(times)]
    found = [compared(row, wall) for row, wall in zip(rows[1:], walls, strict=True)]
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")
    print(json.dumps({"steps": found, "medians": medians(found), "peak_bytes": peak}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="a source of questions")
    parser.add_argument("--tokenizer", required=True, help="a Hugging Face folder")
    parser.add_argument("--model", default="Qwen3-1.7B", help="the preset whose sizes are used")
    parser.add_argument("--questions", type=int, default=16, help="questions per step")
    parser.add_argument("--rollouts", type=int, default=4, help="responses per question")
    parser.add_argument("--new", type=int, default=1024, help="maximum tokens per response")
    parser.add_argument("--steps", type=int, default=6, help="steps; the first is not reported")
    parser.add_argument("--free", action="store_true", help="do not wait for the device")
    parser.add_argument(
        "--while-decoding", action="store_true", help="read and grade responses as they end"
    )
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> RunConfig:
    return RunConfig(
        name="seconds_by_part",
        model=Fresh(preset(options.model), tokenizer=options.tokenizer),
        experience=OnPolicy(
            task=MathTask(options.data),
            questions=options.questions,
            rollouts=options.rollouts,
            sampling=Sampling(max_new_tokens=options.new),
            # A random model solves nothing, so there is no correct sibling to show the teacher.
            context=AnswerOnly(),
            student_thinking=True,
        ),
        objective=sdpo(),
        steps=options.steps,
        compute=Compute(chunk=512, grade_while_decoding=options.while_decoding),
        save_checkpoints=False,
        export=False,
    )


def compared(row: dict[str, Any], wall: float) -> dict[str, Any]:
    """A row of metrics beside the wall time in seconds, measured from outside."""
    parts = {part: row[f"seconds_{part}"] for part in PARTS}
    return {
        "step": row["step"],
        "wall": wall,
        **parts,
        "host_share": (parts["host"] + parts["grading"]) / wall,
        "difference": abs(sum(parts.values()) - wall) / wall,
        **{name: row[name] for name in MEASURES if name in row},
    }


def medians(found: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each time and share over the steps that compiled nothing; {} without one."""
    steady = [row for row in found if not row["seconds_compiling"]]
    names = ("wall", *PARTS, "host_share", "tokens_per_second") if steady else ()
    return {name: statistics.median(row[name] for row in steady) for name in names}


if __name__ == "__main__":
    main()
