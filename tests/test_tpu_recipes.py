"""The programs of the paper's recipes, compiled for a TPU slice at the recipes' own lengths.

`pytest -m tpu -n 0 tests/test_tpu_recipes.py -s -k "sdpo_math and Qwen3-1.7B"`, where jax[tpu] is
installed; JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0 compiles in half the time. Widths, vocabulary,
batches and lengths are those of the run, and four layers stand for all: training scans the layers,
and decoding repeats one layer's operations.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from jaxdistill import sharding
from jaxdistill.config import load_recipe
from jaxdistill.models import parameters
from jaxdistill.models.presets import PRESETS
from jaxdistill.models.students import STUDENTS
from jaxdistill.objectives import CrossEntropy, needs_contrast
from jaxdistill.sampling import make_sampler
from jaxdistill.training.micro_batches import MicroBatch, MicroBatches, Sequences
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.packing import MAX_SEQUENCES
from jaxdistill.training.shapes import KeptShapes, Layout
from jaxdistill.training.state import init_state
from jaxdistill.training.step import make_train_step

# A step and a sampler compile in four to ten minutes each on two cores.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(7200)]

SLICE = "v5p:2x2x2"  # eight devices of 95 GiB
RECIPES = (
    "sdpo_math", "sdpo_math_stripped_solution", "sdpo_math_ema", "grpo_math", "opsd_math",
    "epi_mask_math", "epi_gate_math", "epi_anchor_math", "epi_amplify_math", "sft_unguided",
    "sft_guided",
)  # fmt: skip
PRESET_OF = {"Olmo-3-7B-Instruct": "Olmo-3-7B"}
MODELS = [name for name in STUDENTS if not name.endswith("think-off")]
LEXICON = tuple(range(1000, 1042))  # as many ids as Qwen's tokenizers have
ROWS_A_DEVICE = 32  # packed rows that wait on one device


@pytest.fixture(scope="module")
def devices():
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    with pytest.MonkeyPatch.context() as environment:
        # Not on a TPU host: ask no metadata server, and let other workers load the library too.
        environment.setenv("TPU_SKIP_MDS_QUERY", "1")
        environment.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield topologies.get_topology_desc(platform="tpu", topology_name=SLICE).devices


def model_of(student):
    config = PRESETS[PRESET_OF.get(student, student)]
    return dataclasses.replace(config, num_layers=4)


def as_parameters(mesh, tree):
    """Shapes that lie as `loading.load` and `init_state` put parameters and their moments."""
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, tree, sharding.shardings_of(mesh, tree))


def as_batch(mesh, shape, dtype=jnp.int32):
    """A shape that lies as `shard_batch` puts it."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding_of(mesh, "B", shape))


def tokens_of_rows(config, model, mesh):
    """Capacities of packed rows, in tokens, for student, teacher and completions."""
    experience = config.experience
    if isinstance(experience, OnPolicy):
        new, asked = experience.sampling.max_new_tokens, experience.max_prompt_tokens
        most, shown = (new, asked + new), experience.max_demonstration_tokens
    else:
        most, shown = (experience.max_tokens, experience.max_tokens), 0
    layout = Layout(
        compute=config.compute, shapes=KeptShapes(), most_tokens=most, keeps_widths=False
    )
    tokens = layout.tokens_per_row(-(-config.rows // mesh.size))
    sequences = tokens // most[1]
    longest = min(most[1] + shown, model.max_positions)
    return tokens, sequences * longest, sequences * most[0]


def mini_batch(config, model, mesh):
    student, teacher, completion = tokens_of_rows(config, model, mesh)
    dealt = (mesh.size, ROWS_A_DEVICE)

    def sequences(width):
        return Sequences(as_batch(mesh, (*dealt, width)), as_batch(mesh, (*dealt, MAX_SEQUENCES)))

    has_teacher = "teacher" in getattr(config.objective, "reads", ())
    assert not needs_contrast(config.objective)
    number_I = as_batch(mesh, (config.rows,), jnp.float32)
    return MicroBatches(
        rows=MicroBatch(
            plain=sequences(student),
            teacher=sequences(teacher) if has_teacher else None,
            contrasts=(),
            completions=sequences(completion),
            behaviour_logp_BT=as_batch(mesh, (*dealt, completion), jnp.float32),
            row_BA=as_batch(mesh, (*dealt, MAX_SEQUENCES)),
        ),
        num_in_use=jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh)),
        length_I=as_batch(mesh, (config.rows,)),
        advantage_I=number_I,
        row_weight_I=number_I,
        correct_I=number_I,
        contrast_weight_IJ=None,
    )


def step_programs(config, model, mesh):
    """{name: (program, its arguments)} of a step of the recipe."""
    compute = dataclasses.replace(config.compute, dtype="bfloat16", remat="all")
    config = dataclasses.replace(config, compute=compute)
    steps = config.steps or 1500
    params = parameters.abstract_params(model)
    state = jax.eval_shape(lambda p: init_state(p, config.optimizer, config.teacher, steps), params)
    state, reference = as_parameters(mesh, state), as_parameters(mesh, params)
    batch = mini_batch(config, model, mesh)
    step = make_train_step(
        model=model,
        objective=config.objective,
        epistemic_ids=LEXICON,
        optimizer=config.optimizer,
        teacher=config.teacher,
        compute=compute,
        steps=steps,
        temperature=1.0,
        track_reference=config.track_reference,
        updates=config.updates,
    )
    if config.updates == 1:
        return {"step": (step, (state, reference, batch))}
    # As `SeveralUpdates` passes them: a log-probability for every token of every completion.
    old_logp_IT = jax.eval_shape(step.score, state.params, batch)
    whole = sharding.replicated(mesh)
    old_logp_IT = jax.ShapeDtypeStruct(old_logp_IT.shape, old_logp_IT.dtype, sharding=whole)
    return {
        "score": (step.score, (state.params, batch)),
        "step": (step.update, (state, reference, batch, old_logp_IT)),
    }


def sampler_program(config, model, student, mesh):
    experience, stops = config.experience, STUDENTS[student].expected.stop_ids
    questions, rollouts, width = experience.questions, experience.rollouts, 2048
    slots = 8 * mesh.size
    # Half of the pages that the slots could fill.
    pages = slots * (width + experience.sampling.max_new_tokens) // 128 // 2
    sample = make_sampler(
        model, experience.sampling, stops, stops[0], rollouts=rollouts, slots=slots, pages=pages,
        dtype="bfloat16",
    )  # fmt: skip
    prompts = [as_batch(mesh, (questions, width))] * 2
    keys_B2 = as_batch(mesh, (questions * rollouts, 2), jnp.uint32)
    params = as_parameters(mesh, parameters.abstract_params(model))
    return {"sampler": (sample, (params, *prompts, keys_B2))}


@pytest.mark.parametrize("student", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_programs_compile_for_a_slice(recipe, student, devices):
    config, model = load_recipe(recipe, [], student=student), model_of(student)
    mesh = sharding.make_mesh(config.mesh, devices)
    with sharding.use_mesh(mesh):
        programs = step_programs(config, model, mesh)
        if not isinstance(config.objective, CrossEntropy):
            programs |= sampler_program(config, model, student, mesh)
        for name, (program, arguments) in programs.items():
            began = time.monotonic()
            compiled = program.lower(*arguments).compile()
            peak = compiled.memory_analysis().peak_memory_in_bytes / 2**30
            print(
                f"\n{recipe}, {student}, {SLICE}, {model.num_layers} layers, {name}: "
                f"peak {peak:.1f} GiB a device, compiled in {time.monotonic() - began:.0f} s",
                flush=True,
            )
            # The compiler refuses a program that does not fit.
            assert 0 < peak < 95
