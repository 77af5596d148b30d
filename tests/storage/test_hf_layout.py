"""A checkpoint's tensors and their places in stacked parameters, on one device and on eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage import hf_layout

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=32,
)
PARTS = hf_layout.parts_of(CONFIG)
MESHES = {"none": None, "4x2": dict(fsdp=4, tensor=2), "8": dict(fsdp=8), "1x8": dict(tensor=8)}


def _mesh(name):
    sizes = MESHES[name]
    return None if sizes is None else sharding.make_mesh(sharding.MeshConfig(**sizes))


def _part(name, layer):
    return PARTS[f"model.layers.{layer}.{name}.weight"]


def _place(mesh, tensor, part):
    if mesh is None:
        return jnp.asarray(tensor)
    return jax.device_put(tensor, hf_layout.tensor_sharding(mesh, CONFIG, part))


def _pointers(value):
    return [shard.data.unsafe_buffer_pointer() for shard in value.addressable_shards]


def test_heads_are_split_and_axes_exchanged():
    """q_proj is [N*H, D]; its row n*H + h, column d is the parameter's [l, d, n, h]."""
    part = _part("self_attn.q_proj", 1)
    tensor = np.arange(8 * 4 * 16, dtype=np.float32).reshape(32, 16)
    value = hf_layout.zeros(CONFIG, "LDNH", jnp.float32, None)
    value = np.asarray(hf_layout.with_layer(value, jnp.asarray(tensor), CONFIG, part))
    assert value[1, 5, 3, 2] == tensor[3 * 4 + 2, 5]
    assert not value[[0, 2]].any()


@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES)
def test_every_tensor_comes_back_out_of_its_parameter_bit_for_bit(mesh):
    mesh = _mesh(mesh)
    for name, part in PARTS.items():
        shape = hf_layout.tensor_shape(CONFIG, part)
        bits = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
        tensor = bits.view(jnp.bfloat16)  # NaN and infinities included
        placed = _place(mesh, tensor, part)
        if part.layer is None:
            value = hf_layout.parameter_of(placed, CONFIG, part, jnp.bfloat16)
        else:
            value = hf_layout.zeros(CONFIG, part.axes, jnp.bfloat16, mesh)
            value = hf_layout.with_layer(value, placed, CONFIG, part)
        assert value.shape == CONFIG.shape(part.axes)
        if mesh is not None:
            wanted = sharding.sharding_of(mesh, part.axes, value.shape)
            assert value.sharding.is_equivalent_to(wanted, value.ndim), name
        again = np.asarray(hf_layout.tensor_of(value, CONFIG, part, jnp.bfloat16))
        assert again.tobytes() == tensor.tobytes(), name


def test_a_group_is_split_only_where_its_heads_are():
    """K = 2 cannot be sharded over 8 devices, although K*H = 8 could."""
    mesh, part = _mesh("1x8"), _part("self_attn.k_proj", 0)
    assert hf_layout.tensor_sharding(mesh, CONFIG, part).shard_shape((8, 16)) == (8, 16)
    query = _part("self_attn.q_proj", 0)
    assert hf_layout.tensor_sharding(mesh, CONFIG, query).shard_shape((32, 16)) == (4, 16)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_a_layer_is_written_into_the_parameters_own_buffers(name, mesh):
    mesh, part = _mesh(mesh), _part(name, 2)
    value = hf_layout.zeros(CONFIG, part.axes, jnp.bfloat16, mesh)
    tensor = _place(mesh, np.ones(hf_layout.tensor_shape(CONFIG, part), jnp.bfloat16), part)
    before = _pointers(value)
    value = hf_layout.with_layer(value, tensor, CONFIG, part)
    assert _pointers(value) == before


@pytest.mark.parametrize("mesh", MESHES)
def test_writing_a_layer_needs_no_other_memory_and_no_other_device(mesh):
    mesh, part = _mesh(mesh), _part("self_attn.q_proj", 0)
    value = hf_layout.zeros(CONFIG, part.axes, jnp.bfloat16, mesh)
    tensor = _place(mesh, np.ones(hf_layout.tensor_shape(CONFIG, part), np.float32), part)
    order = tuple("NHD".index(axis) for axis in "DNH")
    compiled = hf_layout._with_layer.lower(
        value, tensor, 0, CONFIG.shape("NHD"), order, value.sharding
    ).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == memory.output_size_in_bytes
    assert memory.temp_size_in_bytes <= tensor.addressable_shards[0].data.nbytes
    assert not re.search(r"all-|collective-|reduce-scatter", compiled.as_text())


def test_all_layers_of_all_parameters_of_a_shape_share_a_compilation():
    hf_layout._with_layer.clear_cache()
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        value = hf_layout.zeros(CONFIG, "LDKH", jnp.float32, None)
        for layer in range(CONFIG.num_layers):
            part = _part(name, layer)
            tensor = jnp.ones(hf_layout.tensor_shape(CONFIG, part))
            value = hf_layout.with_layer(value, tensor, CONFIG, part)
    # 0 if the process-wide cache is full and has evicted it; 2 would mean a second compilation.
    assert hf_layout._with_layer._cache_size() <= 1
