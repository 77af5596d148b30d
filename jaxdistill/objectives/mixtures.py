"""Objectives that combine a verifier's rewards with a teacher's distribution."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.objectives.distill import Distill, weighted
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.positions import Epistemic, LossPart, Positions, Rows, require
from jaxdistill.objectives.reduction import Reduction
from jaxdistill.own_classes import require_choice


def _reads_of_both(objective: "Mixed | Routed") -> frozenset[str]:
    return objective.distill.reads | objective.policy_gradient.reads


def _reduction_of_both(objective: "Mixed | Routed") -> Reduction:
    return objective.distill.reduction


@dataclass(frozen=True)
class Mixed:
    """(1 - share) GRPO + share * distillation, each with the mean that it has alone.

    With `anneal_steps` > 0 the share falls linearly to 0 over that many steps (TRACE,
    arXiv 2605.10194). Raises UserError if the two parts differ in their reduction.
    """

    distill: Distill = Distill()  # the part that distils
    policy_gradient: GRPO = GRPO()  # the part that learns from rewards
    share: float = 0.5
    anneal_steps: int = 0

    def __post_init__(self) -> None:
        require_parts("Mixed", self.distill, self.policy_gradient)
        require(0 <= self.share <= 1, "Mixed.share", "from 0 to 1", self.share)
        require(self.anneal_steps >= 0, "Mixed.anneal_steps", "at least 0", self.anneal_steps)

    reads = property(_reads_of_both)
    reduction = property(_reduction_of_both)

    def part(self, positions: Positions, epistemic: Epistemic) -> LossPart:
        share: float | Array = self.share
        if self.anneal_steps:
            left_BT = jnp.clip(1.0 - positions.rows.step_BT / self.anneal_steps, 0.0, 1.0)
            share = share * left_BT
        first = self.distill.part(positions, epistemic)
        second = self.policy_gradient.part(positions, epistemic)
        share_BT = jnp.broadcast_to(share, first.loss_BT.shape)
        loss_BT = weighted(first.loss_BT, share_BT) + weighted(second.loss_BT, 1.0 - share_BT)
        # The absolute value: a negative weight of the distillation is still a kept position, and
        # must not cancel the other part's. All rows are active, since GRPO learns from every row.
        weight_BT = share_BT * jnp.abs(first.weight_BT) + (1.0 - share_BT) * second.weight_BT
        return LossPart(loss_BT, weight_BT, second.is_active_BT, first.metrics | second.metrics)


@dataclass(frozen=True)
class Routed:
    """Distil incorrect completions that have a demonstration; use GRPO for all others.

    SRPO (arXiv 2604.02288): for a completion that is correct already, the demonstration is an
    ambiguous target. Raises UserError if the two parts differ in their reduction.
    """

    distill: Distill = Distill()  # the part that distils
    policy_gradient: GRPO = GRPO()  # the part that learns from rewards

    def __post_init__(self) -> None:
        require_parts("Routed", self.distill, self.policy_gradient)

    reads = property(_reads_of_both)
    reduction = property(_reduction_of_both)

    def part(self, positions: Positions, epistemic: Epistemic) -> LossPart:
        route_BT = is_distilled(positions.rows)
        first = self.distill.part(positions, epistemic)
        second = self.policy_gradient.part(positions, epistemic)
        # Both parts are computed for every row: a program has static shapes, and a micro-batch may
        # hold rows of either kind.
        loss_BT = weighted(first.loss_BT, route_BT) + weighted(second.loss_BT, 1.0 - route_BT)
        weight_BT = jnp.where(route_BT > 0, first.weight_BT, second.weight_BT)
        return LossPart(loss_BT, weight_BT, second.is_active_BT, first.metrics | second.metrics)


def require_parts(name: str, first: Any, second: Any) -> None:
    require_choice(f"{name}.distill", first, Distill)
    require_choice(f"{name}.policy_gradient", second, GRPO)
    same = first.reduction == second.reduction
    got = second.reduction
    require(
        same, f"{name}.policy_gradient.reduction", f"the distillation's {first.reduction!r}", got
    )


def is_distilled(rows: Rows) -> Float[Array, "B T"]:
    """1 for the rows that `Routed` distils."""
    is_wrong_BT = jnp.equal(rows.correct_BT, 0)
    return (jnp.greater(rows.distill_weight_BT, 0) & is_wrong_BT).astype(jnp.float32)
