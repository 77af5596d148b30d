"""Importance corrections for samples drawn by an older or differently rounded policy."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import (
    Positions,
    Weighted,
    everywhere,
    require,
    require_literals,
)


@dataclass(frozen=True)
class RolloutCorrection:
    """The decoupled correction: a weight pi_old(y) / pi_rollout(y), besides pi(y) / pi_old(y).

    pi_old is the policy before the update, as scored in this step, and pi_rollout the probability
    that the sampler reported; they differ by the sampler's rounding. The weight is at most `clip`;
    with `two_sided` it is 0 outside [1/clip, clip] instead (IcePop). `level="sequence"` uses the
    product over the completion's tokens. Each batch of samples has one update, so pi(y) / pi_old(y)
    is 1 and only its gradient matters.
    """

    clip: float = 2.0  # the paper's: min(pi_old / pi_rollout, 2)
    level: Literal["token", "sequence"] = "token"
    two_sided: bool = False

    def __post_init__(self) -> None:
        require(self.clip > 1, "RolloutCorrection.clip", "above 1", self.clip)
        require_literals(self)

    def weight(self, log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        ratio = jnp.exp(losses.clip_log_ratio(log_ratio))
        if self.two_sided:
            is_within = (ratio <= self.clip) & (ratio >= 1 / self.clip)
            return jnp.where(is_within, ratio, 0.0)
        return jnp.minimum(ratio, self.clip)


# In all of these functions `correction` is a `choices.Correction` or None; `choices` imports this
# module, so the annotation is `Any`.


def is_of_sequences(correction: Any) -> bool:
    return getattr(correction, "level", "token") == "sequence"


def rollout_log_ratio(positions: Positions) -> Float[Array, "B T"]:
    """log pi_old(y) - log pi_rollout(y), in nats, without a gradient."""
    # The student's parameters are those before the update here, so its log-probability is pi_old's.
    token_logp_BT = positions.of_token(positions.student_logp_BTV)
    return jax.lax.stop_gradient(token_logp_BT) - positions.sampled.behaviour_logp_BT


def token_rollout_weight(correction: Any, positions: Positions) -> Float[Array, "B T"] | float:
    """The weight of a correction per token; 1 without a correction or with one per sequence."""
    if correction is None or is_of_sequences(correction):
        return 1.0
    return correction.weight(rollout_log_ratio(positions))


def sequence_rollout_weight(
    correction: Any, log_ratio_BT: Float[Array, "B T"], counts_BT: Array
) -> Float[Array, "B T"]:
    """The weight of a correction per sequence, from the sum of each row's log-ratios.

    Rows hold one sequence each here; the weight is the same at all positions of a row.
    """
    total_B1 = jnp.sum(jnp.where(counts_BT, log_ratio_BT, 0.0), axis=1, keepdims=True)
    return jnp.broadcast_to(correction.weight(total_B1), log_ratio_BT.shape)


def policy_ratio(positions: Positions, correction: Any) -> Float[Array, "B T"]:
    """pi(y) / pi_old(y); pi_old is the sampler's policy unless a correction accounts for that."""
    token_logp_BT = positions.of_token(positions.student_logp_BTV)
    # With a separate correction the ratio is exactly 1, and keeps the gradient of log pi(y).
    old_BT = jnp.asarray(positions.sampled.behaviour_logp_BT)
    if correction is not None:
        old_BT = jax.lax.stop_gradient(token_logp_BT)
    return losses.importance_ratio(token_logp_BT, old_BT)


def ratio_metrics(
    ratio_BT: Array, is_clipped_BT: Array, correction: Any, positions: Positions
) -> dict[str, Weighted]:
    """The ratio's mean and second moment, and the fraction that is clipped.

    The reciprocal of the second moment is the effective fraction of samples. With a rollout
    correction, also the ratio of pi_old to the sampler's probability.
    """
    values = {
        "importance_ratio": ratio_BT,
        "importance_ratio_squared": ratio_BT**2,
        "clipped": is_clipped_BT.astype(jnp.float32),
    }
    if correction is not None:
        values["rollout_ratio"] = jnp.exp(losses.clip_log_ratio(rollout_log_ratio(positions)))
    return {name: everywhere(value) for name, value in values.items()}
