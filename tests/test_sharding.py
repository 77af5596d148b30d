import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.losses import vocabulary
from jaxdistill.models import decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.sampling.weights import decoding_weights
from jaxdistill.sharding import MeshConfig

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=64,
)
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)]
FAMILIES = {
    "qwen3": CONFIG,
    "qwen2": dataclasses.replace(CONFIG, family="qwen2", qk_norm="none", qkv_bias=True),
    "olmo3": dataclasses.replace(
        CONFIG,
        family="olmo3",
        num_kv_heads=8,
        layer_pattern=("sliding", "full"),
        window=4,
        qk_norm="projection",
        post_norm=True,
        tie_embeddings=True,
    ),
}


@pytest.fixture(scope="module")
def params():
    return jax.jit(parameters.init, static_argnums=0)(CONFIG, jax.random.key(0))


def _batch(B=8, S=12):
    tokens_BS = np.random.default_rng(0).integers(0, 64, (B, S)).astype(np.int32)
    mask_BS = np.ones((B, S), np.int32)
    mask_BS[::2, :3] = 0
    return tokens_BS, mask_BS


def _loss(params, tokens_BS, mask_BS):
    hidden_BSD = decoder.hidden_states(params, CONFIG, tokens_BS, mask_BS)
    logp_BSV = jax.nn.log_softmax(hidden_BSD @ parameters.head(params, CONFIG))
    return jnp.sum(jnp.where(mask_BS[:, :, None] == 1, logp_BSV[:, :, :3], 0)) / 100


@pytest.fixture(scope="module")
def value_and_gradient(params):
    return jax.jit(jax.value_and_grad(_loss))(params, *_batch())


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_a_mesh_changes_neither_value_nor_gradient(params, value_and_gradient, sizes):
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    placed = jax.device_put(params, sharding.shardings_of(mesh, params))
    with sharding.use_mesh(mesh):
        actual = jax.jit(jax.value_and_grad(_loss))(placed, *sharding.shard_batch(mesh, _batch()))
    # Sums over devices run in another order.
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, actual, value_and_gradient)


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens_BS, mask_BS):
    hidden_BSD = decoder.hidden_states(params, config, tokens_BS, mask_BS)
    return hidden_BSD @ parameters.head(params, config)


@pytest.fixture(scope="module")
def on_one_device():
    """{family: (params, logits)}"""
    params = {name: jax.jit(parameters.init, static_argnums=0)(config, jax.random.key(0))
              for name, config in FAMILIES.items()}  # fmt: skip
    return {name: (p, _logits(p, FAMILIES[name], *_batch())) for name, p in params.items()}


# Every mesh with one family, and every family with two meshes of several axes.
LOGITS_ON = {
    "qwen3": MESHES,
    "qwen2": [(2, 2, 2), (1, 4, 2)],
    "olmo3": [(2, 2, 2), (1, 4, 2)],
}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        pytest.param(family, sizes, marks=[] if sizes in fast else [pytest.mark.slow])
        for family, fast in LOGITS_ON.items()
        for sizes in MESHES
    ],
)
def test_a_mesh_changes_no_logit_of_any_family(on_one_device, family, sizes):
    params, expected_BSV = on_one_device[family]
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    placed = jax.device_put(params, sharding.shardings_of(mesh, params))
    with sharding.use_mesh(mesh):
        batch = sharding.shard_batch(mesh, _batch())
        logits_BSV = _logits(placed, FAMILIES[family], *batch)
    np.testing.assert_allclose(logits_BSV, expected_BSV, atol=1e-5)
    if sizes[0] == 1 and FAMILIES[family].num_kv_heads % sizes[2] == 0:
        local = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
        # Norms and biases of heads are not split over fsdp; what there is else, eightfold.
        assert local < sum(x.nbytes for x in jax.tree.leaves(params)) / 6


def _two_steps(params, config, cache_dtype, weights_dtype, tokens_BS, mask_BS):
    _, prompts = decoder.prefill(
        params, config, tokens_BS[:, :10], mask_BS[:, :10], 12, cache_dtype=cache_dtype
    )
    cache = prompts.as_cache()
    weights, _ = decoding_weights(params, config, jnp.float32, weights_dtype)
    _, cache = decoder.decode_step(weights, config, tokens_BS[:, 10], cache)
    return decoder.decode_step(weights, config, tokens_BS[:, 11], cache)[0]


@pytest.mark.parametrize(
    ("family", "sizes", "cache_dtype", "weights_dtype"),
    [
        *(pytest.param("qwen3", m, "auto", "auto", marks=pytest.mark.long) for m in MESHES[1:4]),
        # Rows alone are split as training splits them; (1, 4, 2) is in the rows of olmo3.
        pytest.param("qwen3", (8, 1, 1), "auto", "auto", marks=pytest.mark.slow),
        pytest.param("qwen3", (1, 4, 2), "auto", "auto", marks=pytest.mark.slow),
        pytest.param("qwen2", (2, 2, 2), "auto", "auto", marks=pytest.mark.long),
        ("olmo3", (1, 4, 2), "auto", "auto"),
        ("qwen3", (2, 2, 2), "int8", "auto"),
        pytest.param("qwen3", (1, 1, 8), "int8", "auto", marks=pytest.mark.slow),
        pytest.param("olmo3", (1, 4, 2), "int8", "auto", marks=pytest.mark.long),
        pytest.param("qwen3", (1, 1, 8), "auto", "int8", marks=pytest.mark.long),
        pytest.param("olmo3", (1, 4, 2), "auto", "int8_dynamic", marks=pytest.mark.long),
        pytest.param("qwen2", (2, 2, 2), "auto", "float8_dynamic", marks=pytest.mark.long),
    ],
)
def test_a_mesh_does_not_change_decoding(on_one_device, family, sizes, cache_dtype, weights_dtype):
    params, _ = on_one_device[family]
    decode = jax.jit(_two_steps, static_argnums=(1, 2, 3))
    how = FAMILIES[family], cache_dtype, weights_dtype
    expected_BD = decode(params, *how, *_batch())
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    placed = jax.device_put(params, sharding.shardings_of(mesh, params))
    with sharding.use_mesh(mesh):
        batch = sharding.shard_batch(mesh, _batch())
        actual_BD = decode(placed, *how, *batch)
    # One number of an int8 cache may be rounded to its neighbour: a 127th, of one in a head. So may
    # activations, in float8 to one that is an eighth larger, but never a weight.
    atol = 1e-5 if cache_dtype == "auto" else 5e-3
    atol = {"int8_dynamic": 2e-2, "float8_dynamic": 0.1}.get(weights_dtype, atol)
    np.testing.assert_allclose(actual_BD, expected_BD, atol=atol)


def test_parameters_and_optimizer_moments_are_split_in_bytes(params):
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    state = (params, optax.adam(1e-3).init(params))
    placed = jax.device_put(state, sharding.shardings_of(mesh, state))
    local = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
    total = sum(x.nbytes for x in jax.tree.leaves(placed))
    # All but the norms' H axes and the step counter are split, most of it eightfold.
    assert local < total / 7


def test_initialisation_under_jit_is_born_split_and_equal(params):
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    shardings = sharding.shardings_of(mesh, parameters.abstract_params(CONFIG))
    born = jax.jit(parameters.init, static_argnums=0, out_shardings=shardings)(
        CONFIG, jax.random.key(0)
    )
    assert born["layers"]["q"][...].addressable_shards[0].data.shape == (2, 8, 4, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), born, params)


def test_letters_choose_mesh_axes_and_each_axis_serves_once():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    expected = {
        "LDNH": PartitionSpec(None, "fsdp", "tensor", None),
        "BTD": PartitionSpec(("data", "fsdp"), None, None),
        "VD": PartitionSpec("tensor", "fsdp"),
        "": PartitionSpec(),
    }
    assert {axes: sharding.sharding_of(mesh, axes).spec for axes in expected} == expected


def test_a_dimension_that_the_mesh_does_not_divide_is_replicated():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    assert sharding.sharding_of(mesh, "VD", (61, 24)).spec == PartitionSpec(None, "fsdp")
    # Two rows use `data`; D does not take the `fsdp` that they leave.
    spec = sharding.sharding_of(mesh, "BTD", (2, 5, 24)).spec
    assert spec == PartitionSpec("data", None, None)


def test_a_batch_is_split_by_rows_and_scalars_are_replicated():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"x_BS": np.arange(24).reshape(8, 3), "row_B": np.arange(3), "t": 5}
    placed = sharding.shard_batch(mesh, batch)
    assert placed["x_BS"].addressable_shards[0].data.shape == (2, 3)
    assert placed["row_B"].sharding.is_fully_replicated  # 3 rows do not divide
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


def test_leaves_without_axes_are_replicated():
    mesh = sharding.make_mesh(MeshConfig(data=8))
    tree = {"step": jnp.zeros(()), "plain": nnx.Param(jnp.zeros((8, 8)))}
    assert all(s.is_fully_replicated for s in jax.tree.leaves(sharding.shardings_of(mesh, tree)))


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((8, 2))
    assert sharding.constrain(x, "BD") is x
    with sharding.use_mesh(None):
        assert sharding.constrain(x, "BD") is x


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh(MeshConfig(fsdp=-1, tensor=2)).shape) == {
        "data": 1,
        "fsdp": 4,
        "tensor": 2,
    }
    assert dict(sharding.make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert sharding.make_mesh(MeshConfig(data=2, fsdp=1)).size == 2  # the first two


def test_a_mesh_is_written_by_the_axes_that_are_not_the_default():
    assert sharding.parse_mesh(" tensor=2, data =4") == MeshConfig(data=4, fsdp=-1, tensor=2)
    assert dict(sharding.make_mesh("tensor=2").shape) == {"data": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("text", ["", "8", "rows=8", "data=x", "data=2,data=4", "data=2,,fsdp=4"])
def test_a_mesh_written_otherwise_is_one_clear_line(text):
    with pytest.raises(UserError, match=r"expected devices along data, fsdp, tensor.*; got '"):
        sharding.make_mesh(text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=16), "does not fit 8 device"),
        (MeshConfig(data=-1, fsdp=1, tensor=3), "does not fit 8 device"),
        (MeshConfig(data=-1), "fsdp=-1, tensor=1: at most one .* mesh.fsdp is unless it is set"),
        (MeshConfig(tensor=0), r"mesh\.tensor=0"),
    ],
)
def test_an_impossible_mesh_is_one_clear_line(config, message):
    with pytest.raises(UserError, match=message) as caught:
        sharding.make_mesh(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("V", "k"), [(1024, 7), (999, 4), (1021, 3), (600, 500)])
def test_the_largest_of_blocks_are_the_largest_of_all(V, k):
    # Whole numbers, so that many are equal: the first of equals must be taken.
    rows_BV = jax.random.randint(jax.random.key(V), (20, V), 0, 50).astype(jnp.float32)
    found, expected = vocabulary._top_k_of_blocks(rows_BV, k), jax.lax.top_k(rows_BV, k)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_mesh_that_the_devices_links_do_not_allow_is_one_line(monkeypatch):
    def refuse(*_, **options):
        assert options["allow_split_physical_axes"]
        raise NotImplementedError("Failed to find assignment for logical_axis_index 2")

    monkeypatch.setattr("jaxdistill.sharding.mesh_utils.create_device_mesh", refuse)
    with pytest.raises(UserError, match="fsdp=2, tensor=4 cannot be laid out on 8 devices of cpu"):
        sharding.make_mesh("fsdp=2,tensor=4")


@pytest.mark.tpu
def test_an_axis_may_take_a_part_of_a_slices_physical_one():
    from jaxdistill.plan import topologies

    devices = topologies.devices(topologies.parse("v6e:4x4"))
    assert sharding.make_mesh("fsdp=2,tensor=8", devices).shape["tensor"] == 8


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 4, 2)])
def test_partial_sums_are_added_by_a_reduce_scatter_in_blocks_of_columns(sizes, monkeypatch):
    # Two blocks of 128 columns and a rest, of 16 rows.
    monkeypatch.setattr(sharding, "SCATTERED_BYTES", 16 * 128 * 4)
    parts = sizes[0] * sizes[1]
    x_WDV = np.arange(parts * 16 * 640, dtype=np.float32).reshape(parts, 16, 640)
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    x_WDV = jax.device_put(x_WDV, sharding.sharding_of(mesh, "WDV", x_WDV.shape))
    with sharding.use_mesh(mesh):
        added = jax.jit(sharding.sum_of_parts).lower(x_WDV).compile()
        total = added(x_WDV)
    np.testing.assert_array_equal(total, np.asarray(x_WDV).sum(axis=0))
    assert total.sharding.is_equivalent_to(sharding.sharding_of(mesh, "DV", total.shape), 2)
    if sizes[1] > 1:
        assert added.as_text().count(" reduce-scatter(") == -(-640 // sizes[2] // 128)


def test_partial_sums_of_other_parts_than_the_devices_are_added_too():
    x_WDV = jnp.arange(2 * 6 * 10.0).reshape(2, 6, 10)
    with sharding.use_mesh(sharding.make_mesh(MeshConfig(1, 8, 1))):
        np.testing.assert_array_equal(sharding.sum_of_parts(x_WDV), x_WDV.sum(axis=0))
