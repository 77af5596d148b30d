"""Decode steps with weights in 8 bits, in programs that the TPU compiler makes, at small widths.

`pytest -m tpu -n 0 tests/test_tpu_weights.py -s`, where jax[tpu] is installed.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from programs import loop_bodies

from jaxdistill import sharding
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.plan import topologies
from jaxdistill.sampling import Sampling, make_sampler

# A sampler compiles in half a minute to three.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(1800)]

CONFIG = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=1536,
    rope=Rope(1e4),
)


@pytest.mark.parametrize(
    ("topology", "weights_dtype"),
    [
        ("v5p:2x2x1", "int8"),
        ("v6e:2x2", "int8"),
        ("v6e:2x2", "int8_dynamic"),
        ("v5p:2x2x1", "float8_dynamic"),
    ],
)
def test_no_token_reads_or_writes_a_layers_weight_in_more_than_8_bits(topology, weights_dtype):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    mesh = sharding.make_mesh("fsdp=2,tensor=2", topologies.devices(topologies.parse(topology)))

    def batch(*shape, dtype=jnp.int32):
        split = sharding.sharding_of(mesh, "B", shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    params = parameters.abstract_params(CONFIG)
    params = jax.tree.map(
        lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
        params,
        sharding.shardings_of(mesh, params),
    )
    with sharding.use_mesh(mesh):
        sample = make_sampler(
            CONFIG, Sampling(max_new_tokens=64), (1,), 0, rollouts=8, dtype=jnp.bfloat16,
            weights_dtype=weights_dtype,
        )  # fmt: skip
        arguments = params, batch(4, 64), batch(4, 64), batch(32, 2, dtype=jnp.uint32)
        text = sample.lower(*arguments).compile().as_text()
    # On a device, with the inputs last: [D, F / 2] of down and [2, F / 2, D] of gate and up.
    weights = r"\[(?:256,768|2,768,256)\]"
    narrow = "f8e4m3fn" if weights_dtype == "float8_dynamic" else "s8"
    (loop,) = [body for body in loop_bodies(text) if re.search(rf" {narrow}{weights}", body)]
    assert not re.findall(rf" = \(?(?:bf16|f32|s32){weights}", loop)
