"""Sampling from a model with sliding windows, far beyond them, against whole forward passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import operations_of
from tiny_decoder import init_params

from jaxdistill import sharding
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.sampling import Sampling, make_sampler, question_hashes, row_keys

CONFIG = ModelConfig(
    vocab_size=29,
    hidden_size=16,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    rope=Rope(10000.0),
    sliding_rope=Rope(500.0),
    layer_pattern=("sliding", "full"),
    window=6,
    tie_embeddings=True,
    max_positions=128,
)
PROMPT, NEW, ROLLOUTS = 21, 60, 4
SAMPLING = Sampling(max_new_tokens=NEW)


@functools.cache
def params():
    return init_params(CONFIG, jax.random.key(0))


@functools.cache
def prompts():
    """Shorter than the window, just as long, longer, and longer than three of them."""
    ids_QP, mask_QP = np.zeros((2, 4, PROMPT), np.int32)
    rng = np.random.default_rng(0)
    for i, length in enumerate((3, 6, 11, PROMPT)):
        ids_QP[i, -length:] = rng.integers(4, 29, length)
        mask_QP[i, -length:] = 1
    return ids_QP, mask_QP


def build(slots, pages, config=CONFIG, **options):
    return make_sampler(
        config, SAMPLING, (3,), 0, rollouts=ROLLOUTS, slots=slots, pages=pages, page_size=4,
        counts=True, **options,
    )  # fmt: skip


def sample(slots, pages, place=lambda batch: batch, weights=None, **options):
    keys_B2 = row_keys(0, "test", 3, question_hashes("abcd"), ROLLOUTS)
    run = build(slots, pages, **options)
    return jax.device_get(run(weights or params(), *place((*prompts(), keys_B2))))


@jax.jit
def score(ids_BP, mask_BP, samples):
    """The log-probs that training computes, which holds no cache, [B, T]."""
    hidden_BTD = completions.completion_hidden(
        params(), CONFIG, ids_BP, mask_BP, samples.tokens_BT, samples.mask_BT, dtype=jnp.float32
    )
    head_DV = parameters.head(params(), CONFIG)
    return completions.token_logp(hidden_BTD, head_DV, samples.tokens_BT, temperature=1.0)


@functools.cache
def whole():
    return sample(None, None)[0]


# Of at most 81 positions, own caches keep rings of 16, and pages of four rings of eight. With 24
# pages for rows that need up to 21 some are preempted.
REFILLED, PAGED = (3, None), (7, 24)


@pytest.mark.long
def test_behaviour_log_probs_far_beyond_the_window_are_those_of_scoring():
    samples = whole()
    ids_BP, mask_BP = (x.repeat(ROLLOUTS, 0) for x in prompts())
    logp_BT = score(ids_BP, mask_BP, samples)
    assert samples.mask_BT.sum(axis=1).max() == NEW
    # Decoding with a cache sums in another order than a full forward pass, in float32.
    np.testing.assert_allclose(samples.logp_BT, logp_BT * samples.mask_BT, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("slots", "pages"), [REFILLED, PAGED])
@pytest.mark.parametrize("cache_dtype", ["auto", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_refilled_slot_has_nothing_of_the_row_before_in_its_rings(slots, pages, cache_dtype):
    expected = whole() if cache_dtype == "auto" else sample(None, None, cache_dtype="int8")[0]
    found, counts = sample(slots, pages, cache_dtype=cache_dtype)
    assert (counts.preempted > 0) == (pages == 24)
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    # As for full layers: products of other numbers of rows; and a cached value that is rounded to
    # the next int8 step.
    atol = 1e-5 if cache_dtype == "auto" else 1e-3
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, rtol=1e-5, atol=atol)


@pytest.mark.long
@pytest.mark.parametrize(
    ("slots", "pages"), [(8, 4 * 22), pytest.param(8, None, marks=pytest.mark.slow)]
)
def test_eight_devices_keep_the_same_rings(slots, pages):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params(), sharding.shardings_of(mesh, params()))
    expected = whole()
    with sharding.use_mesh(mesh):
        place = functools.partial(sharding.shard_batch, mesh)
        found, _ = sample(slots, pages, place, placed)
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("slots", "pages"), [REFILLED, PAGED])
def test_no_sliding_layer_of_the_compiled_program_holds_more_than_its_ring(slots, pages):
    """And with pages prompts' caches are those that prefill's loop writes, in no second form."""
    keys_B2 = row_keys(0, "test", 3, question_hashes("abcd"), ROLLOUTS)
    # Five repetitions, because up to four layers are not in a loop.
    config = dataclasses.replace(CONFIG, num_layers=10)
    run = build(slots, pages, config=config)
    weights = parameters.abstract_params(config)
    operations = operations_of(run.lower(weights, *prompts(), keys_B2).compile())
    shapes = {shape for each in operations for shape in each.shapes}
    K, H = CONFIG.num_kv_heads, CONFIG.head_dim
    if pages is None:
        rings, full, width, ring = (1, K, slots, 16, H), (1, K, slots, 96, H), PROMPT, 16
    else:
        # Seven rings of two pages, and page 0.
        rings, full, width, ring = (1, K, 15, 4, H), (1, K, pages + 1, 4, H), 24, 8
    assert {rings, full} <= shapes
    # Of four questions.
    assert {(5, 1, 4, K, ring, H), (5, 1, 4, K, width, H)} <= shapes
    entry = [each for each in operations if not each.loop]
    of_prompts = {(1, 4, K, ring, H), (1, K, 4, ring, H), (1, 4, K, width, H), (1, K, 4, width, H)}
    assert pages is None or not [each for each in entry if of_prompts & set(each.shapes)]
