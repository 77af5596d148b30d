"""The train step and decoding of two trees, in turns on the same devices: an old and this package.

    git worktree add FOLDER COMMIT
    python benchmarks/before_after.py --old FOLDER --out before_after.json [--rows step_4096 ...]

FOLDER holds the old tree's `jaxdistill/`. Each setting is run `--turns` times per tree, old and new
in turns, each in a process of its own, so that a clock or temperature that drifts meets both.
Prints a line for every run as it ends, and for every setting the medians over all runs. Everything
that `bench` returned stands in the file, which is written anew after every run.

    python benchmarks/before_after.py --old FOLDER --out tiny.json --turns 1 --bench "step \\
        --model SmolLM2-135M --mesh fsdp=1 --rows 1 --prompt 8 --tokens 16 --repeats 1"
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxdistill.files import write_whole

NEW = Path(__file__).resolve().parent.parent
STEP = "step --remat mlp --chunk 512 --repeats 6"
# Arguments of `bench`, of the tables in benchmarks/README.md. The mesh is named, since by default
# it has all devices of the machine.
SETTINGS = {
    "step_4096": f"{STEP} --mesh fsdp=1 --rows 4 --tokens 4096",
    # Rows that are longer than a block of the feed-forward (`models.layers.BLOCK`).
    "step_20480": "step --mesh fsdp=1 --rows 1 --tokens 20480 --remat mlp --chunk 1024 --repeats 4",
    "decode_64": "decode --mesh fsdp=1 --rows 64 --repeats 3",
    "step_4096_fsdp2": f"{STEP} --mesh fsdp=2 --rows 8 --tokens 4096",
    "step_4096_tensor2": f"{STEP} --mesh fsdp=1,tensor=2 --rows 4 --tokens 4096",
    "decode_64_tensor2": "decode --mesh fsdp=1,tensor=2 --rows 64 --repeats 3",
}
ONE_DEVICE = ["step_4096", "step_20480", "decode_64"]
LIMIT_S = 900  # of one run: compilation takes one to two minutes, a step less than two seconds


def measured(tree: Path, setting: str, out: Path) -> dict[str, Any]:
    """The JSON of one `bench` by the package of `tree`."""
    command = [sys.executable, "-m", "jaxdistill", "bench", *setting.split()]
    # From the tree itself, since a package in the working directory comes first.
    paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [*command, "--out", str(out)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
    )
    if found.returncode:
        sys.exit(f"{tree}: `bench {setting}` ended with {found.returncode}; see above")
    return json.loads(out.read_text())


def seconds_of(result: dict[str, Any]) -> float:
    """Of a step: of the train step, or of the decoding of one token of every row."""
    return result.get("step_seconds", result["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rows", nargs="+", choices=SETTINGS, default=ONE_DEVICE)
    parser.add_argument("--bench", metavar="ARGUMENTS", help="other arguments of `bench`, not ROWS")
    parser.add_argument("--turns", type=int, default=2, metavar="N")
    given = parser.parse_args()
    if not (given.old / "jaxdistill").is_dir():
        parser.error(f"--old {given.old}: expected a folder with jaxdistill/ in it")
    if given.turns < 1:
        parser.error(f"--turns {given.turns}: expected at least 1")
    if not given.out.resolve().parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    trees = {"old": given.old.resolve(), "new": NEW}
    settings = {name: SETTINGS[name] for name in given.rows}
    settings = {"given": given.bench} if given.bench else settings
    every: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, setting in settings.items():
        results = every.setdefault(name, {"old": [], "new": []})
        for turn in range(given.turns):
            # The second turn is in the other order: neither tree is always the first.
            for which in list(trees)[:: 1 if turn % 2 == 0 else -1]:
                one = given.out.with_suffix(f".{name}.{which}.{turn}.json").resolve()
                results[which].append(measured(trees[which], setting, one))
                one.unlink()  # it is part of the file from here on
                write_whole(given.out, json.dumps(every, indent=1) + "\n")
                print(f"{name} {which} {turn}: {seconds_of(results[which][-1]):.4f} s", flush=True)
        print(line(name, results), flush=True)


def line(name: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Medians of seconds, the peak of memory, and the losses of each tree if it has them.

    Each run's seconds are the median of its own repeats. The peak is what the devices report, or
    what the compiler planned where they report none, as on a CPU.
    """
    seconds = {which: statistics.median(map(seconds_of, runs)) for which, runs in results.items()}
    peaks = {
        which: max(r["memory"].get("peak", r["memory"]["planned"]) for r in runs) / 2**30
        for which, runs in results.items()
    }
    losses = {
        which: ", ".join(f"{runs[0][key]:.6f}" for key in ("loss_first", "loss_last"))
        for which, runs in results.items()
        if "loss_first" in runs[0]
    }
    text = (
        f"{name}: {seconds['old']:.4f} s -> {seconds['new']:.4f} s "
        f"({seconds['new'] / seconds['old'] - 1:+.2%}), peak {peaks['old']:.2f} -> "
        f"{peaks['new']:.2f} GiB"
    )
    return f"{text}, first and last loss {losses['old']} -> {losses['new']}" if losses else text


if __name__ == "__main__":
    main()
