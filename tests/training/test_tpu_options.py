"""The TPU compiler's options reach that compiler alone."""

import jax
import jax.numpy as jnp
import pytest

from jaxdistill import sharding
from jaxdistill.training.tpu_options import TPU_OPTIONS, JittedForPlatform


def test_the_options_are_those_of_the_platform_when_the_program_is_lowered(monkeypatch):
    doubled = JittedForPlatform(lambda x: 2 * x)
    assert doubled(jnp.float32(3)) == doubled.lower(jnp.float32(3)).compile()(jnp.float32(3)) == 6
    # A CPU's compiler refuses them, which shows that they are passed where the platform is a TPU.
    with pytest.raises(jax.errors.JaxRuntimeError, match=next(iter(TPU_OPTIONS))):
        jax.jit(lambda x: 2 * x, compiler_options=TPU_OPTIONS)(jnp.float32(3))
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        doubled(jnp.float32(3))


def test_the_shape_of_a_result_is_found_without_the_options(monkeypatch):
    """Since jax 0.11, `jax.eval_shape` of a jitted function with options is refused: nested."""
    doubled = JittedForPlatform(lambda x: 2 * x)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert doubled.eval_shape(jnp.zeros((2, 3))).shape == (2, 3)
