"""The rows of docs/tpu_plans.md: for each student the smallest slice of each generation that fits.

Needs jax[tpu], and neither a TPU nor data. A slice and its mesh are chosen by arithmetic, and the
compiler is asked; if it refuses a program, the next mesh or slice is tried.

    python benchmarks/plan_table.py --out plans --workers 8            # compile all rows
    python benchmarks/plan_table.py --out plans --only Qwen3-1.7B,v5e  # some of them
    python benchmarks/plan_table.py --out plans --estimate             # all rows by arithmetic
    python benchmarks/plan_table.py --out plans --table                # print the table
    python benchmarks/plan_table.py --out plans --choose               # print the commands alone

Every plan is a file of --out, and is not made again. A row's time limit ends its process alone.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

STUDENTS = ("Qwen3-1.7B", "Qwen3-8B", "DeepSeek-R1-Distill-Qwen-7B", "Olmo-3-7B-Instruct")
GENERATIONS = ("v5e", "v5p", "v6e", "tpu7x")
RECIPE, PROMPT_TOKENS = "sdpo_math", 1024
GIB = 2**30
# Candidates per row, and what a candidate must have: room for the estimates' error, and as many
# slots as devices, without which the sampler reads all weights for a few tokens.
CANDIDATES, MARGIN = 4, 1.1


def candidates(student: str, generation: str) -> Iterator[tuple[str, str]]:
    """(topology, mesh) in the order in which they are tried: the smallest slice first."""
    from jaxdistill.config import load_recipe
    from jaxdistill.plan.plan import How, start
    from jaxdistill.plan.search import screen
    from jaxdistill.plan.topologies import SLICES

    config = load_recipe(RECIPE, [], student=student)
    for shape in SLICES[generation]:
        name = f"{generation}:{shape}"
        run = start(config, name, How(prompt_tokens=PROMPT_TOKENS))
        sensible = [
            each
            for each in screen(run)
            if each["peak"] * MARGIN <= run.topology.memory
            and each["slots"] >= run.topology.num_devices
        ]
        for each in sensible[:2]:
            yield name, ",".join(f"{axis}={size}" for axis, size in each["mesh"].items())


def command_of(student: str, topology: str, mesh: str, options: argparse.Namespace) -> list[str]:
    words = ["plan", RECIPE, "--student", student, "--topology", topology, "--mesh", mesh]
    words += ["--prompt-tokens", str(PROMPT_TOKENS)]
    if options.estimate:
        return [*words, "--no-compile"]
    return [*words, *(["--quick"] if options.quick else [])]


def file_of(student: str, topology: str, mesh: str, options: argparse.Namespace) -> Path:
    name = f"{student}-{topology}-{mesh}".replace(":", "-").replace("=", "").replace(",", "-")
    return options.out / f"{name}{'-estimate' if options.estimate else ''}.json"


def choose(student: str, generation: str, options: argparse.Namespace) -> list[tuple[str, str]]:
    """The first candidates, kept in a file: the screen of large slices takes a while."""
    file = options.out / f"{student}-{generation}.candidates"
    if not file.exists():
        chosen = []
        for each in candidates(student, generation):
            chosen.append(each)
            if len(chosen) == CANDIDATES:
                break
        file.write_text(json.dumps(chosen))
    return [tuple(each) for each in json.loads(file.read_text())]


def plan_row(student: str, generation: str, options: argparse.Namespace) -> str:
    """Plan candidates until one fits; a line on what came of it."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for topology, mesh in choose(student, generation, options):
        file = file_of(student, topology, mesh, options)
        if not file.exists():
            words = command_of(student, topology, mesh, options)
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "jaxdistill", *words, "--json", str(file)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=options.limit,
                )
            except subprocess.TimeoutExpired:
                return f"{student}, {topology}, {mesh}: more than {options.limit:g} s"
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                return f"{student}, {topology}, {mesh}: {last[0][:300]}"
        if json.loads(file.read_text())["fits"]:
            return f"{student}, {topology}, {mesh}: fits"
    return f"{student}, {generation}: no candidate fits"


def kept_plan(
    student: str, topology: str, mesh: str, options: argparse.Namespace
) -> dict[str, Any]:
    """The compiled plan of a row, otherwise its estimate."""
    file = file_of(student, topology, mesh, options)
    for kept in (file, file.with_name(f"{file.stem}-estimate.json")):
        if kept.exists():
            return json.loads(kept.read_text())
    return {"fits": False}


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(student, topology, mesh, plan) of the rows whose plan fits, in the table's order."""
    for student in STUDENTS:
        for generation in GENERATIONS:
            file = options.out / f"{student}-{generation}.candidates"
            for topology, mesh in json.loads(file.read_text()) if file.exists() else ():
                plan = kept_plan(student, topology, mesh, options)
                if plan["fits"]:
                    yield student, topology, mesh, plan
                    break


def marked(program: dict[str, Any]) -> str:
    """A peak with c (compiler), x (extrapolated from its peaks of two depths) or e (estimate)."""
    source = program["peak_source"]
    mark = "e" if source.startswith("estimate") else "c" if source == "compiler" else "x"
    return f"{program['peak'] / GIB:.1f} {mark}"


def table(options: argparse.Namespace) -> None:
    """Print docs/tpu_plans.md's table and the command of each row."""
    heads = [
        "student", "slice", "mesh", "state", "step", "sampler", "available", "slots", "s", "days",
    ]  # fmt: skip
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    commands = []
    for student, topology, mesh, plan in rows(options):
        by_name = {each["name"]: each for each in plan["programs"]}
        held = sum(plan["resident"].values()) / GIB
        step, sampler = (by_name[name] for name in ("step", "sampler"))
        short = mesh.replace("data=", "").replace("fsdp=", "").replace("tensor=", "")
        cells = [
            student, topology, short.replace(",", " x "), f"{held:.1f}",
            f"{marked(step)}, {plan['remat']}", marked(sampler),
            f"{plan['available'] / GIB:.2f}", f"{plan['sampler']['slots']:,}",
            f"{plan['iteration']['seconds']:,.0f}", f"{plan['days']:.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
        how = argparse.Namespace(estimate=not plan["compiler"], quick=plan["quick"])
        commands.append("jaxdistill " + " ".join(command_of(student, topology, mesh, how)))
    print("\n```bash\n" + "\n".join(commands) + "\n```")
    print("\n| student, slice | program | " + " | ".join(CATEGORIES) + " | other |")
    print("|---|---|" + "---|" * (len(CATEGORIES) + 1))
    for student, topology, _, plan in rows(options):
        for each in plan["programs"]:
            if each["name"] in ("step", "sampler"):
                values = [each["memory"][name] for name in (*CATEGORIES, "other")]
                cells = " | ".join(f"{value / GIB:.2f}" for value in values)
                print(f"| {student}, {topology} | {each['name']} | {cells} |")


CATEGORIES = (
    "parameters", "optimizer", "teacher_and_reference", "weights_and_gradients", "activations",
    "vocabulary", "kv_pool", "prompts",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the plans")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=3000.0, help="seconds per plan")
    parser.add_argument("--only", default="", help="students and generations, comma-separated")
    parser.add_argument("--full", dest="quick", action="store_false", help="no --quick")
    parser.add_argument("--estimate", action="store_true", help="by arithmetic, compile nothing")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    parser.add_argument("--choose", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.table:
        table(options)
        return 0
    wanted = options.only.split(",") if options.only else []
    chosen = [(s, g) for s in STUDENTS for g in GENERATIONS if all(w in (s, g) for w in wanted)]
    if options.choose:
        for student, generation in chosen:
            for topology, mesh in choose(student, generation, options):
                words = command_of(student, topology, mesh, options)
                print("jaxdistill", *words, flush=True)
        return 0
    with ThreadPoolExecutor(options.workers) as pool:
        waiting = [pool.submit(plan_row, *each, options) for each in chosen]
        lines = [each.result() for each in as_completed(waiting) if print(each.result()) is None]
    return 0 if all(line.endswith("fits") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
