"""Time decoding far beyond a model's sliding window: with rings, and with caches of all positions.

    PYTHONPATH=. python benchmarks/windowed_decode.py --out windowed_decode.json
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.93 PYTHONPATH=. python benchmarks/windowed_decode.py \\
        --rows 8 --prompt 6144 --new 512 --out windowed_decode_short.json

Three runs of `bench decode` in one process: both caches for as many rows as fit with all positions,
and rings for twice as many. The defaults are for one H200: caches of all positions take 66 GiB, and
rings of 32 rows 91 GiB; 8,192 steps of each take minutes. The second command is for two to three
minutes (estimate): a prompt that is longer than the window, and few new tokens. While such prompts
are read, their caches stand beside the pool. With 16 rows of 6,144 + 1,024 the third setting wanted
109 GiB on an H200 whose JAX had 105, and both others ran, all in 106 s.

Random weights. The JSON has the results of `bench decode` by name and is written after each; a
setting that does not fit into memory is named in it, and the exit status is then 1.
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from jaxdistill.bench.decode import bench_decode
from jaxdistill.bench.work import Decode
from jaxdistill.files import write_whole
from jaxdistill.sampling import pages

# (rows as a multiple of --rows, whether sliding layers have rings)
SETTINGS = {
    "all positions": (1, False),
    "rings": (1, True),
    "rings, twice the rows": (2, True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="Olmo-3-7B", help="preset whose sizes are used")
    parser.add_argument("--rows", type=int, default=16, help="rows with caches of all positions")
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=8192, help="tokens per response")
    parser.add_argument("--cache-dtype", choices=("auto", "int8"), default="auto")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name, (times, has_rings) in SETTINGS.items():
        try:
            found[name] = bench(options, times * options.rows, has_rings=has_rings)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found[name] = {"failed": str(error).partition("\n")[0]}
            print(f"{name}: {found[name]['failed']}", file=sys.stderr, flush=True)
        gc.collect()  # arrays of a setting that failed, which its traceback held
        if options.out is not None:
            write_whole(options.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if any("failed" in result for result in found.values()) else 0


def bench(options: argparse.Namespace, rows: int, *, has_rings: bool) -> dict[str, Any]:
    """`bench decode`; without rings by the same programs as with them, but for their size."""
    ring_positions = pages.ring_positions
    jax.clear_caches()  # the program does not say how long its rings are
    if not has_rings:
        pages.ring_positions = lambda window, size, unit: None
    try:
        return bench_decode(
            Decode(
                model=options.model,
                rows=rows,
                prompt=options.prompt,
                new=options.new,
                cache_dtype=options.cache_dtype,
                repeats=1,
            )
        )
    finally:
        pages.ring_positions = ring_positions


if __name__ == "__main__":
    sys.exit(main())
