"""Hidden states and log-probabilities at the positions of completions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_completions import V, assert_trees_close, random_data, random_model

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
    (hidden_BTD, head_DV), tokens_BT = random_model(0), random_data().sampled.tokens_BT

    def plain(hidden_BTD, head_DV):
        logp_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV / 0.7)
        return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]

    def chunked(hidden_BTD, head_DV):
        return completions.token_logp(hidden_BTD, head_DV, tokens_BT, temperature=0.7, chunk=chunk)

    mask_BT = random_data().mask_BT

    def value_and_gradients(function):
        def total(*model):
            logp_BT = function(*model)
            return jnp.sum(logp_BT * mask_BT), logp_BT

        both = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        (_, logp_BT), gradients = both(hidden_BTD, head_DV)
        return logp_BT, gradients

    assert_trees_close(*(value_and_gradients(f) for f in (chunked, plain)), 1e-5)


def test_bfloat16_hidden_states_give_float32_logits_and_a_float32_head_gradient():
    (hidden_BTD, head_DV), tokens_BT = random_model(0), random_data().sampled.tokens_BT
    hidden_BTD = hidden_BTD.astype(jnp.bfloat16)
    logits = jax.eval_shape(completions.logits_of, hidden_BTD, head_DV)
    assert logits.dtype == jnp.float32
    gradient = jax.eval_shape(
        jax.grad(lambda head: completions.token_logp(hidden_BTD, head, tokens_BT, chunk=4).sum()),
        head_DV,
    )
    assert gradient.dtype == jnp.float32


# ------------------------------------------------------------------------------- hidden states

PROMPTS, COMPLETIONS = [[5, 6, 7, 8, 9], [4, 2]], [[1, 2, 3, 4], [9, 8, 7]]

_init = jax.jit(parameters.init, static_argnums=0)
_masked = jax.jit(completions.completion_hidden, static_argnums=1)
_packed = jax.jit(completions.packed_completion_hidden, static_argnums=(1, 5))
_of_prompts = jax.jit(completions.hidden_of_prompts, static_argnums=(1, 4))


@functools.cache
def expected():
    """[T, D] of each of the two completions: the states of the tokens before its own."""
    params, found = _init(CONFIG, jax.random.key(0)), []
    run = jax.jit(decoder.hidden_states, static_argnums=1)
    for prompt, completion in zip(PROMPTS, COMPLETIONS):
        text = np.zeros((1, 9), np.int32)  # one width, one compilation
        text[0, : len(prompt) + len(completion)] = prompt + completion
        states_SD = np.asarray(run(params, CONFIG, text, text > 0))[0]
        found.append(states_SD[len(prompt) - 1 :][: len(completion)])
    return params, found


def padded(rows, width, side):
    ids = np.full((len(rows), width), 3, np.int32)
    mask = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        where = np.s_[width - len(row) :] if side == "left" else np.s_[: len(row)]
        ids[b, where], mask[b, where] = row, 1
    return ids, mask


def assert_states(hidden_BTD, states):
    for hidden_TD, expected_TD in zip(hidden_BTD, states, strict=True):
        np.testing.assert_allclose(hidden_TD[: len(expected_TD)], expected_TD, rtol=1e-5, atol=1e-5)


def test_completion_hidden_ignores_how_prompt_and_completion_are_padded():
    params, states = expected()
    for width, side in [(5, "left"), (8, "left"), (8, "right")]:
        completion = padded(COMPLETIONS, width - 1, "right")
        hidden_BTD = _masked(params, CONFIG, *padded(PROMPTS, width, side), *completion)
        assert hidden_BTD.shape == (2, width - 1, CONFIG.hidden_size)
        assert_states(hidden_BTD, states)


def test_rows_of_one_sequence_and_packed_rows_have_the_same_states():
    params, states = expected()
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS)]
    lengths = np.array([[len(text)] for text in texts])
    completion_lengths = np.array([[len(c)] for c in COMPLETIONS])
    tokens_BS, _ = padded(texts, 9, "right")
    alone_BTD = _packed(params, CONFIG, tokens_BS, lengths, completion_lengths, 5)
    assert_states(alone_BTD, states)
    # One row holds both sequences; their completions follow one another.
    tokens_BS, _ = padded([texts[0] + texts[1]], 16, "right")
    packed_BTD = _packed(params, CONFIG, tokens_BS, lengths.T, completion_lengths.T, 8)
    assert_states([packed_BTD[0, :4], packed_BTD[0, 4:7]], states)


@pytest.mark.parametrize("width", [11, 40], ids=["together", "apart"])
def test_prompts_of_several_kinds_have_the_states_of_each_alone(width):
    """In one forward pass if their widths are similar, otherwise each in its own."""
    params, states = expected()
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS)]
    lengths = np.array([[len(text)] for text in texts])
    completion_lengths = np.array([[len(c)] for c in COMPLETIONS])
    swapped = [p + c for p, c in zip(PROMPTS[::-1], COMPLETIONS)]
    other = padded(swapped, width, "right")[0], np.array([[len(text)] for text in swapped])
    kinds = [(padded(texts, 9, "right")[0], lengths), other]
    both = _of_prompts(params, CONFIG, kinds, completion_lengths, 5)
    assert_states(both[0], states)
    alone_BTD = _packed(params, CONFIG, *other, completion_lengths, 5)
    assert_states(both[1], [alone_BTD[0, :4], alone_BTD[1, :3]])
