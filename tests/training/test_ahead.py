"""The copy of the weights that the sampler's devices draw from. Runs: run/test_one_step_off.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.weights import decoding_weights
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.tasks import ToyTask, questions_of
from jaxdistill.training.ahead import sampled_weights


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def mesh_of(text, first, count):
    return sharding.make_mesh(text, jax.devices()[first : first + count])


@pytest.mark.long
def test_samples_from_the_rounded_copy_are_those_from_the_masters(policy):
    """Whatever the sampler reads in bfloat16 is rounded once, and nothing else is."""
    engine = Engine(policy, mesh=mesh_of("fsdp=1", 0, 1), dtype="bfloat16")
    copy = sampled_weights(policy.params, engine)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(x)) for x in (copy, policy.params)]
    assert 0.5 < sizes[0] / sizes[1] < 0.52  # but for the norms
    drawn = [
        engine.rollouts(
            params,
            questions_of(ToyTask(count=3)),
            Sampling(max_new_tokens=8),
            2,
            Address(seed=0, purpose="train", step=0),
        )
        for params in (copy, policy.params)
    ]
    for name in ("tokens_BT", "logp_BT"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in drawn))


@pytest.mark.parametrize(
    "rounded", [pytest.param("int8", marks=pytest.mark.long), "int8_dynamic", "float8_dynamic"]
)
def test_eight_bits_of_the_copy_are_those_of_the_masters(policy, rounded):
    """A weight is rounded to bfloat16 before it is rounded to eight bits, wherever that happens."""
    engine = Engine(policy, mesh=mesh_of("fsdp=1", 0, 1), dtype="bfloat16", weights_dtype=rounded)
    read = [
        decoding_weights(params, policy.config, jnp.bfloat16, rounded)
        for params in (sampled_weights(policy.params, engine), policy.params)
    ]
    assert {x.dtype.itemsize for x in jax.tree.leaves(read[0])} == {1, 2, 4}  # 4: the scales
    as_float32 = jax.tree.map(lambda x: x.astype(jnp.float32), read)
    jax.tree.map(np.testing.assert_array_equal, *as_float32)


@pytest.mark.parametrize(
    ("update", "sampler"),
    [
        (("tensor=4,fsdp=1", 0, 4), ("fsdp=3", 5, 3)),
        (("fsdp=2", 0, 2), ("fsdp=1,tensor=4", 2, 4)),
        (("fsdp=4", 0, 4), ("fsdp=4", 4, 4)),
    ],
)
def test_a_copy_has_the_values_of_the_other_mesh_in_the_form_of_its_own(policy, update, sampler):
    """30 tokens, which four devices do not divide, are stored with rows of zeros there."""
    config = dataclasses.replace(policy.config, vocab_size=30)
    update, sampler = mesh_of(*update), mesh_of(*sampler)
    values = parameters.init(config, jax.random.key(0))
    expected = jax.device_get(parameters.padded(values, sampler))
    params = parameters.padded(values, update)
    params = jax.device_put(params, sharding.shardings_of(update, params))
    engine = Engine(policy._replace(config=config), mesh=sampler, dtype="float32")
    with sharding.use_mesh(update):
        copy = sampled_weights(params, engine)
        jax.tree.map(lambda x: x.delete(), params)  # as the update that takes their memory
    jax.tree.map(np.testing.assert_array_equal, copy, expected)
    found, wanted = jax.tree.leaves(copy), jax.tree.leaves(sharding.shardings_of(sampler, copy))
    assert [leaf.sharding for leaf in found] == wanted
    assert all(leaf.dtype == jnp.float32 for leaf in found)


def test_a_device_without_room_for_the_copy_is_one_line(policy, monkeypatch):
    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.")

    monkeypatch.setattr(jax, "device_put", full)
    engine = Engine(policy, mesh=mesh_of("fsdp=1", 0, 1), dtype="bfloat16")
    with pytest.raises(UserError, match=r"while copying the weights .*; shard .*sampler_tensor"):
        sampled_weights(policy.params, engine)
