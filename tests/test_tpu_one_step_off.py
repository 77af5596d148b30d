"""The two halves of a slice, by a TPU compiler: one draws rollouts, and the other updates."""

import pytest
from tiny_run import tiny

from jaxdistill import sharding
from jaxdistill.plan import topologies
from jaxdistill.plan.plan import How, start
from jaxdistill.plan.programs import sampler_program, step_programs
from jaxdistill.sharding import MeshConfig
from jaxdistill.training.compute import Compute
from jaxdistill.training.schedules import OneStepOff

pytestmark = [pytest.mark.tpu, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("slice_", "schedule"),
    [("v5p:2x2x1", OneStepOff()), ("v5p:2x2x2", OneStepOff(sampler_tensor=2))],
)
def test_both_programs_compile_for_their_part_of_a_slice(slice_, schedule):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    topology = topologies.parse(slice_)
    config = tiny(mesh=MeshConfig(), compute=Compute(chunk=8, remat="none"))
    run = start(config, slice_, How(prompt_tokens=16))
    # A plan has its programs on one mesh: here each is built on its own.
    devices = topologies.devices(topology)
    update, sampler = schedule.meshes(config.mesh, devices)
    both = [set(mesh.devices.flat) for mesh in (update, sampler)]
    assert not both[0] & both[1]
    assert both[0] | both[1] == set(devices)
    with sharding.use_mesh(update):
        programs = [(update, each) for each in step_programs(run, update)]
    with sharding.use_mesh(sampler):
        programs.append((sampler, sampler_program(run, sampler, 4, None)))
    assert [program.name for _, program in programs] == ["step", "sampler"]
    for mesh, program in programs:
        with sharding.use_mesh(mesh):
            compiled = program.lower().compile()
        assert 0 < compiled.memory_analysis().peak_memory_in_bytes < topology.memory
        assert f"num_partitions={mesh.size}" in compiled.as_text()
