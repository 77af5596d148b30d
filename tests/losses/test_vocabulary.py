"""The log-sum-exp in one pass over the vocabulary against JAX's, which takes two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.losses import vocabulary


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(vocabulary, "platform", lambda: "gpu")


def logits():
    logits_BV = 30 * np.random.default_rng(0).standard_normal((6, 1187), np.float32)
    logits_BV[1, ::2] = logits_BV[2, 5:] = -np.inf
    logits_BV[3] += 1e4
    return logits_BV


def test_the_one_pass_log_sum_exp_equals_jaxs():
    logits_BV = logits()
    logits_BV[4], logits_BV[5, 7] = -np.inf, np.nan
    evaluate = jax.jit(lambda x: (vocabulary.logsumexp(x), jax.nn.logsumexp(x, axis=-1)))
    found_B, expected_B = evaluate(logits_BV)
    np.testing.assert_allclose(found_B, expected_B, rtol=1e-6)
    assert np.isneginf(found_B[4])
    assert np.isnan(found_B[5])


def test_log_softmax_and_its_gradient_are_jaxs():
    weight_BV = np.random.default_rng(1).standard_normal((6, 1187), np.float32)

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
