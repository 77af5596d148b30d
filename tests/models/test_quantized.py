import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from jaxdistill.errors import UserError
from jaxdistill.models.quantized import (
    check_cache_dtype,
    dequantize,
    quantize,
    vector_bytes,
)

numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(st_np.arrays(np.float32, (3, 8), elements=numbers))
def test_a_number_is_off_by_half_a_step_at_most(x_NH):
    found = quantize(jnp.asarray(x_NH))
    values_NH, scale_N = (np.asarray(x, np.float64) for x in found)
    assert np.abs(values_NH).max() <= 127
    # A step is a 127th of the largest number; a float32 quotient of up to 127 steps has a relative
    # error of about 2^-24.
    bound_N1 = scale_N[:, None] * (0.5 + 127 * 2.0**-22)
    assert (np.abs(x_NH - values_NH * scale_N[:, None]) <= bound_N1).all()
    np.testing.assert_allclose(dequantize(found), values_NH * scale_N[:, None], rtol=1e-6)


def test_an_outlier_coarsens_its_own_vector_alone():
    found = quantize(jnp.array([[1.0, 0.5, 0.001], [1000.0, 0.5, 0.001]], jnp.bfloat16))
    assert found.values.tolist() == [[127, 64, 0], [127, 0, 0]]
    np.testing.assert_allclose(found.scale, [1 / 127, 1000 / 127], rtol=1e-6)


def test_a_vector_of_zeros_stays_zero():
    values_NH, scale_N = quantize(jnp.zeros((2, 4), jnp.bfloat16))
    assert (values_NH == 0).all()
    assert (scale_N == 1).all()


def test_nan_stays_nan():
    assert np.isnan(dequantize(quantize(jnp.array([jnp.nan, 1.0, 2.0])))).all()


def test_shape_and_dtype_are_those_of_the_values():
    found = quantize(jnp.ones((2, 3, 4)))
    assert found.shape == (2, 3, 4)
    assert found.dtype == jnp.int8


def test_a_head_takes_half_of_bfloat16s_bytes_and_four():
    assert vector_bytes(128, jnp.bfloat16, "int8") == 132
    assert [vector_bytes(128, dtype, "auto") for dtype in ("bfloat16", "float32")] == [256, 512]


def test_an_unknown_cache_dtype_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"^`cache_dtype` must be one of auto, int8, got 'fp8'$"):
        check_cache_dtype("fp8")
