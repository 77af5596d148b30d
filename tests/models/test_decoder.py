import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import CONFIG, CONFIGS, init_params, random_batch, states_of

from jaxdistill import sharding
from jaxdistill.models import decoder, parameters
from jaxdistill.storage import hf_import

# float32 sums in another order: a few times 1e-7, amplified by three layers of values near 1.
TOLERANCE = 2e-5


@functools.partial(jax.jit, static_argnames=("config", "num_slots", "cache_dtype"))
def _prefill(params, config, tokens_BP, mask_BP, num_slots, **options):
    hidden_BD, prompts = decoder.prefill(params, config, tokens_BP, mask_BP, num_slots, **options)
    return hidden_BD, prompts.as_cache()


_decode_step = jax.jit(decoder.decode_step, static_argnames=("config", "dtype"))


@pytest.mark.long
@pytest.mark.parametrize("family", CONFIGS)
def test_a_packed_sequence_has_the_states_of_a_row_of_its_own(family):
    """Two sequences and padding, an empty one between two, and a row of none."""
    config = CONFIGS[family]
    params = init_params(config, jax.random.key(0))
    lengths_BA = np.array([[6, 5, 0], [4, 0, 10], [0, 0, 0]])
    tokens_BS = np.random.default_rng(1).integers(1, config.vocab_size, (3, 14))
    run = jax.jit(decoder.packed_hidden_states, static_argnames=("config", "remat"))
    packed_BSD = np.asarray(run(params, config, tokens_BS, lengths_BA))
    assert np.isfinite(packed_BSD).all()
    spoilt_BS = tokens_BS.copy()
    spoilt_BS[0, 11:] = -100
    again_BSD = run(params, config, spoilt_BS, lengths_BA, remat="all")
    np.testing.assert_allclose(again_BSD[:2, :11], packed_BSD[:2, :11], atol=TOLERANCE)
    for b, slots in ((0, np.s_[:6]), (0, np.s_[6:11]), (1, np.s_[:4]), (1, np.s_[4:])):
        alone_BS = tokens_BS[b : b + 1, slots]
        alone_BSD = states_of(params, config, alone_BS, np.ones_like(alone_BS))
        np.testing.assert_allclose(packed_BSD[b, slots], alone_BSD[0], atol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
@pytest.mark.parametrize("family", CONFIGS)
def test_blocks_of_positions_do_not_change_the_states(family, sizes):
    """Three blocks of each device's rows; with tensor=2 they hold attention's product too."""
    config = CONFIGS[family]
    params = init_params(config, jax.random.key(0))
    tokens_BS = np.random.default_rng(1).integers(1, config.vocab_size, (4, 24))
    lengths_BA = np.array([[14, 10], [24, 0], [5, 12], [0, 20]])
    mesh = None if sizes is None else sharding.make_mesh(sharding.MeshConfig(*sizes))
    run = jax.jit(decoder.packed_hidden_states, static_argnames=("config", "mlp_block"))
    with sharding.use_mesh(mesh):
        if mesh is not None:
            params = jax.device_put(params, sharding.shardings_of(mesh, params))
        arguments = params, config, tokens_BS, lengths_BA
        whole_BSD, found_BSD = (
            np.asarray(run(*arguments, mlp_block=block))
            for block in (None, 8 if mesh is not None else 32)
        )
    np.testing.assert_allclose(found_BSD, whole_BSD, atol=TOLERANCE)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


def _olmo3_ropes(full, sliding):
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


# The text is longer than the windows and than what YaRN and Llama 3 call the original context.
# The slow ones are parts of the others and of the models of families/test_add_a_model.py.
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        pytest.param("qwen3", {"num_key_value_heads": 1}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"num_key_value_heads": 4}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"rope_theta": 1e6, "rms_norm_eps": 1e-2}, marks=pytest.mark.slow),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        pytest.param("qwen3", {"attention_bias": True}, marks=pytest.mark.slow),
        ("qwen3", {"rope_theta": 5e4, "rope_scaling": YARN}),
        pytest.param(
            "qwen3",
            {"rope_scaling": YARN | {"truncate": False, "beta_fast": 4.0}},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "qwen3",
            {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "qwen3",
            {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            marks=pytest.mark.long,
        ),
        ("qwen3", {"rope_scaling": LLAMA3}),
        pytest.param("qwen3", {"num_hidden_layers": 6} | WINDOW, marks=pytest.mark.long),
        pytest.param("qwen2", {}, marks=pytest.mark.slow),
        ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1, "rope_theta": 1e6}),
        pytest.param("qwen2", {"num_key_value_heads": 4, "head_dim": 10}, marks=pytest.mark.long),
        ("qwen2", {"rope_scaling": YARN} | WINDOW),
        pytest.param("llama", {}, marks=pytest.mark.slow),
        ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3, "tie_word_embeddings": True}),
        pytest.param(
            "llama",
            {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "num_key_value_heads": None},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 3.0}, "num_key_value_heads": 1},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "llama",
            {"rope_scaling": YARN, "rms_norm_eps": 1e-2, "head_dim": 10},
            marks=pytest.mark.long,
        ),
        pytest.param("llama", {"attention_bias": True}, marks=pytest.mark.slow),
        pytest.param("llama", {"mlp_bias": True}, marks=pytest.mark.slow),
        pytest.param("olmo3", {}, marks=pytest.mark.slow),
        pytest.param("olmo3", {"rope_theta": 5e5, "rope_scaling": YARN}, marks=pytest.mark.slow),
        pytest.param(
            "olmo3",
            {"rope_theta": 1e4, "rope_scaling": YARN, "num_hidden_layers": 8},
            marks=pytest.mark.long,
        ),
        ("olmo3", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        pytest.param(
            "olmo3", {"num_key_value_heads": 4, "attention_bias": True}, marks=pytest.mark.long
        ),
        pytest.param(
            "olmo3",
            {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"] * 2},
            marks=pytest.mark.long,
        ),
        ("olmo3", _olmo3_ropes(YARN | {"rope_theta": 3e4}, {"rope_type": "default"})),
        ("olmo3", _olmo3_ropes({"rope_type": "default"}, LLAMA3 | {"rope_theta": 2e4})),
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(family, fields, reference, reference_logits, tmp_path):
    model = reference(tmp_path, family=family, **fields)
    config, params = hf_import.import_folder(tmp_path)
    assert config.family == family
    tokens_BS, mask_BS = random_batch(S=50)
    hidden_BSD = states_of(params, config, tokens_BS, mask_BS)
    logits_BSV = np.asarray(hidden_BSD @ parameters.head(params, config))
    expected_BSV = reference_logits(model, tokens_BS, mask_BS)
    real = mask_BS.astype(bool)
    assert expected_BSV[real].std() > 1, "near-uniform logits would hide mistakes"
    assert np.abs(logits_BSV - expected_BSV)[real].max() <= 1e-4


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("prepared", [False, True], ids=["stacked", "unstacked"])
def test_decoding_with_a_cache_equals_the_full_forward_at_every_position(family, prepared):
    config, P, S = CONFIGS[family], 6, 14  # across the windows of 4
    params = init_params(config, jax.random.key(0))
    tokens_BS, mask_BS = random_batch(S)
    mask_BS[:, P - 1 :] = 1  # left padding only
    expected_BSD = np.asarray(states_of(params, config, tokens_BS, mask_BS))
    hidden_BD, cache = _prefill(params, config, tokens_BS[:, :P], mask_BS[:, :P], S)
    np.testing.assert_allclose(hidden_BD, expected_BSD[:, P - 1], atol=TOLERANCE)
    weights = parameters.unstack(params, config) if prepared else params
    for t in range(P, S):
        hidden_BD, cache = _decode_step(weights, config, tokens_BS[:, t], cache)
        np.testing.assert_allclose(hidden_BD, expected_BSD[:, t], atol=TOLERANCE)
    np.testing.assert_array_equal(cache.length_B, mask_BS.sum(axis=1))


@pytest.mark.long
@pytest.mark.parametrize("family", CONFIGS)
def test_decoding_with_an_int8_cache_stays_near_the_full_forward(family):
    config, P, S = CONFIGS[family], 6, 14
    params = init_params(config, jax.random.key(0))
    tokens_BS, mask_BS = random_batch(S)
    mask_BS[:, P - 1 :] = 1
    expected_BSD = np.asarray(states_of(params, config, tokens_BS, mask_BS))
    prompt = tokens_BS[:, :P], mask_BS[:, :P], S
    hidden_BD, cache = _prefill(params, config, *prompt, cache_dtype="int8")
    assert {x.dtype.name for x in jax.tree.leaves((cache.k, cache.v))} == {"int8", "float32"}
    np.testing.assert_allclose(hidden_BD, expected_BSD[:, P - 1], atol=TOLERANCE)
    errors = []
    for t in range(P, S):
        hidden_BD, cache = _decode_step(params, config, tokens_BS[:, t], cache)
        errors.append(np.abs(hidden_BD - expected_BSD[:, t]))
    # Rounding changes a number by at most 1/254 of its head's largest, which is about twice the
    # spread: at most 0.8 % of a key or value, and typically 0.5 %. This adds up over three or four
    # layers with states of about 1.
    assert 1e-4 < np.mean(errors) < 0.01
    assert np.max(errors) < 0.1


@pytest.mark.long
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_through_the_kernel_equals_one_through_xla(family, cache_dtype, monkeypatch):
    config = dataclasses.replace(CONFIGS[family], head_dim=16)
    params = init_params(config, jax.random.key(0))
    tokens_BS, mask_BS = random_batch()
    prompt = tokens_BS[:, :6], mask_BS[:, :6], 10
    _, cache = _prefill(params, config, *prompt, cache_dtype=cache_dtype)
    expected_BD, _ = _decode_step(params, config, tokens_BS[:, 6], cache)
    kernel = functools.partial(decoder.kernel_attention, interpret=True)
    monkeypatch.setattr(decoder, "has_kernel", lambda *given: True)
    monkeypatch.setattr(decoder, "kernel_attention", kernel)
    step = jax.jit(lambda *arguments: decoder.decode_step(arguments[0], config, *arguments[1:]))
    found_BD, after = step(params, tokens_BS[:, 6], cache)
    if cache_dtype == "int8":
        # The kernel rounds queries to two integers (`test_cached_attention`). In a later layer that
        # may round a number of the new token to its neighbour: here one value of one row of olmo3.
        assert np.median(np.abs(found_BD - expected_BD)) < 2 * TOLERANCE
        np.testing.assert_allclose(found_BD, expected_BD, atol=5e-3)
    else:
        np.testing.assert_allclose(found_BD, expected_BD, atol=TOLERANCE)
    np.testing.assert_array_equal(after.length_B, cache.length_B + 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_may_be_padded_on_either_side(side, params):
    tokens_BS, _ = random_batch()
    widths = (3, 0) if side == "left" else (0, 3)
    prompt_BP = np.pad(tokens_BS[:, :6], ((0, 0), widths))
    mask_BP = np.pad(np.ones((4, 6), int), ((0, 0), widths))
    bare = _prefill(params, CONFIG, tokens_BS[:, :6], np.ones((4, 6), int), 10)
    padded = _prefill(params, CONFIG, prompt_BP, mask_BP, 10)
    np.testing.assert_allclose(padded[0], bare[0], atol=TOLERANCE)
    after = [_decode_step(params, CONFIG, tokens_BS[:, 6], cache)[0] for _, cache in (bare, padded)]
    np.testing.assert_allclose(*after, atol=TOLERANCE)


def test_a_full_row_keeps_its_cache(params):
    tokens_BS, _ = random_batch()
    _, cache = _prefill(params, CONFIG, tokens_BS[:, :6], np.ones((4, 6), int), 6)
    _, after = _decode_step(params, CONFIG, tokens_BS[:, 6], cache)
    jax.tree.map(np.testing.assert_array_equal, after.k, cache.k)


def test_unused_cache_slots_cannot_change_a_step(params):
    tokens_BS, _ = random_batch()
    _, cache = _prefill(params, CONFIG, tokens_BS[:, :6], np.ones((4, 6), int), 10)
    spoilt = cache._replace(
        k=tuple(k.at[..., 7:, :].set(1e3) for k in cache.k),
        v=tuple(v.at[..., 7:, :].set(1e3) for v in cache.v),
    )
    clean_BD, _ = _decode_step(params, CONFIG, tokens_BS[:, 6], cache)
    spoilt_BD, _ = _decode_step(params, CONFIG, tokens_BS[:, 6], spoilt)
    np.testing.assert_array_equal(clean_BD, spoilt_BD)


@pytest.mark.parametrize("padding", [17, -100, CONFIG.vocab_size])
def test_the_token_in_the_padding_cannot_change_a_bit(params, padding):
    tokens_BS, mask_BS = random_batch()
    other_BS = np.where(mask_BS, tokens_BS, padding)
    hidden_BSD, other_BSD = (
        np.asarray(states_of(params, CONFIG, x, mask_BS)) for x in (tokens_BS, other_BS)
    )
    real = mask_BS.astype(bool)
    np.testing.assert_array_equal(hidden_BSD[real], other_BSD[real])


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 4)])
def test_the_amount_of_padding_cannot_change_a_hidden_state(params, left, right):
    tokens_BS = random_batch()[0][3:]
    bare_BSD = states_of(params, CONFIG, tokens_BS, np.ones_like(tokens_BS))
    widths = ((0, 0), (left, right))
    padded_BSD = states_of(
        params, CONFIG, np.pad(tokens_BS, widths), np.pad(np.ones_like(tokens_BS), widths)
    )
    inner = slice(left, left + tokens_BS.shape[1])
    np.testing.assert_allclose(padded_BSD[:, inner], bare_BSD, atol=TOLERANCE)


def test_padding_has_no_gradient_and_makes_no_nan(params):
    tokens_BS, mask_BS = random_batch()  # token 0 occurs in the padding only

    def total(params):
        hidden_BSD = decoder.hidden_states(params, CONFIG, tokens_BS, mask_BS)
        return jnp.sum(jnp.where(mask_BS[:, :, None] == 1, hidden_BSD, 0) ** 3)

    gradient = jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    gradient_VD = np.asarray(gradient["embed"][...])
    assert not gradient_VD[0].any()
    assert gradient_VD[tokens_BS[3, 0]].any()


def test_a_later_token_cannot_change_an_earlier_hidden_state(params):
    tokens_BS = random_batch()[0][3:]
    other_BS = tokens_BS.copy()
    other_BS[:, 9:] = 5
    ones_BS = np.ones_like(tokens_BS)
    hidden_BSD = np.asarray(states_of(params, CONFIG, tokens_BS, ones_BS))
    other_BSD = np.asarray(states_of(params, CONFIG, other_BS, ones_BS))
    np.testing.assert_array_equal(hidden_BSD[:, :9], other_BSD[:, :9])
    assert np.abs(hidden_BSD[:, 9:] - other_BSD[:, 9:]).max() > 0.1


def test_bfloat16_reads_float32_parameters_and_stays_near_them(params):
    tokens_BS, mask_BS = random_batch()
    exact_BSD = states_of(params, CONFIG, tokens_BS, mask_BS)
    rough_BSD = states_of(params, CONFIG, tokens_BS, mask_BS, dtype=jnp.bfloat16)
    assert rough_BSD.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits: 0.4 % per rounding, and a few dozen roundings of values near 1.
    assert float(jnp.abs(rough_BSD.astype(jnp.float32) - exact_BSD)[3].mean()) < 0.02


def test_a_token_beyond_the_vocabulary_gives_nan_and_not_another_token(params):
    tokens_BS = np.full((1, 3), CONFIG.vocab_size)
    assert np.isnan(states_of(params, CONFIG, tokens_BS, np.ones_like(tokens_BS))).all()


def test_no_array_of_positions_times_vocabulary_exists(params):
    tokens_BS, mask_BS = random_batch()

    def total(params):
        return decoder.hidden_states(params, CONFIG, tokens_BS, mask_BS).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(total))(params))
    assert "f32[61,24]" in jaxpr  # the embedding is there
    assert "14,61" not in jaxpr
