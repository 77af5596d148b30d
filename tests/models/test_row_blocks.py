"""Prompts whose layers are computed in blocks of rows, beside all rows at once."""

import functools

import jax
import numpy as np
import pytest
from tiny_decoder import CONFIGS, init_params, random_batch

from jaxdistill import sharding
from jaxdistill.models import decoder
from jaxdistill.models.row_blocks import num_row_blocks


def prefilled(params, config, batch, block, **how):
    run = functools.partial(decoder.prefill, config=config, num_slots=16, block=block, **how)
    return jax.jit(lambda params, tokens_BP, mask_BP: run(
        params, tokens_BP=tokens_BP, mask_BP=mask_BP))(params, *batch)  # fmt: skip


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        # A product of fewer rows may be summed in another order. int8: the next number at most.
        tolerance = 1 if np.asarray(x).dtype.kind == "i" else 1e-5
        np.testing.assert_allclose(x, np.asarray(y), rtol=1e-5, atol=tolerance)


@pytest.mark.long
@pytest.mark.parametrize(("family", "cache_dtype"), [("qwen3", "auto"), ("olmo3", "int8")])
def test_blocks_of_rows_leave_the_same_states_and_caches(family, cache_dtype):
    """Also the rings of sliding layers, whose contents depend on each row's own length."""
    config = CONFIGS[family]
    params, batch = init_params(config, jax.random.key(0)), random_batch(B=6)
    how = {"cache_dtype": cache_dtype, "ring": 8}
    whole = prefilled(params, config, batch, block=None, **how)
    for block in (2 * 14, 1):  # three blocks of two rows; rows that are longer than a block
        assert_same(prefilled(params, config, batch, block=block, **how), whole)


def test_blocks_on_eight_devices_leave_the_same_caches():
    config = CONFIGS["qwen3"]
    params, batch = init_params(config, jax.random.key(0)), random_batch(B=4)
    batch = tuple(np.tile(x, (4, 1)) for x in batch)
    whole = prefilled(params, config, batch, block=None)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.device_put(params, sharding.shardings_of(mesh, params))
    with sharding.use_mesh(mesh):
        found = prefilled(split, config, sharding.shard_batch(mesh, batch), block=14)
        # Each part of the devices has its own rows' caches: W, the second axis, is split.
        assert found[1].k[0].sharding.spec[1] == ("data", "fsdp")
    hidden_BD, prompts = jax.device_get(found)
    together = jax.tree.map(lambda x: x.reshape(x.shape[0], 1, -1, *x.shape[3:]), prompts[:2])
    assert_same((hidden_BD, *together), (whole[0], whole[1].k, whole[1].v))


@pytest.mark.parametrize(
    ("rows", "positions", "expected"), [(32, 256, 1), (32, 2048, 8), (30, 2048, 10), (3, 9000, 3)]
)
def test_blocks_are_the_fewest_that_divide_the_rows(rows, positions, expected):
    assert num_row_blocks(rows, positions, 8192) == expected
