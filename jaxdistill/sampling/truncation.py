"""Which tokens may be sampled: top-k, top-p and min-p as masks on logits, without sorting."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Bits of the threshold found per pass over V: with 2 bits, three sums per pass and 16 passes for a
# float32. A third bit would save passes but needs seven sums per pass; `docs/log.md` has timings.
_BITS = 2


def keep_top_k(logits_BV: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Set every logit below the k-th largest of its row to -inf; k = 0 keeps all.

    Logits that tie with the k-th largest are all kept, so equal tokens are treated equally.

    >>> keep_top_k(jnp.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[-inf, 3.0, 2.0]]
    """
    if k <= 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    is_kept_BV = _threshold(logits_BV, k, jnp.ones_like)
    return jnp.where(is_kept_BV, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keep the smallest set of most probable tokens whose mass is >= p (Holtzman et al. 2019).

    Tokens that tie with the last of them are kept too. Masses are compared in float32, to about
    1e-6. p = 1 keeps all.

    >>> keep_top_p(jnp.log(jnp.array([[0.2, 0.5, 0.3]])), 0.6)[0].tolist()[0]
    -inf
    """
    if p >= 1.0:
        return logits_BV
    probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
    return jnp.where(_threshold(probs_BV, p, lambda probs_BV: probs_BV), logits_BV, -jnp.inf)


def keep_min_p(logits_BV: Float[Array, "B V"], min_p: float) -> Float[Array, "B V"]:
    """Keep the tokens at least `min_p` times as probable as the likeliest (arXiv 2407.01082).

    >>> keep_min_p(jnp.log(jnp.array([[0.6, 0.3, 0.1]])), 0.4)[0].tolist()[2]
    -inf
    """
    if min_p <= 0.0:
        return logits_BV
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def truncate(
    logits_BV: Float[Array, "B V"], *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "B V"]:
    """Top-k, then top-p on the renormalised rest, then min-p: the order of transformers."""
    return keep_min_p(keep_top_p(keep_top_k(logits_BV, top_k), top_p), min_p)


def _threshold(x_BV: Float[Array, "B V"], enough: float, weigh: Callable) -> Bool[Array, "B V"]:
    """Where x >= t, with t the largest number such that the weight of all x >= t is >= `enough`.

    The bits of t are found from the highest down, two per pass; each pass sums the weight above
    three candidates at once. That is sixteen passes over V, far cheaper than sorting 152k columns.
    Ties with t are included; if the total weight is less than `enough`, everything is.
    """
    # uint32 in the same order as the float32: flip the sign bit, and every bit of negatives.
    bits_BV = jax.lax.bitcast_convert_type(x_BV.astype(jnp.float32), jnp.uint32)
    order_BV = jnp.where(bits_BV >> 31 == 1, ~bits_BV, bits_BV | jnp.uint32(1 << 31))
    least_B = jnp.zeros(x_BV.shape[:-1], jnp.uint32)
    for shift in range(32 - _BITS, -1, -_BITS):
        candidates = [least_B | jnp.uint32(i << shift) for i in range(1, 1 << _BITS)]
        weights = [jnp.where(order_BV >= c[:, None], weigh(x_BV), 0) for c in candidates]
        digit_B = sum((weight_B >= enough).astype(jnp.uint32) for weight_B in sums(weights))
        least_B |= digit_B << shift
    return order_BV >= least_B[:, None]


def sums(terms: list[Array]) -> tuple[Array, ...]:
    """Sum each term over its last axis; one reduction, so that XLA reads the inputs once."""
    add: Callable = lambda a, b: tuple(x + y for x, y in zip(a, b))  # noqa: E731
    zeros = (jnp.zeros((), terms[0].dtype),) * len(terms)
    return jax.lax.reduce(tuple(terms), zeros, add, (terms[0].ndim - 1,))
