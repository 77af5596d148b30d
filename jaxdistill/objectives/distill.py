"""Self-distillation: target, divergence, support, clip, weights, terms, composed."""

import functools
import operator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.objectives.divergences import (
    Clip,
    Divergence,
    JensenShannon,
    clipped,
    divergence_of,
    require_fitting,
)
from jaxdistill.objectives.importance import (
    RolloutCorrection,
    is_of_sequences,
    policy_ratio,
    ratio_metrics,
    rollout_log_ratio,
    sequence_rollout_weight,
    token_rollout_weight,
)
from jaxdistill.objectives.positions import (
    Epistemic,
    LossPart,
    Positions,
    require,
    require_choice,
    require_choices,
)
from jaxdistill.objectives.reduction import Reduction, require_reduction
from jaxdistill.objectives.support import Support, TopC, kept_ids
from jaxdistill.objectives.targets import Target, TeacherTarget, edited
from jaxdistill.objectives.terms import Term, added
from jaxdistill.objectives.weights import (
    BatchWeight,
    Weight,
    batch_factor,
    batch_score,
    position_weight,
)


@dataclass(frozen=True)
class Distill:
    """Self-distillation; the defaults are the paper's runs (arXiv 2603.24472, SDPO).

    At each position: weight * importance * clip(divergence(student, target)) + terms. Weights
    multiply. `importance_clip` bounds pi(y)/pi_old(y), which corrects for samples of an older
    policy; None leaves it out. `normalizer` says what the sum is divided by: `"all"` positions of
    distilled rows, so that what a weight drops dilutes the rest, or the `"kept"` ones.
    """

    divergence: Divergence = JensenShannon()
    support: Support = TopC()
    target: Target = TeacherTarget()
    weights: tuple[Weight, ...] = ()
    clip: Clip | None = None
    terms: tuple[Term, ...] = ()
    importance_clip: float | None = 2.0
    rollout_correction: RolloutCorrection | None = None
    normalizer: Literal["all", "kept"] = "all"
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        require_choice("Distill.divergence", self.divergence, Divergence)
        require_choice("Distill.support", self.support, Support)
        require_choice("Distill.target", self.target, Target)
        require_choices("Distill.weights", self.weights, Weight)
        require_choices("Distill.terms", self.terms, Term)
        require_choice("Distill.clip", self.clip, Clip | None)
        require_fitting(self.divergence, self.clip)
        clip = self.importance_clip
        require(clip is None or clip > 0, "Distill.importance_clip", "positive or None", clip)
        known = self.normalizer in ("all", "kept")
        require(known, "Distill.normalizer", "'all' or 'kept'", self.normalizer)
        require_reduction("Distill", self.reduction)

    @property
    def reads(self) -> frozenset[str]:
        """The networks that score the samples beside the student."""
        choices = (self.target, *self.weights, *self.terms)
        return functools.reduce(operator.or_, (c.reads for c in choices), frozenset({"teacher"}))


def distill(objective: Distill, positions: Positions, epistemic: Epistemic) -> LossPart:
    """Rows of weight 0 have no loss: their teacher was shown nothing."""
    distill_weight_BT = jnp.asarray(positions.rows.distill_weight_BT)
    weight_BT, metrics = importance(objective, positions)
    weight_BT *= position_weight(objective.weights, positions, epistemic)
    if positions.sampled.distill_factor_BT is not None:
        weight_BT *= positions.sampled.distill_factor_BT
    pair = edited(objective.target, positions, epistemic)
    always_ids = kept_ids(objective.support, epistemic, objective.target.keeps_epistemic)
    # Target first, support second: masses are exact on the full vocabulary and only there.
    loss_BT = divergence_of(
        objective.divergence,
        objective.support,
        pair.student_logp_BTV,
        pair.target_logp_BTV,
        positions=positions,
        always_ids=always_ids,
    )
    loss_BT = clipped(objective.clip, loss_BT) * pair.factor_BT
    weight_BT = jax.lax.stop_gradient(weight_BT)
    loss_BT = weighted(loss_BT, weight_BT) + added(objective.terms, positions, epistemic)
    return LossPart(
        weighted(loss_BT, distill_weight_BT),
        weight_BT * distill_weight_BT,
        distill_weight_BT > 0,
        metrics,
    )


def weighted(loss_BT: Array, weight_BT: Array) -> Array:
    # where, not only the product: an infinity at a position that does not count stays out.
    return jnp.where(weight_BT != 0, loss_BT, 0.0) * weight_BT


def importance(objective: Distill, positions: Positions) -> tuple[Array, dict]:
    """The weight for samples of another policy, and what it is like."""
    correction = objective.rollout_correction
    ratio_BT = policy_ratio(positions, correction)
    weight_BT = jnp.ones_like(ratio_BT) * token_rollout_weight(correction, positions)
    clip = jnp.inf if objective.importance_clip is None else objective.importance_clip
    metrics = ratio_metrics(ratio_BT, ratio_BT > clip, correction, positions)
    if objective.importance_clip is None:
        return weight_BT, metrics
    return weight_BT * jnp.minimum(ratio_BT, clip), metrics


# ------------------------------------------------------------------------------ of the whole batch


def distill_scores(
    objective: Distill, positions: Positions, epistemic: Epistemic
) -> tuple[Float[Array, "B T"], ...]:
    """What must be known of all positions before one of them is weighed; () for nothing."""
    scores = [batch_score(w, positions) for w in objective.weights if isinstance(w, BatchWeight)]
    if is_of_sequences(objective.rollout_correction):
        scores.append(rollout_log_ratio(positions))
    if scores or objective.normalizer == "kept":
        scores.append(position_weight(objective.weights, positions, epistemic))
    return tuple(scores)


def is_of_batch(objective: Distill) -> bool:
    return (
        any(isinstance(weight, BatchWeight) for weight in objective.weights)
        or is_of_sequences(objective.rollout_correction)
        or objective.normalizer == "kept"
    )


def distill_factor(
    objective: Distill, scores: tuple[Float[Array, "B T"], ...], loss_weight_BT: Array
) -> Float[Array, "B T"]:
    """The factors' product; `loss_weight_BT` is each position's share in the reduction."""
    *others, own_weight_BT = scores
    remaining, is_kept_BT = iter(others), own_weight_BT != 0
    factor_BT = jnp.ones_like(loss_weight_BT)
    for weight in objective.weights:
        if isinstance(weight, BatchWeight):
            # Of the positions that the other weights leave.
            factor_BT *= batch_factor(weight, next(remaining), loss_weight_BT * is_kept_BT)
    is_kept_BT &= factor_BT != 0
    if is_of_sequences(objective.rollout_correction):
        factor_BT *= sequence_rollout_weight(
            objective.rollout_correction, next(remaining), loss_weight_BT > 0
        )
    if objective.normalizer == "kept":
        factor_BT *= share_of_kept(objective.reduction, is_kept_BT, loss_weight_BT)
    return factor_BT


def share_of_kept(reduction: Reduction, is_kept_BT: Array, loss_weight_BT: Array) -> Array:
    """The factor that makes the kept positions weigh what all did: of the row, or of the batch."""
    axis = 1 if reduction == "sequence" else (0, 1)
    total = jnp.sum(loss_weight_BT, axis, keepdims=True)
    kept = jnp.sum(loss_weight_BT * is_kept_BT, axis, keepdims=True)
    return jnp.where(kept > 0, total / jnp.where(kept > 0, kept, 1.0), 0.0)
