"""The programs of the paper's recipes, compiled for a TPU slice at the recipes' own lengths.

`pytest -m tpu -n 0 tests/test_tpu_recipes.py -s -k "sdpo_math and Qwen3-1.7B"`, where jax[tpu] is
installed; JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0 compiles in half the time, and
`benchmarks/compile_recipes.py` in as many processes as there are cores. Widths, vocabulary, batches
and lengths are those of the run, and four layers stand for all: training scans the layers, and
decoding repeats one layer's operations.
"""

import dataclasses

import pytest

from jaxdistill import sharding
from jaxdistill.config import load_recipe
from jaxdistill.models.students import STUDENTS
from jaxdistill.objectives import CrossEntropy
from jaxdistill.plan import compiling, programs, topologies
from jaxdistill.plan.lengths import lengths_of

# A step and a sampler compile in four to ten minutes each on two cores.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(7200)]

SLICE = topologies.parse("v5p:2x2x2")  # eight devices of 95 GiB
RECIPES = (
    "sdpo_math", "sdpo_math_stripped_solution", "sdpo_math_ema", "grpo_math", "opsd_math",
    "epi_mask_math", "epi_gate_math", "epi_anchor_math", "epi_amplify_math", "sft_unguided",
    "sft_guided",
)  # fmt: skip
MODELS = [name for name in STUDENTS if not name.endswith("think-off")]


@pytest.mark.parametrize("student", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_programs_compile_for_a_slice(recipe, student, tmp_path):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    config = load_recipe(recipe, [], student=student)
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat="all"))
    run = programs.run_of(config, SLICE, lengths_of)
    mesh = sharding.make_mesh(config.mesh, topologies.devices(SLICE))
    with sharding.use_mesh(mesh):
        shallow = programs.with_depth(run, 4)
        chosen = programs.step_programs(shallow, mesh)
        if not isinstance(config.objective, CrossEntropy):
            # Slots are those beside the whole model's state.
            slots = programs.slots_of(run, mesh, SLICE.memory - programs.resident_bytes(run, mesh))
            chosen.append(programs.sampler_program(shallow, mesh, *slots))
        for program in chosen:
            answer = compiling.compiled(program, mesh, SLICE, folder=tmp_path)
            print(
                f"\n{recipe}, {student}, {SLICE.name}, {shallow.model.num_layers} layers, "
                f"{program.name}: peak {answer.peak / 2**30:.1f} GiB a device, compiled in "
                f"{answer.seconds:.0f} s",
                flush=True,
            )
            # The compiler refuses a program that does not fit.
            assert answer.refused is None
            assert 0 < answer.peak < SLICE.memory
