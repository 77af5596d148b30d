"""The train step of two trees, in turns on one device: `bench step` of an old and of this package.

    python benchmarks/before_after.py --old FOLDER --out before_after.json [--rows step_4096 ...]

FOLDER holds the old tree's `jaxdistill/`, as `git worktree add FOLDER COMMIT` makes it. Each
setting is run `--turns` times per tree, old and new in turns, each in a process of its own, so that
a clock or temperature that drifts meets both. Prints the medians and writes every result.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

NEW = Path(__file__).resolve().parent.parent
# Settings of `bench step`, of the tables in benchmarks/README.md.
SETTINGS = {
    "step_4096": "--rows 4 --tokens 4096 --remat mlp --chunk 512 --repeats 6",
    "step_20480": "--rows 1 --tokens 20480 --remat mlp --chunk 1024 --repeats 4",
    "step_4096_fsdp2": "--rows 8 --tokens 4096 --mesh fsdp=2 --remat mlp --chunk 512 --repeats 6",
    "step_4096_tensor2": "--rows 4 --tokens 4096 --mesh fsdp=1,tensor=2 --remat mlp --chunk 512 "
    "--repeats 6",
}
LIMIT_S = 900  # of one run: compilation takes one to two minutes, a step less than two seconds


def measured(tree: Path, setting: str, out: Path) -> dict[str, Any]:
    """The JSON of one `bench step` by the package of `tree`."""
    command = [sys.executable, "-m", "jaxdistill", "bench", "step", *setting.split()]
    # From the tree itself, since a package in the working directory comes first.
    subprocess.run(
        [*command, "--out", str(out)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=True,
    )
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rows", nargs="+", choices=SETTINGS, default=["step_4096", "step_20480"])
    parser.add_argument("--turns", type=int, default=2, metavar="N")
    given = parser.parse_args()
    if not (given.old / "jaxdistill").is_dir():
        parser.error(f"--old {given.old}: expected a folder with jaxdistill/ in it")
    trees = {"old": given.old.resolve(), "new": NEW}
    every: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in given.rows:
        results: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for turn in range(given.turns):
            # The second turn is in the other order: neither tree is always the first.
            for which in list(trees)[:: 1 if turn % 2 == 0 else -1]:
                one = given.out.with_suffix(f".{name}.{which}.{turn}.json").resolve()
                results[which].append(measured(trees[which], SETTINGS[name], one))
        every[name] = results
        given.out.write_text(json.dumps(every, indent=1))
        print(line(name, results), flush=True)


def line(name: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Medians of seconds and peaks of both trees, and the first and last loss of each."""
    seconds = {
        which: statistics.median(r["seconds"] for r in runs) for which, runs in results.items()
    }
    peaks = {
        which: max(r["memory"].get("peak", r["memory"]["planned"]) for r in runs)
        for which, runs in results.items()
    }
    losses = {
        which: (runs[0]["loss_first"], runs[0]["loss_last"]) for which, runs in results.items()
    }
    return (
        f"{name}: {seconds['old']:.4f} s -> {seconds['new']:.4f} s "
        f"({seconds['new'] / seconds['old'] - 1:+.2%}), peak {peaks['old'] / 2**30:.2f} -> "
        f"{peaks['new'] / 2**30:.2f} GiB, losses {losses['old']} -> {losses['new']}"
    )


if __name__ == "__main__":
    main()
