"""Reinforcement learning on verdicts: GRPO, and what a teacher may add to its credit."""

import functools
import operator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.losses import advantages
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
from jaxdistill.objectives.terms import Term, added


@dataclass(frozen=True)
class EqualCredit:
    """Every token of a completion has the completion's advantage."""

    reads: ClassVar = frozenset()


@dataclass(frozen=True)
class RLSD:
    """The teacher says how much each token counts, the verifier in which direction.

    The mathematics is `advantages.rlsd`.

    With `protect_epistemic` the sampled epistemic tokens keep the verifier's credit.
    """

    strength: float = 0.5
    clip: float = 0.2
    protect_epistemic: bool = False

    reads: ClassVar = frozenset({"teacher"})

    def __post_init__(self) -> None:
        require(0 <= self.strength <= 1, "RLSD.strength", "from 0 to 1", self.strength)
        require(0 <= self.clip < 1, "RLSD.clip", "from 0 to below 1", self.clip)


@dataclass(frozen=True)
class RLCSD:
    """Tokens where a right and a wrong context disagree by more than `select` get a credit of their
    own, A plus the residual (`advantages.contrastive_residual`), held to the advantage's sign.

    The others keep A; the two groups are averaged apart, the selected mean counting `balance`
    (arXiv 2606.11709 and its code: temperature 0.02, strength 1 * 0.5, select 0.02, limit 2).
    """

    temperature: float = 0.02
    strength: float = 0.5
    limit: float = 2.0
    select: float = 0.02
    balance: float = 1.0

    reads: ClassVar = frozenset({"teacher", "contrast"})

    def __post_init__(self) -> None:
        require(self.temperature > 0, "RLCSD.temperature", "above 0", self.temperature)
        require(self.select >= 0, "RLCSD.select", "at least 0", self.select)
        require(self.limit > 0, "RLCSD.limit", "above 0", self.limit)
        require(self.balance >= 0, "RLCSD.balance", "at least 0", self.balance)


@dataclass(frozen=True)
class AntiSD:
    """A + strength * `advantages.anti_jensen_shannon`: reinforces what the teacher finds unlikely.

    Only where H(T) exceeds `entropy_threshold` nats (None: everywhere), and with `only_epistemic`
    only where the sampled token is epistemic.
    """

    strength: float = 1.0
    entropy_threshold: float | None = 0.1
    only_epistemic: bool = False

    reads: ClassVar = frozenset({"teacher"})


@dataclass(frozen=True)
class SuppressUnlikely:
    """No verifier, no teacher: tokens less likely than `threshold` are discouraged, the more the
    surer the student is with `adaptive` (`advantages.unlikely`). A control for what
    distillation does.
    """

    strength: float = 1.0
    threshold: float = 0.05
    adaptive: bool = True

    reads: ClassVar = frozenset()

    def __post_init__(self) -> None:
        within = 0 < self.threshold < 1
        require(within, "SuppressUnlikely.threshold", "between 0 and 1", self.threshold)


Credit = EqualCredit | RLSD | RLCSD | AntiSD | SuppressUnlikely


@dataclass(frozen=True)
class GRPO:
    """The paper's baseline: mean-only advantages, asymmetric and dual clipping, no KL term.

    `normalize_std` is read where rewards become advantages (`losses.group_advantage`). DAPO's
    aggregation is `reduction="token"`, Dr. GRPO's `PerTokens(...)`. A row without a teacher's
    context keeps its plain advantage.
    """

    # DAPO's range (0.2 and 0.28) and the dual clip at 3 of arXiv 1912.09729.
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    normalize_std: bool = False
    credit: Credit = EqualCredit()
    terms: tuple[Term, ...] = ()
    rollout_correction: RolloutCorrection | None = None
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        require_choice("GRPO.credit", self.credit, Credit)
        require_choices("GRPO.terms", self.terms, Term)
        require(0 <= self.clip_low < 1, "GRPO.clip_low", "from 0 to below 1", self.clip_low)
        require(self.clip_high >= 0, "GRPO.clip_high", "at least 0", self.clip_high)
        dual = self.dual_clip
        require(dual is None or dual > 1, "GRPO.dual_clip", "above 1 or None", dual)
        require_reduction("GRPO", self.reduction)

    @property
    def reads(self) -> frozenset[str]:
        """The networks that score the samples beside the student."""
        choices = (self.credit, *self.terms)
        return functools.reduce(operator.or_, (c.reads for c in choices), frozenset())


def policy_gradient(objective: GRPO, positions: Positions, epistemic: Epistemic) -> LossPart:
    correction = objective.rollout_correction
    ratio_BT = policy_ratio(positions, correction)
    weight_BT = jnp.ones_like(ratio_BT) * token_rollout_weight(correction, positions)
    if positions.sampled.gradient_factor_BT is not None:
        weight_BT *= positions.sampled.gradient_factor_BT
    advantage_BT = jax.lax.stop_gradient(advantage_of(objective.credit, positions, epistemic))
    surrogate_BT = losses.grpo_surrogate(
        ratio_BT, advantage_BT, objective.clip_low, objective.clip_high, objective.dual_clip
    )
    is_clipped_BT = surrogate_BT != -advantage_BT * ratio_BT
    weight_BT = jax.lax.stop_gradient(weight_BT)
    loss_BT = surrogate_BT * weight_BT + added(objective.terms, positions, epistemic)
    metrics = ratio_metrics(ratio_BT, is_clipped_BT, correction, positions)
    return LossPart(loss_BT, weight_BT, jnp.ones_like(loss_BT, bool), metrics)


def advantage_of(choice: Credit, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
    token_logp_BT = positions.of_token(positions.student_logp_BTV)
    plain_BT = jnp.asarray(positions.rows.advantage_BT)
    is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
    match choice:
        case EqualCredit():
            return plain_BT
        case SuppressUnlikely(strength, threshold, adaptive):
            student = positions.student_logp_BTV
            entropy_BT = losses.entropy(student) if adaptive else None
            vocab_size = student.shape[-1]
            return advantages.unlikely(token_logp_BT, entropy_BT, vocab_size, strength, threshold)
        case RLSD(strength, clip, protect_epistemic):
            teacher_BT = positions.of_token(positions.teacher)
            shaped_BT = advantages.rlsd(plain_BT, token_logp_BT, teacher_BT, strength, clip)
            applies_BT = ~is_epistemic_BT if protect_epistemic else jnp.ones_like(is_epistemic_BT)
        case RLCSD():
            residual_BT = residual_to_contrast(choice, positions)
            shaped_BT = advantages.keep_sign(plain_BT + residual_BT, plain_BT)
            applies_BT = jnp.abs(residual_BT) > choice.select
        case AntiSD(strength, threshold, only_epistemic):
            teacher = positions.teacher
            teacher_BT = positions.of_token(teacher)
            anti_BT = advantages.anti_jensen_shannon(token_logp_BT, teacher_BT)
            shaped_BT = plain_BT + strength * anti_BT
            applies_BT = is_epistemic_BT if only_epistemic else jnp.ones_like(is_epistemic_BT)
            if threshold is not None:
                applies_BT &= losses.entropy(teacher) > threshold
    is_distilled_BT = jnp.greater(positions.rows.distill_weight_BT, 0)
    return jnp.where(applies_BT & is_distilled_BT, shaped_BT, plain_BT)


def residual_to_contrast(choice: RLCSD, positions: Positions) -> Float[Array, "B T"]:
    tokens = positions.of_token(positions.teacher), positions.of_token(positions.contrast)
    return advantages.contrastive_residual(
        *tokens, choice.temperature, choice.strength, choice.limit
    )


# ------------------------------------------------------------------------------ of the whole batch


def is_of_batch(objective: GRPO) -> bool:
    return isinstance(objective.credit, RLCSD) or is_of_sequences(objective.rollout_correction)


def gradient_scores(objective: GRPO, positions: Positions) -> tuple[Float[Array, "B T"], ...]:
    """What must be known of all positions before one of them is weighed; () for nothing."""
    scores = []
    if isinstance(objective.credit, RLCSD):
        is_distilled_BT = jnp.greater(positions.rows.distill_weight_BT, 0)
        residual_BT = jnp.abs(residual_to_contrast(objective.credit, positions))
        scores.append(
            ((residual_BT > objective.credit.select) & is_distilled_BT).astype(jnp.float32)
        )
    if is_of_sequences(objective.rollout_correction):
        scores.append(rollout_log_ratio(positions))
    return tuple(scores)


def gradient_factor(
    objective: GRPO, scores: tuple[Float[Array, "B T"], ...], loss_weight_BT: Array
) -> Float[Array, "B T"]:
    """The factors' product; `loss_weight_BT` is each position's share in the reduction."""
    remaining = iter(scores)
    factor_BT = jnp.ones_like(loss_weight_BT)
    if isinstance(objective.credit, RLCSD):
        is_selected_BT = next(remaining) > 0
        factor_BT *= apart(is_selected_BT, loss_weight_BT, objective.credit.balance)
    if is_of_sequences(objective.rollout_correction):
        factor_BT *= sequence_rollout_weight(
            objective.rollout_correction, next(remaining), loss_weight_BT > 0
        )
    return factor_BT


def apart(is_selected_BT: Array, loss_weight_BT: Array, balance: float) -> Float[Array, "B T"]:
    """Factors that turn one mean into the others' mean plus `balance` times the selected's mean.

    With nothing selected they are all exactly 1.
    """
    selected = jnp.sum(jnp.where(is_selected_BT, loss_weight_BT, 0.0))
    others = jnp.sum(jnp.where(is_selected_BT, 0.0, loss_weight_BT))
    total = selected + others

    def share(weight):
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)

    return jnp.where(is_selected_BT, balance * share(selected), share(others))
