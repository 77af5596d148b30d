"""The decode loop on a tiny random model, and drawn tokens against known distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import init_params

from jaxdistill.errors import UserError
from jaxdistill.models import completions, decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.sampling import (
    Sampling,
    make_sampler,
    question_hashes,
    row_keys,
    sampler,
    shrinking,
)

CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=29,
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
PAD, STOPS = 0, (3,)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
IDS = ["a", "b", "c", "d"]


@functools.cache
def params():
    return init_params(CONFIG, jax.random.key(0))


def build(sampling, rollouts, stops=STOPS, slots=None, pages=None, **options):
    return make_sampler(
        CONFIG, sampling, stops, PAD, rollouts=rollouts, slots=slots, pages=pages, page_size=4,
        **options,
    )  # fmt: skip


def left_pad(prompts, width):
    ids_QP = np.full((len(prompts), width), PAD, np.int32)
    mask_QP = np.zeros((len(prompts), width), np.int32)
    for i, prompt in enumerate(prompts):
        ids_QP[i, width - len(prompt) :] = prompt
        mask_QP[i, width - len(prompt) :] = 1
    return ids_QP, mask_QP


def sample(
    questions, rollouts, sampling, *, width=6, stops=STOPS, slots=None, pages=None, limit_B=None,
    **options,
):  # fmt: skip
    keys_B2 = row_keys(0, "test", 3, question_hashes([IDS[q] for q in questions]), rollouts)
    ids_QP, mask_QP = left_pad([PROMPTS[q] for q in questions], width)
    if limit_B is None:  # an argument in every test, so that all share one program
        limit_B = np.full(len(keys_B2), sampling.max_new_tokens, np.int32)
    run = build(sampling, rollouts, stops, slots, pages, **options)
    return jax.device_get(run(params(), ids_QP, mask_QP, keys_B2, limit_B))


@functools.partial(jax.jit, static_argnames=("temperature", "dtype"))
def score(ids_BP, mask_BP, samples, temperature=1.0, dtype=jnp.float32):
    """The log-probs that training computes, [B, T]."""
    hidden_BTD = completions.completion_hidden(
        params(), CONFIG, ids_BP, mask_BP, samples.tokens_BT, samples.mask_BT, dtype=dtype
    )
    head_DV = parameters.head(params(), CONFIG)
    return completions.token_logp(hidden_BTD, head_DV, samples.tokens_BT, temperature=temperature)


SAMPLING = Sampling(max_new_tokens=12)
ONE_ROW = 5  # pages of four positions for a prompt of six tokens and twelve new ones
# (slots, pages): fewer slots than rows, and fewer pages than they need. The tests share these few
# pairs, because every pair compiles a program.
REFILLED, PAGED = (3, None), (7, 23)


def test_greedy_takes_the_argmax_of_a_full_forward_at_every_step():
    samples = sample([0, 1, 2, 3], 1, Sampling(temperature=0.0, max_new_tokens=8), stops=())
    texts = [np.concatenate(pair) for pair in zip(PROMPTS, samples.tokens_BT)]
    ids_BS, mask_BS = left_pad(texts, 13)
    hidden_BSD = jax.jit(decoder.hidden_states, static_argnums=1)(params(), CONFIG, ids_BS, mask_BS)
    logp_BSV = jax.nn.log_softmax(hidden_BSD @ parameters.head(params(), CONFIG))
    for logp_SV, tokens_T, logp_T in zip(logp_BSV, samples.tokens_BT, samples.logp_BT):
        logp_TV = logp_SV[-9:-1]  # each position predicts the token after it
        np.testing.assert_array_equal(tokens_T, jnp.argmax(logp_TV, axis=-1))
        np.testing.assert_allclose(logp_T, logp_TV.max(axis=-1), atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("pages", [None, pytest.param(60, marks=pytest.mark.slow), 200])
def test_greedy_through_refilled_slots_is_the_argmax_of_a_full_forward(pages):
    """300 prompts of one to eleven tokens, twice each, through 32 slots that free up unevenly.

    With 60 pages of four positions for rows that need up to five, some must begin anew.
    """
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 29, rng.integers(1, 12)).tolist() for _ in range(300)]
    ids_QP, mask_QP = left_pad(prompts, 11)
    num_new = 6 if pages is None else 60  # long enough that all running rows need new pages at once
    limit_B = rng.integers(1, num_new + 1, 600).astype(np.int32)
    run = build(
        Sampling(temperature=0.0, max_new_tokens=num_new), 2, slots=32, pages=pages, counts=True
    )
    keys_B2 = row_keys(0, "test", 0, question_hashes([str(q) for q in range(300)]), 2)
    samples, counts = jax.device_get(run(params(), ids_QP, mask_QP, keys_B2, limit_B))
    assert (counts.preempted > 0) == (pages == 60)
    assert counts.row_steps == samples.mask_BT.sum() + counts.redrawn

    ids_BS = np.concatenate([ids_QP.repeat(2, 0), samples.tokens_BT], axis=1)
    mask_BS = np.concatenate([mask_QP.repeat(2, 0), samples.mask_BT], axis=1)
    hidden_BSD = jax.jit(decoder.hidden_states, static_argnums=1)(params(), CONFIG, ids_BS, mask_BS)
    logits_BTV = (hidden_BSD @ parameters.head(params(), CONFIG))[:, 10:-1]
    is_drawn_BT = samples.mask_BT > 0
    expected_BT = np.asarray(jnp.argmax(logits_BTV, axis=-1))
    np.testing.assert_array_equal(samples.tokens_BT[is_drawn_BT], expected_BT[is_drawn_BT])
    length_B = samples.mask_BT.sum(axis=1)
    assert (length_B[~samples.finished_B] == limit_B[~samples.finished_B]).all()
    assert 0 < samples.finished_B.sum() < 600


@pytest.mark.long
@pytest.mark.parametrize(
    ("slots", "pages"),
    [
        REFILLED,
        (3, ONE_ROW),
        PAGED,
        # The same programs at the ends of what they allow: each takes seconds to compile.
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(16, None, marks=pytest.mark.slow),
        pytest.param(1, ONE_ROW, marks=pytest.mark.slow),
        pytest.param(16, ONE_ROW, marks=pytest.mark.slow),
        pytest.param(16, 80, marks=pytest.mark.slow),
    ],
)
def test_a_sample_does_not_depend_on_its_slot_or_when_it_had_it(slots, pages):
    expected = sample([0, 1, 2, 3], 4, SAMPLING)
    found = sample([0, 1, 2, 3], 4, SAMPLING, slots=slots, pages=pages)
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(found.mask_BT, expected.mask_BT)
    np.testing.assert_array_equal(found.finished_B, expected.finished_B)
    # A matrix product may sum in another order for another number of rows.
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("slots", "pages"),
    [
        REFILLED,
        PAGED,
        pytest.param(16, None, marks=pytest.mark.slow),
        pytest.param(3, ONE_ROW, marks=pytest.mark.slow),
    ],
)
def test_a_sample_from_an_int8_cache_does_not_depend_on_its_slot_either(slots, pages):
    expected = sample([0, 1, 2, 3], 4, SAMPLING, cache_dtype="int8")
    found = sample([0, 1, 2, 3], 4, SAMPLING, slots=slots, pages=pages, cache_dtype="int8")
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(found.mask_BT, expected.mask_BT)
    # A difference in the last bit may round a cached value to the next int8 step, 1 in 127.
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-3)


@pytest.mark.parametrize(("slots", "pages"), [REFILLED, PAGED])
def test_behaviour_log_probs_of_an_int8_cache_are_near_those_of_scoring_and_not_equal(slots, pages):
    samples = sample([0, 1, 2, 3], 4, SAMPLING, slots=slots, pages=pages, cache_dtype="int8")
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    logp_BT = score(ids_QP.repeat(4, 0), mask_QP.repeat(4, 0), samples)
    off_BT = np.abs(samples.logp_BT - logp_BT * samples.mask_BT)
    # Logits have a spread of 1, and int8 states an error of 0.5 % (see test_decoder).
    assert 1e-4 < off_BT.sum() / samples.mask_BT.sum() < 1e-2
    assert off_BT.max() < 0.1


@pytest.mark.parametrize(("slots", "pages"), [(None, None), REFILLED, PAGED])
def test_a_limit_of_its_own_gives_the_beginning_of_a_row(slots, pages):
    whole = sample([0, 1, 2, 3], 4, SAMPLING)
    limit_B = np.arange(16, dtype=np.int32) % 14  # none at all, and more than max_new_tokens
    cut = sample([0, 1, 2, 3], 4, SAMPLING, slots=slots, pages=pages, limit_B=limit_B)
    kept_BT = (whole.mask_BT > 0) & (np.arange(12)[None, :] < limit_B[:, None])
    np.testing.assert_array_equal(cut.mask_BT, kept_BT)
    np.testing.assert_array_equal(cut.tokens_BT, np.where(kept_BT, whole.tokens_BT, PAD))
    np.testing.assert_array_equal(
        cut.finished_B, whole.finished_B & (whole.mask_BT.sum(axis=1) <= limit_B)
    )


@pytest.mark.long
@pytest.mark.parametrize("pages", [None, 20])
def test_other_prompts_and_limits_of_the_same_sizes_compile_nothing(compilations, pages):
    run = build(Sampling(max_new_tokens=3), 4, slots=5, pages=pages)
    counts = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        keys_B2 = row_keys(0, "test", 3, question_hashes([IDS[q] for q in order]), 4)
        ids_QP, mask_QP = left_pad([PROMPTS[q] for q in order], 6)
        run(params(), ids_QP, mask_QP, keys_B2, np.full(16, order[0], np.int32))
        counts.append(len(compilations))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("slots", "pages", "cache_dtype"),
    [
        (16, None, "auto"),
        (5, None, "auto"),
        (5, 333, "auto"),
        pytest.param(5, None, "int8", marks=pytest.mark.long),
        pytest.param(5, 333, "int8", marks=pytest.mark.long),
        pytest.param(16, None, "int8", marks=pytest.mark.slow),
    ],
)
def test_no_loop_of_the_compiled_program_copies_a_cache(slots, pages, cache_dtype):
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS), 4)
    sampler = build(
        Sampling(max_new_tokens=500), 4, slots=slots, pages=pages, cache_dtype=cache_dtype
    )
    text = sampler.lower(params(), *left_pad(PROMPTS, 6), keys_B2).compile().as_text()
    K, H, S = CONFIG.num_kv_heads, CONFIG.head_dim, 512
    cache = f"[1,{K},{slots},{S},{H}]" if pages is None else f"[1,{K},{pages + 1},4,{H}]"
    item = "s8" if cache_dtype == "int8" else "f32"
    assert f"{item}{cache}" in text, "the test no longer knows the shape of the cache"
    inside = [part for part in text.split("\n\n") if not part.lstrip().startswith("ENTRY")]
    lines = "\n".join(inside).splitlines()
    caches = cache, cache.replace(f",{H}]", "]")  # and its scales
    copies = [line for line in lines if " copy(" in line
              and any(cache in line.partition(" copy(")[0] for cache in caches)]  # fmt: skip
    assert not copies, "\n".join(copies)


TRUNCATED = Sampling(temperature=0.6, top_k=9, top_p=0.9, max_new_tokens=12)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
AT_LEAST = Sampling(min_p=0.2, max_new_tokens=12)


# How a token is drawn does not depend on where its cache lies.
@pytest.mark.parametrize(
    ("sampling", "slots", "pages"),
    [
        (SAMPLING, *REFILLED),
        (SAMPLING, *PAGED),
        pytest.param(TRUNCATED, *PAGED, marks=pytest.mark.long),
        (GREEDY, *REFILLED),
        pytest.param(AT_LEAST, *PAGED, marks=pytest.mark.long),
        pytest.param(TRUNCATED, *REFILLED, marks=pytest.mark.slow),
        pytest.param(GREEDY, *PAGED, marks=pytest.mark.slow),
        pytest.param(AT_LEAST, *REFILLED, marks=pytest.mark.slow),
    ],
)
def test_behaviour_log_probs_equal_those_of_scoring(sampling, slots, pages):
    samples = sample([0, 1, 2, 3], 4, sampling, slots=slots, pages=pages)
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    logp_BT = score(
        ids_QP.repeat(4, 0), mask_QP.repeat(4, 0), samples, temperature=sampling.logp_temperature
    )
    # Decoding with a cache sums in another order than a full forward pass, in float32.
    np.testing.assert_allclose(samples.logp_BT, logp_BT * samples.mask_BT, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("pages", [pytest.param(None, marks=pytest.mark.slow), 12])
def test_behaviour_log_probs_in_bfloat16_equal_those_of_scoring_in_bfloat16(pages):
    run = build(SAMPLING, 8, slots=5, pages=pages, dtype=jnp.bfloat16)
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    samples = jax.device_get(
        run(params(), ids_QP, mask_QP, row_keys(0, "test", 3, question_hashes(IDS), 8))
    )
    logp_BT = score(ids_QP.repeat(8, 0), mask_QP.repeat(8, 0), samples, dtype=jnp.bfloat16)
    # The two paths round hidden states of magnitude 1 to 2^-8 several times, at different places.
    np.testing.assert_allclose(samples.logp_BT, logp_BT * samples.mask_BT, atol=2e-2)


def test_nothing_follows_the_stop_id():
    samples = sample([0, 1, 2, 3], 4, SAMPLING)
    assert 0 < samples.finished_B.sum() < 16, "the test needs rows that stop and rows that do not"
    for tokens_T, mask_T, logp_T, is_finished in zip(*samples):
        length = mask_T.sum()
        np.testing.assert_array_equal(mask_T, np.arange(12) < length)
        assert not np.isin(tokens_T[: length - 1], STOPS).any()
        assert is_finished == (tokens_T[length - 1] in STOPS)
        assert is_finished or length == 12
        assert (tokens_T[length:] == PAD).all()
        assert (logp_T[length:] == 0).all()
        assert (logp_T[:length] <= 0).all()


def test_a_sample_depends_on_its_question_and_rollout_only():
    whole = sample([0, 1, 2, 3], 4, SAMPLING)
    for questions, rollouts in [([3, 2, 1, 0], 4), ([1, 2], 2), ([0], 1)]:
        part = sample(questions, rollouts, SAMPLING)
        for i, question in enumerate(questions):
            rows = slice(i * rollouts, (i + 1) * rollouts)
            expected = slice(question * 4, question * 4 + rollouts)
            np.testing.assert_array_equal(part.tokens_BT[rows], whole.tokens_BT[expected])
            np.testing.assert_array_equal(part.mask_BT[rows], whole.mask_BT[expected])
            # Not bitwise: a matrix product may sum in another order for another number of rows.
            np.testing.assert_allclose(
                part.logp_BT[rows], whole.logp_BT[expected], rtol=1e-5, atol=1e-5
            )


def test_neighbours_cannot_change_a_single_bit_of_a_row():
    one, other = sample([0, 1, 2, 3], 4, SAMPLING), sample([0, 3, 2, 1], 4, SAMPLING)
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a[:4], b[:4])
        np.testing.assert_array_equal(a[8:12], b[8:12])


def test_wider_prompt_padding_changes_nothing():
    narrow, wide = (sample([0, 1, 2, 3], 4, SAMPLING, width=width) for width in (6, 13))
    np.testing.assert_array_equal(narrow.tokens_BT, wide.tokens_BT)
    np.testing.assert_allclose(narrow.logp_BT, wide.logp_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_shorter_limit_gives_the_beginning_of_the_same_samples():
    long = sample([0, 1, 2, 3], 4, SAMPLING)
    for limit in (1, 5):
        short = sample([0, 1, 2, 3], 4, Sampling(max_new_tokens=limit))
        np.testing.assert_array_equal(long.tokens_BT[:, :limit], short.tokens_BT)
        np.testing.assert_array_equal(
            short.finished_B, long.finished_B & (long.mask_BT.sum(axis=1) <= limit)
        )


@pytest.mark.parametrize(("slots", "pages"), [(None, None), REFILLED, PAGED])
def test_a_spare_question_generates_nothing_and_disturbs_nobody(slots, pages):
    ids_QP, mask_QP = left_pad([PROMPTS[0], PROMPTS[1], [], PROMPTS[3]], 6)
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS), 4)
    run = build(SAMPLING, 4, slots=slots, pages=pages)
    limit_B = np.full(16, 12, np.int32)
    samples = jax.device_get(run(params(), ids_QP, mask_QP, keys_B2, limit_B))
    expected = sample([0, 1, 2, 3], 4, SAMPLING)
    others, spare = [*range(8), *range(12, 16)], slice(8, 12)
    np.testing.assert_array_equal(samples.tokens_BT[others], expected.tokens_BT[others])
    np.testing.assert_allclose(samples.logp_BT[others], expected.logp_BT[others], atol=1e-5)
    assert (samples.tokens_BT[spare] == PAD).all()
    assert samples.mask_BT[spare].sum() == 0
    assert not samples.finished_B[spare].any()


def test_keys_are_addressed_by_purpose_step_question_and_rollout():
    hashes = question_hashes(["a", "b"])
    base = np.asarray(row_keys(0, "train", 1, hashes, 3))
    assert len(np.unique(base, axis=0)) == 6
    for other in [
        row_keys(1, "train", 1, hashes, 3),
        row_keys(0, "eval", 1, hashes, 3),
        row_keys(0, "train", 2, hashes, 3),
        row_keys(0, "train", 1, hashes[::-1], 3),
    ]:
        assert (np.asarray(other) != base).any(axis=1).all()
    # A rollout's key does not depend on the number of rollouts.
    fewer = np.asarray(row_keys(0, "train", 1, hashes, 2))
    np.testing.assert_array_equal(fewer.reshape(2, 2, 2), base.reshape(2, 3, 2)[:, :2])


@pytest.mark.long
def test_counts_of_rows_that_all_fit_are_their_steps_and_tokens():
    run = build(SAMPLING, 4, stops=(), slots=16, pages=80, counts=True)
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS), 4)
    _, counts = run(params(), ids_QP, mask_QP, keys_B2)
    assert counts.steps == 16, "twelve steps, but who has ended is seen every sixteen"
    assert counts.row_steps == 16 * 12
    prompt = 4 * sum(len(prompt) - 1 for prompt in PROMPTS)  # the last token is fed again
    assert counts.positions == 12 * prompt + 16 * sum(range(12))
    assert counts.preempted == counts.redrawn == 0


def test_a_pool_without_room_for_a_longest_row_is_the_users_mistake():
    with pytest.raises(UserError, match=r"pages=4 are too few.*18 positions, needs 5 pages of 4"):
        sample([0, 1, 2, 3], 4, SAMPLING, slots=3, pages=ONE_ROW - 1)


def rounded_to_int8(x, axes):
    """x with one scale for all that lies along `axes`, by NumPy."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / 127
    return np.floor(np.asarray(x, np.float64) / scale + 0.5) * scale


@pytest.mark.long
def test_behaviour_log_probs_are_those_of_the_rounded_weights():
    """Of prompts of one token: prefill has not seen it, and all steps read rounded weights."""
    ids_Q1 = np.array([[5], [8]], np.int32)
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS[:2]), 2)
    samples = build(Sampling(max_new_tokens=6), 2, stops=(), weights_dtype="int8")(
        params(), ids_Q1, np.ones_like(ids_Q1), keys_B2
    )
    prompts = np.repeat(ids_Q1, 2, axis=0), np.ones((4, 1), np.int32)

    def logp_of(weights, head_DV):
        hidden_BTD = completions.completion_hidden(
            weights, CONFIG, *prompts, samples.tokens_BT, samples.mask_BT
        )
        return completions.token_logp(hidden_BTD, head_DV, samples.tokens_BT)

    rounded = jax.tree.map(lambda x: x, params())
    for name, leaf in rounded["layers"].items():
        axes = (1, 2) if name == "out" else 1  # [L, N, H, D]; of all others the second axis
        if "norm" not in name:
            value = rounded_to_int8(leaf.get_raw_value(), axes)
            rounded["layers"][name] = leaf.replace(jnp.asarray(value, jnp.float32))
    head_DV = parameters.head(params(), CONFIG)
    rounded_DV = jnp.asarray(rounded_to_int8(head_DV, 0), jnp.float32)
    np.testing.assert_allclose(samples.logp_BT, logp_of(rounded, rounded_DV), atol=1e-5)
    assert np.abs(samples.logp_BT - logp_of(params(), head_DV)).mean() > 1e-4


def test_a_sampler_has_the_compilers_options_for_the_mesh_in_use(monkeypatch):
    """Where no kernel reads int8 weights, as under tensor parallelism, XLA's Triton products must.

    Otherwise a kernel writes all weights out in bfloat16 at every token.
    """
    monkeypatch.setattr(sampler, "platform", lambda: "gpu")
    options = []
    monkeypatch.setattr(jax, "jit", lambda *_, **how: options.append(how["compiler_options"]))
    for by_kernels in (True, False, True):
        monkeypatch.setattr(sampler, "is_read_by_kernels", lambda *_, has=by_kernels: has)
        build(Sampling(max_new_tokens=77), 4, weights_dtype="int8")
    triton = [each["xla_gpu_enable_triton_gemm"] for each in options]
    assert triton == [False, True]  # the third is the first


def test_an_unknown_weights_dtype_is_the_users_mistake():
    with pytest.raises(UserError, match="`weights_dtype` must be one of auto, int8, int8_dynamic"):
        build(SAMPLING, 4, weights_dtype="float8")


def test_an_unknown_cache_dtype_is_the_users_mistake():
    with pytest.raises(UserError, match="`cache_dtype` must be one of auto, int8, got 'int4'"):
        build(SAMPLING, 4, cache_dtype="int4")


def test_a_sampling_value_out_of_range_is_the_users_mistake():
    with pytest.raises(UserError, match=r"sampling\.top_p=1\.5.*\(0, 1\]"):
        Sampling(top_p=1.5)


@pytest.mark.long
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(max_new_tokens=8, temperature=0.0), marks=pytest.mark.slow),
        Sampling(max_new_tokens=8, temperature=1.3, top_k=20, top_p=0.95, min_p=0.01),
    ],
)
def test_a_padded_vocabulary_and_repeated_heads_draw_the_same_tokens(sampling):
    """29 tokens and two key/value heads on four devices, of which each computes one head."""
    from jaxdistill import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=1, tensor=4))
    placed = parameters.padded(params(), mesh)
    placed = jax.device_put(placed, sharding.shardings_of(mesh, placed))
    assert placed["embed"][...].shape == (512, CONFIG.hidden_size)
    expected = sample([0, 1, 2, 3], 4, sampling)
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS), 4)
    with sharding.use_mesh(mesh):
        batch = sharding.shard_batch(mesh, (ids_QP, mask_QP, keys_B2))
        samples = jax.device_get(build(sampling, 4, slots=8, pages=4 * 7)(placed, *batch))
    np.testing.assert_array_equal(samples.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(samples.logp_BT, expected.logp_BT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("slots", "pages", "cache_dtype"),
    [
        pytest.param(None, None, "auto", marks=pytest.mark.long),
        pytest.param(8, 4 * 7, "auto", marks=pytest.mark.long),
        pytest.param(8, None, "int8", marks=pytest.mark.long),
        (8, 4 * 7, "int8"),
        # Parts of these; each compiles for eight devices.
        pytest.param(8, None, "auto", marks=pytest.mark.slow),
        pytest.param(16, 4 * 12, "auto", marks=pytest.mark.slow),
        pytest.param(None, None, "int8", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_sample_like_one(slots, pages, cache_dtype):
    from jaxdistill import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params(), sharding.shardings_of(mesh, params()))
    expected = sample([0, 1, 2, 3], 4, SAMPLING, cache_dtype=cache_dtype)
    ids_QP, mask_QP = left_pad(PROMPTS, 6)
    keys_B2 = row_keys(0, "test", 3, question_hashes(IDS), 4)
    with sharding.use_mesh(mesh):
        ids_QP, mask_QP, keys_B2 = sharding.shard_batch(mesh, (ids_QP, mask_QP, keys_B2))
        run = build(SAMPLING, 4, slots=slots, pages=pages, cache_dtype=cache_dtype)
        samples = jax.device_get(run(placed, ids_QP, mask_QP, keys_B2))
    np.testing.assert_array_equal(samples.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(samples.finished_B, expected.finished_B)
    # A difference in the last bit may round a cached value to the next int8 step.
    atol = 1e-3 if cache_dtype == "int8" else 1e-4
    np.testing.assert_allclose(samples.logp_BT, expected.logp_BT, rtol=1e-4, atol=atol)


@pytest.mark.long
@pytest.mark.parametrize("pages", [None, pytest.param(80, marks=pytest.mark.slow)])
def test_rows_go_on_in_fewer_slots_with_the_same_tokens(pages, monkeypatch):
    """16 slots become 8, 4 and 2 as rows end, in the order of no row's index."""
    monkeypatch.setattr(shrinking, "_LEAST_SLOTS", 2)
    limit_B = np.array([1, 12, 2, 3, 12, 1, 5, 6, 2, 9, 3, 1, 12, 4, 7, 1], np.int32)
    options = {"stops": (), "slots": 16, "pages": pages, "limit_B": limit_B}
    expected = sample([0, 1, 2, 3], 4, SAMPLING, **options)
    sampler._jitted.cache_clear()  # another number of slots at least is another program
    shrunk, spied = [], shrinking.shrink
    monkeypatch.setattr(sampler, "shrink", lambda s, n, p: (shrunk.append(n), spied(s, n, p))[1])
    found = sample([0, 1, 2, 3], 4, SAMPLING, most_slot_counts=4, **options)
    assert shrunk == [8, 4, 2]
    assert found.mask_BT.sum(axis=1).tolist() == limit_B.tolist()
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-5)


@pytest.mark.long
def test_prompts_in_blocks_of_rows_draw_the_same_tokens(monkeypatch):
    """As on an accelerator, where the prompts of a block are those of some 8,192 positions."""
    expected = sample([0, 1, 2, 3], 4, SAMPLING)
    blocks, spied = [], decoder.in_row_blocks
    monkeypatch.setattr(decoder, "in_row_blocks", lambda *a: (blocks.append(a[2]), spied(*a))[1])
    monkeypatch.setattr(decoder, "platform", lambda: "gpu")
    monkeypatch.setattr(decoder, "BLOCK", 12)  # two prompts of six positions
    sampler._jitted.cache_clear()
    found = sample([0, 1, 2, 3], 4, SAMPLING)
    sampler._jitted.cache_clear()  # the others compile what they name
    assert set(blocks) == {2}
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-5)
