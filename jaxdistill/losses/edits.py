"""Edits of the distribution that is imitated: the teacher's, as log-probabilities over V.

T is the teacher, R the reference (the unconditioned frozen model), E the set of epistemic token ids
and m_P = P(E) the mass that P puts on it. Every function returns log-probabilities that sum to one.
Editing the *target* can protect doubt where masking positions by their sampled token cannot,
because a divergence over the vocabulary does not depend on what was sampled.

An entry of probability zero (log-probability -inf) is allowed wherever the mathematics is finite.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill import losses
from jaxdistill.axes import AnyArray


def anchor_mass(
    teacher_logp: Float[Array, "*batch V"],
    reference_logp: Float[Array, "*batch V"],
    is_epistemic_V: Bool[AnyArray, " V"],
    mode: Literal["ref", "floor", "mix"] = "ref",
    mix: float = 1.0,
    shape: Literal["teacher", "reference"] = "teacher",
) -> Float[Array, "*batch V"]:
    """The teacher with its epistemic mass replaced: m* X_E + (1 - m*) T_nE, as log-probabilities.

    m* is m_R (`"ref"`), max(m_T, m_R) (`"floor"`) or (1-mix) m_T + mix m_R (`"mix"`). The amount
    of doubt comes from the reference, its composition (X, the ratios inside E) from `shape`, and
    everything else from the teacher. If the distribution that should provide the ratios of one side
    has no mass there, that side uses the reference's.

    >>> T, R = jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> jnp.exp(anchor_mass(T, R, jnp.array([False, True, True]))).round(6)
    Array([0.2, 0.4, 0.4], dtype=float32)
    """
    teacher_bins = losses.epistemic_bins(teacher_logp, is_epistemic_V)
    reference_bins = losses.epistemic_bins(reference_logp, is_epistemic_V)
    target_bins = _anchored_bins(teacher_bins, reference_bins, mode, mix)
    uses_teacher = teacher_bins > -jnp.inf
    if shape == "reference":
        # The teacher provides the ratios outside E, and inside only if the reference has none.
        is_outside = jnp.broadcast_to(jnp.array([False, True]), reference_bins.shape)
        uses_teacher &= is_outside | (reference_bins == -jnp.inf)
    # One shift per side, exactly 0 where the mass stays the same: the teacher is then returned bit
    # for bit, which multiplying and dividing by masses would not achieve.
    shape_bins = jnp.where(uses_teacher, teacher_bins, reference_bins)
    shape_logp = jnp.where(_per_token(uses_teacher, is_epistemic_V), teacher_logp, reference_logp)
    return shape_logp + _per_token(_difference(target_bins, shape_bins), is_epistemic_V)


def _anchored_bins(teacher_bins: Array, reference_bins: Array, mode: str, mix: float) -> Array:
    if mode == "ref" or (mode == "mix" and mix == 1.0):
        return reference_bins
    if mode == "floor":
        teacher_doubts_more = teacher_bins[..., :1] > reference_bins[..., :1]
        return jnp.where(teacher_doubts_more, teacher_bins, reference_bins)
    assert mode == "mix", mode
    return teacher_bins if mix == 0.0 else losses.log_mix(teacher_bins, reference_bins, mix)


def restore_mass(
    teacher_logp: Float[Array, "*batch V"],
    is_epistemic_V: Bool[AnyArray, " V"],
    log_mass: Float[Array, "*batch"],
) -> Float[Array, "*batch V"]:
    """The teacher with one constant added to its epistemic *logits* such that m_T = exp(log_mass).

    Ratios inside E and outside E stay the teacher's. `log_mass` must be below 0. A teacher with no
    mass at all on one side is left as it is.
    """
    bins = losses.epistemic_bins(teacher_logp, is_epistemic_V)
    wanted = jnp.stack([log_mass, jnp.log(-jnp.expm1(log_mass))], axis=-1)
    is_split = jnp.all(bins > -jnp.inf, axis=-1, keepdims=True)
    shift = jnp.where(is_split, wanted - jnp.where(is_split, bins, 0.0), 0.0)
    return teacher_logp + _per_token(shift, is_epistemic_V)


def without_epistemic(
    logp: Float[Array, "*batch V"], is_epistemic_V: Bool[AnyArray, " V"]
) -> Float[Array, "*batch V"]:
    """P conditioned on the token not being epistemic: -inf on E, renormalised elsewhere.

    A divergence of two such slices has no gradient on the epistemic logits. It does not freeze m_S,
    however: changes of the other logits renormalise the softmax, so that the mass drifts by
    m_S sum_v S_v g_v per unit step. Only `anchor_mass` fixes it. Where all mass is epistemic, the
    slice is uniform outside E and has no gradient.
    """
    log_rest = losses.log_mass(logp, ~is_epistemic_V)[..., None]
    count = jnp.maximum(jnp.sum(~is_epistemic_V), 1).astype(log_rest.dtype)
    inside = jnp.where(log_rest > -jnp.inf, _difference(logp, log_rest), -jnp.log(count))
    return jnp.where(jnp.broadcast_to(is_epistemic_V, logp.shape), -jnp.inf, inside)


def amplify(
    teacher_logp: Float[Array, "*batch V"],
    is_epistemic_V: Bool[AnyArray, " V"],
    strength: Float[Array, "*batch"],
) -> Float[Array, "*batch V"]:
    """T_v exp(strength 1[v in E]), renormalised: more doubt where `strength` (nats) is positive.

    The caller must bound the strength: without a bound, all mass goes to E.

    >>> T = jnp.log(jnp.array([0.5, 0.5]))
    >>> jnp.exp(amplify(T, jnp.array([False, True]), jnp.log(3.0))).round(6)
    Array([0.25, 0.75], dtype=float32)
    """
    shift = jnp.where(is_epistemic_V, strength[..., None], 0.0)
    return _normalized(losses.at_least_float32(teacher_logp) + shift)


def barycentre(
    teacher_logp: Float[Array, "*batch V"],
    base_logp: Float[Array, "*batch V"],
    weight: float | Float[Array, "*#batch #V"],
) -> Float[Array, "*batch V"]:
    """T^w B^(1-w), renormalised: the geometric path from the base (w = 0) to the teacher (w = 1).

    B is the reference (beta-OPSD, arXiv 2607.28582, w = 1/beta, which may exceed 1) or the student
    (DemoPSD, arXiv 2607.02502; verl's trust region). With an array over V as `weight`, only some
    tokens are moved: a weight of 1 outside E keeps the teacher's ratios there (the epistemic mass
    is then not exactly the base's).
    """
    teacher_logp, base_logp = map(losses.at_least_float32, (teacher_logp, base_logp))
    weight = jnp.broadcast_to(jnp.asarray(weight, teacher_logp.dtype), teacher_logp.shape)
    return _normalized(_times(weight, teacher_logp) + _times(1 - weight, base_logp))


def mixture(
    teacher_logp: Float[Array, "*batch V"],
    base_logp: Float[Array, "*batch V"],
    log_odds: Float[Array, "*batch"],
) -> Float[Array, "*batch V"]:
    """U B + (1 - U) T with U = sigmoid(log_odds): the arithmetic path from teacher to base.

    The log-odds of the base's share keep both shares precise near 0; +-inf are allowed. Sums over
    tokens commute with the mixture, so that a tail bucket of it is the mixture of the tails.

    >>> T, B = jnp.log(jnp.array([[0.8, 0.2], [0.4, 0.6]]))
    >>> jnp.exp(mixture(T, B, jnp.log(3.0))).round(6)
    Array([0.5, 0.5], dtype=float32)
    """
    teacher_logp, base_logp = map(losses.at_least_float32, (teacher_logp, base_logp))
    # Double `where`, as in `losses.log_mix`: logaddexp of two -inf has a NaN gradient.
    has_mass = (teacher_logp > -jnp.inf) | (base_logp > -jnp.inf)
    log_share, log_rest = (jax.nn.log_sigmoid(x)[..., None] for x in (log_odds, -log_odds))
    base_logp = jnp.where(has_mass, base_logp, 0.0) + log_share
    mixed = jnp.logaddexp(base_logp, jnp.where(has_mass, teacher_logp, 0.0) + log_rest)
    return jnp.where(has_mass, mixed, -jnp.inf)


def _times(weight: Array, logp: Array) -> Array:
    """weight * logp, with 0 * -inf = 0: a power of zero."""
    return jnp.where(weight == 0, 0.0, weight * jnp.where(weight == 0, 0.0, logp))


def purified(
    reference_logp: Float[Array, "*batch V"],
    teacher_logp: Float[Array, "*batch V"],
    contrast_logp: Float[Array, "*batch V"],
    strength: float = 1.0,
) -> Float[Array, "*batch V"]:
    """R exp(strength (log T - log C)), renormalised: the reference moved by what the context adds.

    C sees the context *without* the question: what it already predicts is a shortcut, not a
    solution (Purified OPSD, arXiv 2607.02234; the form is ours). Log-ratios are clamped to +-20
    nats.
    """
    gain = losses.log_ratio(teacher_logp, contrast_logp)
    # -inf - -inf is NaN: neither distribution has mass there, and nothing is gained.
    gain = losses.clip_log_ratio(jnp.where(jnp.isnan(gain), 0.0, gain))
    return _normalized(reference_logp + strength * gain)


def contrasted(
    teacher_logp: Float[Array, "*batch V"],
    contrast_logp: Float[Array, "*batch V"],
    strength: float = 1.0,
) -> Float[Array, "*batch V"]:
    """softmax((1 + a) log T - a max(log C, -30)): T moved away from what any context predicts.

    RLCSD's `opsd_ectr` (arXiv 2606.11709 and its code, including the floor); a is `strength`, and
    C = T returns T where log T is above the floor.
    """
    teacher_logp, contrast_logp = map(losses.at_least_float32, (teacher_logp, contrast_logp))
    # RLCSD's code has this floor of -30 nats: without one, tokens that the contrast never predicts
    # would be raised without bound.
    contrast_logp = jnp.maximum(contrast_logp, -30.0)
    return _normalized((1 + strength) * teacher_logp - strength * contrast_logp)


def _normalized(logits: Array) -> Array:
    return logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)


def _per_token(bins: Array, is_epistemic_V: AnyArray) -> Array:
    """Spread the two values [inside E, outside E] over the vocabulary."""
    shape = (*bins.shape[:-1], is_epistemic_V.shape[0])
    return jnp.where(jnp.broadcast_to(is_epistemic_V, shape), bins[..., :1], bins[..., 1:])


def _difference(logp: Array, log_total: Array) -> Array:
    """logp - log_total, and -inf (not NaN) where the total is zero."""
    has_mass = log_total > -jnp.inf
    return jnp.where(has_mass, logp - jnp.where(has_mass, log_total, 0.0), -jnp.inf)
