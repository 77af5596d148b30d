"""Weights beyond the presets: from papers, and variants of ours that no recipe uses."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require, require_literals
from jaxdistill.objectives.weights import NetworkName, entropy_of

# -------------------------------------------------------------------------- by epistemic tokens


@dataclass(frozen=True)
class AmplifySampledEpistemic:
    """Positions where the sampled token is epistemic count 1 + strength (ours).

    Alone it *increases* the suppression where the teacher doubts less: with `if_teacher_agrees`
    only those positions count more where the teacher finds the token at least as likely as the
    reference does. strength = -1 is `MaskSampledEpistemic`.
    """

    strength: float = 1.0
    if_teacher_agrees: bool = True

    def __post_init__(self) -> None:
        within = self.strength >= -1
        require(within, "AmplifySampledEpistemic.strength", "at least -1", self.strength)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"reference"} if self.if_teacher_agrees else set())

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
        if self.if_teacher_agrees:
            is_epistemic_BT &= teacher_gap(positions) <= 0
        return 1.0 + self.strength * is_epistemic_BT


@dataclass(frozen=True)
class SampledSuppressionGate:
    """Positions do not count where the sampled token is epistemic and the teacher finds it less
    likely than the reference by more than `threshold` nats (ours). Meant for `SampledReverseKL`.
    """

    threshold: float = 0.0

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        within = self.threshold >= 0
        require(within, "SampledSuppressionGate.threshold", "at least 0", self.threshold)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
        return 1.0 - (is_epistemic_BT & (teacher_gap(positions) > self.threshold))


def teacher_gap(positions: Positions) -> Float[Array, "B T"]:
    """log R(y) - log T(y): how much less likely the teacher finds the sampled token."""
    return positions.of_token(positions.reference) - positions.of_token(positions.teacher)


# ------------------------------------------------------------------------------------ by entropy


@dataclass(frozen=True)
class EntropyGate:
    """Positions count where the entropy of `of` is below (or above) `threshold` nats; the others
    count `floor` (EGRSD, arXiv 2605.13255).
    """

    of: NetworkName = "teacher"
    keep: Literal["below", "above"] = "below"
    threshold: float = 0.672  # see `targets.AmplifyEpistemic`
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_literals(self)
        require(0 <= self.floor <= 1, "EntropyGate.floor", "from 0 to 1", self.floor)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_below_BT = entropy_of(self.of, positions) < self.threshold
        return jnp.where(is_below_BT == (self.keep == "below"), 1.0, self.floor)


@dataclass(frozen=True)
class DirectionAdaptive:
    """Towards the teacher where H(S) is below `threshold` nats, away from it elsewhere (or, with
    `drop`, nothing there). After DASD (arXiv 2605.22263); the form is ours.
    """

    threshold: float = 0.672  # see `targets.AmplifyEpistemic`
    drop: bool = False

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_sure_BT = losses.entropy(positions.student_logp_BTV) < self.threshold
        return jnp.where(is_sure_BT, 1.0, 0.0 if self.drop else -1.0)


@dataclass(frozen=True)
class ForkingTokens:
    """The `fraction` of the batch's positions with the highest H(S) (arXiv 2506.01939), or with
    `keep="low"` the lowest: its complement spares the forks (2607.05184).

    Exactly ceil(fraction N) of the N positions that count; ties go to the earlier ones.
    """

    fraction: float = 0.2  # the paper's
    keep: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "ForkingTokens.fraction", "in (0, 1]", self.fraction)
        require_literals(self)

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return losses.entropy(positions.student_logp_BTV)

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        order_BT = score_BT if self.keep == "high" else -score_BT
        return exactly_top(order_BT, loss_weight_BT > 0, self.fraction).astype(jnp.float32)


def exactly_top(
    score_BT: Float[Array, "B T"], counts_BT: Array, fraction: float | Float[Array, ""]
) -> Array:
    """The ceil(fraction N) highest of the N positions that count; ties to the earlier ones."""
    score_X = jnp.where(counts_BT, score_BT, -jnp.inf).reshape(-1)
    # 1e-6: 0.2 * 15 is above 3 in floating point and must not keep a fourth.
    number = jnp.ceil(fraction * counts_BT.sum() - 1e-6).astype(jnp.int32)
    least = jnp.sort(score_X)[score_X.size - jnp.maximum(number, 1)]
    above_X = score_X > least
    tied_X = (score_X == least) & counts_BT.reshape(-1)
    wanted = number - above_X.sum()
    return (above_X | (tied_X & (jnp.cumsum(tied_X) <= wanted))).reshape(score_BT.shape)


@dataclass(frozen=True)
class TokenImportance:
    """(H(S) / ln V)^a (JSD(S, T) / ln 2)^g: undecided, or confidently wrong (TIP, 2604.14084).

    Its code samples positions by this number; here it weighs them.
    """

    entropy_power: float = 1.0
    divergence_power: float = 1.0

    reads = frozenset({"teacher"})

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        student = positions.student_logp_BTV
        undecided_BT = losses.entropy(student) / np.log(student.shape[-1])
        wrong_BT = losses.jensen_shannon(student, positions.teacher) / np.log(2.0)
        # Rounding can leave either slightly below 0, where a power is not a number.
        powers = (undecided_BT, self.entropy_power), (wrong_BT, self.divergence_power)
        return jnp.prod(jnp.stack([jnp.maximum(x, 0.0) ** power for x, power in powers]), axis=0)


# ------------------------------------------------------------------- by position, and by contrast


@dataclass(frozen=True)
class PositionSlope:
    """1 + slope (2 (t + 1/2) / n - 1) at token t of n: mean 1 over a completion.

    slope = 1 trusts late tokens (PW-OPSD, 2605.21606), -1 early ones (IW-OPD, 2606.22600).
    """

    slope: float = 1.0

    def __post_init__(self) -> None:
        require(-1 <= self.slope <= 1, "PositionSlope.slope", "from -1 to 1", self.slope)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        middle_BT = jnp.asarray(positions.sampled.index_BT) + 0.5
        length_BT = jnp.maximum(positions.rows.length_BT, 1)
        return 1.0 + self.slope * (2.0 * middle_BT / length_BT - 1.0)


@dataclass(frozen=True)
class SkipFirst:
    """The first `count` tokens do not count: where two templates meet, the divergence is huge
    (in the code of tinker and TRL).
    """

    count: int = 3  # chosen, not measured

    def __post_init__(self) -> None:
        require(self.count >= 0, "SkipFirst.count", "at least 0", self.count)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return jnp.greater_equal(positions.sampled.index_BT, self.count).astype(jnp.float32)


@dataclass(frozen=True)
class ContrastMask:
    """d / (d + scale) with d = KL(T||C): silent where any context says the same (the code of
    RLCSD, arXiv 2606.11709).
    """

    scale: float = 0.05  # nats; chosen, not measured

    reads = frozenset({"contrast"})

    def __post_init__(self) -> None:
        require(self.scale >= 0, "ContrastMask.scale", "at least 0", self.scale)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        distance_BT = losses.forward_kl(positions.contrast, positions.teacher)
        return jnp.where(distance_BT > 0, distance_BT / (distance_BT + self.scale), 0.0)
