"""Whether a mesh axis over positions (ring or all-to-all attention) would let a step fit.

    PYTHONPATH=. python benchmarks/context_axis.py

By the plan's arithmetic, without a compiler: the step of `sdpo_math` with packed rows of 22,528 and
teacher's rows of up to 43,008 positions, all layers recomputed. For each student and slice, the
mesh with the smallest peak, and what its peak would be if a context axis of 2 divided all that
grows with a row's positions, at best: activations and the batch's arrays. Prints Markdown.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
from typing import Any

from jaxdistill import sharding
from jaxdistill.config import load_recipe
from jaxdistill.models.placement import splits_heads
from jaxdistill.plan import memory
from jaxdistill.plan.plan import How, start, with_remat
from jaxdistill.plan.search import in_mesh, meshes

STUDENTS = ("Qwen3-1.7B", "Qwen3-8B", "DeepSeek-R1-Distill-Qwen-7B", "Olmo-3-7B-Instruct")
SLICES = ("v5e:4x4", "v5e:4x8", "v5e:8x8", "v6e:4x4", "v6e:4x8", "v6e:8x8")
SETTINGS = ["compute.pack=22528", "compute.remat='all'"]
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--slices", default=",".join(SLICES))
    options = parser.parse_args()
    print("| student | slice | mesh | state | positions | peak | context of 2 | available |")
    print("|---|---|---|---|---|---|---|---|")
    for student in options.students.split(","):
        config = load_recipe("sdpo_math", SETTINGS, student=student)
        for name in options.slices.split(","):
            run = with_remat(start(config, name, How(compiles=False)), "all")
            mesh, held = min(peaks(run), key=lambda each: each[1].peak)
            of_positions = held.activations + held.prompts
            figures = held.resident, of_positions, held.peak, held.peak - of_positions / 2
            cells = " | ".join(f"{x / GIB:.1f}" for x in (*figures, run.topology.memory))
            print(f"| {student} | {name} | {mesh} | {cells} |", flush=True)


def peaks(run: Any) -> Any:
    """(mesh, the step's memory) of every mesh whose heads split evenly."""
    for config in meshes(run.topology.num_devices):
        if config.data == 1 and splits_heads(run.model, config.tensor):
            mesh = sharding.abstract_mesh(config, run.topology.num_devices)
            with sharding.use_mesh(mesh):
                held = memory.step(in_mesh(run, config), mesh)
            yield f"{config.data} x {config.fsdp} x {config.tensor}", held


if __name__ == "__main__":
    main()
