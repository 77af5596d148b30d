"""Decoding and the train step beside google-tunix and transformers, in turns on the same GPU.

    python benchmarks/beside_peers.py --out beside_peers.json
    python benchmarks/beside_peers.py --out beside_peers.json --only decode_64 --peers tunix

Each measurement is a process of its own: ours, every peer, ours again. The file holds what all of
them returned and the rows of README.md's table (`table.py`); what stands in it is not measured
again. Sizes are those of Qwen3-1.7B with random weights. Needs the peers' packages: google-tunix
for `tunix`, torch and transformers for `torch`.
"""

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from in_processes import Measurements, typed

# What both do, our command, and the arguments of the peers' scripts.
WORKS = {
    "decode_64": (
        "decode 64 x (256 + 512), prompts included",
        "decode --rows 64 --repeats 3",
        "--work decode --rows 64",
    ),
    "decode_256": (
        "decode 256 x (256 + 512), prompts included",
        "decode --rows 256 --repeats 2",
        "--work decode --rows 256",
    ),
    "step_4096": (
        "train step 4 x 4,096",
        "step --rows 4 --tokens 4096 --remat mlp --chunk 512 --repeats 6",
        "--work step --rows 4 --tokens 4096",
    ),
}
PEERS = {"tunix": "google-tunix", "torch": "transformers, torch"}
# Differences that a reader of the rates must know; our step has float32 parameters and moments.
SETTINGS = {
    "decode": {"tunix": "its sampler", "torch": "static cache, compiled"},
    "step": {"tunix": "bfloat16 states", "torch": "bfloat16 states"},
}


def main() -> None:
    options = parse()
    runs = Measurements(
        options.out, seconds=options.seconds, limit=options.limit, scratch=options.scratch
    )
    runs.found["date"] = datetime.now(UTC).date().isoformat()
    runs.found["command"] = typed(__file__)
    out = runs.scratch / "result.json"
    place = {"JAX_COMPILATION_CACHE_DIR": str(runs.scratch / "jax")}
    for name in options.only:
        _, ours, theirs = WORKS[name]
        of_us = f"-m jaxdistill bench {ours} --mesh fsdp=1 --out {out}".split()
        runs.run(f"{name} ours 0", [of_us], out=out, environments=[place])
        for peer in options.peers:
            script = Path(__file__).with_name(f"peer_{peer}.py")
            command = [str(script), *theirs.split(), "--out", str(out)]
            runs.run(f"{name} {peer}", [command], out=out, environments=[place])
        runs.run(f"{name} ours 1", [of_us], out=out, environments=[place])
        runs.found["rows"] = rows(runs.found)
        runs.save()
    print(json.dumps(runs.found["rows"], indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=int, default=570, help="no process runs after them")
    parser.add_argument("--limit", type=int, default=150, help="seconds of one process")
    parser.add_argument("--scratch", type=Path, help="folder for logs and compiled programs")
    options = parser.parse_args()
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for `table.py`, of every work that both sides have done."""
    measured, made = found["measured"], []
    for name, (text, *_) in WORKS.items():
        ours = [measured.get(f"{name} ours {turn}", {"failed": ""}) for turn in range(2)]
        ours = [result for result in ours if "failed" not in result]
        for peer in PEERS:
            theirs = measured.get(f"{name} {peer}", {"failed": ""})
            if not ours or "failed" in theirs:
                continue
            kind = name.partition("_")[0]
            made.append(
                {
                    "work": text,
                    "unit": "tokens/s",
                    "ours": statistics.median(result["tokens_per_second"] for result in ours),
                    "peer": f"{PEERS[peer]} {theirs['version']} ({SETTINGS[kind][peer]})",
                    "theirs": theirs["tokens_per_second"],
                    "share": share_of(ours),
                    "memory_gib": [
                        max(result["memory"].get("peak", 0) for result in ours) / 2**30,
                        theirs["peak_gib"],
                    ],
                    "date": found["date"],
                    "command": found["command"],
                }
            )
    return made


def share_of(ours: list[dict[str, Any]]) -> list[Any] | None:
    for key, limit in (("share_of_copy", "copy, by steps"), ("share_of_matmul", "matmul")):
        if key in ours[0]:
            return [statistics.median(result[key] for result in ours), limit]
    return None


if __name__ == "__main__":
    main()
