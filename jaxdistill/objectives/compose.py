"""An objective's parts put together: what it needs, and the one function that a step calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.objectives import distill as distillation
from jaxdistill.objectives import mixtures, policy_gradient
from jaxdistill.objectives.distill import Distill
from jaxdistill.objectives.metrics import observe
from jaxdistill.objectives.mixtures import Mixed, Routed
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.positions import (
    Epistemic,
    LossPart,
    Positions,
    Rows,
    Weighted,
    epistemic_of,
)
from jaxdistill.objectives.reduction import Reduction, loss_weights, require_reduction


@dataclass(frozen=True)
class CrossEntropy:
    """-log S(y_t): supervised fine-tuning and pre-training."""

    reduction: Reduction = "token"

    reads: ClassVar = frozenset()

    def __post_init__(self) -> None:
        require_reduction("CrossEntropy", self.reduction)


Objective = Distill | GRPO | CrossEntropy | Mixed | Routed

# -------------------------------------------------------------------------------- what it needs


def needs_teacher(objective: Objective) -> bool:
    """Whether `Positions.teacher_logp_BTV` must be given."""
    return "teacher" in objective.reads


def needs_reference(objective: Objective) -> bool:
    """Whether `Positions.reference_logp_BTV` must be given."""
    return "reference" in objective.reads


def needs_contrast(objective: Objective) -> bool:
    """Whether `Positions.contrast_logp_BTV` must be given."""
    return "contrast" in objective.reads


def policy_gradient_of(objective: Objective) -> GRPO | None:
    """The part of the objective that follows the verifier's rewards, if it has one."""
    if isinstance(objective, Mixed | Routed):
        return objective.policy_gradient
    return objective if isinstance(objective, GRPO) else None


def distill_of(objective: Objective) -> Distill | None:
    """The part of the objective that follows the teacher's distribution, if it has one."""
    if isinstance(objective, Mixed | Routed):
        return objective.distill
    return objective if isinstance(objective, Distill) else None


# ---------------------------------------------------------------------------------- the function

ObjectiveFn = Callable[[Positions], tuple[Array, dict[str, Weighted]]]


def make_objective(objective: Objective, epistemic_ids: tuple[int, ...]) -> ObjectiveFn:
    """Builds `fn(positions) -> (loss_BT, metrics)`, to be jitted by the caller.

    `loss_BT` carries the gradient, and every weight of the objective's own. Each metric is a value
    and a weight per position, in nats where it is an entropy or a divergence:

        epistemic_mass_student, _teacher, _reference    m_S, m_T, m_R, where the array is given
        epistemic_sampled                               share of sampled tokens in E
        entropy_student, entropy_teacher                H(S), H(T)
        kl_teacher                                      KL(T||S), full vocabulary
        mass_kl                                         its Bernoulli term kl(m_T, m_S): suppression
        loss_share_epistemic                            share of |loss| where the sample is in E
        kept                                            1 where the position counts
        importance_ratio, _squared, clipped             the policy ratio; 1 where it was clipped
        rollout_ratio                                   pi_old / pi_rollout, where corrected for

    The vocabulary may be longer than the tokenizer (padded embeddings). Raises `UserError` when an
    epistemic id lies outside it: the lexicon is then another tokenizer's.
    """
    ids = tuple(sorted(set(epistemic_ids)))

    def evaluate(positions: Positions) -> tuple[Array, dict[str, Weighted]]:
        epistemic = epistemic_of(ids, positions.student_logp_BTV.shape[-1])
        # The one place where gradients stop on teacher, reference and contrast.
        positions = positions._replace(
            teacher_logp_BTV=jax.lax.stop_gradient(positions.teacher_logp_BTV),
            reference_logp_BTV=jax.lax.stop_gradient(positions.reference_logp_BTV),
            contrast_logp_BTV=jax.lax.stop_gradient(positions.contrast_logp_BTV),
        )
        part = part_of(objective, positions, epistemic)
        metrics = observe(positions, epistemic, part, objective.reduction) | part.metrics
        return part.loss_BT, jax.lax.stop_gradient(metrics)

    return evaluate


def part_of(objective: Objective, positions: Positions, epistemic: Epistemic) -> LossPart:
    match objective:
        case Distill():
            return distillation.distill(objective, positions, epistemic)
        case GRPO():
            return policy_gradient.policy_gradient(objective, positions, epistemic)
        case Mixed():
            return mixtures.mixed(objective, positions, epistemic)
        case Routed():
            return mixtures.routed(objective, positions, epistemic)
        case CrossEntropy():
            loss_BT = -positions.of_token(positions.student_logp_BTV)
            return LossPart(loss_BT, jnp.ones_like(loss_BT), jnp.ones_like(loss_BT, bool), {})


# ------------------------------------------------------------------------------ of the whole batch


class Scores(NamedTuple):
    """What must be known of all positions of a batch before one of them is weighed."""

    distill: tuple[Array, ...]
    gradient: tuple[Array, ...]


def needs_whole_batch(objective: Objective) -> bool:
    """Whether the samples must be scored once before the loss (one more forward pass)."""
    distill, gradient_part = distill_of(objective), policy_gradient_of(objective)
    return (distill is not None and distillation.is_of_batch(distill)) or (
        gradient_part is not None and policy_gradient.is_of_batch(gradient_part)
    )


def make_scores(
    objective: Objective, epistemic_ids: tuple[int, ...]
) -> Callable[[Positions], Scores]:
    """Builds `fn(positions) -> Scores`, to be run over every position of the batch."""
    ids = tuple(sorted(set(epistemic_ids)))

    def score(positions: Positions) -> Scores:
        epistemic = epistemic_of(ids, positions.student_logp_BTV.shape[-1])
        distill, gradient_part = distill_of(objective), policy_gradient_of(objective)
        first, second = (), ()
        if distill is not None:
            first = distillation.distill_scores(distill, positions, epistemic)
        if gradient_part is not None:
            second = policy_gradient.gradient_scores(gradient_part, positions)
        return Scores(distill=first, gradient=second)

    return score


def factors(
    objective: Objective, scores: Scores, loss_weight_BT: Float[Array, "B T"], rows: Rows
) -> tuple[Array | None, Array | None]:
    """(distill_factor_BT, gradient_factor_BT) of the whole batch, for `Sampled`; a row each."""
    distill, gradient_part = distill_of(objective), policy_gradient_of(objective)
    goes_first_BT = jnp.greater(rows.distill_weight_BT, 0)
    goes_second_BT = jnp.ones_like(goes_first_BT)
    if isinstance(objective, Routed):
        goes_first_BT = mixtures.is_distilled(rows) > 0
        goes_second_BT = ~goes_first_BT
    return (
        distillation.distill_factor(distill, scores.distill, loss_weight_BT * goes_first_BT)
        if distill is not None and scores.distill
        else None,
        policy_gradient.gradient_factor(
            gradient_part, scores.gradient, loss_weight_BT * goes_second_BT
        )
        if gradient_part is not None and scores.gradient
        else None,
    )


class Reduced(NamedTuple):
    """How a batch's positions are summed: shares, the one divisor, and the distillation's rows."""

    weight_BT: Float[Array, "B T"]
    denominator: Float[Array, ""]
    distill_weight_B: Float[Array, " B"]


def reduced(
    objective: Objective, mask_BT: Int[AnyArray, "B T"], row_weight_B: Float[AnyArray, " B"]
) -> Reduced:
    """`loss_weights` of the objective; `row_weight_B` is 0 for rows without a demonstration.

    Every row follows the verifier. In `Mixed` either part has a mean of its own: the
    distillation's rows are scaled by the ratio of the two divisors.
    """
    row_weight_B = jnp.asarray(row_weight_B, jnp.float32)
    every_B = jnp.ones_like(row_weight_B)
    if isinstance(objective, Distill):
        return Reduced(*loss_weights(mask_BT, row_weight_B, objective.reduction), row_weight_B)
    weight_BT, denominator = loss_weights(mask_BT, every_B, objective.reduction)
    if isinstance(objective, Mixed):
        own = loss_weights(mask_BT, row_weight_B, objective.reduction).denominator
        # Where no row is distilled the numerator is 0 too: the floor only keeps 0/0 away.
        row_weight_B = row_weight_B * jnp.where(own > 0, denominator / jnp.maximum(own, 1.0), 0.0)
    return Reduced(weight_BT, denominator, row_weight_B)
