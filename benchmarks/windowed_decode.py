"""Time decoding far beyond a model's sliding window: with rings, and with caches of all positions.

    PYTHONPATH=. python benchmarks/windowed_decode.py --out windowed_decode.json

Three runs of `bench decode` in one process: both caches for as many rows as fit with all positions,
and rings for twice as many. The defaults are for one H200: caches of all positions take 66 GiB, and
rings of 32 rows 91 GiB. Random weights; the JSON has the results of `bench decode` by name.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxdistill.bench.decode import bench_decode
from jaxdistill.bench.work import Decode
from jaxdistill.sampling import pages
from jaxdistill.sampling.sampler import make_sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="Olmo-3-7B", help="preset whose sizes are used")
    parser.add_argument("--rows", type=int, default=16, help="rows with caches of all positions")
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=8192, help="tokens per response")
    parser.add_argument("--cache-dtype", choices=("auto", "int8"), default="auto")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    found = {
        "all positions": bench(options, options.rows, has_rings=False),
        "rings": bench(options, options.rows, has_rings=True),
        "rings, twice the rows": bench(options, 2 * options.rows, has_rings=True),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def bench(options: argparse.Namespace, rows: int, *, has_rings: bool) -> dict[str, Any]:
    """`bench decode`; without rings by the same programs as with them, but for their size."""
    ring_positions = pages.ring_positions
    make_sampler.cache_clear()
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
    main()
