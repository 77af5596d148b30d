"""Every loss against a float64 NumPy oracle, mathematical properties, and cases done by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import (
    PAIRS,
    assert_close,
    derivative,
    entries_of_kl,
    normalise,
    oracle,
    oracle_bins,
    oracle_support,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from random_log_probs import ATOL, DIVERGENCES, VOCAB, logits_pairs, logp, random_logits

from jaxdistill import losses

CLIPPED = [
    pytest.param(lambda s, t: losses.forward_kl(s, t, 0.5), id="forward_kl_clipped"),
    pytest.param(lambda s, t: losses.reverse_kl(s, t, 0.5), id="reverse_kl_clipped"),
    pytest.param(
        lambda s, t: losses.jensen_shannon(s, t, entry_clip=0.5), id="jensen_shannon_clipped"
    ),
    pytest.param(lambda s, t: losses.entropy(s) + losses.entropy(t), id="entropy"),
]

# alpha, normalize, entry_clip: each must equal the oracle.
CASES = [
    (0.0, False, None), (0.3, False, None), (0.5, False, None), (1.0, False, None),
    (0.3, True, None), (1.0, False, 0.05), (0.3, True, 0.05),
]  # fmt: skip

FULL = None

SUPPORTS = [
    FULL,
    *((support, tail, always)
      for support in ("student", "teacher", "union")
      for tail in (True, False)
      for always in ((), (2, 4, 9))),
]  # fmt: skip


def on_supports(supports, s, t):
    """The pair on each support, [N, V] twice, side by side so that each loss is compiled once.

    Narrower supports are padded with words to which neither gives any mass; they add nothing.
    """

    def pair_of(support):
        if support is FULL:
            return s, t
        whose, tail, always = support
        pair = losses.top_c(s, t, 3, tail, always, whose)
        missing = s.shape[-1] - pair[0].shape[-1]
        return tuple(jnp.pad(x, ((0, 0), (0, missing)), constant_values=-jnp.inf) for x in pair)

    return tuple(jnp.stack(side) for side in zip(*map(pair_of, supports)))


@functools.cache
def values_and_gradients(supports, dtype):
    """{support: {case: [N], [N, V] in the student, [N, V] in the teacher}}."""

    def evaluate(s, t):
        pair, pull_back = jax.vjp(functools.partial(on_supports, supports), s, t)

        def of_case(case):
            value, pull = jax.vjp(lambda *pair: losses.jensen_shannon(*pair, *case), *pair)
            return value, pull(jnp.ones_like(value))

        values, slopes = zip(*map(of_case, CASES))
        # Each support's slope alone, so that the gradients in s and t are those of one support.
        alone = jnp.eye(len(supports), dtype=pair[0].dtype)[None, :, :, None, None]
        slopes = jax.tree.map(lambda *each: jnp.stack(each)[:, None] * alone, *slopes)
        return values, jax.vmap(jax.vmap(pull_back))(slopes)

    given = (jnp.asarray(side, dtype) for side in PAIRS)
    values, gradients = jax.device_get(jax.jit(evaluate)(*given))
    return {
        support: {
            case: (values[j][i], *(side[j, i] for side in gradients))
            for j, case in enumerate(CASES)
        }
        for i, support in enumerate(supports)
    }


def oracle_values_and_gradients(case, support, s, t):
    alpha, normalize, clip = case
    if support is not FULL:
        whose, tail, always = support
        kept = oracle_support(s, t, 3, always, whose)

    def bins(logp):
        return logp if support is FULL else oracle_bins(logp, kept, tail)

    def divergence(s, t):
        return oracle(bins(s), bins(t), alpha, normalize, np.inf if clip is None else clip)

    # The size of the summed terms before they cancel: (S + T) (1 + |log S| + |log T|).
    P, Q = bins(s), bins(t)
    size = 1 + np.where(np.isinf(P), 0, abs(P)) + np.where(np.isinf(Q), 0, abs(Q))
    scale = ((np.exp(P) + np.exp(Q)) * size).sum(-1) / (alpha * (1 - alpha) if normalize else 1)
    of_student, of_teacher = (
        derivative(lambda x: divergence(x, t), s),
        derivative(lambda x: divergence(s, x), t),
    )
    return (divergence(s, t), of_student, of_teacher), scale


# ------------------------------------------------------------------------------------ divergences


@pytest.mark.parametrize(
    ("support", "dtype"),
    [*((support, "float32") for support in SUPPORTS),
     *((support, "bfloat16") for support in (FULL, SUPPORTS[1], SUPPORTS[3]))],
    ids=str,
)  # fmt: skip
def test_values_and_gradients_equal_the_float64_oracle(support, dtype):
    exact = [np.asarray(jnp.asarray(side, dtype), np.float64) for side in PAIRS]
    # Separate programs in bfloat16, because reducing a support converts it to float32.
    others = SUPPORTS[1:] if dtype == "float32" else (SUPPORTS[1], SUPPORTS[3])
    found = values_and_gradients((FULL,) if support is FULL else tuple(others), dtype)
    for case, (value, *gradients) in found[support].items():
        (expected, *slopes), scale = oracle_values_and_gradients(case, support, *exact)
        assert value.dtype == jnp.float32
        # A few roundings of float32 in each term.
        assert_close(value, expected, 4 * 2**-24 * scale, case)
        is_finite = np.isfinite(expected)
        for gradient, slope in zip(gradients, slopes):
            # A gradient is returned, and its parts are added, in the input's own dtype.
            eps = float(jnp.finfo(dtype).eps)
            rows = (each[is_finite] for each in (gradient, slope, 4 * eps * scale[:, None]))
            assert_close(*rows, case, rtol=max(1e-5, eps))


def test_the_forward_gradient_in_the_logits_is_student_minus_teacher():
    student, teacher = random_logits(2, 2, VOCAB)
    gradient = jax.grad(lambda x: losses.forward_kl(jax.nn.log_softmax(x), normalise_f32(teacher)))(
        jnp.asarray(student)
    )
    expected = np.exp(normalise(student)) - np.exp(normalise(teacher))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def normalise_f32(logits):
    return jnp.asarray(normalise(logits), jnp.float32)


def test_three_words_by_hand():
    # S = (1/2, 1/4, 1/4), T = (1/4, 1/4, 1/2).
    S, T = logp([0.5, 0.25, 0.25]), logp([0.25, 0.25, 0.5])

    @jax.jit
    def measured(S, T):
        three = (f(S, T) for f in (losses.forward_kl, losses.reverse_kl, losses.jensen_shannon))
        return *three, losses.forward_kl(*losses.top_c(S, T, 1))

    forward, reverse, between, with_a_tail = measured(S, T)
    # KL(T||S) = 1/4 ln(1/2) + 0 + 1/2 ln 2 = 1/4 ln 2; the pair is a mirror image.
    np.testing.assert_allclose(forward, 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(reverse, 0.25 * np.log(2), rtol=1e-6)
    # M = (3/8, 1/4, 3/8): KL(S||M) = 1/2 ln(4/3) + 1/4 ln(2/3), and KL(T||M) the same.
    by_hand = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3)
    np.testing.assert_allclose(between, by_hand, rtol=1e-5)
    # Two of the three words in one tail: S = (1/2 | 1/2), T = (1/4 | 3/4).
    by_hand = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
    np.testing.assert_allclose(with_a_tail, by_hand, rtol=1e-5)


# Hypothesis calls each a hundred times, so each is compiled once.
compiled = functools.cache(jax.jit)


@functools.cache
def value_and_gradient_in_logits(divergence):
    return jax.jit(
        jax.value_and_grad(
            lambda student, teacher: divergence(*map(jax.nn.log_softmax, (student, teacher)))
        )
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_are_never_negative(divergence, logits):
    # The tolerance is for the rounding of terms that cancel.
    assert compiled(divergence)(*jax.nn.log_softmax(logits)) >= -1e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_vanish_with_their_gradient_where_the_two_agree_and_only_there(
    divergence, logits
):
    same, other = jax.nn.log_softmax(logits)
    value, gradient = value_and_gradient_in_logits(divergence)(same, same)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    if np.abs(np.exp(same) - np.exp(other)).max() > 0.05:
        assert compiled(divergence)(same, other) > 1e-4  # Pinsker: at least 2 * 0.05^2 / 8


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=25, deadline=None)
@given(logits=logits_pairs, shift=st.floats(-50, 50, width=32))
def test_adding_a_constant_to_the_logits_changes_nothing(divergence, logits, shift):
    before = compiled(divergence)(*jax.nn.log_softmax(logits))
    after = compiled(divergence)(*jax.nn.log_softmax(logits + np.float32(shift)))
    # Logits near 58 have an error of 4e-6, which a divergence of up to 16 nats inherits.
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(logits):
    first, second = jax.nn.log_softmax(logits)
    value = compiled(losses.jensen_shannon)(first, second)
    mirrored = compiled(losses.jensen_shannon)(second, first)
    np.testing.assert_allclose(value, mirrored, atol=1e-6)
    assert value <= np.log(2) + 1e-6


def test_the_ends_of_alpha_are_the_two_kl_and_not_the_limits():
    S, T = jax.nn.log_softmax(random_logits(3, 2, VOCAB))
    np.testing.assert_array_equal(losses.jensen_shannon(S, T, 0.0), losses.forward_kl(S, T))
    np.testing.assert_array_equal(losses.jensen_shannon(S, T, 1.0), losses.reverse_kl(S, T))
    assert losses.jensen_shannon(S, T, 1e-4) < 0.01 * losses.forward_kl(S, T)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_words_that_neither_can_say_change_neither_value_nor_gradient(divergence):
    student, teacher = random_logits(4, 2, VOCAB)
    banned = np.full(2, -np.inf, np.float32)

    evaluate = value_and_gradient_in_logits(divergence)
    padded = np.concatenate([student, banned]), np.concatenate([teacher, banned])
    value, gradient = evaluate(*padded)
    expected_value, expected_gradient = evaluate(student, teacher)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient[:-2], expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient[-2:], 0)


@pytest.mark.parametrize(
    ("divergence", "student", "teacher", "expected"),
    [
        (losses.forward_kl, [0.5, 0.5], [1.0, 0.0], np.log(2)),
        (losses.reverse_kl, [1.0, 0.0], [0.5, 0.5], np.log(2)),
        (losses.jensen_shannon, [1.0, 0.0], [0.0, 1.0], np.log(2)),
        (losses.reverse_kl, [0.5, 0.5], [1.0, 0.0], np.inf),
    ],
)
def test_zero_probabilities_are_exact(divergence, student, teacher, expected):
    evaluate = jax.jit(jax.value_and_grad(divergence, argnums=(0, 1)))
    value, gradients = evaluate(logp(student), logp(teacher))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    if np.isfinite(expected):
        assert np.isfinite(gradients).all()


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size():
    np.testing.assert_allclose(losses.entropy(logp([0.25] * 4 + [0.0])), np.log(4), rtol=1e-6)
    gradient = jax.grad(losses.entropy)(logp([0.25] * 4 + [0.0]))
    assert np.isfinite(gradient).all()


# -------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("alpha", [1e-4, 1 - 1e-4])
def test_the_normalised_jensen_shannon_tends_to_the_kl_of_its_end(alpha):
    S, T = jax.nn.log_softmax(random_logits(20, 2, 4, VOCAB))
    end = losses.forward_kl if alpha < 0.5 else losses.reverse_kl
    value = losses.jensen_shannon(S, T, alpha, normalize=True)
    # The next term is alpha times a chi-square, of order 100 where log-ratios reach 5.
    np.testing.assert_allclose(value, end(S, T), rtol=2e-2)
    assert float(losses.jensen_shannon(S, T, alpha).max()) < 1e-2  # unnormalised it vanishes


def test_an_entry_clip_cuts_each_word_and_a_loose_one_none():
    S, T = jax.nn.log_softmax(random_logits(21, 2, 5, VOCAB))
    entries = np.exp(normalise(T)) * (normalise(T) - normalise(S))
    expected = np.minimum(entries, 0.05).sum(-1)
    np.testing.assert_allclose(losses.forward_kl(S, T, entry_clip=0.05), expected, atol=ATOL)
    np.testing.assert_array_equal(losses.forward_kl(S, T, 1e9), losses.forward_kl(S, T))
    np.testing.assert_array_equal(losses.reverse_kl(S, T, 1e9), losses.reverse_kl(S, T))
    loose = losses.jensen_shannon(S, T, entry_clip=1e9)
    np.testing.assert_array_equal(loose, losses.jensen_shannon(S, T))
    assert float(losses.forward_kl(S, T, entry_clip=0.01).min()) < 0  # as its docstring warns


@pytest.mark.parametrize("divergence", [losses.forward_kl, losses.reverse_kl])
def test_a_clip_bounds_infinite_terms_in_value_and_gradient(divergence):
    S, T = logp([0.5, 0.3, 0.2, 0.0]), logp([0.0, 0.1, 0.2, 0.7])
    assert divergence(S, T) == np.inf
    value, gradients = jax.value_and_grad(divergence, (0, 1))(S, T, 0.5)
    with np.errstate(divide="ignore"):
        pair = (np.asarray(side, np.float64) for side in (S, T))
        entries = entries_of_kl(*(pair if divergence is losses.reverse_kl else reversed([*pair])))
    np.testing.assert_allclose(value, np.minimum(entries, 0.5).sum(), rtol=1e-6)
    assert np.isfinite(gradients).all()


def test_a_probability_too_small_for_float32_costs_nothing():
    S, T = jnp.array([0.0, -jnp.inf]), jnp.array([0.0, -200.0])  # e^-200 is 0 in float32
    for value in (losses.forward_kl(S, T), losses.jensen_shannon(S, T), losses.entropy(T)):
        assert value == 0


def test_over_the_whole_vocabulary_the_score_function_has_the_gradient_of_the_reverse_kl():
    logits, T = random_logits(22, VOCAB), jax.nn.log_softmax(random_logits(23, VOCAB))

    def gradient(divergence):
        return jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), T))(logits)

    estimated, exact = gradient(losses.score_function_reverse_kl), gradient(losses.reverse_kl)
    np.testing.assert_allclose(estimated[0], exact[0], atol=ATOL)
    np.testing.assert_allclose(estimated[1], exact[1], atol=ATOL)


def test_over_a_truncated_support_differentiating_the_sum_adds_a_teacher_free_term():
    """sum over K of S_v grad s_v, which the score function leaves out (arXiv 2605.11182)."""
    logits, T = random_logits(24, VOCAB), jax.nn.log_softmax(random_logits(25, VOCAB))

    def gradient(divergence):
        return jax.grad(lambda x: divergence(jax.nn.log_softmax(x)[:3], T[:3]))

    in_logits = [
        gradient(losses.reverse_kl),
        gradient(losses.score_function_reverse_kl),
        jax.grad(lambda x: jnp.exp(jax.nn.log_softmax(x)[:3]).sum()),
    ]
    exact, estimated, extra = jax.jit(lambda x: [f(x) for f in in_logits])(logits)
    difference = exact - estimated
    np.testing.assert_allclose(difference, extra, atol=ATOL)
    assert np.abs(extra).max() > 0.01


@functools.cache
def score_functions():
    """{support: value [N], slopes [N, V] in student and teacher}."""
    supports = (FULL, SUPPORTS[1], SUPPORTS[3])

    def evaluate(s, t):
        value, pull = jax.vjp(losses.score_function_reverse_kl, *on_supports(supports, s, t))
        return value, *pull(jnp.ones_like(value))

    return dict(zip(supports, zip(*jax.device_get(jax.jit(evaluate)(*PAIRS)))))


@pytest.mark.parametrize("support", [FULL, SUPPORTS[1], SUPPORTS[3]], ids=str)
def test_the_score_function_is_its_formula_on_every_support(support):
    """Value KL(S||T), slope S_v (log S_v - log T_v) in log S_v and nothing in log T_v."""
    exact = expected = tuple(np.asarray(side, np.float64) for side in PAIRS)
    if support is not FULL:
        whose, tail, always = support
        kept = oracle_support(*exact, 3, always, whose)
        expected = tuple(oracle_bins(side, kept, tail) for side in exact)
    value, of_student, of_teacher = score_functions()[support]
    entries = entries_of_kl(*expected)
    of_student = of_student[:, : entries.shape[-1]]
    is_finite = np.isfinite(entries.sum(-1))
    # Renormalising subtracts log-probabilities of up to 60 nats in float32.
    size = sum(np.where(np.isinf(side), 0, abs(side)).max(-1) for side in exact)
    slack = 4 * 2**-24 * (1 + abs(entries).sum(-1) + size)
    assert_close(value[is_finite], entries.sum(-1)[is_finite], slack[is_finite], support)
    assert_close(of_student[is_finite], entries[is_finite], slack[is_finite, None], support)
    np.testing.assert_array_equal(of_teacher, 0)


def test_the_reverse_gradient_is_the_expected_policy_gradient_of_the_log_ratio():
    """grad KL(S||T) = E_y[-A(y) grad log S(y)] with A = log T - log S, every y enumerated."""
    s, t = PAIRS
    gradient = jax.grad(lambda x: losses.reverse_kl(jax.nn.log_softmax(x), t).sum())(jnp.asarray(s))
    s, t = (np.asarray(side, np.float64) for side in PAIRS)
    cost = entries_of_kl(s, t)  # S(y) (-A(y))
    is_finite = np.isfinite(cost.sum(-1))
    # grad log S(y) in the logits is 1[v = y] - S_v.
    cost, s = cost[is_finite], s[is_finite]
    expected = cost - cost.sum(-1, keepdims=True) * np.exp(s)
    scale = abs(cost).sum(-1, keepdims=True) + 1
    assert_close(gradient[is_finite], expected, 4 * 2**-24 * scale, "reverse")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_estimators_of_one_token_are_their_formulas_whatever_the_dtype(dtype):
    rng = np.random.default_rng(5)
    # Gaps from 0 to far beyond the range of exp.
    s = jnp.asarray(np.concatenate([-rng.exponential(3, 60), [-0.5, -120.0, 0.0]]), dtype)
    t = jnp.asarray(np.concatenate([-rng.exponential(3, 60), [-0.5, 0.0, -120.0]]), dtype)
    S, T = (np.asarray(side, np.float64) for side in (s, t))
    gap, clipped = T - S, np.clip(T - S, -20, 20)
    # (value, slope in log S), by hand.
    expected = {
        losses.sampled_reverse_kl: (-gap, -gap),
        losses.k3: (np.expm1(clipped) - clipped, np.where(gap == clipped, -np.expm1(gap), 0)),
        losses.importance_ratio: (np.exp(-clipped), np.where(gap == clipped, np.exp(-gap), 0)),
    }
    for estimator, (value, slope) in expected.items():
        measured, pull = jax.vjp(lambda s, f=estimator: f(s, t), s)
        # The argument of exp (up to 20) has an error of 20 * 2^-24, which makes 1.2e-6 relative;
        # k3 cancels near 0.
        assert measured.dtype == jnp.float32
        assert_close(measured, value, 4 * 2**-24 * (1 + abs(clipped)), estimator)
        (measured,) = pull(jnp.ones_like(measured))
        rtol = max(1e-5, float(jnp.finfo(dtype).eps))
        assert_close(measured, slope, 4 * 2**-24 * (1 + abs(clipped)), estimator, rtol)


def test_the_sampled_estimators_have_the_expected_value_and_k1_the_expected_gradient():
    """By enumeration of the vocabulary, weighted with the student's own probabilities."""
    logits, T = random_logits(26, VOCAB), jax.nn.log_softmax(random_logits(27, VOCAB))
    S = jax.nn.log_softmax(logits)
    exact, exact_gradient = jax.value_and_grad(
        lambda x: losses.reverse_kl(jax.nn.log_softmax(x), T)
    )(logits)
    weights = jax.lax.stop_gradient(jnp.exp(S))

    def expectation(x):
        return jnp.sum(weights * losses.sampled_reverse_kl(jax.nn.log_softmax(x), T))

    value, gradient = jax.value_and_grad(expectation)(logits)
    np.testing.assert_allclose(value, exact, atol=ATOL)
    np.testing.assert_allclose(gradient, exact_gradient, atol=ATOL)
    k3 = losses.k3(S, T)
    np.testing.assert_allclose(jnp.sum(weights * k3), exact, atol=ATOL)
    assert float(k3.min()) >= 0
    np.testing.assert_array_equal(losses.k3(S, S), jnp.zeros(VOCAB))


def test_the_bernoulli_divergence_is_that_of_two_masses():
    S, T = jax.nn.log_softmax(random_logits(28, 2, VOCAB))
    E = jnp.arange(VOCAB) < 3
    m_S, m_T = (np.exp(normalise(x))[:3].sum() for x in (S, T))
    expected = m_T * np.log(m_T / m_S) + (1 - m_T) * np.log((1 - m_T) / (1 - m_S))
    bins = losses.epistemic_bins(T, E), losses.epistemic_bins(S, E)
    np.testing.assert_allclose(losses.bernoulli_kl(*bins), expected, rtol=1e-4, atol=1e-6)


@functools.cache
def compiled_with_gradient(clip):
    return jax.jit(jax.value_and_grad(clip), static_argnums=1)


@pytest.mark.parametrize("clip", [losses.smooth_clip_tanh, losses.smooth_clip_rational])
@given(loss=st.floats(0, 1e4, width=32, allow_subnormal=False), limit=st.sampled_from([0.1, 2.0]))
@settings(max_examples=30, deadline=None)
def test_smooth_clips_grow_never_pass_the_limit_and_start_with_slope_one(clip, loss, limit):
    evaluate = compiled_with_gradient(clip)
    value, slope = evaluate(jnp.float32(loss), limit)
    assert float(value) <= limit * (1 + 1e-6)
    assert float(slope) >= 0
    np.testing.assert_allclose(evaluate(jnp.float32(0), limit)[1], 1, rtol=1e-6)


def test_a_clipped_position_has_no_gradient():
    slopes = jax.vmap(jax.grad(losses.clip_position), (0, None))(jnp.array([0.5, 3.0]), 1.0)
    np.testing.assert_array_equal(slopes, [1, 0])


@pytest.mark.parametrize("broken", ["student", "teacher", "both"])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, *CLIPPED])
def test_nan_log_probabilities_give_a_nan_loss(divergence, broken):
    """Otherwise a run that has diverged would report the best possible loss."""
    fine, nan = jax.nn.log_softmax(random_logits(0, VOCAB)), jnp.full(VOCAB, jnp.nan)
    student, teacher = (
        nan if broken in (name, "both") else fine for name in ("student", "teacher")
    )
    assert np.isnan(divergence(student, teacher))
