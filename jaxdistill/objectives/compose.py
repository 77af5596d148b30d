"""Compose an objective's parts: which networks it needs, and the function that a step calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.objectives import mixtures
from jaxdistill.objectives.distill import Distill
from jaxdistill.objectives.metrics import observe
from jaxdistill.objectives.mixtures import Mixed, Routed
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.positions import (
    Epistemic,
    LossPart,
    Positions,
    Rows,
    Sampled,
    Weighted,
    epistemic_of,
)
from jaxdistill.objectives.reduction import Reduction, loss_weights, require_reduction


@dataclass(frozen=True)
class CrossEntropy:
    """-log S(y_t): supervised fine-tuning and pre-training."""

    reduction: Reduction = "token"  # how positions are averaged

    reads = frozenset()

    def __post_init__(self) -> None:
        require_reduction("CrossEntropy", self.reduction)

    def part(self, positions: Positions, epistemic: Epistemic) -> LossPart:
        loss_BT = -positions.of_token(positions.student_logp_BTV)
        return LossPart(loss_BT, jnp.ones_like(loss_BT), jnp.ones_like(loss_BT, bool), {})


Objective = Distill | GRPO | CrossEntropy | Mixed | Routed

# ------------------------------------------------------------------------------ its requirements


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
    """The part of the objective that learns from the verifier's rewards, if it has one."""
    if isinstance(objective, Mixed | Routed):
        return objective.policy_gradient
    return objective if isinstance(objective, GRPO) else None


def distill_of(objective: Objective) -> Distill | None:
    """The part of the objective that learns from the teacher's distribution, if it has one."""
    if isinstance(objective, Mixed | Routed):
        return objective.distill
    return objective if isinstance(objective, Distill) else None


def weighs_samples(objective: Objective, updates: int) -> bool:
    """Whether every part of the objective accounts for samples of another policy than the current.

    A rollout correction does. Without one the ratio pi(y) / pi_old(y) does in the only update of a
    batch, where pi_old is the sampler's policy (`importance.policy_ratio`), unless it is omitted.
    """

    def weighs(part: Distill | GRPO) -> bool:
        has_ratio = not isinstance(part, Distill) or part.importance_clip is not None
        return part.rollout_correction is not None or (updates == 1 and has_ratio)

    parts = (distill_of(objective), policy_gradient_of(objective))
    return all(weighs(part) for part in parts if part is not None)


# ---------------------------------------------------------------------------------- the function

ObjectiveFn = Callable[[Positions], tuple[Array, dict[str, Weighted]]]


def make_objective(objective: Objective, epistemic_ids: tuple[int, ...]) -> ObjectiveFn:
    """Build `fn(positions) -> (loss_BT, metrics)`, to be jitted by the caller.

    `loss_BT` carries the gradient and includes the objective's own weights, but not the loss
    weights of the reduction. Each metric is a value and a weight per position, in nats if it is an
    entropy or a divergence:

        epistemic_mass_student, _teacher, _reference    m_S, m_T, m_R, if that network has scored
        epistemic_sampled                               fraction of sampled tokens in E
        entropy_student, _teacher, _reference           H(S), H(T), H(R)
        fork_rate                                       fraction with H(S) > 0.672 nats
        kl_student_reference                            KL(S||R), the drift on the student's samples
        kl_teacher                                      KL(T||S), full vocabulary
        mass_kl                                         its Bernoulli term kl(m_T, m_S): suppression
        loss_share_epistemic                            fraction of |loss| where the sample is in E
        kept                                            1 where the position's weight is not 0
        importance_ratio, _squared, clipped             the policy ratio; 1 where it was clipped
        rollout_ratio                                   pi_old / pi_rollout, if it is corrected for

    The vocabulary may be larger than the tokenizer's (padded embeddings). `fn` raises `UserError`
    for an epistemic id outside the vocabulary, which means that the lexicon belongs to another
    tokenizer.
    """
    # Distinct: a repeated id would be counted twice in a top-C support (`losses.and_rest`).
    ids = tuple(sorted(set(epistemic_ids)))

    def evaluate(positions: Positions) -> tuple[Array, dict[str, Weighted]]:
        epistemic = epistemic_of(ids, positions.student_logp_BTV.shape[-1])
        # The one place where gradients stop on teacher, reference and contrast.
        positions = positions._replace(
            teacher_logp_BTV=jax.lax.stop_gradient(positions.teacher_logp_BTV),
            reference_logp_BTV=jax.lax.stop_gradient(positions.reference_logp_BTV),
            contrast_logp_BTV=jax.lax.stop_gradient(positions.contrast_logp_BTV),
        )
        part = objective.part(positions, epistemic)
        metrics = observe(positions, epistemic, part, objective.reduction) | part.metrics
        return part.loss_BT, jax.lax.stop_gradient(metrics)

    return evaluate


# ---------------------------------------------------------------------- weights of the whole batch

# {"distill" or "policy_gradient": {the choice's place, such as "weights[0]": scores [B, T]}}
Scores = dict[str, dict[str, Array]]


def _parts_of_batch(objective: Objective) -> dict[str, Distill | GRPO]:
    parts = {"distill": distill_of(objective), "policy_gradient": policy_gradient_of(objective)}
    return {name: part for name, part in parts.items() if part is not None and part.is_of_batch}


def needs_whole_batch(objective: Objective) -> bool:
    """Whether all positions must be scored before the loss, by an additional forward pass."""
    return bool(_parts_of_batch(objective))


def make_scores(
    objective: Objective, epistemic_ids: tuple[int, ...]
) -> Callable[[Positions], Scores]:
    """Build `fn(positions) -> Scores`, to be run over every position of the batch."""
    ids = tuple(sorted(set(epistemic_ids)))

    def score(positions: Positions) -> Scores:
        epistemic = epistemic_of(ids, positions.student_logp_BTV.shape[-1])
        parts = _parts_of_batch(objective)
        return {name: part.batch_scores(positions, epistemic) for name, part in parts.items()}

    return score


class BatchFactors(NamedTuple):
    """The factors of `Sampled` that depend on the whole batch, one sequence of the batch per row.

    A factor is None if that part of the objective has no choice of the whole batch.
    """

    distill_BT: Float[Array, "B T"] | None
    gradient_BT: Float[Array, "B T"] | None
    target_BT: Float[Array, "B T"] | None

    def added_to(self, sampled: Sampled) -> Sampled:
        """`Sampled` with these factors."""
        return sampled._replace(
            distill_factor_BT=self.distill_BT,
            gradient_factor_BT=self.gradient_BT,
            target_factor_BT=self.target_BT,
        )


def factors(
    objective: Objective, scores: Scores, loss_weight_BT: Float[Array, "B T"], rows: Rows
) -> BatchFactors:
    """Map the scores of all positions to factors at once."""
    is_distilled_BT = jnp.greater(rows.distill_weight_BT, 0)
    # The positions that each part learns from: only these take part in its normalisation.
    applies_BT = {"distill": is_distilled_BT, "policy_gradient": jnp.ones_like(is_distilled_BT)}
    if isinstance(objective, Routed):
        applies_BT["distill"] = mixtures.is_distilled(rows) > 0
        applies_BT["policy_gradient"] = ~applies_BT["distill"]
    found = {
        name: part.batch_factor(scores[name], loss_weight_BT * applies_BT[name])
        for name, part in _parts_of_batch(objective).items()
    }
    distill, target_BT = distill_of(objective), None
    if distill is not None and "distill" in found:
        loss_weight_BT = loss_weight_BT * applies_BT["distill"]
        target_BT = distill.target_factor(scores["distill"], loss_weight_BT)
    # The two parts of a mixture have separate factors, since each is normalised over its own rows.
    return BatchFactors(found.get("distill"), found.get("policy_gradient"), target_BT)


class Reduced(NamedTuple):
    """How a batch's loss is reduced: weights, the one divisor, and the rows' distillation weights.

    The loss is sum(loss_BT weight_BT) / denominator, where `loss_BT` reads `distill_weight_B`.
    """

    weight_BT: Float[Array, "B T"]
    denominator: Float[Array, ""]
    distill_weight_B: Float[Array, " B"]


def reduced(
    objective: Objective, mask_BT: Int[AnyArray, "B T"], row_weight_B: Float[AnyArray, " B"]
) -> Reduced:
    """The objective's reduction; `row_weight_B` is 0 for rows without a demonstration.

    Every row takes part in a policy gradient. In `Mixed` each part has the mean that it has alone:
    since there is one divisor, the rows' distillation weights carry the ratio of the two.
    """
    row_weight_B = jnp.asarray(row_weight_B, jnp.float32)
    every_B = jnp.ones_like(row_weight_B)
    if isinstance(objective, Distill):
        return Reduced(*loss_weights(mask_BT, row_weight_B, objective.reduction), row_weight_B)
    weight_BT, denominator = loss_weights(mask_BT, every_B, objective.reduction)
    if isinstance(objective, Mixed):
        own = loss_weights(mask_BT, row_weight_B, objective.reduction).denominator
        # If no row is distilled, `own` is 0 for "token" and every distillation weight is too; the
        # floor only keeps 0/0 away.
        row_weight_B = row_weight_B * jnp.where(own > 0, denominator / jnp.maximum(own, 1.0), 0.0)
    return Reduced(weight_BT, denominator, row_weight_B)
