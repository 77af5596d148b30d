"""Weights in 8 bits against float64 arithmetic in NumPy, and the bytes that they take."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_decoder import CONFIGS

from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.quantized_weights import (
    FORMATS,
    check_weights_dtype,
    decoding_bytes,
    product,
    quantize_weight,
)
from jaxdistill.sampling.weights import decoding_weights

LARGEST = {"int8": 127, "int8_dynamic": 127, "float8_dynamic": 448}
# (spec, letters that are summed, shape of x, shape of the weight)
PRODUCTS = {
    "qkv_DKXH": ("BTD,DKXH->BTKXH", "D", (3, 1, 32), (32, 2, 4, 8)),
    "out_NHD": ("BTNH,NHD->BTD", "NH", (3, 1, 4, 8), (4, 8, 16)),
    "head_DV": ("BD,DV->BV", "D", (3, 32), (32, 40)),
}


def rounded(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the last axis as values * scale, in float64, and their scales."""
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=-1, keepdims=True) / LARGEST[name]
    scale = np.where(scale == 0, 1.0, scale)
    if name == "float8_dynamic":
        values = (x / scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        values = np.floor(x / scale + 0.5)
    return values * scale, scale


def by_outputs(weight: np.ndarray, summed: str) -> np.ndarray:
    """[outputs, inputs]: both are adjacent axes of the weight."""
    if summed == "NH":
        return weight.reshape(-1, weight.shape[-1]).T
    return weight.reshape(weight.shape[0], -1).T


def inputs(of: str) -> tuple[np.ndarray, np.ndarray]:
    _, _, of_x, of_weight = PRODUCTS[of]
    rng = np.random.default_rng(0)
    # Rows and columns of very different sizes, which one scale for all would round to nothing.
    x = rng.normal(size=of_x) * 10.0 ** np.arange(of_x[0]).reshape(-1, *(1,) * (len(of_x) - 1))
    weight = rng.normal(size=of_weight) * 10.0 ** rng.uniform(-3, 1, size=of_weight[-1])
    return x.astype(np.float32), weight.astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("of", PRODUCTS)
def test_a_product_is_that_of_the_rounded_weight_and_of_rows_rounded_one_by_one(of, name):
    spec, summed, _, _ = PRODUCTS[of]
    x, weight = inputs(of)

    @jax.jit
    def of_rounded(x, weight):
        return product(spec, x, quantize_weight(weight, of, FORMATS[name]))

    found = np.asarray(of_rounded(x, weight), np.float64)
    rows = x.reshape(x.shape[0], -1)
    if of in FORMATS[name].dynamic:
        rows, _ = rounded(rows, name)
    columns, _ = rounded(by_outputs(weight, summed), name)
    expected = (rows @ columns.T).reshape(found.shape)
    # float32 sums of 32 terms: 32 roundings of 2^-24, of the terms' sizes.
    size = (np.abs(rows) @ np.abs(columns).T).reshape(found.shape)
    assert np.all(np.abs(found - expected) <= 32 * 2.0**-24 * size)
    # The neighbours of a row do not change it.
    others = np.concatenate([1e3 * x[:1], x[1:2], 0 * x[2:]])
    np.testing.assert_allclose(of_rounded(others, weight)[1], found[1], rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_channel_is_as_close_as_its_own_scale_allows(name):
    _, weight = inputs("head_DV")
    quantized = quantize_weight(jnp.asarray(weight), "head_DV", FORMATS[name])
    off = np.asarray(quantized.values, np.float64) * np.asarray(quantized.scale)[:, None] - weight.T
    scale = np.abs(weight).max(axis=0)[:, None] / LARGEST[name]
    if name == "float8_dynamic":
        allowed = np.maximum(np.abs(weight.T) / 16, scale * 2.0**-10)
    else:
        allowed = scale / 2
    assert np.all(np.abs(off) <= allowed * (1 + 1e-5))
    assert np.abs(off).max() > 0


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_what_is_not_finite_stays_visible(name):
    _, weight = inputs("head_DV")
    weight[:, 3] = 0
    weight[5, 7] = np.nan
    quantized = quantize_weight(jnp.asarray(weight), "head_DV", FORMATS[name])
    x = np.ones((2, 32), np.float32)
    x[1] = 0
    found = np.asarray(product("BD,DV->BV", jnp.asarray(x), quantized))
    assert found[0, 3] == 0
    assert np.isnan(found[0, 7])
    assert np.all(np.isfinite(np.delete(found, 7, axis=1)))
    assert np.all(np.delete(found[1], 7) == 0)


@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_the_counted_bytes_are_those_of_the_arrays(name):
    for each, ties in itertools.product(CONFIGS.values(), (True, False)):
        config = dataclasses.replace(each, tie_embeddings=ties)
        params = parameters.abstract_params(config)
        weights, head = jax.eval_shape(
            lambda p, config=config: decoding_weights(p, config, jnp.float32, name), params
        )
        size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
        has_own_head = not ties or name in (
            "int8",
            "int8_dynamic",
        )  # otherwise one array is table and head
        held = size(weights) + (size(head) if has_own_head else 0)
        held -= 0 if ties else size(weights.embed_VD)
        assert decoding_bytes(config, "float32", name, held=True) == held
        read = size(weights) - size(weights.embed_VD) + size(head)
        assert decoding_bytes(config, "float32", name, held=False) == read


def test_an_unknown_weights_dtype_is_refused_with_the_known_ones():
    known = "auto, int8, int8_dynamic, float8_dynamic"
    with pytest.raises(UserError, match=rf"^`weights_dtype` must be one of {known}, got 'int4'$"):
        check_weights_dtype("int4")
