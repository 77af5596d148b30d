"""The gated feed-forward against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import layers


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 8e-3)])
def test_swiglu_and_its_gradients_are_those_of_its_definition(dtype, tolerance, has_biases):
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
