"""The gated feed-forward against its definition, in blocks, and with weights in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.models import layers


# "gpu": gate and up by products of their own.
@pytest.mark.parametrize("platform", ["cpu", pytest.param("gpu", marks=pytest.mark.long)])
@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 8e-3)])
def test_swiglu_and_its_gradients_are_those_of_its_definition(
    dtype, tolerance, has_biases, platform, monkeypatch
):
    monkeypatch.setattr(layers, "platform", lambda: platform)
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, 5, 16), (16, 2, 24), (24, 16)] + [(2, 24), (16,)] * has_biases
    arguments = [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes)]
    cotangent_BTD = jax.random.normal(jax.random.key(1), shapes[0])

    def defined(x_BTD, gate_up_DXF, down_FD, *biases):
        bias_XF, bias_D = biases or (jnp.zeros((2, 24)), jnp.zeros(16))
        bias_X11F = bias_XF[:, None, None]
        gate_BTF, up_BTF = (x_BTD @ gate_up_DXF[:, i] + bias_X11F[i] for i in range(2))
        return (gate_BTF / (1 + jnp.exp(-gate_BTF)) * up_BTF) @ down_FD + bias_D[None, None]

    found, pull = jax.vjp(layers.swiglu, *arguments)
    exact, exact_pull = jax.vjp(defined, *(x.astype(jnp.float32) for x in arguments))
    pairs = zip((found, *pull(cotangent_BTD.astype(dtype))), (exact, *exact_pull(cotangent_BTD)))
    for x, y in pairs:
        assert x.dtype == dtype
        # bfloat16 rounds by at most 1/512, and about four intermediate numbers are rounded.
        error = np.linalg.norm(x.astype(jnp.float32) - y) / np.linalg.norm(y)
        assert error < tolerance


def test_a_weight_in_float32_is_read_rounded_and_its_gradient_is_not_rounded():
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD, weight_DF, cotangent_BTF = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 64, 8), (8, 3), (2, 64, 3)])
    )
    narrow = x_BTD.astype(jnp.bfloat16), cotangent_BTF.astype(jnp.bfloat16)

    def gradients(weight):
        product = lambda *inputs: layers.weighted("BTD,DF->BTF", *inputs)  # noqa: E731
        result, pull = jax.vjp(product, narrow[0], weight)
        return result, *pull(narrow[1])

    result, dx, dw = gradients(weight_DF)
    rounded, dx_rounded, dw_rounded = gradients(weight_DF.astype(jnp.bfloat16))
    np.testing.assert_array_equal(result, rounded)
    np.testing.assert_array_equal(dx, dx_rounded)
    # The sum over 2 x 64 products of the rounded numbers, in float64.
    exact = np.einsum("btd,btf->df", *(np.asarray(x, np.float64) for x in narrow))
    assert (dw.dtype, dw_rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(dw, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(dw_rounded, np.float64) - exact).max() > 1e-3


@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
@pytest.mark.parametrize(("positions", "num_blocks"), [(96, 4), (40, 2), (14, 1), (106, 1)])
def test_positions_in_blocks_have_the_same_results(sizes, positions, num_blocks):
    """106 = 2 x 53 positions have no equal blocks that are large enough."""
    x_BTD = jax.random.normal(jax.random.key(0), (4, positions, 3))
    whole_BTNH = jax.random.normal(jax.random.key(1), (4, positions, 4, 2))
    seen = []

    def function(x, whole):
        seen.append(x.shape)
        return x + jnp.sin(x).sum(axis=2, keepdims=True) + whole[:, :, 1:, 0]

    mesh = None if sizes is None else sharding.make_mesh(sharding.MeshConfig(*sizes))
    # On a mesh a device has one of the four rows, or half of its positions.
    block = 100 if sizes is None else 25
    with sharding.use_mesh(mesh):
        in_blocks = functools.partial(layers.in_blocks, function, block=block)
        found = jax.jit(in_blocks)(x_BTD, whole_BTNH)
    assert {shape[1] for shape in seen} == {positions // num_blocks}
    np.testing.assert_array_equal(found, function(x_BTD, whole_BTNH))


# A product of fewer rows may be summed in another order: rounding of the dtype.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_the_feed_forward_in_blocks_is_that_of_whole_rows_on_eight_devices(dtype, tolerance):
    shapes = [(4, 96, 16), (16, 2, 24), (24, 16)]
    arrays = [
        jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)
    ]
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    placed = [
        jax.device_put(x, sharding.sharding_of(mesh, axes, x.shape))
        for x, axes in zip(arrays, ["BZD", "DXF", "FD"], strict=True)
    ]

    def in_blocks(block, x_BTD, *weights):
        return layers.in_blocks(lambda x: layers.swiglu(x, *weights), x_BTD, block=block)

    with sharding.use_mesh(mesh):
        found, whole = (
            jax.jit(in_blocks, static_argnums=0)(block, *placed) for block in (25, 10**6)
        )
    found, whole = np.float64(found), np.float64(whole)
    np.testing.assert_allclose(found, whole, rtol=0, atol=tolerance * np.abs(whole).max())
