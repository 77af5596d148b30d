"""A plan and the run are built by the same functions: they have the same programs and shapes."""

import dataclasses
import logging
import math
import re

import jax
import pytest
from tiny_run import ARCHITECTURE, tiny

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.models import decoder
from jaxdistill.models.presets import PRESETS
from jaxdistill.objectives import rlcsd
from jaxdistill.plan import memory, programs, topologies
from jaxdistill.plan.lengths import lengths_of
from jaxdistill.run.loop import run
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import Fresh, Pretrained
from jaxdistill.tasks.contexts import AnswerOnly, WrongSolution
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.teachers import Frozen

DTYPES = {"i32": "int32", "ui32": "uint32", "f32": "float32", "i1": "bool"}


def config_of_eight():
    """One step of two updates, whose shapes do not depend on what is sampled."""
    return tiny(
        # One layer is enough for names and shapes, and compiles in less time.
        model=Fresh(dataclasses.replace(ARCHITECTURE, num_layers=1)),
        experience=OnPolicy(
            task=ToyTask(count=8),
            questions=8,
            rollouts=2,
            updates=2,
            sampling=Sampling(max_new_tokens=4),
            context=AnswerOnly(),
            prompt_widths=(32,),
            teacher_prompt_multiple=128,
            completion_multiple=4,
        ),
        teacher=Frozen(),
        steps=1,
        mesh=MeshConfig(),
        evaluation=Evaluation(),
        save_checkpoints=False,
        rollouts_every=0,
        export=False,
    )


def compiled_by_the_run(config, folder, caplog):
    """{program: its arguments' shapes}, as JAX's own log of compilations has them."""
    with caplog.at_level(logging.DEBUG, "jax"), jax.log_compiles():
        run(config, folder / "run", quiet=True)
    found = {}
    for record in caplog.records:
        text = record.getMessage()
        if said := re.match(
            r"Compiling (?:jit\()?(\w+)\)? with global shapes and types (.*)", text
        ):
            shapes = re.findall(r"ShapedArray\((\w+\[[\d,]*\])", said[2].split("Argument map")[0])
            found[said[1]] = shapes
    return found


def lowered_by_the_plan(config):
    """{program: its arguments' shapes}, as the lowered text declares them."""
    topology = topologies.parse("cpu:8")
    planned = programs.run_of(config, topology, lengths_of)
    mesh = sharding.make_mesh(config.mesh, topologies.devices(topology))
    found = {}
    with sharding.use_mesh(mesh):
        slots = programs.slots_of(planned, mesh, 0)
        sampler = programs.sampler_program(planned, mesh, *slots)
        planned = programs.replace(
            planned,
            config=programs.replace(
                planned.config, compute=programs.replace(planned.config.compute, remat="none")
            ),
        )
        for program in (sampler, *programs.step_programs(planned, mesh)):
            text = program.lower().as_text()
            header = re.search(r"func.func public @main\((.*?)\) ->", text, re.DOTALL)[1]
            tensors = re.findall(r"%arg\d+: tensor<([^>]*)>", header)
            name = re.search(r"module @jit_(\w+)", text)[1]
            found[name] = [in_words(*tensor.rpartition("x")[::2]) for tensor in tensors]
    return found


def in_words(dims, dtype):
    return f"{DTYPES[dtype]}[{dims.replace('x', ',')}]"


def contrasted(config):
    """The run with an objective that compares each row with two further prompts."""
    changes = {"contrast": WrongSolution(), "contrasts": 2, "rollouts": 4, "questions": 4}
    experience = dataclasses.replace(config.experience, **changes)
    return dataclasses.replace(config, objective=rlcsd(), experience=experience)


@pytest.mark.long
@pytest.mark.parametrize("changed", [lambda x: x, pytest.param(contrasted, marks=pytest.mark.slow)])
def test_a_plan_for_eight_devices_has_the_programs_and_shapes_of_the_run(tmp_path, caplog, changed):
    config = changed(config_of_eight())
    planned = lowered_by_the_plan(config)
    compiled = compiled_by_the_run(config, tmp_path, caplog)
    assert sorted(planned) == ["sample", "step", "token_logp"]
    for name, shapes in planned.items():
        assert compiled[name] == shapes, name


def test_prompts_take_the_memory_of_the_samplers_own_arrays():
    config = config_of_eight()
    changes = {"num_heads": 4, "num_kv_heads": 2}
    model = Fresh(dataclasses.replace(ARCHITECTURE, num_layers=1, **changes))
    config = dataclasses.replace(config, model=model, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    topology = topologies.parse("cpu:8")
    planned = programs.run_of(config, topology, lengths_of)
    mesh = sharding.make_mesh(config.mesh, topologies.devices(topology))
    with sharding.use_mesh(mesh):
        program = programs.sampler_program(planned, mesh, 16, None)
        params, ids_QP, mask_QP, _ = program.arguments

        def prompts(params, ids_QP, mask_QP):
            cache = decoder.prefill(params, planned.model, ids_QP, mask_QP, ids_QP.shape[1])[1]
            return cache.k, cache.v

        compiled = jax.jit(prompts).lower(params, ids_QP, mask_QP).compile()
        arrays = jax.eval_shape(prompts, params, ids_QP, mask_QP)
        own = sum(
            math.prod(split.shard_shape(x.shape)) * x.dtype.itemsize
            for x, split in zip(jax.tree.leaves(arrays), jax.tree.leaves(compiled.output_shardings))
        )
        # Questions are split over data and fsdp, heads over tensor.
        assert own == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays)) / 8
        assert memory.sampling(planned, mesh, 16, None).prompts == own
        # Fewer slots than rows change nothing about it.
        assert memory.sampling(planned, mesh, 8, None).prompts == own


def test_a_published_student_is_planned_without_its_folder():
    model, stored = programs.model_of(Pretrained("allenai/Olmo-3-7B-Instruct"))
    assert (model, stored) == (PRESETS["Olmo-3-7B"], "bfloat16")


def test_moments_in_host_memory_are_refused_in_one_line():
    config = tiny(optimizer=Optimizer(moments_on="host"))
    with pytest.raises(UserError, match="moments_on=host` is not planned"):
        programs.run_of(config, topologies.parse("cpu:1"), lengths_of)
