"""Hidden states and log-probabilities at the positions of completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_completions import V, assert_trees_close, batch, random_model

from jaxdistill.models import completions, decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope

CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=V,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    rope=Rope(10000.0),
    norm_eps=1e-6,
    tie_embeddings=True,
    max_positions=128,
)


@pytest.mark.parametrize("chunk", [1, 4, 11, 128])
def test_token_logp_equals_a_whole_log_softmax_and_so_does_its_gradient(chunk):
    (hidden_BTD, head_DV), tokens_BT = random_model(0), batch()["sampled"].tokens_BT

    def plain(hidden_BTD, head_DV):
        logp_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV / 0.7)
        return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]

    def chunked(hidden_BTD, head_DV):
        return completions.token_logp(hidden_BTD, head_DV, tokens_BT, temperature=0.7, chunk=chunk)

    np.testing.assert_allclose(
        chunked(hidden_BTD, head_DV), plain(hidden_BTD, head_DV), rtol=1e-5, atol=1e-5
    )
    gradients = [
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * mask()), (0, 1))(hidden_BTD, head_DV)
        for f in (chunked, plain)
    ]
    assert_trees_close(*gradients, 1e-5)


def mask():
    return batch()["mask_BT"].astype(jnp.float32)


def test_bfloat16_hidden_states_give_float32_logits_and_a_float32_head_gradient():
    (hidden_BTD, head_DV), tokens_BT = random_model(0), batch()["sampled"].tokens_BT
    hidden_BTD = hidden_BTD.astype(jnp.bfloat16)
    assert completions.logits_of(hidden_BTD, head_DV).dtype == jnp.float32
    gradient = jax.grad(
        lambda head: completions.token_logp(hidden_BTD, head, tokens_BT, chunk=4).sum()
    )(head_DV)
    assert gradient.dtype == jnp.float32


def test_completion_hidden_ignores_how_prompt_and_completion_are_padded():
    params = parameters.init(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompt, completion = rng.integers(0, V, 5), rng.integers(0, V, 4)
    text = jnp.asarray(np.concatenate([prompt, completion]))[None]
    plain_SD = decoder.hidden_states(params, CONFIG, text, jnp.ones_like(text))[0]

    for left, right in [(0, 0), (3, 2)]:
        prompt_ids = np.pad(prompt, (left, 0), constant_values=1)[None]
        completion_ids = np.pad(completion, (0, right), constant_values=2)[None]
        hidden_BTD = jax.jit(completions.completion_hidden, static_argnums=1)(
            params,
            CONFIG,
            jnp.asarray(prompt_ids, jnp.int32),
            jnp.asarray(np.pad(np.ones(5, np.int32), (left, 0))[None]),
            jnp.asarray(completion_ids, jnp.int32),
            jnp.asarray(np.pad(np.ones(4, np.int32), (0, right))[None]),
        )
        # Entry t predicts completion token t: the hidden state of the token before it.
        np.testing.assert_allclose(hidden_BTD[0, :4], plain_SD[4:8], rtol=1e-5, atol=1e-5)
        assert hidden_BTD.shape == (1, 4 + right, CONFIG.hidden_size)
