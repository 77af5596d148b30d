"""Reinforcement learning from the grader's verdicts: GRPO, with a choice of per-token credit."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.choices import (
    Correction,
    Credit,
    OwnBatchWeight,
    Term,
    reads_of,
    require_choice_and_reads,
    require_choices,
)
from jaxdistill.objectives.credit import EqualCredit
from jaxdistill.objectives.importance import (
    is_of_sequences,
    policy_ratio,
    ratio_metrics,
    rollout_log_ratio,
    sequence_rollout_weight,
    token_rollout_weight,
)
from jaxdistill.objectives.positions import Epistemic, LossPart, Positions, require
from jaxdistill.objectives.reduction import Reduction, require_reduction, where_counted


@dataclass(frozen=True)
class GRPO:
    """GRPO as the paper's baseline: mean-only advantages, asymmetric and dual clipping, no KL term.

    The loss is `losses.grpo_surrogate` of each token (arXiv 2402.03300), times the rollout
    correction, plus the terms. `normalize_std` divides by the group's standard deviation where
    rewards become advantages (`losses.group_advantage`). DAPO's aggregation is `reduction="token"`,
    Dr. GRPO's `PerTokens(...)`. A row without a demonstration keeps its plain advantage.
    """

    # DAPO's clipping range (0.2 and 0.28), and the dual clip at 3 of arXiv 1912.09729.
    clip_low: float = 0.2
    clip_high: float = 0.28  # the ratio is at most 1 + this for a positive advantage
    dual_clip: float | None = 3.0  # the largest ratio for a negative advantage
    normalize_std: bool = False
    credit: Credit = EqualCredit()  # how the advantage is spread over a completion's tokens
    terms: tuple[Term, ...] = ()
    rollout_correction: Correction | None = None  # for the sampler's rounding
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        require_choice_and_reads("GRPO.credit", self.credit, Credit)
        require_choices("GRPO.terms", self.terms, Term)
        require_choice_and_reads(
            "GRPO.rollout_correction", self.rollout_correction, Correction | None
        )
        require(0 <= self.clip_low < 1, "GRPO.clip_low", "from 0 to below 1", self.clip_low)
        require(self.clip_high >= 0, "GRPO.clip_high", "at least 0", self.clip_high)
        dual = self.dual_clip
        require(dual is None or dual > 1, "GRPO.dual_clip", "above 1 or None", dual)
        require_reduction("GRPO", self.reduction)

    @property
    def reads(self) -> frozenset[str]:
        """The networks that score the samples in addition to the student."""
        return reads_of(self.credit, *self.terms, self.rollout_correction)

    def part(self, positions: Positions, epistemic: Epistemic) -> LossPart:
        """The loss [B, T] and its metrics; every row of the batch takes part."""
        correction = self.rollout_correction
        ratio_BT = policy_ratio(positions, correction)
        weight_BT = jnp.ones_like(ratio_BT) * token_rollout_weight(correction, positions)
        if positions.sampled.gradient_factor_BT is not None:
            weight_BT *= positions.sampled.gradient_factor_BT
        advantage_BT = jax.lax.stop_gradient(self.credit.advantage(positions, epistemic))
        surrogate_BT = losses.grpo_surrogate(
            ratio_BT, advantage_BT, self.clip_low, self.clip_high, self.dual_clip
        )
        # Exact: where no clip applies, the surrogate's max returns this very product.
        is_clipped_BT = surrogate_BT != -advantage_BT * ratio_BT
        # Advantages and corrections are constants: the gradient passes through the policy ratio and
        # the terms only.
        weight_BT = jax.lax.stop_gradient(weight_BT)
        loss_BT = surrogate_BT * weight_BT
        loss_BT += sum(term.penalty(positions, epistemic) for term in self.terms)
        metrics = ratio_metrics(ratio_BT, is_clipped_BT, correction, positions)
        return LossPart(loss_BT, weight_BT, jnp.ones_like(loss_BT, bool), metrics)

    # ------------------------------------------------------------------ weights of the whole batch

    @property
    def is_of_batch(self) -> bool:
        """Whether a position's weight depends on other positions of the batch."""
        return isinstance(self.credit, OwnBatchWeight) or is_of_sequences(self.rollout_correction)

    def batch_scores(self, positions: Positions, epistemic: Epistemic) -> dict[str, Array]:
        """The scores [B, T] that the choices need of all positions, by the choice's place."""
        scores = {}
        if isinstance(self.credit, OwnBatchWeight):
            scores["credit"] = self.credit.score(positions, epistemic)
        if is_of_sequences(self.rollout_correction):
            scores["rollout_correction"] = rollout_log_ratio(positions)
        return scores

    def batch_factor(
        self, scores: dict[str, Array], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """The product of the batch's factors; `loss_weight_BT` are the reduction's weights."""
        factor_BT = jnp.ones_like(loss_weight_BT)
        if isinstance(self.credit, OwnBatchWeight):
            score_BT = where_counted(loss_weight_BT, scores["credit"])
            factor_BT *= self.credit.over_batch(score_BT, loss_weight_BT)
        if is_of_sequences(self.rollout_correction):
            factor_BT *= sequence_rollout_weight(
                self.rollout_correction, scores["rollout_correction"], loss_weight_BT > 0
            )
        return where_counted(loss_weight_BT, factor_BT)
