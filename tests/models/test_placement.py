"""Which meshes a model's sizes allow, and what is said of the others."""

import dataclasses
import math

import jax
import pytest

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters, placement
from jaxdistill.models.presets import PRESETS

QWEN8, QWEN7 = PRESETS["Qwen3-8B"], PRESETS["DeepSeek-R1-Distill-Qwen-7B"]
OLMO = PRESETS["Olmo-3-7B"]


def mesh_of(text):
    sizes = sharding.parse_mesh(text)
    return sharding.abstract_mesh(text, sizes.data * sizes.fsdp * sizes.tensor)


def per_device(config, text):
    """Bytes of the parameters in float32 on one device."""
    mesh = mesh_of(text)
    params = parameters.abstract_params(config, mesh=mesh)
    placed = sharding.shardings_of(mesh, params)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True)
    return sum(4 * math.prod(split.shard_shape(leaf.shape)) for leaf, split in leaves)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (QWEN8, [1, 2, 4, 8, 16, 32]),  # 32 heads of 8 key/value heads: two or four devices each
        (QWEN7, [1, 2, 4, 28]),  # 28 of 4
        (OLMO, [1, 2, 4, 8, 16, 32]),  # 32 of 32
    ],
)
def test_heads_are_split_evenly_or_the_mesh_is_refused(config, sizes):
    assert placement.tensor_sizes(config) == sizes
    listed = ", ".join(map(str, sizes))
    for tensor in set(range(1, 40)) - set(sizes):
        with pytest.raises(UserError, match=f"take tensor from {listed}, and more devices along"):
            placement.check_mesh(config, mesh_of(f"fsdp=1,tensor={tensor}"))


def test_a_device_of_sixteen_caches_one_head_and_holds_a_sixteenth_of_the_weights():
    assert placement.kv_heads_of_device(QWEN8, 16) == 1
    whole = 4 * QWEN8.num_parameters
    # Norms are whole everywhere.
    assert per_device(QWEN8, "fsdp=1,tensor=16") == pytest.approx(whole / 16, rel=1e-3)


def test_a_padded_vocabulary_is_split_and_takes_less_than_a_thousandth_more():
    whole = 4 * OLMO.num_parameters
    assert parameters.stored_config(OLMO, mesh_of("fsdp=4,tensor=4")).vocab_size == 100_352
    assert per_device(OLMO, "fsdp=4,tensor=4") == pytest.approx(whole / 16, rel=1e-3)
    # A mesh that divides it leaves it alone.
    assert parameters.stored_config(OLMO, mesh_of("fsdp=8,tensor=2")) is OLMO


def test_a_large_weight_that_stays_whole_is_named_and_small_ones_are_not():
    (said,) = placement.check_mesh(QWEN7, mesh_of("fsdp=3,tensor=4"))
    assert said == (
        "mesh fsdp=3 does not divide hidden_size=3,584: every device holds whole embedding and "
        "head and attention and feed-forward weights (those of feed-forward alone are 7.08 GiB in "
        "float32); take fsdp from 1, 2"
    )
    small = dataclasses.replace(QWEN7, hidden_size=64, num_layers=2, intermediate_size=128)
    assert placement.check_mesh(small, mesh_of("fsdp=3")) == []
