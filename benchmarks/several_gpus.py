"""What several GPUs of one host give: one table from one run.

    python benchmarks/several_gpus.py --out gpus --only step,decode,iteration,processes

Every measurement is a process of its own, of `jaxdistill bench` or `jaxdistill train`, on as many
GPUs as it names; the JSON of each is kept in --out, and one that is there is not made again.

- step: the train step of Qwen3-8B, 2 x 8,192 tokens per GPU, bfloat16 moments, split by fsdp, and
  beside it that of Qwen3-1.7B on one GPU, which is what one GPU can do.
- decode: the sampler of Qwen3-1.7B, whose slots are split over GPUs, and of Qwen3-8B, whose heads
  are split over two, each beside one GPU in the same run.
- iteration: an iteration of Qwen3-8B with 32 questions x 8, prompts of 2,048 and at most 8,192 new
  tokens, 3,000 on average.
- processes: a run of the toy world with one process per GPU, compared with one process.

NVLink multicast stays off (NCCL_NVLS_ENABLE=0): on a shared host it can block other users' GPUs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# JAX takes three quarters of a GPU otherwise; Qwen3-8B's state on two needs more.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93", "NCCL_NVLS_ENABLE": "0"}
STEP = "--tokens 8192 --chunk 512 --moments bfloat16 --repeats 3 --profile 12"
DECODE = "--prompt 256 --new 512 --repeats 2"
ITERATION = (
    "--model Qwen3-8B --questions 32 --rollouts 8 --prompt 2048 --context 4096 --new 8192 "
    "--mean 3000 --pack 16384 --chunk 512 --moments bfloat16 --repeats 1"
)


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    measure = {"step": step, "decode": decode, "iteration": iteration, "processes": processes}
    for name in options.only.split(","):
        measure[name](options)
    print(json.dumps(table(options), indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--gpus", type=int, default=visible(), help="the most GPUs to use")
    parser.add_argument(
        "--only", default="step,decode,iteration,processes", help="what to measure, in order"
    )
    parser.add_argument("--limit", type=int, default=280, help="seconds of one measurement")
    return parser.parse_args()


def visible() -> int:
    """GPUs of this machine, asked of its driver: JAX here would take their memory."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def step(options: argparse.Namespace) -> None:
    small = f"step --model Qwen3-1.7B --remat mlp {STEP}"
    bench(options, "step_1.7B_on_1", 1, f"{small} --rows 2")
    for count in counts(options, least=2):
        placed = f"--rows {2 * count} --mesh fsdp={count}"
        bench(options, f"step_8B_on_{count}", count, f"step --model Qwen3-8B {STEP} {placed}")
        bench(options, f"step_1.7B_on_{count}", count, f"{small} {placed}")


def decode(options: argparse.Namespace) -> None:
    for count in counts(options, least=1):
        placed = f"--rows {64 * count} --mesh data={count},fsdp=1"
        bench(options, f"decode_1.7B_on_{count}", count, f"decode {DECODE} {placed}")
    for count in counts(options, least=1)[:2]:
        placed = f"--rows 64 --mesh fsdp=1,tensor={count}"
        bench(options, f"decode_8B_on_{count}", count, f"decode --model Qwen3-8B {DECODE} {placed}")


def iteration(options: argparse.Namespace) -> None:
    count = counts(options, least=2)[-1]
    bench(options, f"iteration_8B_on_{count}", count, f"train {ITERATION} --mesh fsdp={count}")


def processes(options: argparse.Namespace) -> None:
    """The same run with one process and with one per GPU: losses and seconds of each step."""
    count = counts(options, least=2)[-1]
    train = (
        "train toy_selfdistill --set steps=12 --set evaluation.splits=() --set "
        "experience.questions=32 --set experience.rollouts=8 --set export=False "
        f"--set save_checkpoints=False --mesh data={count},fsdp=1"
    ).split()
    for name, number in (("one_process", 1), (f"{count}_processes", count)):
        run_dir = options.out / name
        if (run_dir / "finished.json").exists():
            continue
        with socket.socket() as probe:
            probe.bind(("", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        running = []
        for index in range(number):
            place = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
            if number > 1:
                place = {
                    "CUDA_VISIBLE_DEVICES": str(index),
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(number),
                    "JAX_PROCESS_ID": str(index),
                }
            words = [*train, "--run-dir", str(run_dir)]
            running.append(start(words, place, options.out / f"{name}_{index}.log"))
        for each in running:
            each.wait(options.limit)


def counts(options: argparse.Namespace, least: int) -> list[int]:
    """The numbers of GPUs to measure with: 1, 2, 4, 8, as far as there are so many."""
    found = [count for count in (1, 2, 4, 8) if least <= count <= options.gpus]
    if not found:
        raise SystemExit(f"{options.gpus} GPU(s) here, and this needs at least {least}")
    return found


def bench(options: argparse.Namespace, name: str, count: int, words: str) -> None:
    file = options.out / f"{name}.json"
    if file.exists():
        return
    began = time.perf_counter()
    place = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
    process = start(["bench", *words.split(), "--out", str(file)], place, file.with_suffix(".log"))
    try:
        code: Any = process.wait(options.limit)
    except subprocess.TimeoutExpired:
        process.kill()
        code = f"ended after {options.limit} s"
    print(f"{name}: {code}, {time.perf_counter() - began:.0f} s", file=sys.stderr)


def start(words: list[str], place: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jaxdistill", *words]
    with log.open("wb") as out:
        return subprocess.Popen(
            command, env=os.environ | ENVIRONMENT | place, stdout=out, stderr=out
        )


def table(options: argparse.Namespace) -> dict[str, Any]:
    """What the results say: rates per GPU, shares of the limits, collectives, and differences."""
    found: dict[str, Any] = {}
    for file in sorted(options.out.glob("*_on_*.json")):
        result = json.loads(file.read_text())
        count = int(file.stem.rpartition("_")[2])
        profile = result.get("profile", {})
        found[file.stem] = {
            "tokens_per_second_per_gpu": result["tokens_per_second"] / count,
            "seconds": result["seconds"],
            **{
                name: result[name]
                for name in ("share_of_matmul", "share_of_copy", "step_tokens_per_second")
                if name in result
            },
            **{name: result[name] for name in result if name.startswith("seconds_")},
            "remat": result.get("remat"),
            "peak_gib": result["memory"].get("peak", 0) / 2**30,
            **profile.get("collectives", {}),
        }
    runs = sorted(options.out.glob("*process*/metrics.jsonl"))
    if len(runs) == 2:
        found["processes"] = compared(*runs)
    return found


def compared(one: Path, other: Path) -> dict[str, Any]:
    """The largest relative difference of the losses, and the median seconds of a step of each."""
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (one, other)]
    losses = [[row["loss"] for row in run] for run in rows]
    seconds = [sorted(row["seconds"] for row in run[2:]) for run in rows]
    largest = max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(*losses, strict=True))
    return {
        "steps": len(rows[0]),
        "first_losses": [run[0] for run in losses],
        "largest_relative_difference_of_loss": largest,
        "seconds_of_a_step": {
            file.parent.name: run[len(run) // 2] for file, run in zip((one, other), seconds)
        },
    }


if __name__ == "__main__":
    main()
