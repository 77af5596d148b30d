"""Every loss against a float64 NumPy oracle, the spec's properties, and cases done by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import (
    PAIRS,
    WORDS,
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
from hypothesis.extra import numpy as hnp

from jaxdistill import losses

VOCAB = 8
DIVERGENCES = [
    pytest.param(losses.forward_kl, id="forward_kl"),
    pytest.param(losses.reverse_kl, id="reverse_kl"),
    pytest.param(losses.jensen_shannon, id="jensen_shannon"),
    pytest.param(lambda s, t: losses.jensen_shannon(s, t, alpha=0.2), id="jensen_shannon_0.2"),
]
CLIPPED = [
    pytest.param(lambda s, t: losses.forward_kl(s, t, 0.5), id="forward_kl_clipped"),
    pytest.param(lambda s, t: losses.reverse_kl(s, t, 0.5), id="reverse_kl_clipped"),
    pytest.param(
        lambda s, t: losses.jensen_shannon(s, t, entry_clip=0.5), id="jensen_shannon_clipped"
    ),
    pytest.param(lambda s, t: losses.entropy(s) + losses.entropy(t), id="entropy"),
]
# Float32 sums of VOCAB terms of size up to ~10: 10 * 2^-24 * a few operations.
ATOL = 5e-6

logits_pairs = hnp.arrays(
    np.float32, (2, VOCAB), elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


def random_logits(seed, *shape):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype(np.float32)


def logp(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probabilities, np.float32)))


def numeric_gradient(f, x, step=1e-5):
    """Central differences in float64; error about step^2 = 1e-10."""
    x = np.asarray(x, np.float64)
    moves = step * np.eye(x.size)
    return np.array([(f(x + move) - f(x - move)) / (2 * step) for move in moves])


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


def values_and_gradients(support, s, t):
    """Of each of CASES: [N], [N, V] in the student, [N, V] in the teacher."""

    def pair_of(s, t):
        if support is FULL:
            return s, t
        whose, tail, always = support
        return losses.top_c(s, t, 3, tail, always, whose)

    pair, pull_back = jax.vjp(pair_of, s, t)
    values, slopes = [], []
    for case in CASES:
        value, pull = jax.vjp(lambda *pair, case=case: losses.jensen_shannon(*pair, *case), *pair)
        values.append(value)
        slopes.append(pull(jnp.ones_like(value)))
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *slopes)
    return zip(jnp.stack(values), *jax.vmap(pull_back)(stacked))


def oracle_values_and_gradients(case, support, s, t):
    alpha, normalize, clip = case
    if support is not FULL:
        whose, tail, always = support
        kept = oracle_support(s, t, 3, always, whose)

    def bins(logp):
        return logp if support is FULL else oracle_bins(logp, kept, tail)

    def divergence(s, t):
        return oracle(bins(s), bins(t), alpha, normalize, np.inf if clip is None else clip)

    # What the summed terms amount to before they cancel: (S + T) (1 + |log S| + |log T|).
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
    s, t = (jnp.asarray(side, dtype) for side in PAIRS)
    evaluate = jax.jit(lambda s, t: tuple(values_and_gradients(support, s, t)))
    exact = [np.asarray(side, np.float64) for side in (s, t)]
    for case, (value, *gradients) in zip(CASES, evaluate(s, t), strict=True):
        (expected, *slopes), scale = oracle_values_and_gradients(case, support, *exact)
        assert value.dtype == jnp.float32
        # A few roundings of float32 in each term.
        assert_close(value, expected, 4 * 2**-24 * scale, case)
        is_finite = np.isfinite(expected)
        for gradient, slope in zip(gradients, slopes):
            # It is returned, and its parts are added, in the input's own dtype.
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
    # KL(T||S) = 1/4 ln(1/2) + 0 + 1/2 ln 2 = 1/4 ln 2; the pair is a mirror image.
    np.testing.assert_allclose(losses.forward_kl(S, T), 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.reverse_kl(S, T), 0.25 * np.log(2), rtol=1e-6)
    # M = (3/8, 1/4, 3/8): KL(S||M) = 1/2 ln(4/3) + 1/4 ln(2/3), and KL(T||M) the same.
    by_hand = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3)
    np.testing.assert_allclose(losses.jensen_shannon(S, T), by_hand, rtol=1e-5)
    # Two of the three words in one tail: S = (1/2 | 1/2), T = (1/4 | 3/4).
    by_hand = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
    np.testing.assert_allclose(losses.forward_kl(*losses.top_c(S, T, 1)), by_hand, rtol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_are_never_negative(divergence, logits):
    assert divergence(*jax.nn.log_softmax(logits)) >= -1e-6  # rounding of terms that cancel


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_vanish_with_their_gradient_where_the_two_agree_and_only_there(
    divergence, logits
):
    same, other = jax.nn.log_softmax(logits)
    value, gradient = jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), same))(same)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    if np.abs(np.exp(same) - np.exp(other)).max() > 0.05:
        assert divergence(same, other) > 1e-4  # Pinsker: at least 2 * 0.05^2 / 8


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=25, deadline=None)
@given(logits=logits_pairs, shift=st.floats(-50, 50, width=32))
def test_adding_a_constant_to_the_logits_changes_nothing(divergence, logits, shift):
    before = divergence(*jax.nn.log_softmax(logits))
    after = divergence(*jax.nn.log_softmax(logits + np.float32(shift)))
    # Logits near 58 are known to 4e-6; a divergence of up to 16 nats inherits that.
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(logits):
    first, second = jax.nn.log_softmax(logits)
    value = losses.jensen_shannon(first, second)
    np.testing.assert_allclose(value, losses.jensen_shannon(second, first), atol=1e-6)
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

    def loss(student, teacher):
        return divergence(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))

    padded = np.concatenate([student, banned]), np.concatenate([teacher, banned])
    value, gradient = jax.value_and_grad(loss)(*padded)
    expected_value, expected_gradient = jax.value_and_grad(loss)(student, teacher)
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
    np.testing.assert_allclose(divergence(logp(student), logp(teacher)), expected, rtol=1e-6)
    if np.isfinite(expected):
        for side in (0, 1):
            gradient = jax.grad(divergence, argnums=side)(logp(student), logp(teacher))
            assert np.isfinite(gradient).all()


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size():
    np.testing.assert_allclose(losses.entropy(logp([0.25] * 4 + [0.0])), np.log(4), rtol=1e-6)
    gradient = jax.grad(losses.entropy)(logp([0.25] * 4 + [0.0]))
    assert np.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------ top C


@pytest.mark.parametrize("tail", [True, False])
def test_c_equal_to_the_vocabulary_is_the_full_divergence(tail):
    S, T = jax.nn.log_softmax(random_logits(6, 2, 3, VOCAB))
    for c in (VOCAB, VOCAB + 5):
        np.testing.assert_array_equal(
            losses.forward_kl(*losses.top_c(S, T, c, tail)), losses.forward_kl(S, T)
        )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher"])
def test_with_a_tail_the_divergence_rises_with_c_towards_the_full_one(divergence, support):
    S, T = map(jnp.asarray, PAIRS)
    values = [
        divergence(*losses.top_c(S, T, c, support=support)) for c in (1, 3, 8, WORDS - 1, WORDS)
    ]
    for lower, upper in itertools.pairwise(values):  # or both are infinite
        assert ((lower <= upper * (1 + 1e-6) + ATOL) | (lower == upper)).all()
    np.testing.assert_array_equal(values[-1], divergence(S, T))


def test_every_bin_holds_a_true_probability_and_none_is_counted_twice():
    S, T = jax.nn.log_softmax(random_logits(7, 2, 4, VOCAB))
    for bins in losses.top_c(S, T, 2, always_ids=(0, int(jnp.argmax(S[0])))):
        assert bins.shape == (4, 5)
        np.testing.assert_allclose(np.exp(bins).sum(-1), 1, atol=1e-6)


def test_banned_words_cannot_make_an_always_kept_id_appear_twice():
    # Only one word outside the always-kept ones has mass, but c asks for two.
    S = logp([0.4, 0.3, 0.3, 0.0, 0.0, 0.0])
    student, teacher = losses.top_c(S, logp([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]), 2, always_ids=(0, 1))
    np.testing.assert_allclose(np.exp(student).sum(), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(teacher).sum(), 1, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_with_all_its_mass_in_the_kept_words_has_a_finite_loss_and_gradient(divergence):
    teacher = jax.nn.log_softmax(jnp.zeros(4))
    for student in (jnp.array([0.0, -1e4, -1e4, -1e4]), logp([1.0, 0.0, 0.0, 0.0])):
        value, gradient = jax.value_and_grad(
            lambda x: divergence(*losses.top_c(jax.nn.log_softmax(x), teacher, 1))
        )(student)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_tail_far_below_float32_resolution_keeps_its_value_and_gradient():
    # The kept mass rounds to 1: log(1 - kept) would be -inf or noise; the summed tail is exact.
    student = np.array([30.0, 1.0, 0.0, -1.0], np.float32)
    teacher = np.array([2.0, 1.0, 0.5, 0.0], np.float32)

    def loss(x):
        pair = jax.nn.log_softmax(x), jax.nn.log_softmax(teacher)
        return losses.forward_kl(*losses.top_c(*pair, 1))

    def expected(x):
        pair = (oracle_bins(normalise(side), np.array([0]), True) for side in (x, teacher))
        return oracle(*pair, alpha=0)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
    np.testing.assert_allclose(value, expected(student), rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric_gradient(expected, student), atol=1e-6)


def test_without_a_tail_the_kept_words_are_renormalised_and_a_change_of_mass_is_invisible():
    S, T = logp([0.45, 0.45, 0.05, 0.05]), logp([0.05, 0.05, 0.45, 0.45])
    np.testing.assert_allclose(losses.forward_kl(*losses.top_c(S, T, 2, tail=False)), 0, atol=1e-6)
    assert losses.forward_kl(*losses.top_c(S, T, 2)) > 1


# -------------------------------------------------------------------------------- epistemic masses


def test_log_mass_is_the_log_of_the_summed_probability():
    members = jnp.array([False, True, False, True])
    P = logp([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(losses.log_mass(P, members), np.log(0.6), rtol=1e-6)
    np.testing.assert_allclose(losses.epistemic_bins(P, members), np.log([0.6, 0.4]), rtol=1e-6)


def test_an_empty_or_massless_set_has_log_mass_minus_infinity_and_no_gradient():
    for members, P in [([False] * 3, [0.2, 0.3, 0.5]), ([True, False, False], [0.0, 0.5, 0.5])]:
        value, gradient = jax.value_and_grad(losses.log_mass)(logp(P), jnp.array(members))
        assert value == -np.inf
        np.testing.assert_array_equal(gradient, 0)


@settings(max_examples=30, deadline=None)
@given(logits=logits_pairs)
def test_the_chain_rule_splits_the_forward_kl_into_mass_and_two_shapes(logits):
    S, T = jax.nn.log_softmax(logits)
    E = jnp.arange(VOCAB) < 3
    bins_S, bins_T = losses.epistemic_bins(S, E), losses.epistemic_bins(T, E)
    inside = losses.forward_kl(S[:3] - bins_S[0], T[:3] - bins_T[0])
    outside = losses.forward_kl(S[3:] - bins_S[1], T[3:] - bins_T[1])
    total = losses.forward_kl(bins_S, bins_T) + jnp.exp(bins_T) @ jnp.stack([inside, outside])
    np.testing.assert_allclose(total, losses.forward_kl(S, T), rtol=1e-5, atol=ATOL)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_masses_entropy_and_the_bernoulli_term_equal_the_oracle_in_value_and_gradient(dtype):
    s, t = (jnp.asarray(side, dtype) for side in PAIRS)
    S, T = (np.asarray(side, np.float64) for side in (s, t))
    E = np.isin(np.arange(WORDS), [2, 4, 9])

    def bins(x):
        with np.errstate(divide="ignore"):
            sides = (np.log(np.where(side, np.exp(x), 0).sum(-1)) for side in (E, ~E))
            return np.stack(list(sides), -1)

    pairs = {
        "entropy": (losses.entropy, lambda x: -entries_of_kl(x, 0 * np.exp(x)).sum(-1)),
        "log mass": (lambda x: losses.log_mass(x, E), lambda x: bins(x)[..., 0]),
        "rest": (lambda x: losses.epistemic_bins(x, E)[..., 1], lambda x: bins(x)[..., 1]),
        "mass_kl": (
            lambda x: losses.bernoulli_kl(*(losses.epistemic_bins(side, E) for side in (t, x))),
            lambda x: entries_of_kl(bins(T), bins(x)).sum(-1),
        ),
    }
    scale = 1 + np.where(np.isinf(S), 0, abs(S)).max(-1)
    eps = float(jnp.finfo(dtype).eps)
    for name, (measure, formula) in pairs.items():
        value, pull = jax.vjp(measure, s)
        expected = formula(S)
        assert value.dtype == jnp.float32
        assert_close(value, expected, 4 * 2**-24 * scale, name)
        slope, is_finite = pull(jnp.ones_like(value))[0], np.isfinite(expected)
        assert np.isfinite(slope).all()
        rows = (each[is_finite] for each in (slope, derivative(formula, S)))
        assert_close(*rows, 4 * eps * scale[is_finite, None], name, rtol=max(1e-5, eps))
    np.testing.assert_array_equal(jnp.isneginf(losses.log_mass(s, E)), np.isneginf(bins(S)[:, 0]))


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
def test_a_clip_holds_back_what_is_infinite_in_value_and_gradient(divergence):
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
        return jax.grad(lambda x: divergence(jax.nn.log_softmax(x)[:3], T[:3]))(logits)

    extra = jax.grad(lambda x: jnp.exp(jax.nn.log_softmax(x)[:3]).sum())(logits)
    difference = gradient(losses.reverse_kl) - gradient(losses.score_function_reverse_kl)
    np.testing.assert_allclose(difference, extra, atol=ATOL)
    assert np.abs(extra).max() > 0.01


@pytest.mark.parametrize("support", [FULL, SUPPORTS[1], SUPPORTS[3]], ids=str)
def test_the_score_function_is_its_formula_on_every_support(support):
    """Value KL(S||T), slope S_v (log S_v - log T_v) in log S_v and nothing in log T_v."""
    s, t = PAIRS
    exact = tuple(np.asarray(side, np.float64) for side in PAIRS)
    pair, expected = (s, t), exact
    if support is not FULL:
        whose, tail, always = support
        pair = losses.top_c(*map(jnp.asarray, (s, t)), 3, tail, always, whose)
        kept = oracle_support(*exact, 3, always, whose)
        expected = tuple(oracle_bins(side, kept, tail) for side in exact)
    value, pull = jax.vjp(losses.score_function_reverse_kl, *map(jnp.asarray, pair))
    of_student, of_teacher = pull(jnp.ones_like(value))
    entries = entries_of_kl(*expected)
    is_finite = np.isfinite(entries.sum(-1))
    # Renormalising subtracts log-probabilities, of up to 60 nats, in float32.
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
    # Gaps from nothing to far beyond what exp can hold.
    s = jnp.asarray(np.concatenate([-rng.exponential(3, 60), [-0.5, -120.0, 0.0]]), dtype)
    t = jnp.asarray(np.concatenate([-rng.exponential(3, 60), [-0.5, 0.0, -120.0]]), dtype)
    S, T = (np.asarray(side, np.float64) for side in (s, t))
    gap, clipped = T - S, np.clip(T - S, -20, 20)
    # Known: (value, slope in log S).
    expected = {
        losses.sampled_reverse_kl: (-gap, -gap),
        losses.k3: (np.expm1(clipped) - clipped, np.where(gap == clipped, -np.expm1(gap), 0)),
        losses.importance_ratio: (np.exp(-clipped), np.where(gap == clipped, np.exp(-gap), 0)),
    }
    for estimator, (value, slope) in expected.items():
        measured, pull = jax.vjp(lambda s, f=estimator: f(s, t), s)
        # exp knows its argument (up to 20) to 20 * 2^-24: 1.2e-6 relative; k3 cancels near 0.
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


@pytest.mark.parametrize("clip", [losses.smooth_clip_tanh, losses.smooth_clip_rational])
@given(loss=st.floats(0, 1e4, width=32, allow_subnormal=False), limit=st.sampled_from([0.1, 2.0]))
@settings(max_examples=30, deadline=None)
def test_smooth_clips_grow_never_pass_the_limit_and_start_with_slope_one(clip, loss, limit):
    assert float(clip(jnp.float32(loss), limit)) <= limit * (1 + 1e-6)
    slope = jax.grad(clip)
    assert float(slope(jnp.float32(loss), limit)) >= 0
    np.testing.assert_allclose(slope(jnp.float32(0), limit), 1, rtol=1e-6)


def test_a_clipped_position_has_no_gradient():
    slopes = jax.vmap(jax.grad(losses.clip_position), (0, None))(jnp.array([0.5, 3.0]), 1.0)
    np.testing.assert_array_equal(slopes, [1, 0])


@pytest.mark.parametrize("support", ["teacher", "union"])
def test_the_support_may_be_the_teachers_or_both(support):
    S, T = jax.nn.log_softmax(random_logits(29, 2, 30))
    c = 4
    pair = losses.top_c(S, T, c, support=support)
    first = [] if support == "teacher" else np.argsort(-normalise(S))[:c].tolist()
    kept = first + [v for v in np.argsort(-normalise(T)) if v not in first][:c]
    for logp, bins in zip((S, T), pair):
        assert bins.shape == (len(kept) + 1,)
        assert sorted(bins[:-1].tolist()) == sorted(np.asarray(logp)[kept].tolist())
        np.testing.assert_allclose(np.exp(bins).sum(), 1, atol=1e-6)
    assert losses.reverse_kl(*pair) <= losses.reverse_kl(S, T) + 1e-6


# -------------------------------------------------------------------------------- policy gradients


def grpo_oracle(ratio, advantage):
    """The branches of PPO written out: pessimistic clipping, and a floor for bad actions."""
    if advantage >= 0:
        return -advantage * min(ratio, 1.28)
    return -advantage * min(max(ratio, 0.8), 3.0)


@pytest.mark.parametrize("advantage", [1.5, 0.0, -0.7])
@pytest.mark.parametrize("ratio", [0.1, 0.79, 0.9, 1.0, 1.2, 1.4, 2.9, 5.0])
def test_the_grpo_surrogate_equals_its_branches_in_value_and_gradient(ratio, advantage):
    value, slope = jax.value_and_grad(losses.grpo_surrogate)(
        jnp.float32(ratio), jnp.float32(advantage), 0.2, 0.28, 3.0
    )
    expected = numeric_gradient(lambda x: grpo_oracle(x[0], advantage), np.array([ratio]))
    np.testing.assert_allclose(value, grpo_oracle(ratio, advantage), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, expected[0], rtol=1e-6, atol=1e-7)


def test_importance_ratios_are_one_on_policy_and_clamped():
    token = jnp.array([-1.0, -3.0, -0.1, -0.1])
    behaviour = jnp.array([-1.0, -0.7, -3.0, -90.0])
    expected = [1, np.exp(-2.3), np.exp(2.9), np.exp(20)]
    np.testing.assert_allclose(losses.importance_ratio(token, behaviour), expected, rtol=1e-5)


def test_group_advantages_are_centred_and_divided_only_on_request():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    expected = np.asarray(rewards, np.float64)
    expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(losses.group_advantage(rewards), expected, atol=1e-7)
    deviation = np.asarray(rewards, np.float64).std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        losses.group_advantage(rewards, normalize_std=True),
        expected / (deviation + 1e-6),
        rtol=1e-5,
    )


def test_a_group_of_one_keeps_its_reward():
    np.testing.assert_array_equal(losses.group_advantage(jnp.ones((3, 1))), 1)


@pytest.mark.parametrize("broken", ["student", "teacher", "both"])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, *CLIPPED])
def test_a_model_that_says_nan_has_no_loss(divergence, broken):
    """Else a run that has diverged would report the best loss there is."""
    fine, nan = jax.nn.log_softmax(random_logits(0, VOCAB)), jnp.full(VOCAB, jnp.nan)
    student, teacher = (
        nan if broken in (name, "both") else fine for name in ("student", "teacher")
    )
    assert np.isnan(divergence(student, teacher))
