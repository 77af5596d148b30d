"""Drawn tokens against known distributions, with one block of tokens and with several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import COLLECTIVES, operations_of

from jaxdistill import sharding
from jaxdistill.sampling import drawing, keys, question_hashes, row_keys
from jaxdistill.sampling.drawing import Truncation

PROBS_V = np.array([0.4, 0.06, 0.25, 0.04, 0.15, 0.1])
RANK_V = np.argsort(-PROBS_V)


def draw_tokens(logits_BV, kept, purpose="frequencies"):
    rows = len(logits_BV)
    keys_B2 = row_keys(5, purpose, 0, question_hashes(["q"]), rows)
    keys_B = keys.token_keys(keys_B2, jnp.zeros(rows, jnp.int32))
    run = jax.jit(functools.partial(drawing.draw_tokens, kept=kept))
    return jax.device_get(run(jnp.asarray(logits_BV, jnp.float32), keys_B))


@pytest.fixture(
    params=[pytest.param(6, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)]
)
def block(request, monkeypatch):
    """The block size for six tokens: all of them in one block, or in several."""
    monkeypatch.setattr(drawing, "_MAX_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize(
    ("temperature", "kept", "num_kept"),
    [
        (1.0, Truncation(), 6),
        (0.5, Truncation(), 6),
        (1.0, Truncation(top_k=3), 3),
        (1.0, Truncation(top_p=0.75), 3),
        (1.0, Truncation(top_p=0.9), 4),  # 0.4 + 0.25 + 0.15 + 0.1: just enough
        (1.0, Truncation(top_p=0.95), 5),
        (1.0, Truncation(min_p=0.2), 4),
        (2.0, Truncation(top_k=4, top_p=0.9), 4),
        (0.5, Truncation(top_k=5, top_p=0.95, min_p=0.3), 2),
        (1.0, Truncation(top_p=0.95, min_p=0.5), 2),
    ],
)
def test_sampled_frequencies_match_the_distribution(block, temperature, kept, num_kept):
    rows = 20_000
    logits_V = np.log(PROBS_V) / temperature
    drawn = draw_tokens(np.tile(logits_V, (rows, 1)), kept)
    counts_V = np.bincount(drawn.token_B, minlength=6)

    probs_V = np.zeros(6)
    probs_V[RANK_V[:num_kept]] = np.exp(logits_V)[RANK_V[:num_kept]]
    expected_V = rows * probs_V / probs_V.sum()
    assert counts_V[expected_V == 0].sum() == 0
    seen = expected_V > 0
    chi_square = np.sum((counts_V[seen] - expected_V[seen]) ** 2 / expected_V[seen])
    assert chi_square < 20.5, "the 0.999 quantile at 5 degrees of freedom; the seed is fixed"


@pytest.mark.long
def test_two_steps_draw_from_a_vocabulary_of_real_size():
    """Tokens in ten classes of known mass: 151,936 of them, in 128 blocks of 1,187."""
    V, rows = 151_936, 1_500
    rng = np.random.default_rng(0)
    class_V = rng.integers(0, 10, V)
    logits_V = rng.normal(0, 2, V).astype(np.float32) + 0.3 * class_V
    probs_V = np.exp(logits_V - logits_V.max(), dtype=np.float64)
    expected_X = rows * np.bincount(class_V, probs_V / probs_V.sum())
    found = []
    for part in range(3):
        some = draw_tokens(np.broadcast_to(logits_V, (rows // 3, V)), Truncation(), f"part {part}")
        found.append(class_V[some.token_B])
    counts_X = np.bincount(np.concatenate(found), minlength=10)
    chi_square = np.sum((counts_X - expected_X) ** 2 / expected_X)
    assert chi_square < 27.9, "the 0.999 quantile at 9 degrees of freedom; the seed is fixed"


@pytest.mark.parametrize("kept", [Truncation(), Truncation(top_p=0.95), Truncation(top_k=20)])
def test_the_log_prob_is_that_of_all_tokens(kept, monkeypatch):
    monkeypatch.setattr(drawing, "_MAX_BLOCK", 16)
    logits_BV = 3 * jax.random.normal(jax.random.key(0), (50, 64))
    drawn = draw_tokens(logits_BV, kept)
    logp_BV = np.asarray(jax.nn.log_softmax(logits_BV))
    expected_B = logp_BV[np.arange(50), drawn.token_B]
    np.testing.assert_allclose(drawn.logp_B, expected_B, atol=2e-6)


@pytest.mark.parametrize(
    "top_p",
    [pytest.param(0.9, marks=pytest.mark.long), pytest.param(0.95, marks=pytest.mark.long), 0.99],
)
def test_several_draws_and_masks_keep_the_same_tokens(top_p, monkeypatch):
    """Every token of the nucleus that masking finds is drawn by some row, and no other token is."""
    logits_V = jax.random.normal(jax.random.key(1), (24,))
    monkeypatch.setattr(drawing, "_MAX_BLOCK", 8)
    assert drawing._num_draws(Truncation(top_p=top_p), 24) > 0
    drawn = draw_tokens(jnp.tile(logits_V, (20_000, 1)), Truncation(top_p=top_p))
    masked_V = drawing.truncation.keep_top_p(logits_V[None], top_p)[0]
    assert set(drawn.token_B.tolist()) == set(np.flatnonzero(np.isfinite(masked_V)).tolist())


def test_where_every_draw_fails_it_is_the_likeliest_token(monkeypatch):
    monkeypatch.setattr(drawing, "_MAX_BLOCK", 8)
    monkeypatch.setattr(drawing, "_num_draws", lambda kept, V: 1)
    logits_V = jnp.array([0.1] * 8 + [0.0] * 56)  # a nucleus of 8 tokens that one draw rarely hits
    logits_V = logits_V.at[3].add(1e-3)
    token_B = draw_tokens(jnp.tile(logits_V, (500, 1)), Truncation(top_p=0.13)).token_B
    assert set(token_B.tolist()) <= set(range(8))
    assert np.mean(token_B == 3) > 0.5


def test_without_keys_it_is_the_likeliest_token():
    logits_BV = jax.random.normal(jax.random.key(0), (5, 40))
    drawn = drawing.draw_tokens(logits_BV, None, Truncation())
    np.testing.assert_array_equal(drawn.token_B, np.argmax(logits_BV, axis=-1))


@pytest.mark.parametrize(
    ("V", "block"),
    [(133, 133), (151_936, 1187), (152_064, 1728), (100_278, 1857), (10_007, 10_007)],
)
def test_blocks_are_equal_and_few(V, block):
    assert drawing._block_size(V) == block


def test_columns_are_whole_blocks_of_every_device():
    # 56 blocks of 1,857 instead of 54, and 88 of 1,728 that sixteen devices do not share evenly.
    assert drawing.columns_of(100_278, 4) == 56 * 1857
    assert drawing.columns_of(152_064, 16) == 96 * 1728
    assert drawing.columns_of(151_936, 16) == 151_936


# On four devices: parts of a single block, and two blocks with two more of padding.
@pytest.mark.parametrize(
    ("V", "columns", "kept"),
    [
        (133, 136, Truncation()),
        (3074, 6148, Truncation()),
        pytest.param(3074, 6148, Truncation(top_p=0.95), marks=pytest.mark.slow),
        pytest.param(133, 136, Truncation(top_k=5, top_p=0.9), marks=pytest.mark.slow),
    ],
)
def test_split_logits_give_the_same_tokens_and_no_device_gathers_them(V, columns, kept):
    assert drawing.columns_of(V, 4) == columns
    logits_BV = jax.random.normal(jax.random.key(0), (16, V))
    keys_B = jax.random.split(jax.random.key(1), 16)
    expected = jax.jit(drawing.draw_tokens, static_argnums=2)(logits_BV, keys_B, kept)
    mesh = sharding.make_mesh("fsdp=2,tensor=4")
    padded_BV = jnp.pad(logits_BV, ((0, 0), (0, columns - V)))
    inputs = [
        jax.device_put(x, sharding.sharding_of(mesh, axes, x.shape))
        for x, axes in ((padded_BV, "BV"), (keys_B, "B"))
    ]
    with sharding.use_mesh(mesh):
        run = jax.jit(drawing.draw_tokens, static_argnums=(2, 3)).lower(*inputs, kept, V).compile()
    found = run(*inputs)
    np.testing.assert_array_equal(found.token_B, expected.token_B)
    np.testing.assert_allclose(found.logp_B, expected.logp_B, atol=2e-6)
    # Of a device's eight rows the block of each that was drawn, and a few numbers.
    sent = [shape for op in operations_of(run) if op.kind in COLLECTIVES for shape in op.shapes]
    assert max(shape[-1] for shape in sent) <= (1537 if V == 3074 else 8)
