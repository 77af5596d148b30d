"""One step off against in turn: iterations per hour and importance ratios, from one run.

    python benchmarks/one_step_off.py --out one_step_off --devices 2
    JAX_PLATFORMS=cpu python benchmarks/one_step_off.py --out tiny --devices 2 --tiny

Each case is `jaxdistill train` in a process of its own with the same model, seed and settings; the
metrics of each are kept in --out, and a case that is there with the same settings is not run again.

- in_turn: all devices draw the rollouts of a step and then update, split by fsdp.
- one_step_off: the last half of the devices (--samplers names other numbers) draws the rollouts of
  the next step while the others update. On one device both share it.

The weights are random, so that no response ends before --new tokens: rows of equal length, of which
the sampler is always busy, and no reward. The objective is SDPO's, whose rollout correction weighs
the samples; the teacher is shown the answer. NVLink multicast stays off (NCCL_NVLS_ENABLE=0): on a
shared host it can block other users' GPUs.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93", "NCCL_NVLS_ENABLE": "0"}
TINY = dict(
    vocab_size=0, hidden_size=64, num_layers=2, intermediate_size=128, num_heads=4, num_kv_heads=2
)
SIZES = dict(questions=8, rollouts=8, new=1024, steps=7)
TINY_SIZES = dict(questions=2, rollouts=2, new=16, steps=4)
# Steps whose programs are compiled: the first one, and the second for the copy's first transfer.
FIRST = 2
MEDIANS = (
    "seconds",
    "seconds_sampling",
    "seconds_rollouts",
    "seconds_update",
    "seconds_host",
    "seconds_trainer_idle",
    "seconds_sampler_idle",
    "tokens_per_second",
)
LAST = (
    "loss",
    "importance_ratio",
    "importance_ratio_squared",
    "rollout_ratio",
    "clipped",
    "sampler_gap",
    "sampler_gap_p99",
    "policy_lag",
    "peak_memory_gib",
)


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    cases: dict[str, int | None] = {"in_turn": None}
    for count in samplers(options):
        cases[f"one_step_off_{options.devices - count}+{count}"] = count
    for name, count in cases.items():
        run_case(options, name, count)
    found = {name: summary(options.out / name, options.devices) for name in cases}
    rates = {name: case.get("iterations_per_hour") for name, case in found.items()}
    base = rates["in_turn"]
    ratios = {name: rate / base for name, rate in rates.items() if rate and base}
    result = {"devices": options.devices, "model": options.model, "times_in_turn": ratios} | found
    (options.out / f"one_step_off_{options.devices}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    if any("failed" in case for case in found.values()):
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--devices", type=int, default=2, help="GPUs, or simulated devices")
    parser.add_argument("--samplers", help="numbers of devices that draw, as 2,3; default: half")
    parser.add_argument("--model", default="Qwen3-1.7B", help="the preset whose sizes are used")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers and short rows")
    for name, size in SIZES.items():
        what = "tokens of each response" if name == "new" else "of a run" if name == "steps" else ""
        parser.add_argument(
            f"--{name}", type=int, help=f"{what} ({size}; --tiny: {TINY_SIZES[name]})".strip()
        )
    parser.add_argument("--limit", type=int, default=280, help="seconds of one case")
    options = parser.parse_args()
    for name, size in (TINY_SIZES if options.tiny else SIZES).items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    if options.steps <= FIRST:
        parser.error(f"--steps must be above {FIRST}, whose programs are compiled")
    return options


def samplers(options: argparse.Namespace) -> list[int]:
    if options.samplers is not None:
        return [int(number) for number in options.samplers.split(",")]
    return [options.devices // 2]


def run_case(options: argparse.Namespace, name: str, count: int | None) -> None:
    folder, config = options.out / name, options.out / f"{name}.json"
    described = json.dumps(describe(options, count), indent=1)
    is_same = config.exists() and config.read_text() == described
    if is_same and devices_of(folder) == options.devices and (folder / "finished.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # of other settings, or of a case that was ended
    config.write_text(described)
    visible = ",".join(map(str, range(options.devices)))
    place = {"CUDA_VISIBLE_DEVICES": visible, "JAX_NUM_CPU_DEVICES": str(options.devices)}
    began = time.perf_counter()
    with (options.out / f"{name}.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxdistill", "train", str(config), "--run-dir", str(folder)],
            env=os.environ | ENVIRONMENT | place,
            stdout=out,
            stderr=out,
        )
        try:
            code: Any = process.wait(options.limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"ended after {options.limit} s"
    print(f"{name}: {code}, {time.perf_counter() - began:.0f} s", file=sys.stderr)


def describe(options: argparse.Namespace, count: int | None) -> dict[str, Any]:
    """The config of a case, as a run's config.json; count: the sampler's devices, None: in turn."""
    # Here, because JAX is not to take the memory of GPUs: these modules start no device.
    from jaxdistill import overrides
    from jaxdistill.config import RunConfig
    from jaxdistill.models.presets import preset
    from jaxdistill.objectives import sdpo
    from jaxdistill.sampling import Sampling
    from jaxdistill.storage.loading import Fresh
    from jaxdistill.tasks.contexts import AnswerOnly
    from jaxdistill.tasks.tasks import ToyTask
    from jaxdistill.training.on_policy import OnPolicy
    from jaxdistill.training.optimizer import Optimizer
    from jaxdistill.training.schedules import InTurn, OneStepOff

    model = preset(options.model)
    if options.tiny:
        model = dataclasses.replace(model, **TINY)
    config = RunConfig(
        name="one_step_off",
        model=Fresh(model),
        experience=OnPolicy(
            task=ToyTask(),
            questions=options.questions,
            rollouts=options.rollouts,
            sampling=Sampling(max_new_tokens=options.new),
            context=AnswerOnly(),
            schedule=InTurn() if count is None else OneStepOff(sampler_devices=count),
        ),
        objective=sdpo(),
        optimizer=Optimizer(peak_lr=1e-6, warmup_steps=1),
        steps=options.steps,
        save_checkpoints=False,
        rollouts_every=0,
        tracking=(),
        export=False,
    )
    return overrides.to_json(config)


def devices_of(folder: Path) -> int | None:
    """How many devices a case has found; None if it has not come as far."""
    file = folder / "provenance.json"
    return json.loads(file.read_text())["devices"]["count"] if file.exists() else None


def summary(folder: Path, devices: int) -> dict[str, Any]:
    """Medians of the steps after the first two, and what the last one says of the samples."""
    if (count := devices_of(folder)) not in (None, devices):
        return {"failed": f"found {count} devices, expected {devices}"}
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if len(rows) <= FIRST:
        return {"failed": f"{len(rows)} steps; see {folder.name}.log"}
    found: dict[str, Any] = {"steps": len(rows) - FIRST}
    for name in MEDIANS:
        if name in rows[-1]:
            found[name] = statistics.median(row[name] for row in rows[FIRST:])
    found["iterations_per_hour"] = 3600 / found["seconds"]
    return found | {name: rows[-1][name] for name in LAST if rows[-1].get(name) is not None}


if __name__ == "__main__":
    main()
