"""The step on a mesh that divides neither vocabulary nor key/value heads, compiled for a slice.

`pytest -m tpu tests/test_tpu_meshes.py`, where jax[tpu] is installed.
"""

import dataclasses
import math

import jax
import pytest
from programs import MODEL, operations_of

from jaxdistill import sharding
from jaxdistill.config import load_recipe
from jaxdistill.plan import programs, topologies
from jaxdistill.plan.compiling import QUICK
from jaxdistill.plan.lengths import lengths_of

# The step takes minutes on two cores, with the least effort of the compiler.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(3600)]

TENSOR = 4
# Olmo 3's vocabulary, which 2 divides, and half as many key/value heads as devices.
NARROW = dataclasses.replace(
    MODEL, vocab_size=100_278, num_heads=8, num_kv_heads=2, tie_embeddings=False
)
# An array of this many numbers is large: 16 MiB in float32. A quarter of the head has 25.7 million.
LARGE = 2**22


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    config = load_recipe("sdpo_math", ["experience.questions=4", "mesh.tensor=4"])
    compute = dataclasses.replace(config.compute, remat="all", pack=4096, chunk=128)
    sampling = dataclasses.replace(config.experience.sampling, max_new_tokens=2048)
    experience = dataclasses.replace(config.experience, sampling=sampling, max_prompt_tokens=512)
    config = dataclasses.replace(config, compute=compute, experience=experience)
    run = programs.run_of(config, topologies.parse("v6e:2x4"), lengths_of)
    run = dataclasses.replace(run, model=NARROW)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TPU_SKIP_MDS_QUERY", "1")
        environment.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        mesh = sharding.make_mesh(run.config.mesh, topologies.devices(run.topology))
        with sharding.use_mesh(mesh):
            step = programs.step_programs(run, mesh)[-1]
            return step, mesh, step.lower().compile(compiler_options=dict(QUICK))


def test_no_device_holds_the_whole_vocabulary_beside_another_large_dimension(compiled):
    _, _, program = compiled
    shapes = [shape for op in operations_of(program) for shape in op.shapes]
    assert any(100_352 // TENSOR in shape for shape in shapes)
    whole = [shape for shape in shapes if {100_278, 100_352} & set(shape)]
    assert not [shape for shape in whole if math.prod(shape) >= LARGE]


def test_every_device_has_one_key_value_head_and_two_queries(compiled):
    _, _, program = compiled
    shapes = [shape for op in operations_of(program) for shape in op.shapes]
    # [D, K, G + 2, H]: one head of two queries, a key and a value; two of four would be [2, 6].
    D, H = NARROW.hidden_size, NARROW.head_dim
    assert any(shape[-3:] == (1, 4, H) and D in shape for shape in shapes)
    assert not any(shape[-3:] == (2, 6, H) for shape in shapes)


def test_state_and_reference_are_split_over_all_devices(compiled):
    step, mesh, program = compiled
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(step.arguments[:2]))
    held = programs.bytes_on_one_device(step.arguments[:2])
    assert held < 1.01 * total / mesh.size
    batch = programs.bytes_on_one_device(step.arguments[2:])
    assert program.memory_analysis().argument_size_in_bytes < held + batch + LARGE
