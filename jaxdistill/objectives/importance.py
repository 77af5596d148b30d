"""Importance corrections for samples drawn by an older or differently rounded policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
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

    pi_old is the policy before the batch's first update, as scored by the trainer, and pi_rollout
    the probability that the sampler reported; they differ by the sampler's rounding. The weight is
    at most `clip`; with `two_sided` it is 0 outside [1/clip, clip] instead (IcePop).
    `level="sequence"` uses the product over the completion's tokens. In the first update of a batch
    pi(y) / pi_old(y) is 1 and only its gradient matters.
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


# As an old log-probability, which is never positive: in the first update of a batch the student is
# pi_old itself. Its own log-probability then makes the ratio exactly 1, which one that another
# program has computed would do only up to rounding.
UNMOVED = float("inf")


def old_logp(positions: Positions) -> Float[Array, "B T"]:
    """log pi_old(y), in nats, without a gradient."""
    token_logp_BT = jax.lax.stop_gradient(positions.of_token(positions.student_logp_BTV))
    if positions.sampled.old_logp_BT is None:
        return token_logp_BT
    old_BT = jnp.asarray(positions.sampled.old_logp_BT)
    return jnp.where(old_BT == UNMOVED, token_logp_BT, old_BT)


def rollout_log_ratio(positions: Positions) -> Float[Array, "B T"]:
    """log pi_old(y) - log pi_rollout(y), in nats, without a gradient."""
    return old_logp(positions) - positions.sampled.behaviour_logp_BT


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
    """pi(y) / pi_old(y), which in the first update of a batch is 1 and keeps log pi(y)'s gradient.

    In the only update of a batch pi_old is the sampler's policy, unless a correction accounts for
    the difference of the two.
    """
    token_logp_BT = positions.of_token(positions.student_logp_BTV)
    is_samplers = correction is None and positions.sampled.old_logp_BT is None
    behaviour_BT = jnp.asarray(positions.sampled.behaviour_logp_BT)
    old_BT = behaviour_BT if is_samplers else old_logp(positions)
    return losses.importance_ratio(token_logp_BT, old_BT)


def ratio_metrics(
    ratio_BT: Array, is_clipped_BT: Array, correction: Any, positions: Positions
) -> dict[str, Weighted]:
    """The ratio's mean and second moment, the fraction that is clipped, and the sampler's gap.

    The reciprocal of the second moment is the effective fraction of samples. The gap is
    |log pi_old(y) - log pi_rollout(y)|, in nats. With a rollout correction, also the ratio of
    pi_old to the sampler's probability.
    """
    log_ratio_BT = rollout_log_ratio(positions)
    values = {
        "importance_ratio": ratio_BT,
        "importance_ratio_squared": ratio_BT**2,
        "clipped": is_clipped_BT.astype(jnp.float32),
        SAMPLER_GAP: jnp.abs(log_ratio_BT),
    }
    if correction is not None:
        values["rollout_ratio"] = jnp.exp(losses.clip_log_ratio(log_ratio_BT))
    return {name: everywhere(value) for name, value in values.items()}


# ------------------------------------------------------------------ the sampler and the trainer

# Chunks, micro-batches and devices are only added up, which gives means but neither quantiles nor a
# maximum. Histograms can be added too. The bins are eighths of an octave, so that a quantile read
# from them is at most 9 % too large, from below float32's rounding of a log-probability (1e-6) to
# 32 nats.
SAMPLER_GAP = "sampler_gap"
_PER_OCTAVE, _LOWEST, _HIGHEST = 8, -23, 5
GAP_EDGES = 2.0 ** np.arange(_LOWEST, _HIGHEST + 1 / _PER_OCTAVE, 1 / _PER_OCTAVE)  # upper, in nats

# Warn above this mean of the gap, in nats: the ratios are then off by a tenth on average, half of
# what GRPO's clip allows an update to move them (0.2). bfloat16's rounding alone gives a few
# hundredths at most (docs/log.md, 2026-11-25). Chosen from these two, not measured.
LARGEST_USUAL_GAP = 0.1


def histogram(gap_BT: Float[Array, "B T"], weight_BT: Float[Array, "B T"]) -> Float[Array, " K"]:
    """The weight in each bin: the first one also holds 0, the last one all above it and NaN."""
    bin_BT = jnp.ceil((jnp.log2(gap_BT) - _LOWEST) * _PER_OCTAVE)
    last = len(GAP_EDGES) - 1
    bin_BT = jnp.clip(jnp.where(jnp.isnan(bin_BT), last, bin_BT), 0, last)
    is_in_BTK = jax.nn.one_hot(bin_BT.astype(jnp.int32), len(GAP_EDGES), dtype=jnp.float32)
    return jnp.sum(is_in_BTK * weight_BT[:, :, None], axis=(0, 1))


def gap_quantiles(count_K: Float[Array, " K"]) -> dict[str, Float[Array, ""]]:
    """The 99th percentile and the largest gap of a histogram, in nats, as upper edges of bins."""
    edges_K = jnp.asarray(GAP_EDGES, jnp.float32)
    total_K = jnp.cumsum(count_K)
    # The last bin with a count, and not where the sum is complete: in float32 the sum of more than
    # 2^24 tokens does not grow by a single one.
    largest = len(GAP_EDGES) - 1 - jnp.argmax(count_K[::-1] > 0)
    return {
        "sampler_gap_p99": edges_K[jnp.argmax(total_K >= 0.99 * total_K[-1])],
        "sampler_gap_max": edges_K[largest],
    }


def fork_rates(
    student_K: Float[Array, " K"], reference_K: Float[Array, " K"]
) -> dict[str, Float[Array, ""]]:
    """The share of positions that are forks by the reference's measure, and that measure.

    `fork_threshold_reference` is the entropy, in nats, that a fifth of the reference's positions
    exceed (arXiv 2506.01939); `fork_rate_reference` is the share of the student's entropies above
    it, 0.2 as long as the two networks are equal. Within a bin counts are taken to be uniform.
    """
    edges_K = jnp.asarray(GAP_EDGES, jnp.float32)
    below_K = jnp.cumsum(reference_K)
    wanted = 0.8 * below_K[-1]
    place = jnp.argmax(below_K >= wanted)
    count = reference_K[place]
    # The fraction of the bin that lies above the threshold.
    over = jnp.where(count > 0, (below_K[place] - wanted) / jnp.where(count > 0, count, 1.0), 0.0)
    above = jnp.sum(jnp.where(jnp.arange(len(GAP_EDGES)) > place, student_K, 0.0))
    above += over * student_K[place]
    return {
        "fork_threshold_reference": edges_K[place] * 2.0 ** (-over / _PER_OCTAVE),
        "fork_rate_reference": above / jnp.maximum(jnp.sum(student_K), 1.0),
    }


def gap_warning(metrics: Mapping[str, float]) -> str | None:
    """What to tell a person about a step whose sampler and trainer disagree; None if they agree."""
    gap = metrics.get(SAMPLER_GAP, 0.0)
    if not gap > LARGEST_USUAL_GAP:
        return None
    advice = (
        "compare `compute.dtype`, `compute.cache_dtype` and `compute.weights_dtype`, or use a "
        "`rollout_correction`"
        if not metrics.get("policy_lag")
        else "the samples are of the policy one step before, and that step has moved it far: lower "
        "`optimizer.peak_lr`, or use `experience.schedule=InTurn()`"
    )
    return (
        f"the sampler's and the trainer's log-probabilities differ by {gap:.2g} nats on average "
        f"(99 %: {metrics['sampler_gap_p99']:.2g}, largest: {metrics['sampler_gap_max']:.2g}), "
        f"expected at most {LARGEST_USUAL_GAP:g}; {advice}"
    )
