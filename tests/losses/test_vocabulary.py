"""One pass over the vocabulary against JAX's two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.losses import vocabulary


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(vocabulary, "platform", lambda: "gpu")


def logits():
    logits_BV = 30 * jax.random.normal(jax.random.key(0), (6, 1187))
    logits_BV = logits_BV.at[1, ::2].set(-jnp.inf).at[2, 5:].set(-jnp.inf)
    return logits_BV.at[3].add(1e4)


def test_the_log_sum_of_one_pass_is_the_log_sum():
    logits_BV = logits().at[4].set(-jnp.inf).at[5, 7].set(jnp.nan)
    found_B = jax.jit(lambda x: vocabulary.logsumexp(x))(logits_BV)
    np.testing.assert_allclose(found_B, jax.nn.logsumexp(logits_BV, axis=-1), rtol=1e-6)
    assert np.isneginf(found_B[4])
    assert np.isnan(found_B[5])


def test_log_softmax_and_its_gradient_are_jaxs():
    weight_BV = jax.random.normal(jax.random.key(1), (6, 1187))

    def gradient(function):
        def total(x_BV):
            logp_BV = function(x_BV)
            return jnp.sum(jnp.where(logp_BV > -jnp.inf, weight_BV * logp_BV, 0.0))

        return jax.jit(jax.grad(total))(logits())

    logp_BV, expected_BV = (
        jax.jit(lambda x: vocabulary.log_softmax(x))(logits()),
        jax.nn.log_softmax(logits()),
    )
    np.testing.assert_allclose(logp_BV, expected_BV, rtol=1e-6, atol=5e-7)
    expected_BV = gradient(jax.nn.log_softmax)
    np.testing.assert_allclose(gradient(vocabulary.log_softmax), expected_BV, atol=1e-5)
