"""A norm folded into the product after it changes nothing but rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import folding
from jaxdistill.models.layers import rms_norm, swiglu

EPS = 1e-6


def arguments(D, F, dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    scale_D = jnp.exp(jax.random.normal(keys[0], (D,)) / 2)
    stream_BD = 5 * jax.random.normal(keys[1], (3, D))
    gate_up_DXF = jax.random.normal(keys[2], (D, 2, F)) * D**-0.5
    down_FD = jax.random.normal(keys[3], (F, D)) * F**-0.5
    return scale_D, stream_BD.astype(dtype), gate_up_DXF, down_FD.astype(dtype)


def error_of(found, exact):
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize(("D", "F"), [(64, 96), (48, 1500)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_swiglu_of_the_stream_is_swiglu_of_the_normed_stream(D, F, dtype):
    check_swiglu(D, F, dtype, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("D", "F"), [(2048, 6144), (2560, 9728)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_gpu_too(D, F, dtype):
    check_swiglu(D, F, dtype, interpret=False)


def check_swiglu(D, F, dtype, interpret):
    scale_D, stream_BD, gate_up_DXF, down_FD = arguments(D, F, dtype)
    folded_DXF = folding.fold(scale_D, gate_up_DXF).astype(dtype)
    run = functools.partial(folding.swiglu_of_stream, eps=EPS, interpret=interpret)
    found_BD = jax.jit(run)(stream_BD, folded_DXF, down_FD)
    plain_BD = jax.jit(plain_swiglu)(stream_BD, scale_D, gate_up_DXF.astype(dtype), down_FD)
    assert found_BD.dtype == plain_BD.dtype == dtype
    exact_BD = exact_swiglu(*(np.asarray(x, np.float64) for x in (
        stream_BD, scale_D, gate_up_DXF, down_FD
    )))  # fmt: skip
    # Both round as often; which numbers it is that are rounded differs.
    assert error_of(found_BD, exact_BD) <= 1.2 * error_of(plain_BD, exact_BD)


def plain_swiglu(stream_BD, scale_D, gate_up_DXF, down_FD):
    normed_BD = rms_norm(stream_BD, scale_D, EPS)
    return swiglu(normed_BD[:, None], gate_up_DXF, down_FD)[:, 0]


def exact_swiglu(x_BD, scale_D, gate_up_DXF, down_FD):
    x_BD = x_BD / np.sqrt(np.mean(x_BD**2, axis=1, keepdims=True) + EPS) * scale_D
    gate_BF, up_BF = (x_BD @ gate_up_DXF[:, i] for i in range(2))
    return (gate_BF / (1 + np.exp(-gate_BF)) * up_BF) @ down_FD
