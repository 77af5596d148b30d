"""What several GPUs of one host give: one file and one table from one run.

    python benchmarks/several_gpus.py --out gpus.json
    python benchmarks/several_gpus.py --out gpus.json --only decode,processes --counts 1,8
    python benchmarks/several_gpus.py --out tried.json --simulated 4    # on a CPU, at tiny sizes

Every measurement is a process of its own, of `jaxdistill bench` or `jaxdistill train`, on as many
GPUs as its name says. One that fails, or takes longer than --limit, leaves the others alone; none
is started after --seconds. What stands in the file is not measured again.

- step: the train step of Qwen3-8B, 2 x 8,192 tokens per GPU, bfloat16 moments, split by fsdp, and
  beside it that of Qwen3-1.7B on one GPU, which is what one GPU can do, and on all.
- decode: the sampler of Qwen3-1.7B, whose slots are split over GPUs, and of Qwen3-8B, whose heads
  are split over two, each beside one GPU in the same run.
- iteration: an iteration of Qwen3-8B with 32 questions x 8, prompts of 2,048 and at most 8,192 new
  tokens, 3,000 on average; the first one, without compilation, since a second takes minutes.
- processes: a run of the toy world with one process per GPU, compared with one process.

NVLink multicast stays off: on a shared host it can block other users' GPUs.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from in_processes import Measurements

PARTS = ("step", "decode", "iteration", "processes")
ENVIRONMENT = {
    # JAX takes three quarters of a GPU otherwise; Qwen3-8B's state on two needs more.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93",
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
# `mlp` and not `auto`, which may compile a program of minutes several times.
SIZES = {
    "step": "--tokens 8192 --chunk 512 --moments bfloat16 --remat mlp --repeats 3 --profile 12",
    "decode": "--prompt 256 --new 512 --repeats 2",
    "iteration": "--rollouts 8 --prompt 2048 --context 4096 --new 8192 --mean 3000 "
    "--pack 16384 --chunk 512 --moments bfloat16 --remat mlp --repeats 0",
}
# Rows per GPU, of the step and of decoding; the models, of which the larger needs two GPUs.
ROWS, SLOTS = 2, 64
SMALL, LARGE = "Qwen3-1.7B", "Qwen3-8B"
# The same on simulated devices, to try the script.
TINY = {
    "step": "--prompt 8 --tokens 32 --chunk 32 --moments bfloat16 --remat mlp --repeats 1",
    "decode": "--prompt 8 --new 24 --repeats 1",
    "iteration": "--rollouts 2 --prompt 8 --context 16 --new 16 --mean 8 --pack 64 "
    "--chunk 32 --moments bfloat16 --remat mlp --repeats 0",
}
TRAIN = (
    "train toy_selfdistill --set steps=12 --set evaluation.splits=() --set "
    "experience.questions=32 --set experience.rollouts=8 --set export=False "
    "--set save_checkpoints=False"
)


def main() -> None:
    options = parse()
    file: Path = options.out
    runs = Measurements(file, seconds=options.seconds, limit=options.limit, scratch=options.scratch)
    measure = {"step": step, "decode": decode, "iteration": iteration, "processes": processes}
    for name in options.only:
        measure[name](options, runs)
        runs.found["table"] = table(runs.measured)
        runs.save()
    runs.found["date"] = datetime.now(UTC).date().isoformat()
    runs.found["table"] = table(runs.measured)
    runs.save()
    print(json.dumps(runs.found["table"], indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", default=",".join(PARTS), help="what to measure, in order")
    parser.add_argument(
        "--questions", type=int, default=32, help="of the iteration, if 32 take too long"
    )
    parser.add_argument("--counts", help="numbers of GPUs; default: 1 and all that are there")
    parser.add_argument("--seconds", type=int, default=570, help="no process runs after them")
    parser.add_argument("--limit", type=int, default=570, help="seconds of one process")
    parser.add_argument("--scratch", type=Path, help="folder for logs, runs and compiled programs")
    parser.add_argument(
        "--simulated", type=int, default=0, metavar="N", help="N CPU devices and tiny sizes"
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    there = options.simulated or visible()
    try:
        counts = [int(word) for word in (options.counts or f"1,{there}").split(",")]
    except ValueError:
        parser.error(f"--counts {options.counts}: expected numbers with commas")
    options.counts = sorted(set(counts))
    if options.counts[-1] > there or options.counts[0] < 1:
        parser.error(f"--counts {options.counts}: there are {there} GPUs here")
    if options.counts[-1] < 2:
        parser.error("one GPU here, and this compares it with several")
    return options


def visible() -> int:
    """GPUs of this machine, asked of its driver: JAX here would take their memory."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def step(options: argparse.Namespace, runs: Measurements) -> None:
    for count in reversed(options.counts):
        placed = f"--rows {ROWS * count} --mesh fsdp={count}"
        if count > 1:  # Qwen3-8B's state, 80 GiB without activations, leaves one GPU no room
            bench(options, runs, "step", f"{LARGE} {count}", f"--model {LARGE} {placed}")
        bench(options, runs, "step", f"{SMALL} {count}", f"--model {SMALL} {placed}")


def decode(options: argparse.Namespace, runs: Measurements) -> None:
    slots = 4 if options.simulated else SLOTS
    for count in reversed(options.counts):
        placed = f"--rows {slots * count} --mesh data={count},fsdp=1"
        bench(options, runs, "decode", f"{SMALL} {count}", f"--model {SMALL} {placed}")
    for count in (2, 1):
        placed = f"--rows {slots} --mesh fsdp=1,tensor={count}"
        bench(options, runs, "decode", f"{LARGE} {count}", f"--model {LARGE} {placed}")


def iteration(options: argparse.Namespace, runs: Measurements) -> None:
    count = options.counts[-1]
    questions = 4 if options.simulated else options.questions
    placed = f"--model {LARGE} --mesh fsdp={count} --questions {questions}"
    bench(options, runs, "iteration", f"{LARGE} {count}", placed)


def bench(
    options: argparse.Namespace, runs: Measurements, part: str, name: str, words: str
) -> None:
    """`name` is the model and the number of devices."""
    model, _, count = name.rpartition(" ")
    sizes = SIZES[part]
    if options.simulated:
        sizes, words = TINY[part], words.replace(model, "SmolLM2-135M")
    verb = "train" if part == "iteration" else part
    out = runs.scratch / "result.json"
    command = f"-m jaxdistill bench {verb} {sizes} {words} --out {out}".split()
    place = places(options, runs.scratch, [range(int(count))])
    runs.run(f"{part} {name}", [command], out=out, environments=place)


def places(
    options: argparse.Namespace, scratch: Path, devices: list[range]
) -> list[dict[str, str]]:
    """The environment of processes that see these devices; several of them are as several hosts."""
    found = []
    for number, seen in enumerate(devices):
        place = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(scratch / "jax")}
        if options.simulated:
            place |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(len(seen))}
        else:
            place["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
        if len(devices) > 1:
            place |= {"JAX_NUM_PROCESSES": str(len(devices)), "JAX_PROCESS_ID": str(number)}
        found.append(place)
    if len(devices) > 1:
        address = f"localhost:{free_port()}"
        found = [place | {"JAX_COORDINATOR_ADDRESS": address} for place in found]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def processes(options: argparse.Namespace, runs: Measurements) -> None:
    """The same run with one process and with one per GPU: losses and seconds of each step."""
    count = options.counts[-1]
    one, several = [range(count)], [range(n, n + 1) for n in range(count)]
    for name, devices in ((f"run 1 x {count}", one), (f"run {count} x 1", several)):
        if runs.has(name):
            continue
        folder = runs.scratch / name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)  # of a try that failed
        words = f"-m jaxdistill {TRAIN} --mesh data={count},fsdp=1 --run-dir {folder}".split()
        if options.simulated:
            words += ["--set", "steps=4", "--set", "experience.questions=8"]
        place = places(options, runs.scratch, devices)
        runs.run(
            name,
            [words] * len(devices),
            out=folder / "metrics.jsonl",
            environments=place,
            read=steps_of,
        )


def steps_of(metrics: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {"steps": [{key: line[key] for key in ("loss", "seconds")} for line in lines]}


def table(measured: dict[str, Any]) -> dict[str, Any]:
    """What the results say: rates per GPU, shares of the limits, collectives, and differences."""
    found: dict[str, Any] = {}
    runs = {}
    for name, result in measured.items():
        part, _, where = name.partition(" ")
        if "failed" in result or (part == "run" and "ended" in result):
            found[name] = {"failed": result.get("failed") or result["ended"]}
        elif part == "run":
            runs[name] = result["steps"]
        else:
            found[name] = figures(result, int(where.rpartition(" ")[2]))
    for name, row in found.items():
        add_efficiency(name, row, found)
    if len(runs) == 2:
        found["processes"] = compared(runs)
    return found


def figures(result: dict[str, Any], count: int) -> dict[str, Any]:
    """Of one `bench`: per GPU, in seconds and GiB."""
    named = ("share_of_matmul", "share_of_copy", "remat", "padding", "ended")
    row = {
        "tokens_per_second_per_gpu": result["tokens_per_second"] / count,
        "seconds": result["seconds"],
        **{name: result[name] for name in named if name in result},
        **{name: result[name] for name in result if name.startswith("seconds_")},
        "peak_gib": result["memory"].get("peak", result["memory"]["planned"]) / 2**30,
    }
    if "step_tokens_per_second" in result:  # of decoding, without the prompts
        row["step_tokens_per_second_per_gpu"] = result["step_tokens_per_second"] / count
    if "model_flops_per_second" in result:
        row["model_tflops_per_gpu"] = result["model_flops_per_second"] / count / 1e12
    for name, value in result.get("profile", {}).get("collectives", {}).items():
        row[f"collectives_{name}"] = value
    return row


def add_efficiency(name: str, row: dict[str, Any], found: dict[str, Any]) -> None:
    """Against one GPU of the same run: tokens of the same model, operations of the small one."""
    part, model, count = (*name.split(" ")[:2], name.rpartition(" ")[2])
    if "failed" in row or count == "1":
        return
    same, small = found.get(f"{part} {model} 1", {}), found.get(f"step {SMALL} 1", {})
    pairs = [(same, "tokens_per_second_per_gpu"), (same, "step_tokens_per_second_per_gpu")]
    if part != "decode":  # which is bound by bytes
        pairs.append((small, "model_tflops_per_gpu"))
    for other, key in pairs:
        if key in row and key in other:
            row[f"{key}_of_one_gpu"] = row[key] / other[key]


def compared(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The largest relative difference of the losses, and the median seconds of a step of each."""
    one, other = runs.values()
    pairs = [(a["loss"], b["loss"]) for a, b in zip(one, other, strict=True)]
    # The first two steps compile.
    seconds = {name: sorted(step["seconds"] for step in steps[2:]) for name, steps in runs.items()}
    return {
        "steps": len(pairs),
        "first_losses": pairs[0],
        "largest_relative_difference_of_loss": max(
            abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs
        ),
        "seconds_of_a_step": {name: each[len(each) // 2] for name, each in seconds.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
