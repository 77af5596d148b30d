"""The support of a divergence (top C and a tail), and the log mass of a set of words."""

import functools
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
)
from hypothesis import given, settings
from random_log_probs import (
    ATOL,
    DIVERGENCES,
    VOCAB,
    logits_pairs,
    logp,
    numeric_gradient,
    random_logits,
)

from jaxdistill import losses

# ------------------------------------------------------------------------------------------ top C

top_c = jax.jit(losses.top_c, static_argnames=("c", "tail", "always_ids", "support"))


@pytest.mark.parametrize("tail", [True, False])
def test_c_equal_to_the_vocabulary_is_the_full_divergence(tail):
    S, T = jax.nn.log_softmax(random_logits(6, 2, 3, VOCAB))
    for c in (VOCAB, VOCAB + 5):
        np.testing.assert_array_equal(
            losses.forward_kl(*losses.top_c(S, T, c, tail)), losses.forward_kl(S, T)
        )


@functools.cache
def values_by_c(support):
    """{divergence: its values at each c}, compiled together."""
    divergences = [param.values[0] for param in DIVERGENCES]

    def evaluate(S, T):
        pairs = [losses.top_c(S, T, c, support=support) for c in (1, 3, 8, WORDS - 1, WORDS)]
        return [[divergence(*pair) for pair in pairs] for divergence in divergences]

    return dict(zip(divergences, jax.jit(evaluate)(*PAIRS)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher"])
def test_with_a_tail_the_divergence_rises_with_c_towards_the_full_one(divergence, support):
    S, T = map(jnp.asarray, PAIRS)
    values = values_by_c(support)[divergence]
    for lower, upper in itertools.pairwise(values):  # or both are infinite
        assert ((lower <= upper * (1 + 1e-6) + ATOL) | (lower == upper)).all()
    np.testing.assert_array_equal(values[-1], divergence(S, T))


def test_every_bin_holds_a_true_probability_and_none_is_counted_twice():
    S, T = jax.nn.log_softmax(random_logits(7, 2, 4, VOCAB))
    for bins in top_c(S, T, 2, always_ids=(0, int(jnp.argmax(S[0])))):
        assert bins.shape == (4, 5)
        np.testing.assert_allclose(np.exp(bins).sum(-1), 1, atol=1e-6)


def test_banned_words_cannot_make_an_always_kept_id_appear_twice():
    # Only one word besides the always-kept ones has mass, but c is two.
    S = logp([0.4, 0.3, 0.3, 0.0, 0.0, 0.0])
    student, teacher = top_c(S, logp([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]), 2, always_ids=(0, 1))
    np.testing.assert_allclose(np.exp(student).sum(), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(teacher).sum(), 1, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_with_all_its_mass_in_the_kept_words_has_a_finite_loss_and_gradient(divergence):
    def loss(x):
        return divergence(*losses.top_c(jax.nn.log_softmax(x), jnp.full(4, -jnp.log(4.0)), 1))

    evaluate = jax.jit(jax.value_and_grad(loss))
    for student in (jnp.array([0.0, -1e4, -1e4, -1e4]), logp([1.0, 0.0, 0.0, 0.0])):
        value, gradient = evaluate(student)
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

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(student))
    np.testing.assert_allclose(value, expected(student), rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric_gradient(expected, student), atol=1e-6)


def test_without_a_tail_the_kept_words_are_renormalised_and_a_change_of_mass_is_invisible():
    S, T = logp([0.45, 0.45, 0.05, 0.05]), logp([0.05, 0.05, 0.45, 0.45])
    np.testing.assert_allclose(losses.forward_kl(*top_c(S, T, 2, tail=False)), 0, atol=1e-6)
    assert losses.forward_kl(*top_c(S, T, 2)) > 1


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
    total, whole = both_sides_of_the_chain_rule(*jax.nn.log_softmax(logits))
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=ATOL)


@jax.jit
def both_sides_of_the_chain_rule(S, T):
    E = jnp.arange(VOCAB) < 3
    bins_S, bins_T = losses.epistemic_bins(S, E), losses.epistemic_bins(T, E)
    inside = losses.forward_kl(S[:3] - bins_S[0], T[:3] - bins_T[0])
    outside = losses.forward_kl(S[3:] - bins_S[1], T[3:] - bins_T[1])
    total = losses.forward_kl(bins_S, bins_T) + jnp.exp(bins_T) @ jnp.stack([inside, outside])
    return total, losses.forward_kl(S, T)


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

    @jax.jit
    def evaluate(s):
        pulls = {name: jax.vjp(measure, s) for name, (measure, _) in pairs.items()}
        return {name: (value, *pull(jnp.ones_like(value))) for name, (value, pull) in pulls.items()}

    measured = evaluate(s)
    for name, (_, formula) in pairs.items():
        value, slope = measured[name]
        expected = formula(S)
        assert value.dtype == jnp.float32
        assert_close(value, expected, 4 * 2**-24 * scale, name)
        is_finite = np.isfinite(expected)
        assert np.isfinite(slope).all()
        rows = (each[is_finite] for each in (slope, derivative(formula, S)))
        assert_close(*rows, 4 * eps * scale[is_finite, None], name, rtol=max(1e-5, eps))
    np.testing.assert_array_equal(np.isneginf(measured["log mass"][0]), np.isneginf(bins(S)[:, 0]))


@pytest.mark.parametrize("support", ["teacher", "union"])
def test_the_support_may_be_the_teachers_or_both(support):
    S, T = jax.nn.log_softmax(random_logits(29, 2, 30))
    c = 4
    pair = top_c(S, T, c, support=support)
    first = [] if support == "teacher" else np.argsort(-normalise(S))[:c].tolist()
    kept = first + [v for v in np.argsort(-normalise(T)) if v not in first][:c]
    for log_probs, bins in zip((S, T), pair):
        assert bins.shape == (len(kept) + 1,)
        assert sorted(bins[:-1].tolist()) == sorted(np.asarray(log_probs)[kept].tolist())
        np.testing.assert_allclose(np.exp(bins).sum(), 1, atol=1e-6)
    assert losses.reverse_kl(*pair) <= losses.reverse_kl(S, T) + 1e-6
