"""Top-k and top-p against sorting in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.sampling import processors


def random_logits(seed, rows=5, columns=33):
    return 3.0 * jax.random.normal(jax.random.key(seed), (rows, columns))


def smallest_nucleus(logits_V, p):
    """The reference: sort, cumulate, keep tokens until the mass reaches p."""
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
    masked_BV = np.asarray(processors.keep_top_p(logits_BV, p))
    for logits_V, masked_V in zip(np.asarray(logits_BV), masked_BV):
        assert kept(masked_V) == smallest_nucleus(logits_V, p)


def test_top_p_never_drops_the_most_probable_token():
    logits_BV = jnp.array([[50.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    masked_BV = np.asarray(processors.keep_top_p(logits_BV, 1e-9))
    assert kept(masked_BV[0]) == {0}
    assert kept(masked_BV[1]) == {1, 2}, "tokens that tie at the threshold are all kept"


def test_top_p_just_below_one_keeps_everything_when_rounding_leaves_the_mass_short():
    logits_BV = jnp.zeros((1, 4099))  # 1/4099 in float32 does not sum to 1 exactly
    assert len(kept(np.asarray(processors.keep_top_p(logits_BV, 0.9999999))[0])) == 4099


@pytest.mark.parametrize("k", [1, 4, 32])
def test_top_k_keeps_the_k_largest(k):
    logits_BV = random_logits(1)
    masked_BV = np.asarray(processors.keep_top_k(logits_BV, k))
    for logits_V, masked_V in zip(np.asarray(logits_BV), masked_BV):
        assert kept(masked_V) == set(np.argsort(-logits_V)[:k].tolist())


def test_kept_logits_are_unchanged_and_the_neutral_settings_keep_all():
    logits_BV = random_logits(2)
    masked_BV = processors.truncate(logits_BV, top_k=7, top_p=0.8, min_p=0.0)
    is_kept_BV = np.isfinite(np.asarray(masked_BV))
    np.testing.assert_array_equal(masked_BV[is_kept_BV], logits_BV[is_kept_BV])
    np.testing.assert_array_equal(processors.truncate(logits_BV, top_k=0, top_p=1.0, min_p=0.0), logits_BV)
    np.testing.assert_array_equal(processors.keep_top_k(logits_BV, 33), logits_BV)


def test_top_p_after_top_k_counts_the_mass_that_top_k_left():
    # p = .4 .3 .2 .1; top-k 2 leaves 4/7 and 3/7: mass 0.5 needs the first token only, as
    # 4/7 > 0.5, although 0.4 < 0.5 before renormalisation.
    logits_BV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    assert kept(np.asarray(processors.truncate(logits_BV, top_k=2, top_p=0.5, min_p=0.0))[0]) == {0}
    assert kept(np.asarray(processors.truncate(logits_BV, top_k=0, top_p=0.5, min_p=0.0))[0]) == {0, 1}
