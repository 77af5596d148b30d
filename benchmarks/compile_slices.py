"""Programs of two trees, compiled for TPU slices without a TPU: an old and this package.

    git worktree add FOLDER COMMIT
    python benchmarks/compile_slices.py --old FOLDER --out slices.json [--only step v6e ...]
    python benchmarks/compile_slices.py --out slices.json --table

FOLDER holds the old tree's `jaxdistill/`. Needs jax[tpu] and no data: arguments are shapes. A case
is one program with the widths and the vocabulary of a student, and few layers; each tree has
a process of its own, and the compiler its least effort (`--full`: all of it, which takes about
twice as long). Run it again with the same --out to go on. The table has the compiler's
peak and the collectives of each kind, whose bytes are of one device and one micro-batch, and the
largest arrays (`slice_figures.py`).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import slice_figures

NEW = Path(__file__).resolve().parent.parent
GIB, MIB = 2**30, 2**20
# The recipes' limit: rows of 22,528 and, for the teacher, 43,008 positions. Blocks of 1,024 divide
# both, and with smaller ones building attention's mask takes longer than the compiler.
PROMPT = 2048


class Case(NamedTuple):
    program: str
    student: str
    topology: str
    mesh: str  # fsdp, tensor
    layers: int = 8  # more than are unrolled, and whole patterns of Olmo 3's four
    recipe: str = "sdpo_math"

    @property
    def name(self) -> str:
        """What the table and `--only` call it; `step` alone differs between recipes."""
        program = self.program if self.recipe == "sdpo_math" else f"{self.program} {self.recipe}"
        return f"{program} {self.student} {self.layers} layers {self.topology} {self.mesh}"


V5P, V6E = ("v5p:2x2x1", "fsdp=4"), ("v6e:2x4", "fsdp=2,tensor=4")
# Splits the vocabulary, of which Olmo 3 has 100,278 tokens, and the residual stream's positions.
V5P_TENSOR = ("v5p:2x2x1", "fsdp=1,tensor=4")
# Twice as many devices as key/value heads.
V5P_HEADS, V6E_HEADS = ("v5p:2x2x4", "fsdp=1,tensor=16"), ("v6e:4x4", "fsdp=1,tensor=16")
# 28 query and 4 key/value heads, which 8 does not divide.
V5P_REFUSED, V6E_REFUSED = ("v5p:2x2x2", "fsdp=1,tensor=8"), ("v6e:2x4", "fsdp=1,tensor=8")
QWEN, OLMO, DEEPSEEK = "Qwen3-8B", "Olmo-3-7B-Instruct", "DeepSeek-R1-Distill-Qwen-7B"
# What each is to show: docs/tpu_plans.md, "Before and after".
CASES = [
    *(Case("teacher", QWEN, *where) for where in (V6E, V5P_TENSOR)),
    *(Case("prefill", QWEN, *where) for where in (V6E, V5P)),
    *(Case("update", OLMO, *where) for where in (V6E, V5P_TENSOR)),
    *(Case("prefill", QWEN, *where) for where in (V6E_HEADS, V5P_HEADS)),
    *(Case("prefill", DEEPSEEK, *where) for where in (V6E_REFUSED, V5P_REFUSED)),
    # A step without a teacher takes the compiler half the time.
    *(Case("step", QWEN, *where, recipe="sft_unguided") for where in (V6E, V5P)),
    *(Case("sampler", OLMO, *where, layers=4) for where in (V6E, V5P_TENSOR)),
    *(Case("step", QWEN, *where) for where in (V6E, V5P)),
    *(Case("step", OLMO, *where) for where in (V6E, V5P_TENSOR)),
    *(Case("update", QWEN, *where) for where in (V6E, V5P)),
]
# Of the sampler, the same in both trees: what 16 devices of v6e had room for with caches of all
# positions in every layer (docs/tpu_plans.md, "Caches of sliding layers").
SLOTS, PAGES = 32, 2048
# Of prefill: 32 per part of the mesh on v5p, and 64 on v6e.
QUESTIONS, QUESTION_TOKENS = 128, 2048


# --------------------------------------------------------------- one case, by the package in use


def compile_case(case: Case, full: bool, texts: Path | None) -> dict[str, Any]:
    """The figures of a case, by the package that is imported; its text is kept in `texts`."""
    import dataclasses

    from jaxdistill import sharding
    from jaxdistill.config import load_recipe
    from jaxdistill.errors import UserError
    from jaxdistill.plan import programs, topologies
    from jaxdistill.plan.compiling import QUICK
    from jaxdistill.plan.lengths import lengths_of

    topology = topologies.parse(case.topology)
    config = load_recipe(case.recipe, [], student=case.student)
    config = dataclasses.replace(
        config,
        mesh=sharding.parse_mesh(case.mesh),
        compute=dataclasses.replace(config.compute, remat="all"),
    )
    run = programs.run_of(config, topology, lambda c, m: lengths_of(c, m, None, PROMPT))
    run = programs.with_depth(run, case.layers)
    mesh = sharding.make_mesh(config.mesh, topologies.devices(topology))
    try:
        with contextlib.suppress(ImportError):  # an old tree has no such check
            from jaxdistill.models import placement

            placement.check_mesh(run.model, mesh)
        with sharding.use_mesh(mesh):
            lowered = BUILDERS[case.program](run, mesh)
    except UserError as error:
        return {"refused": str(error)}
    began = time.monotonic()
    with sharding.use_mesh(mesh):
        executable = lowered.compile(compiler_options=None if full else QUICK)
    memory, text = executable.memory_analysis(), executable.as_text()
    if texts is not None:
        (texts / f"{case.name}.txt").write_text(text)
    each = run.model.num_parameters / (mesh.shape["fsdp"] * mesh.shape["tensor"])
    return {
        "seconds": round(time.monotonic() - began, 1),
        "libtpu": topologies.compiler_version(),
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "parameters": each,
        **slice_figures.of_arrays(run, mesh, text, case.program in ("step", "teacher")),
        **slice_figures.of_collectives(run, mesh, text),
    }


def step(run: Any, mesh: Any) -> Any:
    from jaxdistill.plan import programs

    return {each.name: each for each in programs.step_programs(run, mesh)}["step"].lower()


def sampler(run: Any, mesh: Any) -> Any:
    from jaxdistill.plan import programs

    return programs.sampler_program(run, mesh, SLOTS, PAGES).lower()


def prefill(run: Any, mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from jaxdistill.models import decoder
    from jaxdistill.plan import programs

    _, params = programs.state_of(run, mesh)
    tokens = jax.ShapeDtypeStruct((QUESTIONS, QUESTION_TOKENS), jnp.int32)
    tokens = programs.as_batch(mesh, tokens)
    return jax.jit(
        lambda params, tokens, mask: decoder.prefill(
            params, run.model, tokens, mask, QUESTION_TOKENS, dtype=jnp.bfloat16
        )
    ).lower(params, tokens, tokens)


def teacher(run: Any, mesh: Any) -> Any:
    """The forward pass of one row of the frozen teacher per part of the mesh."""
    import jax
    import jax.numpy as jnp

    from jaxdistill.models import completions
    from jaxdistill.plan import programs
    from jaxdistill.training import networks

    _, params = programs.state_of(run, mesh)
    blocks = getattr(networks, "mlp_block_of", None)  # an old tree has no blocks
    how = {"mlp_block": blocks(run.model)} if blocks else {}

    def forward(params: Any, batch: Any) -> Any:
        micro = batch.micro_batch(0)
        return completions.hidden_of_prompts(
            params,
            run.model,
            [micro.teacher],
            micro.completions.lengths_BA,
            num_positions=micro.completions.tokens_BS.shape[1],
            dtype=jnp.bfloat16,
            remat="all",
            attention="auto",
            **how,
        )

    # With the options of the compiler that the tree's step has.
    jit = jax.jit
    with contextlib.suppress(ImportError):
        from jaxdistill.training.tpu_options import JittedForPlatform as jit
    return jit(forward).lower(params, programs.batch_of(run, mesh))


def update(run: Any, mesh: Any) -> Any:
    """The update alone, with the gradients in float32 that the loop over micro-batches leaves."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.layout import Format, Layout

    from jaxdistill import sharding
    from jaxdistill.models import parameters
    from jaxdistill.plan import programs
    from jaxdistill.training.step import _Program

    config, model = run.config, run.model
    program = _Program(
        model=model,
        objective=config.objective,
        epistemic_ids=(1,),
        optimizer=config.optimizer,
        teacher=config.teacher,
        compute=config.compute,
        steps=run.steps,
        temperature=1.0,
        track_reference=config.track_reference,
        teacher_temperature=None,
        updates=1,
    )
    state, reference = programs.state_of(run, mesh)
    stack = jax.jit(lambda params: parameters.stack(params, model, dtype=jnp.float32))
    stacked = jax.eval_shape(stack, state.params)
    places = stack.lower(state.params).compile().output_shardings
    total = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    # In the layout that the compiler chooses, as the loop's results have.
    layouts = jax.tree.map(lambda place: Format(Layout.AUTO, place), places)
    own = jax.tree.map(lambda x: x.sharding, (state, reference))
    gradients = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), stacked)
    return jax.jit(
        lambda state, reference, gradients, total: program._update(
            state, jnp.float32(1), (total, {}), gradients
        ),
        donate_argnums=(0, 2),
        in_shardings=(*own, layouts, total.sharding),
        keep_unused=True,  # the reference, which a run holds
    ).lower(state, reference, gradients, total)


BUILDERS = {
    "step": step, "sampler": sampler, "prefill": prefill, "teacher": teacher, "update": update,
}  # fmt: skip


# ------------------------------------------------------------------------------------ all cases


class Tree:
    """A process that compiles cases, one after another, by the package of a tree."""

    def __init__(self, folder: Path, full: bool, texts: Path | None = None):
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        options = ["--full"] if full else []
        if texts is not None:
            texts.mkdir(parents=True, exist_ok=True)
            options += ["--texts", str(texts.resolve())]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer", *options],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def compiled(self, case: Case) -> dict[str, Any]:
        """The figures of a case; {"failed": ...} if the process has ended."""
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        with contextlib.suppress(BrokenPipeError):
            into.write(json.dumps(case) + "\n")
            into.flush()
        for line in out:
            if line.startswith("{"):
                return json.loads(line)
        return {"failed": f"the process ended with {self._process.wait()}; see above"}

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # closes its input, with which it ends, and waits


def answer(full: bool, texts: Path | None) -> None:
    """Compile the cases of standard input, one a line, and print their figures."""
    for line in sys.stdin:
        try:
            found = compile_case(Case(*json.loads(line)), full, texts)
        except Exception as error:  # the other cases are worth having
            found = {"failed": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(found), flush=True)


def columns(found: dict[str, Any]) -> list[str]:
    """Cells of one tree in the table: GiB per device, in the order of HEADER."""
    if "peak" not in found:
        return [found.get("refused") or found.get("failed") or "", *[""] * (len(HEADER) - 1)]
    of_kind = lambda kind: found["kinds"].get(kind, {"executed": 0, "bytes": 0})  # noqa: E731
    in_mib = lambda n: "" if n is None else f"{n / MIB:,.1f}"  # noqa: E731
    sums, parts, heads = of_kind("all-reduce"), of_kind("reduce-scatter"), found.get("head_gathers")
    return [
        f"{found['peak'] / GIB:.2f}",
        f"{found['arguments'] / GIB:.2f}",
        f"{sums['bytes'] / GIB:.2f}",
        in_mib(found["largest_all_reduce"]),
        in_mib(found.get("largest_float32_all_reduce")),
        f"{parts['executed']:.0f}, {parts['bytes'] / GIB:.2f}",
        f"{of_kind('all-gather')['bytes'] / GIB:.2f}",
        f"{found['float32_gathers'] / GIB:.2f}",
        f"{heads[0]:.0f}, {heads[1] / GIB:.2f}" if heads else "",
        in_mib(found["teacher_rows"]),
        in_mib(found.get("whole")),
    ]


HEADER = (
    "peak", "arguments", "all-reduces", "largest, MiB", "largest in float32, MiB",
    "reduce-scatters", "gathers", "in float32", "of [D, V]", "teacher's row, MiB", "whole, MiB",
)  # fmt: skip


def table(every: dict[str, dict[str, Any]]) -> str:
    """Markdown: each case before and after; GiB per device where nothing else is said."""
    lines = ["| program | tree | " + " | ".join(HEADER) + " |", "|---|---|" + "---|" * len(HEADER)]
    for name, trees in every.items():
        for which in ("old", "new"):
            if which in trees:
                cells = columns(trees[which])
                if "update" in name and "peak" in trees[which]:
                    found = trees[which]
                    cells[0] += f" ({found['peak'] / found['parameters']:.2f} B per parameter)"
                word = "before" if which == "old" else "after"
                lines.append(f"| {name} | {word} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--old", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON, written after every case")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="of a case's name")
    parser.add_argument("--full", action="store_true", help="with all the compiler's effort")
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="keep the programs' texts")
    parser.add_argument("--table", action="store_true", help="print what the file holds and stop")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        answer(given.full, given.texts)
        return
    if given.out is None or not given.out.resolve().parent.is_dir():
        parser.error(f"--out {given.out}: expected a file in a folder that exists")
    every = json.loads(given.out.read_text()) if given.out.exists() else {}
    if not given.table:
        if given.old is None or not (given.old / "jaxdistill").is_dir():
            parser.error(f"--old {given.old}: expected a folder with jaxdistill/ in it")
        compile_all(given, every)
    print(table(every))


def compile_all(given: argparse.Namespace, every: dict[str, dict[str, Any]]) -> None:
    from jaxdistill.files import write_whole

    folders = {"old": given.old.resolve(), "new": NEW}
    trees = {
        which: Tree(folder, given.full, given.texts and given.texts / which)
        for which, folder in folders.items()
    }
    for case in CASES:
        if not all(word in case.name for word in given.only):
            continue
        name = case.name + (", full effort" if given.full else "")
        for which, tree in trees.items():
            found = every.setdefault(name, {})
            if "failed" in found.get(which, {"failed": ""}):
                found[which] = tree.compiled(case)
                write_whole(given.out, json.dumps(every, indent=1) + "\n")
                peak = found[which].get("peak")
                said = f"{peak / GIB:.2f} GiB" if peak else str(found[which])
                print(f"{name}, {which}: {said}", file=sys.stderr, flush=True)
    for tree in trees.values():
        tree.close()


if __name__ == "__main__":
    main()
