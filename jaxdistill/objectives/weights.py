"""Weights: one factor per position, computed from student, teacher and reference.

A factor of 0 drops the position, and a negative one moves the student away from the teacher there.
Most weights depend only on their own position and have `factor`. Those that depend on the whole
batch have `score` and `over_batch`: they first score each position and then map all scores to
factors at once, so that the result does not depend on micro-batches or devices.
`literature_weights` has more weights.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require, require_literals

NetworkName = Literal["student", "teacher", "reference"]

# -------------------------------------------------------------------------- by epistemic tokens


@dataclass(frozen=True)
class MaskSampledEpistemic:
    """Drop the positions whose *sampled* token is epistemic.

    With `SampledReverseKL` this protects doubt. With a divergence over the vocabulary it protects
    almost nothing: such a loss lowers the epistemic mass at every other position too, and the
    fraction 1 - m_S of the suppression remains. Use `SuppressionGate` there.
    """

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return 1.0 - epistemic.holds(positions.sampled.tokens_BT)


@dataclass(frozen=True)
class FlipSampledEpistemic:
    """The factor -1 where the sampled token is epistemic: reinforce it instead of distilling.

    Meant for `SampledReverseKL` (AntiSD restricted to E). The effect reinforces itself: the further
    the student moves from the teacher, the larger the loss that pushes it, until it generates
    nothing else. With `up_to_reference` the factor is 0 where the student already finds the token
    more likely than the reference does.
    """

    up_to_reference: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"reference"} if self.up_to_reference else set())

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        flipped = -1.0
        # The bound stops the feedback: beyond the reference's probability nothing is reinforced.
        if self.up_to_reference:
            student, reference = positions.student_logp_BTV, positions.reference
            tokens = positions.of_token(student), positions.of_token(reference)
            flipped = jnp.where(jnp.less_equal(*tokens), -1.0, 0.0)
        return jnp.where(epistemic.holds(positions.sampled.tokens_BT), flipped, 1.0)


@dataclass(frozen=True)
class SuppressionGate:
    """Drop the positions where the teacher would suppress doubt: m_R - m_T > threshold.

    `relative` compares log m_R - log m_T, in nats, instead. With `softness` b > 0 the factor is
    sigmoid((threshold - gap) / b), which tends to the hard gate as b tends to 0.
    """

    threshold: float = 0.01  # probability mass; chosen, not measured
    relative: bool = False
    softness: float = 0.0

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.threshold >= 0, "SuppressionGate.threshold", "at least 0", self.threshold)
        require(self.softness >= 0, "SuppressionGate.softness", "at least 0", self.softness)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        networks = positions.reference, positions.teacher
        log_masses = (losses.log_mass(logp, epistemic.is_member_V) for logp in networks)
        if self.relative:
            gap_BT = jnp.subtract(*log_masses)
            # NaN is -inf - -inf: neither network has any epistemic mass, and nothing is suppressed.
            gap_BT = jnp.where(jnp.isnan(gap_BT), 0.0, gap_BT)
        else:
            gap_BT = jnp.subtract(*map(jnp.exp, log_masses))
        if self.softness == 0:
            return (gap_BT <= self.threshold).astype(jnp.float32)
        return jax.nn.sigmoid((self.threshold - gap_BT) / self.softness)


# ------------------------------------------------------------------------------------ by entropy


@dataclass(frozen=True)
class EntropyWeight:
    """exp(-rate H(of)), normalised to mean 1 over the batch (SRPO, arXiv 2604.02288)."""

    of: NetworkName = "teacher"
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_literals(self)
        require(self.rate >= 0, "EntropyWeight.rate", "at least 0", self.rate)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return -self.rate * entropy_of(self.of, positions)

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        counts_BT = loss_weight_BT > 0
        # n times the softmax of -rate H is exp(-rate H) with mean 1, and does not underflow however
        # large the entropies are.
        log_BT = jnp.where(counts_BT, score_BT, -jnp.inf)
        share_BT = jax.nn.softmax(log_BT.reshape(-1)).reshape(score_BT.shape)
        return jnp.where(counts_BT, share_BT * counts_BT.sum(), 0.0)


def entropy_of(network: NetworkName, positions: Positions) -> Float[Array, "B T"]:
    """The entropy of the network's distribution at each position, in nats."""
    logp_BTV = positions.student_logp_BTV if network == "student" else getattr(positions, network)
    return losses.entropy(logp_BTV)
