"""Where the student learns: one factor per position, from what student, teacher and reference say.

A factor may be 0 (not learnt), or negative (away from the teacher). Most weights look at their own
position alone and have `factor`. Those that look at the whole batch have `score` and `over_batch`:
they score each position first, and turn the scores of all positions into factors afterwards, so
that neither micro-batches nor devices matter. More weights are in `literature_weights`.
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
    """Positions where the *sampled* token is epistemic do not count.

    With `SampledReverseKL` it protects doubt. With a divergence over the vocabulary it protects
    almost nothing: that lowers the epistemic mass at every other position too, and 1 - m_S of the
    suppression remains. Use `SuppressionGate` there.
    """

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return 1.0 - epistemic.holds(positions.sampled.tokens_BT)


@dataclass(frozen=True)
class FlipSampledEpistemic:
    """Positions where the sampled token is epistemic count -1: what the teacher suppresses is
    reinforced, the rest distilled. Meant for `SampledReverseKL` (AntiSD restricted to E).

    It feeds on itself: the further the student leaves the teacher, the harder it is pushed, until
    it says nothing else. With `up_to_reference` such a position counts 0 where the student already
    finds the token more likely than the reference does.
    """

    up_to_reference: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"reference"} if self.up_to_reference else set())

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        flipped = -1.0
        if self.up_to_reference:
            student, reference = positions.student_logp_BTV, positions.reference
            tokens = positions.of_token(student), positions.of_token(reference)
            flipped = jnp.where(jnp.less_equal(*tokens), -1.0, 0.0)
        return jnp.where(epistemic.holds(positions.sampled.tokens_BT), flipped, 1.0)


@dataclass(frozen=True)
class SuppressionGate:
    """Positions where the teacher would suppress doubt, m_R - m_T > threshold, do not count.

    `relative` compares log m_R - log m_T instead. With `softness` b > 0 they count
    sigmoid((threshold - gap) / b), which tends to the hard gate as b falls to 0.
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
            gap_BT = jnp.where(jnp.isnan(gap_BT), 0.0, gap_BT)  # neither has any mass
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
        # A softmax: however small they all are, their mean is 1.
        log_BT = jnp.where(counts_BT, score_BT, -jnp.inf)
        share_BT = jax.nn.softmax(log_BT.reshape(-1)).reshape(score_BT.shape)
        return jnp.where(counts_BT, share_BT * counts_BT.sum(), 0.0)


def entropy_of(network: NetworkName, positions: Positions) -> Float[Array, "B T"]:
    logp_BTV = positions.student_logp_BTV if network == "student" else getattr(positions, network)
    return losses.entropy(logp_BTV)
