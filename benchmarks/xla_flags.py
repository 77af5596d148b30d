"""The train step under flags of XLA for GPUs, each in a process of its own, beside the defaults.

    python benchmarks/xla_flags.py --out xla_flags.json
    python benchmarks/xla_flags.py --out tiny.json --sets none latency_hiding --bench "step \\
        --model SmolLM2-135M --mesh fsdp=1 --rows 1 --prompt 8 --tokens 16 --repeats 1"

Prints seconds, peak and the difference from `none`, which is run first and last. A set that the
version of XLA refuses is named and left out. A run compiles for one to two minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxdistill.files import write_whole

# What each may change: products by cuBLAS alone; products with their neighbours in one kernel of
# cuDNN; products by cuBLASLt; loops without copies of what they carry; slices of layers' weights
# that products read in place; kernels launched one by one; another order of operations.
SETS = {
    "none": "",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "cudnn_fusions": "--xla_gpu_cudnn_gemm_fusion_level=2",
    "cublaslt": "--xla_gpu_enable_cublaslt=true",
    "double_buffering": "--xla_gpu_enable_while_loop_double_buffering=true",
    "slice_fusion": "--xla_gpu_enable_dynamic_slice_fusion=true",
    "no_command_buffers": "--xla_gpu_enable_command_buffer=",
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
}
STEP = "step --mesh fsdp=1 --rows 4 --tokens 4096 --remat mlp --chunk 512 --repeats 6"
LIMIT_S = 600  # of one run


def measured(flags: str, bench: str) -> dict[str, Any] | None:
    """The JSON of `bench`; None if it failed, whose last line is printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        inherited = os.environ.get("XLA_FLAGS", "")
        done = subprocess.run(
            [sys.executable, "-m", "jaxdistill", "bench", *bench.split(), "--out", str(file)],
            env={**os.environ, "XLA_FLAGS": f"{inherited} {flags}".strip()},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            print(f"  failed: {(done.stderr.strip() or 'no message').splitlines()[-1]:.300}")
            return None
        return json.loads(file.read_text())


def peak_gib(result: dict[str, Any]) -> float:
    memory = result["memory"]
    return memory.get("peak", memory["planned"]) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--bench", default=STEP, metavar="ARGUMENTS")
    given = parser.parse_args()
    if not given.out.resolve().parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    others = [name for name in given.sets if name != "none"]
    results: dict[str, list[Any]] = {}
    for name in ("none", *others, "none"):
        found = measured(SETS[name], given.bench)
        if found is None:
            print(f"{name}: left out", flush=True)
            continue
        results.setdefault(name, []).append(found)
        write_whole(given.out, json.dumps(results, indent=1) + "\n")
        text = f"{name}: {found['seconds']:.4f} s, peak {peak_gib(found):.2f} GiB"
        if "none" in results:
            text += f", {found['seconds'] / results['none'][0]['seconds'] - 1:+.2%}"
        print(text, flush=True)


if __name__ == "__main__":
    main()
