"""Which tokens may be sampled: top-k and top-p as masks on logits, without sorting V columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.sharding import top_k

_ONE_BITS = 0x3F800000  # bit pattern of float32 1.0: the bit patterns of [0, 1] are ordered


def keep_top_k(logits_BV: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Set every logit below the k-th largest of its row to -inf; k = 0 keeps all.

    Logits that tie with the k-th largest are all kept, so equal tokens are treated equally.

    >>> keep_top_k(jnp.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[-inf, 3.0, 2.0]]
    """
    if k <= 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    kth_B1 = top_k(logits_BV, k)[0][:, -1:]
    return jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keep the smallest set of most probable tokens whose mass is >= p (Holtzman et al. 2019).

    The set is {v : prob_v >= threshold} with the largest threshold that keeps mass p, found by
    bisection on the float32 bit pattern of the probability: 30 masked sums over V end at the exact
    probability of the last kept token, where a sort of 152k columns would be far dearer. Tokens
    that tie with it are kept too; the mass is compared in float32 (about 1e-6). p = 1 keeps all.

    >>> keep_top_p(jnp.log(jnp.array([[0.2, 0.5, 0.3]])), 0.6)[0].tolist()[0]
    -inf
    """
    if p >= 1.0:
        return logits_BV
    probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
    bits_BV = jax.lax.bitcast_convert_type(probs_BV, jnp.int32)

    def halve(_, bounds):
        low_B, high_B = bounds  # the mass at or above low is >= p, at or above high it is < p
        middle_B = (low_B + high_B) // 2
        mass_B = jnp.sum(jnp.where(bits_BV >= middle_B[:, None], probs_BV, 0.0), axis=-1)
        enough_B = mass_B >= p
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    low_B = jnp.zeros(logits_BV.shape[:-1], jnp.int32)
    threshold_B, _ = jax.lax.fori_loop(0, 30, halve, (low_B, low_B + (_ONE_BITS + 1)))
    return jnp.where(bits_BV >= threshold_B[:, None], logits_BV, -jnp.inf)


def truncate(logits_BV: Float[Array, "B V"], *, top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Apply top-k, then top-p to what it left, renormalised: the order of transformers and vLLM."""
    return keep_top_p(keep_top_k(logits_BV, top_k), top_p)
