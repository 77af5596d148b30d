"""Divergences between distributions over the vocabulary, their estimators, and clips of a loss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.losses.vocabulary import in_equal_parts

# exp(89) is not finite in float32; 20 is verl's bound (`core_algos.py`).
_LARGEST_LOG_RATIO = 20.0


def forward_kl(
    student_logp: Float[Array, "*batch V"],
    teacher_logp: Float[AnyArray, "*batch V"],
    entry_clip: float | None = None,
) -> Float[Array, "*batch"]:
    """KL(T||S) = sum_v T_v (log T_v - log S_v), in nats; infinite where T has mass and S has none.

    With `entry_clip` each of the V terms is clipped at that many nats before the sum, as in OPSD's
    code, so that no token dominates. The sum may then be negative.

    >>> forward_kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([1.0, 0.0])))
    Array(0.6931472, dtype=float32)
    """
    return _kl_of(teacher_logp, student_logp, entry_clip)


def reverse_kl(
    student_logp: Float[Array, "*batch V"],
    teacher_logp: Float[AnyArray, "*batch V"],
    entry_clip: float | None = None,
) -> Float[Array, "*batch"]:
    """KL(S||T) = sum_v S_v (log S_v - log T_v), in nats; infinite where S has mass and T has none.

    This is equation 1 of arXiv 2603.24472; the released runs use `jensen_shannon` at alpha 0.5.
    `entry_clip` as in `forward_kl`.

    >>> reverse_kl(jnp.log(jnp.array([1.0, 0.0])), jnp.log(jnp.array([0.5, 0.5])))
    Array(0.6931472, dtype=float32)
    """
    return _kl_of(student_logp, teacher_logp, entry_clip)


def jensen_shannon(
    student_logp: Float[Array, "*batch V"],
    teacher_logp: Float[AnyArray, "*batch V"],
    alpha: float = 0.5,
    normalize: bool = False,
    entry_clip: float | None = None,
) -> Float[Array, "*batch"]:
    """(1-alpha) KL(S||M) + alpha KL(T||M) with M = (1-alpha) S + alpha T; at most ln 2, in nats.

    alpha = 0 gives `forward_kl` and alpha = 1 gives `reverse_kl`, as in the paper's code, TRL's
    and verl's. These are not the limits of the formula, which tends to 0 at both ends: value and
    gradient *jump* there, and at equal learning rate alpha = 0.5 has a gradient several times
    smaller than either end. `normalize` divides by alpha (1-alpha), which makes the family
    continuous: it then tends to KL(T||S) and KL(S||T). In float32 this holds to 1e-5 for alpha from
    0.001 to 0.999; closer to the ends cancellation shows. `entry_clip` is applied as in
    `forward_kl`, before normalising.

    >>> jensen_shannon(jnp.log(jnp.array([1.0, 0.0])), jnp.log(jnp.array([0.0, 1.0])))
    Array(0.6931472, dtype=float32)
    """
    if alpha == 0.0:
        return forward_kl(student_logp, teacher_logp, entry_clip)
    if alpha == 1.0:
        return reverse_kl(student_logp, teacher_logp, entry_clip)
    total = _sum_entries(_jensen_shannon_entries(student_logp, teacher_logp, alpha), entry_clip)
    return total / (alpha * (1 - alpha)) if normalize else total


# A custom JVP, here and for KL: autodiff would keep two more float32 arrays and three masks of the
# size of a chunk's logits for the backward pass.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _jensen_shannon_entries(s_logp: AnyArray, t_logp: AnyArray, alpha: float) -> Array:
    of_s, of_t = _jensen_shannon_halves(s_logp, t_logp, alpha)
    return of_s + of_t


@_jensen_shannon_entries.defjvp
def _jensen_shannon_entries_jvp(alpha, logps, tangents):
    # d/dlog S_v = (1-alpha) S_v log(S_v / M_v): the product rule's other terms cancel those of T.
    (s_logp, t_logp), (ds, dt) = logps, tangents
    of_s, of_t = _jensen_shannon_halves(s_logp, t_logp, alpha)
    return of_s + of_t, _along(of_s, ds) + _along(of_t, dt)


def _jensen_shannon_halves(s_logp: AnyArray, t_logp: AnyArray, alpha: float) -> tuple[Array, Array]:
    """The terms of (1-alpha) KL(S||M) and of alpha KL(T||M)."""
    # log M is computed from M: a logaddexp would take more arithmetic and be no more exact. Where M
    # underflows, so do the masses by which log M is multiplied.
    logps = tuple(at_least_float32(logp) for logp in (s_logp, t_logp))
    masses = tuple(share * jnp.exp(logp) for share, logp in zip((1 - alpha, alpha), logps))
    mixture_logp = jnp.log(masses[0] + masses[1])
    of_s, of_t = (
        jnp.where(mass == 0, 0.0, mass * (logp - mixture_logp)) for mass, logp in zip(masses, logps)
    )
    return of_s, of_t


@jax.custom_jvp
def _kl_entries(p_logp: AnyArray, q_logp: AnyArray) -> Array:
    # 0 where P is zero (or underflows), infinite where only Q is zero, NaN where an input is NaN.
    p_logp, q_logp = at_least_float32(p_logp), at_least_float32(q_logp)
    probability = jnp.exp(p_logp)
    return jnp.where(probability == 0, 0.0, probability * (p_logp - q_logp))


@_kl_entries.defjvp
def _kl_entries_jvp(logps, tangents):
    # d/dlog P_v = P_v (log(P_v / Q_v) + 1), d/dlog Q_v = -P_v; both 0 where the term is infinite.
    p_logp, q_logp = (at_least_float32(x) for x in logps)
    entries = _kl_entries(p_logp, q_logp)
    is_finite = entries != jnp.inf
    p = jnp.where(is_finite & (q_logp != -jnp.inf), jnp.exp(p_logp), 0.0)
    dp, dq = tangents
    return entries, _along(jnp.where(is_finite, entries, 0.0) + p, dp) - _along(p, dq)


def _along(entries: Array, tangent: Array) -> Array:
    return entries * tangent.astype(entries.dtype)


def at_least_float32(logp: AnyArray) -> Any:
    """Log-probabilities in a dtype fit for subtraction: bfloat16 has fewer than three digits."""
    return logp.astype(jnp.promote_types(logp.dtype, jnp.float32))


def _kl_of(p_logp: AnyArray, q_logp: AnyArray, entry_clip: float | None = None) -> Array:
    return _sum_entries(_kl_entries(p_logp, q_logp), entry_clip)


def _sum_entries(entries: AnyArray, clip: float | None) -> Array:
    return jnp.sum(entries if clip is None else jnp.minimum(entries, clip), axis=-1)


def log_mix(p_logp: AnyArray, q_logp: AnyArray, alpha: float) -> Array:
    """log((1-alpha) P + alpha Q), elementwise, for 0 < alpha < 1."""
    p_logp, q_logp = at_least_float32(p_logp), at_least_float32(q_logp)
    # Double `where`: logaddexp of two -inf has a NaN gradient, also behind a single `where`.
    has_mass = (p_logp > -jnp.inf) | (q_logp > -jnp.inf)
    p = jnp.where(has_mass, p_logp, 0.0) + np.log1p(-alpha)
    q = jnp.where(has_mass, q_logp, 0.0) + np.log(alpha)
    return jnp.where(has_mass, jnp.logaddexp(p, q), -jnp.inf)


def entropy(logp: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """H(P) = -sum_v P_v log P_v, in nats.

    >>> entropy(jnp.log(jnp.array([0.5, 0.5, 0.0])))
    Array(0.6931472, dtype=float32)
    """
    return -_sum_entries(_negentropy_entries(logp), None)


@jax.custom_jvp
def _negentropy_entries(logp: AnyArray) -> Array:
    """P log P: `_kl_entries` with Q = 1."""
    logp = at_least_float32(logp)
    probability = jnp.exp(logp)
    # Not `probability == 0`: XLA for GPUs would store that mask, for the divergence from the same
    # distribution (docs/log.md, 2026-12-01), instead of comparing twice.
    return jnp.where(probability != 0, probability * (logp - 0.0), 0.0)


@_negentropy_entries.defjvp
def _negentropy_entries_jvp(primals, tangents):
    ((logp,), (tangent,)) = primals, tangents
    return jax.jvp(lambda p: _kl_entries(p, jnp.zeros_like(p)), (logp,), (tangent,))


def take_token(
    logp: Float[Array, "*batch V"], tokens: Int[AnyArray, "*batch"]
) -> Float[Array, "*batch"]:
    """The log-probability of one token at each position, in float32 at least."""
    of_tokens = jnp.take_along_axis(in_equal_parts(logp), tokens[..., None], axis=-1)
    return at_least_float32(of_tokens[..., 0])


def score_function_reverse_kl(
    student_logp: Float[Array, "*batch V"], teacher_logp: Float[Array, "*batch V"]
) -> Float[Array, "*batch"]:
    """KL(S||T) in value; its gradient is sum_v sg(S_v (log S_v - log T_v)) grad log S_v.

    Over the full vocabulary this is the gradient of `reverse_kl`, since sum_v S_v grad log S_v = 0.
    Over a top-C support this identity fails, and differentiating the sum itself adds a term that
    has nothing to do with the teacher (the bias of truncated gradients, arXiv 2605.11182). This
    form leaves that term out.
    """
    coefficients = jax.lax.stop_gradient(_kl_entries(student_logp, teacher_logp))
    # Double `where`: 0 * -inf would be NaN in the value, and with a single `where` in the gradient.
    has_mass = student_logp > -jnp.inf
    scaled = jnp.where(has_mass, coefficients * jnp.where(has_mass, student_logp, 0.0), 0.0)
    return _with_gradient_of(coefficients.sum(-1), jnp.sum(scaled, axis=-1))


def _with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, differentiated as if it were `surrogate`."""
    return jax.lax.stop_gradient(value - surrogate) + surrogate


def kl_entry(p_logp: Float[AnyArray, "*batch"], q_logp: Float[AnyArray, "*batch"]) -> Array:
    """P (log P - log Q) of single tokens, in nats: their term of KL(P||Q); 0 where P is 0.

    >>> kl_entry(jnp.log(0.5), jnp.log(0.25)) / jnp.log(2.0)
    Array(0.5, dtype=float32)
    """
    return _kl_entries(p_logp, q_logp)


def sampled_reverse_kl(
    token_logp: Float[Array, "*batch"], teacher_token_logp: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """k1 = log S(y) - log T(y) in value, with the score-function gradient k1 grad log S(y).

    The gradient is unbiased for that of KL(S||T) if y is the student's sample, and has a high
    variance; the value may be negative (Schulman's k1; the token-level policy gradient of SDPO and
    tinker).
    """
    k1 = jax.lax.stop_gradient(log_ratio(token_logp, teacher_token_logp))
    return _with_gradient_of(k1, k1 * token_logp)


def k3(
    token_logp: Float[Array, "*batch"], teacher_token_logp: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """r - 1 - log r with r = T(y)/S(y): never negative, with mean KL(S||T) over y ~ S.

    Only the value is unbiased; the mean of its gradient is the gradient of KL(T||S). The log-ratio
    is clamped to +-20 nats. Schulman 2020, "Approximating KL divergence".

    >>> k3(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.5])))
    Array([0.], dtype=float32)
    """
    gap = clip_log_ratio(log_ratio(teacher_token_logp, token_logp))
    return jnp.expm1(gap) - gap


def bernoulli_kl(
    p_bins: Float[Array, "*batch 2"], q_bins: Float[Array, "*batch 2"]
) -> Float[Array, "*batch"]:
    """kl(m_P, m_Q) of two `epistemic_bins`, in nats.

    It is the mass term of the exact chain rule
    KL(P||Q) = kl(m_P, m_Q) + m_P KL(P_E||Q_E) + (1 - m_P) KL(P_nE||Q_nE).
    """
    return _kl_of(p_bins, q_bins)


def clip_position(loss: Float[Array, "*batch"], limit: float) -> Float[Array, "*batch"]:
    """min(loss, limit): positions above the limit have no gradient (RLCSD's token clip)."""
    return jnp.minimum(loss, limit)


def smooth_clip_tanh(loss: Float[Array, "*batch"], limit: float) -> Float[Array, "*batch"]:
    """limit tanh(loss / limit): bounded by `limit`, with slope 1 at 0 and a gradient everywhere.

    >>> smooth_clip_tanh(jnp.array([0.0, 100.0]), 2.0)
    Array([0., 2.], dtype=float32)
    """
    return limit * jnp.tanh(loss / limit)


def smooth_clip_rational(loss: Float[Array, "*batch"], limit: float) -> Float[Array, "*batch"]:
    """loss / (1 + loss / limit) for losses >= 0: bounded by `limit`, with slope 1 at 0.

    Its gradient falls off like 1 / loss^2, where `smooth_clip_tanh`'s falls off exponentially.
    """
    return loss / (1 + loss / limit)


def log_ratio(p_logp: Float[Array, "*batch"], q_logp: Float[Array, "*batch"]) -> Array:
    """log P - log Q, subtracted in float32 at least."""
    return at_least_float32(p_logp) - at_least_float32(q_logp)


def clip_log_ratio(gap: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The log-ratio `gap` clamped to +-20 nats: exp(89) is not finite in float32."""
    return jnp.clip(gap, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
