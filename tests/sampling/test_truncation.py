"""Top-k, top-p and min-p against a reference that sorts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.sampling import truncation

keep_top_k, keep_top_p, keep_min_p = (
    jax.jit(keep, static_argnums=1)
    for keep in (truncation.keep_top_k, truncation.keep_top_p, truncation.keep_min_p)
)
truncate = jax.jit(truncation.truncate, static_argnames=("top_k", "top_p", "min_p"))


def random_logits(seed, rows=5, columns=33):
    return 3.0 * jax.random.normal(jax.random.key(seed), (rows, columns))


def smallest_nucleus(logits_V, p):
    """The reference: sort, take the cumulative sum, keep tokens until the mass reaches p."""
    probs_V = np.exp(logits_V - logits_V.max(), dtype=np.float64)
    probs_V /= probs_V.sum()
    order_V = np.argsort(-probs_V)
    count = 1 + np.searchsorted(np.cumsum(probs_V[order_V]), p)
    return set(order_V[:count].tolist())


def kept(masked_V):
    return set(np.flatnonzero(np.isfinite(masked_V)).tolist())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99]))
def test_top_p_keeps_the_smallest_set_whose_mass_reaches_p(seed, p):
    logits_BV = random_logits(seed)
    masked_BV = np.asarray(keep_top_p(logits_BV, p))
    for logits_V, masked_V in zip(np.asarray(logits_BV), masked_BV):
        assert kept(masked_V) == smallest_nucleus(logits_V, p)


def test_top_p_never_drops_the_most_probable_token():
    logits_BV = jnp.array([[50.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    masked_BV = np.asarray(keep_top_p(logits_BV, 1e-9))
    assert kept(masked_BV[0]) == {0}
    assert kept(masked_BV[1]) == {1, 2}, "tokens that tie at the threshold are all kept"


def test_top_p_just_below_one_keeps_everything_when_rounding_leaves_the_mass_short():
    logits_BV = jnp.zeros((1, 4099))  # 1/4099 in float32 does not sum to 1 exactly
    assert len(kept(np.asarray(keep_top_p(logits_BV, 0.9999999))[0])) == 4099


@pytest.mark.parametrize("k", [1, 4, 32])
def test_top_k_keeps_the_k_largest(k):
    logits_BV = random_logits(1)
    masked_BV = np.asarray(keep_top_k(logits_BV, k))
    for logits_V, masked_V in zip(np.asarray(logits_BV), masked_BV):
        assert kept(masked_V) == set(np.argsort(-logits_V)[:k].tolist())


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_top_k_finds_the_threshold_among_numbers_of_any_size_and_sign(scale):
    logits_BV = scale * random_logits(3, rows=3) - scale
    masked_BV = np.asarray(keep_top_k(logits_BV, 5))
    for logits_V, masked_V in zip(np.asarray(logits_BV), masked_BV):
        assert kept(masked_V) == set(np.argsort(-logits_V)[:5].tolist())


def test_top_k_keeps_all_that_tie_with_the_kth():
    logits_BV = jnp.array([[0.0, 2.0, -1.0, 0.0, -0.5]])
    assert kept(np.asarray(keep_top_k(logits_BV, 2))[0]) == {0, 1, 3}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), min_p=st.sampled_from([1e-4, 0.05, 0.5, 0.99]))
def test_min_p_keeps_what_is_probable_enough_beside_the_likeliest(seed, min_p):
    logits_BV = random_logits(seed)
    masked_BV = np.asarray(keep_min_p(logits_BV, min_p))
    ratio_BV = np.exp(np.asarray(logits_BV) - np.asarray(logits_BV).max(axis=1, keepdims=True))
    np.testing.assert_array_equal(np.isfinite(masked_BV), ratio_BV >= min_p)


def test_kept_logits_are_unchanged_and_the_neutral_settings_keep_all():
    logits_BV = random_logits(2)
    masked_BV = truncate(logits_BV, top_k=7, top_p=0.8)
    is_kept_BV = np.isfinite(np.asarray(masked_BV))
    np.testing.assert_array_equal(masked_BV[is_kept_BV], logits_BV[is_kept_BV])
    np.testing.assert_array_equal(truncate(logits_BV, top_k=0, top_p=1.0), logits_BV)
    np.testing.assert_array_equal(keep_top_k(logits_BV, 33), logits_BV)


def test_top_p_after_top_k_counts_the_mass_that_top_k_left():
    # p = .4 .3 .2 .1; top-k 2 leaves 4/7 and 3/7: mass 0.5 needs the first token only, as
    # 4/7 > 0.5, although 0.4 < 0.5 before renormalisation.
    logits_BV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    assert kept(np.asarray(truncate(logits_BV, top_k=2, top_p=0.5))[0]) == {0}
    assert kept(np.asarray(truncate(logits_BV, top_k=0, top_p=0.5))[0]) == {0, 1}
