"""One NaN or infinity anywhere in the weights is found, and no finite value is taken for one."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import UserError
from jaxdistill.storage import finite


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_of_the_host_are_counted_by_their_bits(dtype, monkeypatch):
    monkeypatch.setattr(finite, "_BLOCK", 4)  # elements: the array has several blocks
    largest = float(jnp.finfo(dtype).max)
    x = np.array([[0.0, -0.0, largest, -largest], [1e-8, -1.0, 3.0, 2.0]]).astype(dtype)
    assert finite.count_non_finite(x) == 0
    x = np.array([[np.nan, 1, 2, 3], [4, -np.inf, np.inf, -np.nan]]).astype(dtype)
    assert finite.count_non_finite(x) == 4
    assert finite.count_non_finite(x[:0]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_tensor_is_named(bad):
    params = {
        "layers": {"mlp": jnp.ones((2, 3))},
        "norm": jnp.array([1.0, 3e38]),
        "ids": jnp.arange(3),
    }
    finite.require_finite(params, "FOLDER")
    params["layers"]["mlp"] = params["layers"]["mlp"].at[1, 2].set(bad)
    assert finite.non_finite(params) == ["layers.mlp"]
    with pytest.raises(UserError, match=r"^FOLDER: the weights are not finite: layers\.mlp hold"):
        finite.require_finite(params, "FOLDER")
