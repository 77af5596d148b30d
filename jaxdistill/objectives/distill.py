"""Self-distillation, composed of target, divergence, support, clip, weights and terms."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.objectives.choices import (
    Clip,
    Correction,
    Divergence,
    OwnBatchTarget,
    OwnBatchWeight,
    OwnWeight,
    Support,
    Target,
    Term,
    Weight,
    reads_of,
    require_choice_and_reads,
    require_choices,
)
from jaxdistill.objectives.divergences import Comparison, JensenShannon
from jaxdistill.objectives.importance import (
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
    Weighted,
    require,
    require_literals,
)
from jaxdistill.objectives.reduction import Reduction, require_reduction, where_counted
from jaxdistill.objectives.support import TopC
from jaxdistill.objectives.targets import Pair, TeacherTarget


@dataclass(frozen=True)
class Distill:
    """Self-distillation; the defaults are those of the paper's runs (arXiv 2603.24472, SDPO).

    The loss of a position is weight * importance * clip(divergence(student, target)) + terms, with
    the product of the weights. `importance_clip` is the upper bound of pi(y)/pi_old(y), the
    correction for samples of an older policy; None omits the correction. `normalizer` chooses the
    positions whose number divides the sum: `"all"` of the distilled rows, so that dropped positions
    lower the mean, or only the `"kept"` ones, whose weight is not 0. Raises UserError for a value
    out of range and for a clip that does not accept the divergence's negative losses.
    """

    divergence: Divergence = JensenShannon()
    support: Support = TopC()  # the tokens that the divergence is summed over
    target: Target = TeacherTarget()
    weights: tuple[Weight, ...] = ()
    clip: Clip | None = None
    terms: tuple[Term, ...] = ()
    importance_clip: float | None = 2.0
    rollout_correction: Correction | None = None  # for the sampler's rounding
    normalizer: Literal["all", "kept"] = "all"
    reduction: Reduction = "sequence"  # how positions are averaged

    def __post_init__(self) -> None:
        require_choice_and_reads("Distill.divergence", self.divergence, Divergence)
        require_choice_and_reads("Distill.support", self.support, Support)
        require_choice_and_reads("Distill.target", self.target, Target)
        require_choices("Distill.weights", self.weights, Weight)
        require_choices("Distill.terms", self.terms, Term)
        require_choice_and_reads("Distill.clip", self.clip, Clip | None)
        require_choice_and_reads(
            "Distill.rollout_correction", self.rollout_correction, Correction | None
        )
        self._require_fitting_clip()
        clip = self.importance_clip
        require(clip is None or clip > 0, "Distill.importance_clip", "positive or None", clip)
        require_literals(self)
        require_reduction("Distill", self.reduction)

    def _require_fitting_clip(self) -> None:
        # A divergence is a sum of positive and negative entries, and is at least 0 only if none of
        # them is clipped.
        may_be_negative = getattr(self.divergence, "may_be_negative", False) or (
            getattr(self.divergence, "entry_clip", None) is not None
        )
        fits = not may_be_negative or getattr(self.clip, "takes_negative", True)
        expected = "SmoothClip(form='tanh') for a loss that may be negative"
        require(fits, "Distill.clip", expected, self.clip)

    @property
    def reads(self) -> frozenset[str]:
        """The networks that score the samples in addition to the student."""
        choices = (self.divergence, self.support, self.target, *self.weights, self.clip)
        return reads_of(*choices, *self.terms, self.rollout_correction) | {"teacher"}

    def part(self, positions: Positions, epistemic: Epistemic) -> LossPart:
        """The loss [B, T] and its metrics; rows without a demonstration have no loss.

        In such a row teacher and student may be the same distribution, and a weight may then be
        NaN (0/0). It is replaced by 0 before the product, since 0 x NaN would be NaN.
        """
        distill_weight_BT = jnp.asarray(positions.rows.distill_weight_BT)
        is_distilled_BT = distill_weight_BT > 0
        weight_BT, metrics = self._importance(positions)
        weight_BT *= self._position_weight(positions, epistemic)
        if positions.sampled.distill_factor_BT is not None:
            weight_BT *= positions.sampled.distill_factor_BT
        edited = self.target.edit(positions, epistemic)
        pair = edited if isinstance(edited, Pair) else Pair(positions.student_logp_BTV, edited)
        of_target = weighted_by(distill_weight_BT > 0, pair.metrics or {})
        # The target is edited before the support is chosen: an edit needs the epistemic mass, which
        # is exact only on the full vocabulary.
        compared = Comparison(
            student_logp_BTV=pair.student_logp_BTV,
            target_logp_BTV=pair.target_logp_BTV,
            positions=positions,
            epistemic=epistemic,
            support=self.support,
            keeps_epistemic=getattr(self.target, "keeps_epistemic", False),
        )
        loss_BT = self.divergence.divergence(compared)
        loss_BT = loss_BT if self.clip is None else self.clip.clip(loss_BT)
        # Weights are constants: a gradient through one that depends on the student would lower the
        # loss by changing the weight instead of moving towards the target.
        weight_BT = jax.lax.stop_gradient(jnp.where(is_distilled_BT, weight_BT, 0.0))
        loss_BT = weighted(loss_BT * pair.factor_BT, weight_BT)
        # Terms are added after the weights, which therefore do not scale them.
        loss_BT += sum(term.penalty(positions, epistemic) for term in self.terms)
        return LossPart(
            weighted(loss_BT, distill_weight_BT),
            weight_BT * distill_weight_BT,
            is_distilled_BT,
            metrics | of_target,
        )

    def _importance(self, positions: Positions) -> tuple[Array, dict[str, Weighted]]:
        """The weights for samples drawn by another policy, and metrics of them."""
        correction = self.rollout_correction
        ratio_BT = policy_ratio(positions, correction)
        weight_BT = jnp.ones_like(ratio_BT) * token_rollout_weight(correction, positions)
        # Without a clip the ratio is not used in the loss, but still reported.
        clip = jnp.inf if self.importance_clip is None else self.importance_clip
        metrics = ratio_metrics(ratio_BT, ratio_BT > clip, correction, positions)
        if self.importance_clip is None:
            return weight_BT, metrics
        return weight_BT * jnp.minimum(ratio_BT, clip), metrics

    def _position_weight(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        """The product of the weights that depend only on their own position."""
        product_BT = jnp.ones(positions.sampled.tokens_BT.shape, jnp.float32)
        for weight in self.weights:
            if isinstance(weight, OwnWeight):
                product_BT = product_BT * weight.factor(positions, epistemic)
        return product_BT

    # ------------------------------------------------------------------ weights of the whole batch

    def _batch_weights(self) -> Iterator[tuple[str, OwnBatchWeight]]:
        for index, weight in enumerate(self.weights):
            if isinstance(weight, OwnBatchWeight):
                yield f"weights[{index}]", weight

    @property
    def is_of_batch(self) -> bool:
        """Whether a position's weight depends on other positions of the batch."""
        has_weights = any(True for _ in self._batch_weights())
        is_of_batch = self.normalizer == "kept" or isinstance(self.target, OwnBatchTarget)
        return has_weights or is_of_batch or is_of_sequences(self.rollout_correction)

    def batch_scores(self, positions: Positions, epistemic: Epistemic) -> dict[str, Array]:
        """The scores [B, T] that the choices need of all positions, by the choice's place."""
        scores = {name: w.score(positions, epistemic) for name, w in self._batch_weights()}
        if isinstance(self.target, OwnBatchTarget):
            scores["target"] = self.target.score(positions, epistemic)
        if is_of_sequences(self.rollout_correction):
            scores["rollout_correction"] = rollout_log_ratio(positions)
        # With them `batch_factor` knows which positions the weights per position drop.
        return scores | {"position_weight": self._position_weight(positions, epistemic)}

    def batch_factor(
        self, scores: dict[str, Array], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """The product of the batch's factors; `loss_weight_BT` are the reduction's weights."""
        is_kept_BT = scores["position_weight"] != 0
        factor_BT = jnp.ones_like(loss_weight_BT)
        for name, weight in self._batch_weights():
            # Computed over the positions that the other weights keep.
            score_BT = where_counted(loss_weight_BT, scores[name])
            factor_BT *= weight.over_batch(score_BT, loss_weight_BT * is_kept_BT)
        is_kept_BT &= factor_BT != 0
        if is_of_sequences(self.rollout_correction):
            factor_BT *= sequence_rollout_weight(
                self.rollout_correction, scores["rollout_correction"], loss_weight_BT > 0
            )
        if self.normalizer == "kept":
            factor_BT *= share_of_kept(self.reduction, is_kept_BT, loss_weight_BT)
        return where_counted(loss_weight_BT, factor_BT)

    def target_factor(
        self, scores: dict[str, Array], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"] | None:
        """What `over_batch` gives a target of the whole batch; None for every other target."""
        if not isinstance(self.target, OwnBatchTarget):
            return None
        # As for the weights: over the positions that the weights per position keep.
        score_BT = where_counted(loss_weight_BT, scores["target"])
        weight_BT = loss_weight_BT * (scores["position_weight"] != 0)
        factor_BT = jnp.asarray(self.target.over_batch(score_BT, weight_BT), jnp.float32)
        return where_counted(loss_weight_BT, factor_BT)


def weighted_by(applies_BT: Array, metrics: dict[str, Weighted]) -> dict[str, Weighted]:
    """The metrics, averaged over the positions where `applies_BT` alone."""
    return {
        name: Weighted(value_BT, jnp.where(applies_BT, weight_BT, 0.0))
        for name, (value_BT, weight_BT) in metrics.items()
    }


def weighted(loss_BT: Array, weight_BT: Array) -> Array:
    # `where` in addition to the product: 0 x inf at a dropped position would be NaN.
    return jnp.where(weight_BT != 0, loss_BT, 0.0) * weight_BT


def share_of_kept(reduction: Reduction, is_kept_BT: Array, loss_weight_BT: Array) -> Array:
    """The factor total weight / kept weight, per row for "sequence" and else over the batch.

    It gives the kept positions together the weight that all positions had: the mean over the kept.
    """
    axis = 1 if reduction == "sequence" else (0, 1)
    total = jnp.sum(loss_weight_BT, axis, keepdims=True)
    kept = jnp.sum(loss_weight_BT * is_kept_BT, axis, keepdims=True)
    return jnp.where(kept > 0, total / jnp.where(kept > 0, kept, 1.0), 0.0)
