"""Parts of the vocabulary: the mass of a set of tokens, and the top candidates with a tail."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from jaxdistill.axes import AnyArray
from jaxdistill.losses.divergences import at_least_float32
from jaxdistill.losses.vocabulary import in_equal_parts, top_k

# Below every tail that finite logits produce in practice, and above the logarithm of float32's
# smallest normal number (-87), so that its exponential is not flushed to zero.
_SMALLEST_TAIL_LOGP = -80.0


def log_mass(
    logp: Float[Array, "*batch V"], is_member_V: Bool[AnyArray, " V"]
) -> Float[Array, "*batch"]:
    """log sum_{v in members} P_v; -inf, with gradient zero, when the members have no mass.

    If the mask is known while tracing (a NumPy array), few members are gathered, and many are
    summed in one pass as probabilities: a mass below 1e-38 is then none.

    >>> jnp.exp(log_mass(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([False, True, True])))
    Array(0.5, dtype=float32)
    """
    if isinstance(is_member_V, np.ndarray):
        (ids_C,) = np.nonzero(is_member_V)
        # Gathering reads a few scattered entries, the sum reads all of them once. Half was chosen,
        # not measured: callers ask for tens of ids or for their complement, never for about half.
        if 2 * len(ids_C) >= len(is_member_V):
            probability = jnp.where(is_member_V, jnp.exp(at_least_float32(logp)), 0.0)
            mass = probability.sum(axis=-1)
            return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)
        if not len(ids_C):
            return jnp.full(logp.shape[:-1], -jnp.inf, jnp.promote_types(logp.dtype, jnp.float32))
        logp = in_equal_parts(jnp.asarray(logp))[..., ids_C]
        is_member_V = np.ones(len(ids_C), bool)
    return _masked_logsumexp(logp, jnp.broadcast_to(is_member_V, logp.shape))


def _masked_logsumexp(logp: Array, is_member: Array) -> Array:
    # Double `where`: the log of an empty sum has gradient 0/0 unless empty rows never enter it.
    members = jnp.where(is_member, at_least_float32(logp), -jnp.inf)
    has_mass = jnp.max(members, axis=-1) > -jnp.inf
    total = logsumexp(jnp.where(has_mass[..., None], members, 0.0), axis=-1)
    return jnp.where(has_mass, total, -jnp.inf)


def top_c(
    student_logp: Float[Array, "*batch V"],
    teacher_logp: Float[Array, "*batch V"],
    c: int,
    tail: bool = True,
    always_ids: Sequence[int] | None = None,
    support: Literal["student", "teacher", "union"] = "student",
) -> tuple[Float[Array, "*batch C"], Float[Array, "*batch C"]]:
    """Both distributions on the student's c likeliest tokens, and one tail bucket for the rest.

    `support` "teacher" uses the teacher's c likeliest tokens instead, and "union" the student's c
    and then the teacher's c likeliest others (2c tokens).

    The probabilities are not renormalised, so every divergence of the pair is a lower bound on the
    full one and grows with c. `always_ids` (distinct) are kept besides the c or 2c others. The last
    axis has c (or 2c) + len(always_ids) entries and one more with `tail`; if the kept ids would
    cover V, both distributions are returned unchanged. With `tail=False` the kept probabilities are
    renormalised (verl's `add_tail=False`), which loses the mass term and with it the bound; they
    are uniform if none of them has mass.

    The tail is summed over the tokens left out. The reference code computes log(1 - kept mass)
    instead, which in float32 cannot represent a tail below 1e-7 and cancels in the backward pass.

    >>> s, t = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]))
    >>> [x.tolist() for x in jax.tree.map(jnp.exp, top_c(s, t, c=1))]  # doctest: +SKIP
    [[0.6, 0.4], [0.2, 0.8]]
    """
    always = tuple(always_ids or ())
    if c * (2 if support == "union" else 1) + len(always) >= student_logp.shape[-1]:
        return student_logp, teacher_logp
    rankings = {"student": (student_logp,), "teacher": (teacher_logp,)}
    ids = _candidates(rankings.get(support, (student_logp, teacher_logp)), c, always)
    dropped = jnp.ones(student_logp.shape, bool)
    dropped = jnp.put_along_axis(dropped, ids, False, axis=-1, inplace=False)
    bins = _with_tail if tail else _renormalised
    return bins(student_logp, ids, dropped), bins(teacher_logp, ids, dropped)


def and_rest(logp: Float[Array, "*batch V"], ids: Sequence[int]) -> Float[Array, "*batch C"]:
    """The log-probabilities of `ids` (distinct), and of one bucket for all other tokens."""
    members = jnp.asarray(tuple(ids), jnp.int32)
    dropped_V = jnp.ones(logp.shape[-1], bool).at[members].set(False)
    index = jnp.broadcast_to(members, (*logp.shape[:-1], len(members)))
    return _with_tail(logp, index, jnp.broadcast_to(dropped_V, logp.shape))


def _candidates(rankings: tuple[Array, ...], c: int, always: tuple[int, ...]) -> Array:
    """The ids that are always kept, and c others by each ranking in turn; all distinct."""
    forced = jnp.asarray(always, jnp.int32)
    ids = jnp.broadcast_to(forced, (*rankings[0].shape[:-1], len(always)))
    for logp in rankings:
        # Ranking is a choice, not a differentiable value. Ids chosen before rank below all others,
        # zero probabilities included, so that no id can be chosen twice.
        ranking = jnp.maximum(jax.lax.stop_gradient(logp), jnp.finfo(logp.dtype).min)
        ranking = jnp.put_along_axis(ranking, ids, -jnp.inf, axis=-1, inplace=False)
        ids = jnp.concatenate([top_k(ranking, c)[1], ids], axis=-1)
    return ids


def _with_tail(logp: Array, ids: Array, dropped: Array) -> Array:
    kept = jnp.take_along_axis(in_equal_parts(logp), ids, axis=-1)
    # Floored so that a student with no mass in its tail gives a finite divergence.
    tail = jnp.maximum(_masked_logsumexp(logp, dropped), _SMALLEST_TAIL_LOGP)
    return jnp.concatenate([kept, tail[..., None]], axis=-1)


def _renormalised(logp: Array, ids: Array, dropped: Array) -> Array:
    kept = jnp.take_along_axis(in_equal_parts(logp), ids, axis=-1)
    total = _masked_logsumexp(kept, jnp.ones(kept.shape, bool))[..., None]
    has_mass = total > -jnp.inf
    return jnp.where(has_mass, kept - jnp.where(has_mass, total, 0.0), -np.log(kept.shape[-1]))


def epistemic_bins(
    logp: Float[Array, "*batch V"], is_epistemic_V: Bool[AnyArray, " V"]
) -> Float[Array, "*batch 2"]:
    """[log m_P, log(1 - m_P)]; both are summed directly, so that each is precise near zero.

    `forward_kl` of two such pairs is the Bernoulli term of the exact chain rule
    KL(T||S) = kl(m_T, m_S) + m_T KL(T_E||S_E) + (1 - m_T) KL(T_nE||S_nE), and it *is* the part of
    the divergence that suppresses doubt.
    """
    return jnp.stack([log_mass(logp, is_epistemic_V), log_mass(logp, ~is_epistemic_V)], axis=-1)
