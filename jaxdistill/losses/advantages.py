"""Per-token credit from a verifier's advantage or from a teacher's log-probabilities.

s(y) and q(y) are the student's and the teacher's log-probability (nats) of the sampled token, of
any float dtype; they are subtracted in float32 at least. Credit is meant to be a constant, but no
function here stops a gradient: that is left to the caller.
"""

import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jaxtyping import Array, Bool, Float

from jaxdistill.losses.divergences import at_least_float32, clip_log_ratio, log_ratio


def rlsd(
    advantage: Float[Array, "*batch"],
    token_logp: Float[Array, "*batch"],
    teacher_token_logp: Float[Array, "*batch"],
    strength: float,
    clip: float,
) -> Float[Array, "*batch"]:
    """A ((1 - l) + l w), w = exp(sign(A) (q - s)(y)) clipped to 1 +- clip (arXiv 2604.03128).

    l is `strength`. The teacher decides how much a token is credited and the verifier in which
    direction: the result always has the sign of the advantage.

    >>> A, s, q = jnp.array([1.0, -1.0]), jnp.zeros(2), jnp.full(2, 0.1)
    >>> rlsd(A, s, q, 1.0, 0.2).round(2)
    Array([ 1.11, -0.9 ], dtype=float32)
    """
    gap = jnp.sign(advantage) * log_ratio(teacher_token_logp, token_logp)
    # Clip the logarithm, because exp of a large gap overflows.
    weight = jnp.exp(jnp.clip(gap, *np.log([1 - clip, 1 + clip])))
    return advantage * ((1 - strength) + strength * weight)


def contrastive_residual(
    teacher_token_logp: Float[Array, "*batch"],
    contrast_token_logp: Float[Array, "*batch"],
    temperature: float,
    strength: float,
    limit: float,
) -> Float[Array, "*batch"]:
    """clip(strength tanh(e / temperature), +-limit), e = q(y) - log C(y) (RLCSD, arXiv 2606.11709).

    C is the mean over wrong contexts, so that tokens which any context would favour get 0.
    """
    evidence = log_ratio(teacher_token_logp, contrast_token_logp)
    return jnp.clip(strength * jnp.tanh(evidence / temperature), -limit, limit)


def keep_sign(
    shaped: Float[Array, "*batch"], advantage: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """`shaped`, or 0 where its sign differs from the advantage's and where the advantage is 0.

    >>> keep_sign(jnp.array([0.3, -0.1, 0.5]), jnp.array([1.0, 1.0, 0.0]))
    Array([0.3, 0. , 0. ], dtype=float32)
    """
    return jnp.where(shaped * advantage > 0, shaped, 0.0)


def anti_jensen_shannon(
    token_logp: Float[Array, "*batch"], teacher_token_logp: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """A = (log 2 - softplus(q - s)) / 2, which favours what the teacher finds unlikely.

    In expectation over y ~ S the score-function gradient of -A is that of -JSD_.5(S, T): descending
    the loss ascends the divergence. A is at most (log 2) / 2 = 0.3466, and 0 where q = s. AntiSD,
    arXiv 2605.11609.

    >>> anti_jensen_shannon(jnp.zeros(2), jnp.array([0.0, -50.0])).round(4)
    Array([0.    , 0.3466], dtype=float32)
    """
    return 0.5 * (np.log(2.0) - softplus(log_ratio(teacher_token_logp, token_logp)))


def unlikely(
    token_logp: Float[Array, "*batch"],
    entropy: Float[Array, "*batch"] | None,
    vocab_size: int,
    strength: float,
    threshold: float,
) -> Float[Array, "*batch"]:
    """-strength where S(y) < threshold, times 1 - H(S) / ln V if an `entropy` (nats) is given.

    It needs neither teacher nor verifier: the control of arXiv 2608.31046 (the form is ours).
    """
    confidence = 1.0 if entropy is None else 1.0 - entropy / np.log(vocab_size)
    is_unlikely: Bool[Array, "*batch"] = at_least_float32(token_logp) < np.log(threshold)
    return jnp.where(is_unlikely, -strength * confidence, 0.0)


def importance_ratio(
    token_logp: Float[Array, "*batch"], behaviour_logp: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """pi(y_t) / pi_old(y_t) with the log-ratio clamped to +-20 nats; 1 for an unchanged policy."""
    return jnp.exp(clip_log_ratio(log_ratio(token_logp, behaviour_logp)))


def grpo_surrogate(
    ratio: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Float[Array, "*batch"]:
    """max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), at most -A dual_clip where A < 0; a loss.

    PPO's clipped surrogate (arXiv 1707.06347, equation 7), DAPO's asymmetric range
    (arXiv 2503.14476) and dual clipping (arXiv 1912.09729).

    >>> grpo_surrogate(jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 1.0, -1.0]), 0.2, 0.28, 3.0)
    Array([-1.  , -1.28,  3.  ], dtype=float32)
    """
    # The maximum is pessimistic: clipping may only take away what a large step would gain.
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    loss = jnp.maximum(-advantage * ratio, -advantage * clipped)
    if dual_clip is None:
        return loss
    return jnp.where(advantage < 0, jnp.minimum(loss, -advantage * dual_clip), loss)


def group_advantage(
    rewards_QR: Float[Array, "Q R"], normalize_std: bool = False
) -> Float[Array, "Q R"]:
    """Each reward minus its group's mean, divided by the group's deviation if `normalize_std`.

    The paper's baseline does not divide. A group of one keeps its reward (mean 0, deviation 1), as
    in verl's `compute_grpo_outcome_advantage`; the standard deviation is the unbiased one.

    >>> group_advantage(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    Array([[ 0.5, -0.5, -0.5,  0.5]], dtype=float32)
    """
    if rewards_QR.shape[-1] == 1:
        return rewards_QR
    centred_QR = rewards_QR - jnp.mean(rewards_QR, axis=-1, keepdims=True)
    if not normalize_std:
        return centred_QR
    # verl's 1e-6: a group of equal rewards then has advantages of 0 and not NaN.
    return centred_QR / (jnp.std(rewards_QR, axis=-1, ddof=1, keepdims=True) + 1e-6)
