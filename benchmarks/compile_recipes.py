"""Compile the programs of every training recipe of configs/paper for every student, without a TPU.

Lengths, widths, vocabulary, batches and slots are those of the run; depth alone is smaller, as
training scans the layers and decoding repeats one layer's operations. Needs jax[tpu], and neither
data nor tokenizers: arguments are shapes. Each case (recipe, student, program) is a process with a
time limit; a program whose text another case has had already is not compiled again.

    python benchmarks/compile_recipes.py --out compiled.jsonl --workers 8 --topology v5p:2x2x2
    python benchmarks/compile_recipes.py --out compiled.jsonl --only sdpo_math,Qwen3-1.7B,score
    python benchmarks/compile_recipes.py --out compiled.jsonl --table

A line of the file is a case: seconds, GiB per device, or the compiler's error. Run it again with
the same --out to go on: cases that are done are skipped. --table prints what the file holds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RECIPES = (
    "sdpo_math", "grpo_math", "sdpo_math_ema", "epi_gate_math", "opsd_math", "epi_anchor_math",
    "epi_mask_math", "epi_amplify_math", "sft_unguided", "sdpo_math_stripped_solution",
    "sft_guided",
)  # fmt: skip
STUDENTS = (
    "Qwen3-1.7B", "Qwen3-8B", "DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-Distill-Qwen-1.5B",
    "Olmo-3-7B-Instruct",
)  # fmt: skip
PROGRAMS = ("step", "sampler", "score")  # the slowest first
GIB = 2**30


def cases() -> list[tuple[str, str, str]]:
    """Every case, those that are likely to be programs of their own first."""
    return [
        (recipe, student, program)
        for recipe in RECIPES
        for program in programs_of(recipe)
        for student in STUDENTS
    ]


def programs_of(recipe: str) -> list[str]:
    """Those that a recipe runs: sampling if it samples, scores if it updates more than once."""
    from jaxdistill.config import load_recipe
    from jaxdistill.training.on_policy import OnPolicy

    config = load_recipe(recipe, [])
    has = {
        "step": True,
        "sampler": isinstance(config.experience, OnPolicy),
        "score": config.updates > 1,
    }
    return [program for program in PROGRAMS if has[program]]


# --------------------------------------------------------------------------------- one case


def compile_case(recipe: str, student: str, program: str, options: argparse.Namespace) -> dict:
    """Lower a case's program, and compile it unless another case claims it; a line of the file."""
    import dataclasses

    import jax

    from jaxdistill import sharding
    from jaxdistill.config import load_recipe
    from jaxdistill.plan import compiling, programs, topologies
    from jaxdistill.plan.lengths import lengths_of

    topology = topologies.parse(options.topology)
    config = load_recipe(recipe, [f"mesh={sharding.parse_mesh(options.mesh)!r}"], student=student)
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat="all"))
    run = programs.run_of(config, topology, lengths_of)
    mesh = sharding.make_mesh(config.mesh, topologies.devices(topology))
    shallow = programs.with_depth(run, options.layers)
    with sharding.use_mesh(mesh):
        if program == "sampler":
            # Slots are those beside the whole model's state.
            free = topology.memory - programs.resident_bytes(run, mesh)
            slots = programs.slots_of(run, mesh, free)
            chosen = programs.sampler_program(shallow, mesh, *slots)
        else:
            built = {each.name: each for each in programs.step_programs(shallow, mesh)}
            chosen = built[program]
        text = chosen.lower().as_text()
    key = compiling.key_of(text, topology, dict(compiling.QUICK) if options.quick else {})
    facts = {"key": key, "layers": shallow.model.num_layers, "jax": jax.__version__}
    facts["libtpu"] = topologies.compiler_version()
    try:
        os.close(os.open(options.claims / key, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return facts | {"same": True}
    answer = compiling.compiled(
        chosen, mesh, topology, quick=options.quick, folder=options.claims / "plans"
    )
    available = answer.available or topology.memory
    return facts | {
        "seconds": round(answer.seconds, 1),
        "peak_gib": round(answer.peak / GIB, 2),
        "available_gib": round(available / GIB, 2),
        "error": answer.refused,
    }


def in_a_process(case: tuple[str, str, str], options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", ",".join(case), "--out", str(options.out)]
    command += ["--topology", options.topology, "--mesh", options.mesh]
    command += ["--layers", str(options.layers), *(["--quick"] if options.quick else [])]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    line = dict(zip(("recipe", "student", "program"), case)) | {"topology": options.topology}
    line |= {"mesh": options.mesh, "quick": options.quick}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return line | {"failed": f"more than {options.limit:g} s"}
    line["wall_seconds"] = round(time.monotonic() - began, 1)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return line | {"failed": last[0][:400]}
    return line | json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------------------- all cases


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of the file; one that a stopped run has not finished is left out."""
    lines = []
    for text in out.read_text().splitlines() if out.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def done_cases(lines: list[dict[str, Any]], options: argparse.Namespace) -> dict[Any, dict]:
    """{case: its result} for those whose program was compiled or refused, in it or in another."""
    asked = {"topology": options.topology, "mesh": options.mesh, "quick": options.quick}
    lines = [x for x in lines if asked.items() <= x.items() and "key" in x]
    results = {x["key"]: x for x in lines if "same" not in x}
    return {
        (x["recipe"], x["student"], x["program"]): results[x["key"]]
        for x in lines
        if x["key"] in results
    }


def compile_all(options: argparse.Namespace) -> int:
    wanted = options.only.split(",") if options.only else []
    chosen = [case for case in cases() if all(word in case for word in wanted)]
    done = done_cases(read(options.out), options)
    options.claims.mkdir(parents=True, exist_ok=True)
    known = {result["key"] for result in done.values()}
    for claim in options.claims.iterdir():
        # Claims of a run that was stopped while it compiled.
        if claim.is_file() and claim.name not in known:
            claim.unlink()
    for key in known:
        (options.claims / key).touch()
    todo = [case for case in chosen if case not in done]
    print(f"{len(chosen)} cases, {len(chosen) - len(todo)} done", file=sys.stderr)
    with ThreadPoolExecutor(options.workers) as pool, options.out.open("a") as file:
        waiting = [pool.submit(in_a_process, case, options) for case in todo]
        for number, each in enumerate(as_completed(waiting), 1):
            line = each.result()
            file.write(json.dumps(line) + "\n")
            file.flush()
            said = line.get("failed") or line.get("error") or line.get("peak_gib", "as another's")
            names = ", ".join(line[name] for name in ("recipe", "student", "program"))
            print(f"{number}/{len(todo)} {names}: {said}", file=sys.stderr, flush=True)
    done = done_cases(read(options.out), options)
    failed = [case for case in chosen if case not in done or done[case]["error"]]
    distinct = len({done[case]["key"] for case in chosen if case in done})
    print(f"{len(chosen) - len(failed)} of {len(chosen)} cases compile, {distinct} programs")
    for case in failed:
        print("not compiled:", *case)
    return 1 if failed else 0


def table(options: argparse.Namespace) -> int:
    """Print a Markdown table: the peaks of the recipes' programs by student, in GiB per device.

    Recipes whose programs have the same peaks share a row.
    """
    done = done_cases(read(options.out), options)
    rows: dict[tuple[str, ...], list[str]] = {}
    for recipe, program in dict.fromkeys((recipe, program) for recipe, _, program in cases()):
        cells = [_cell(done.get((recipe, student, program))) for student in STUDENTS]
        rows.setdefault((program, *cells), []).append(recipe)
    print("| program | recipes | " + " | ".join(STUDENTS) + " |")
    print("|---|---|" + "---|" * len(STUDENTS))
    for (program, *cells), recipes in sorted(rows.items(), key=lambda row: row[0][0]):
        print(f"| {program} | {', '.join(recipes)} | " + " | ".join(cells) + " |")
    return 0


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    return "refused" if result["error"] else f"{result['peak_gib']:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON lines, one per case")
    parser.add_argument("--topology", default="v5p:2x2x2")
    parser.add_argument("--mesh", default="data=1,fsdp=-1,tensor=1")
    parser.add_argument("--layers", type=int, default=4, help="layers in place of all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds per case")
    parser.add_argument("--only", default="", help="recipe, student or program, comma-separated")
    parser.add_argument("--quick", action="store_true", help="compile with the least effort")
    parser.add_argument("--table", action="store_true", help="print what the file holds and stop")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.claims = options.out.with_suffix(".claims")
    if options.case:
        recipe, student, program = options.case.split(",")
        print(json.dumps(compile_case(recipe, student, program, options)))
        return 0
    return table(options) if options.table else compile_all(options)


if __name__ == "__main__":
    sys.exit(main())
