"""What is imitated: edits of the teacher's distribution, on log-probabilities over the vocabulary.

T is the teacher, R the reference (the unconditioned frozen model), E the set of epistemic token ids
and m_P = P(E) the mass that P puts on it. Every function returns log-probabilities that sum to one.
Editing the *target* reaches doubt where masking a position by its sampled token cannot: a
divergence over the vocabulary does not depend on what was sampled.

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

    m* is m_R (`"ref"`), max(m_T, m_R) (`"floor"`) or (1-mix) m_T + mix m_R (`"mix"`). How much
    doubt comes from the reference; everything else from the teacher. Which doubt (X, the ratios
    inside E) comes from `shape`. Where the distribution that should give the shape has no mass at
    all on the side that must receive some, that side takes the reference's.

    >>> T, R = jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> jnp.exp(anchor_mass(T, R, jnp.array([False, True, True]))).round(6)
    Array([0.2, 0.4, 0.4], dtype=float32)
    """
    teacher_bins = losses.epistemic_bins(teacher_logp, is_epistemic_V)
    reference_bins = losses.epistemic_bins(reference_logp, is_epistemic_V)
    target_bins = _anchored_bins(teacher_bins, reference_bins, mode, mix)
    uses_teacher = teacher_bins > -jnp.inf
    if shape == "reference":
        is_outside = jnp.broadcast_to(jnp.array([False, True]), reference_bins.shape)
        uses_teacher &= is_outside | (reference_bins == -jnp.inf)
    # One shift for each side, exactly 0 where its mass stays: the edit is then none, bit for bit.
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

    Ratios inside E and outside E stay the teacher's. `log_mass` lies below 0. A teacher with no
    mass at all on one side stays as it is.
    """
    bins = losses.epistemic_bins(teacher_logp, is_epistemic_V)
    wanted = jnp.stack([log_mass, jnp.log(-jnp.expm1(log_mass))], axis=-1)
    is_split = jnp.all(bins > -jnp.inf, axis=-1, keepdims=True)
    shift = jnp.where(is_split, wanted - jnp.where(is_split, bins, 0.0), 0.0)
    return teacher_logp + _per_token(shift, is_epistemic_V)


def without_epistemic(
    logp: Float[Array, "*batch V"], is_epistemic_V: Bool[AnyArray, " V"]
) -> Float[Array, "*batch V"]:
    """P given that the token is not epistemic: -inf on E, renormalised elsewhere.

    A divergence of two such slices has no gradient on the epistemic logits. It does not
    freeze m_S: the other logits' moves renormalise the softmax, so the mass drifts by
    m_S sum_v S_v g_v a unit of step; only `anchor_mass` pins it. Where all mass is epistemic, the
    slice is uniform off E, without gradient.
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

    The caller bounds the strength: without a bound all mass goes to E.

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
    """T^w B^(1-w), renormalised: the teacher (w = 1), the base (w = 0), the geometric path between.

    B is the reference (beta-OPSD, arXiv 2607.28582, w = 1/beta, which may exceed 1) or the student
    (DemoPSD, 2607.02502; verl's trust region). With `weight` an array over V only some coordinates
    are restored: 1 off E keeps the teacher's ratios there (the mass is then not quite the base's).
    """
    teacher_logp, base_logp = map(losses.at_least_float32, (teacher_logp, base_logp))
    weight = jnp.broadcast_to(jnp.asarray(weight, teacher_logp.dtype), teacher_logp.shape)
    return _normalized(_times(weight, teacher_logp) + _times(1 - weight, base_logp))


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

    C sees the context *without* the question: what it already says is a shortcut, not a solution
    (Purified OPSD, arXiv 2607.02234; the form is ours). Ratios are clamped to +-20 nats.
    """
    gain = losses.log_ratio(teacher_logp, contrast_logp)
    gain = losses.clip_log_ratio(jnp.where(jnp.isnan(gain), 0.0, gain))  # neither has any mass
    return _normalized(reference_logp + strength * gain)


def contrasted(
    teacher_logp: Float[Array, "*batch V"],
    contrast_logp: Float[Array, "*batch V"],
    strength: float = 1.0,
) -> Float[Array, "*batch V"]:
    """softmax((1 + a) log T - a max(log C, -30)): away from what any context says.

    RLCSD's `opsd_ectr` (arXiv 2606.11709 and its code, floor included); C = T leaves T.
    """
    teacher_logp, contrast_logp = map(losses.at_least_float32, (teacher_logp, contrast_logp))
    # -30 nats is the floor of RLCSD's code: what the contrast never says is not lifted without end.
    contrast_logp = jnp.maximum(contrast_logp, -30.0)
    return _normalized((1 + strength) * teacher_logp - strength * contrast_logp)


def _normalized(logits: Array) -> Array:
    return logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)


def _per_token(bins: Array, is_epistemic_V: AnyArray) -> Array:
    """[inside E, outside E] spread over the vocabulary."""
    shape = (*bins.shape[:-1], is_epistemic_V.shape[0])
    return jnp.where(jnp.broadcast_to(is_epistemic_V, shape), bins[..., :1], bins[..., 1:])


def _difference(logp: Array, log_total: Array) -> Array:
    """logp - log_total, and -inf (not NaN) where the total is zero."""
    has_mass = log_total > -jnp.inf
    return jnp.where(has_mass, logp - jnp.where(has_mass, log_total, 0.0), -jnp.inf)
