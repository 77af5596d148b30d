"""Credit assignment: the advantage of each token of a completion (see `losses.advantages`).

A credit has `advantage(positions, epistemic)`, which returns [B, T] without a gradient.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill.losses import advantages
from jaxdistill.objectives.positions import Epistemic, Positions, require


@dataclass(frozen=True)
class EqualCredit:
    """Every token of a completion has the completion's advantage."""

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return jnp.asarray(positions.rows.advantage_BT)


@dataclass(frozen=True)
class RLSD:
    """The advantage scaled by the teacher's likelihood ratio; the verifier gives the sign.

    The formula is `advantages.rlsd` (arXiv 2604.03128). With `protect_epistemic` the sampled
    epistemic tokens keep the plain advantage.
    """

    strength: float = 0.5  # 0: the plain advantage; 1: scaled by the whole ratio
    clip: float = 0.2  # the ratio lies within 1 - clip and 1 + clip
    protect_epistemic: bool = False

    reads = frozenset({"teacher"})

    def __post_init__(self) -> None:
        require(0 <= self.strength <= 1, "RLSD.strength", "from 0 to 1", self.strength)
        require(0 <= self.clip < 1, "RLSD.clip", "from 0 to below 1", self.clip)

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        shaped_BT = advantages.rlsd(
            jnp.asarray(positions.rows.advantage_BT),
            positions.of_token(positions.student_logp_BTV),
            positions.of_token(positions.teacher),
            self.strength,
            self.clip,
        )
        is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
        applies_BT = ~is_epistemic_BT if self.protect_epistemic else jnp.ones_like(is_epistemic_BT)
        return where_taught(positions, applies_BT, shaped_BT)


@dataclass(frozen=True)
class RLCSD:
    """Credit from the contrast of a correct and an incorrect context (arXiv 2606.11709).

    Tokens whose residual (`advantages.contrastive_residual`) exceeds `select` in absolute value
    receive the advantage A plus the residual, or 0 if that changes the sign of A. The others keep
    A. Each group has its own mean, and the selected group's is multiplied by `balance`. The
    defaults are those of the paper's code (its strength is 1 * 0.5).
    """

    temperature: float = 0.02  # nats of log-likelihood ratio at which the residual saturates
    strength: float = 0.5
    limit: float = 2.0  # the largest residual
    select: float = 0.02
    balance: float = 1.0

    reads = frozenset({"teacher", "contrast"})

    def __post_init__(self) -> None:
        require(self.temperature > 0, "RLCSD.temperature", "above 0", self.temperature)
        require(self.select >= 0, "RLCSD.select", "at least 0", self.select)
        require(self.limit > 0, "RLCSD.limit", "above 0", self.limit)
        require(self.balance >= 0, "RLCSD.balance", "at least 0", self.balance)

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        plain_BT = jnp.asarray(positions.rows.advantage_BT)
        residual_BT = self._residual(positions)
        shaped_BT = advantages.keep_sign(plain_BT + residual_BT, plain_BT)
        return where_taught(positions, jnp.abs(residual_BT) > self.select, shaped_BT)

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        """1 for the selected tokens, else 0."""
        is_distilled_BT = jnp.greater(positions.rows.distill_weight_BT, 0)
        is_selected_BT = jnp.abs(self._residual(positions)) > self.select
        return (is_selected_BT & is_distilled_BT).astype(jnp.float32)

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        return separate_means(score_BT > 0, loss_weight_BT, self.balance)

    def _residual(self, positions: Positions) -> Float[Array, "B T"]:
        tokens = positions.of_token(positions.teacher), positions.of_token(positions.contrast)
        return advantages.contrastive_residual(*tokens, self.temperature, self.strength, self.limit)


def where_taught(
    positions: Positions, applies_BT: Bool[Array, "B T"], shaped_BT: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """The shaped advantage where it applies and the row has a demonstration, else the plain one.

    Without a demonstration the teacher was shown nothing, so its opinion carries no information.
    """
    is_distilled_BT = jnp.greater(positions.rows.distill_weight_BT, 0)
    plain_BT = jnp.asarray(positions.rows.advantage_BT)
    return jnp.where(applies_BT & is_distilled_BT, shaped_BT, plain_BT)


def separate_means(
    is_selected_BT: Array, loss_weight_BT: Array, balance: float
) -> Float[Array, "B T"]:
    """Factors that replace the mean over all positions by the sum of two means.

    These are the mean over the unselected positions, and `balance` times that over the selected
    ones. If nothing is selected, all factors are exactly 1.
    """
    selected = jnp.sum(jnp.where(is_selected_BT, loss_weight_BT, 0.0))
    others = jnp.sum(jnp.where(is_selected_BT, 0.0, loss_weight_BT))
    total = selected + others

    # total / weight undoes the mean's common divisor for the group. Double `where`: an empty group
    # has weight 0, and its factor is 0 instead of the infinity of a division by 0.
    def share(weight):
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)

    return jnp.where(is_selected_BT, balance * share(selected), share(others))
