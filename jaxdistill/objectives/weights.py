"""Where the student learns: one factor a position, from what it, teacher and reference say there.

A weight may be 0 (not learnt), or negative (away from the teacher). Most look at their own position
alone. Three look at the whole batch (`BatchWeight`): they *score* each position first, and a second
function turns the scores of all into factors, so that neither micro-batches nor devices matter.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require

Network = Literal["student", "teacher", "reference"]

# -------------------------------------------------------------------------- by epistemic tokens


@dataclass(frozen=True)
class MaskSampledEpistemic:
    """Positions where the *sampled* token is epistemic do not count.

    With `SampledReverseKL` it protects doubt. With a divergence over the vocabulary it protects
    almost nothing: that lowers the epistemic mass at every other position too, and 1 - m_S of the
    suppression remains. Use `SuppressionGate` there.
    """

    reads: ClassVar = frozenset()


@dataclass(frozen=True)
class AmplifySampledEpistemic:
    """Positions where the sampled token is epistemic count 1 + strength.

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


@dataclass(frozen=True)
class SuppressionGate:
    """Positions where the teacher would suppress doubt, m_R - m_T > threshold, do not count.

    `relative` compares log m_R - log m_T instead. With `softness` b > 0 they count
    sigmoid((threshold - gap) / b), which tends to the hard gate as b falls to 0.
    """

    threshold: float = 0.01  # probability mass; chosen, not measured
    relative: bool = False
    softness: float = 0.0

    reads: ClassVar = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.threshold >= 0, "SuppressionGate.threshold", "at least 0", self.threshold)
        require(self.softness >= 0, "SuppressionGate.softness", "at least 0", self.softness)


@dataclass(frozen=True)
class SampledSuppressionGate:
    """Positions do not count where the sampled token is epistemic and the teacher finds it less
    likely than the reference by more than `threshold` nats. Meant for `SampledReverseKL`.
    """

    threshold: float = 0.0

    reads: ClassVar = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(
            self.threshold >= 0, "SampledSuppressionGate.threshold", "at least 0", self.threshold
        )


# ------------------------------------------------------------------------------------ by entropy


@dataclass(frozen=True)
class EntropyGate:
    """Positions count where the entropy of `of` is below (or above) `threshold` nats; the others
    count `floor`.
    """

    of: Network = "teacher"
    keep: Literal["below", "above"] = "below"
    threshold: float = 0.672  # see `targets.AmplifyEpistemic`
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_network("EntropyGate.of", self.of)
        known = self.keep in ("below", "above")
        require(known, "EntropyGate.keep", "'below' or 'above'", self.keep)
        require(0 <= self.floor <= 1, "EntropyGate.floor", "from 0 to 1", self.floor)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})


@dataclass(frozen=True)
class DirectionAdaptive:
    """Towards the teacher where H(S) is below `threshold` nats, away from it elsewhere (or, with
    `drop`, nothing there). After DASD (arXiv 2605.22263); the form is ours.
    """

    threshold: float = 0.672  # see `targets.AmplifyEpistemic`
    drop: bool = False

    reads: ClassVar = frozenset()


@dataclass(frozen=True)
class EntropyWeight:
    """exp(-rate H(of)), normalised to mean 1 over the batch (SRPO, arXiv 2604.02288)."""

    of: Network = "teacher"
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_network("EntropyWeight.of", self.of)
        require(self.rate >= 0, "EntropyWeight.rate", "at least 0", self.rate)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})


@dataclass(frozen=True)
class ForkingTokens:
    """The `fraction` of the batch's positions with the highest H(S) (arXiv 2506.01939), or with
    `keep="low"` the lowest: its complement spares the forks (2607.05184).

    Exactly ceil(fraction N) of the N positions that count; ties go to the earlier ones.
    """

    fraction: float = 0.2  # the paper's
    keep: Literal["high", "low"] = "high"

    reads: ClassVar = frozenset()

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "ForkingTokens.fraction", "in (0, 1]", self.fraction)
        require(self.keep in ("high", "low"), "ForkingTokens.keep", "'high' or 'low'", self.keep)


@dataclass(frozen=True)
class TokenImportance:
    """(H(S) / ln V)^a (JSD(S, T) / ln 2)^g: undecided, or confidently wrong (TIP, 2604.14084).

    Its code samples positions by this number; here it weighs them.
    """

    entropy_power: float = 1.0
    divergence_power: float = 1.0

    reads: ClassVar = frozenset({"teacher"})


# ------------------------------------------------------------------- by position, and by contrast


@dataclass(frozen=True)
class PositionSlope:
    """1 + slope (2 (t + 1/2) / n - 1) at token t of n: mean 1 over a completion.

    slope = 1 trusts late tokens (PW-OPSD, 2605.21606), -1 early ones (IW-OPD, 2606.22600).
    """

    slope: float = 1.0

    reads: ClassVar = frozenset()

    def __post_init__(self) -> None:
        require(-1 <= self.slope <= 1, "PositionSlope.slope", "from -1 to 1", self.slope)


@dataclass(frozen=True)
class SkipFirst:
    """The first `count` tokens do not count: where two templates meet, the divergence is huge."""

    count: int = 3  # chosen, not measured

    reads: ClassVar = frozenset()

    def __post_init__(self) -> None:
        require(self.count >= 0, "SkipFirst.count", "at least 0", self.count)


@dataclass(frozen=True)
class ContrastMask:
    """d / (d + scale) with d = KL(T||C): silent where any context says the same (RLCSD's style)."""

    scale: float = 0.05  # nats; chosen, not measured

    reads: ClassVar = frozenset({"contrast"})

    def __post_init__(self) -> None:
        require(self.scale >= 0, "ContrastMask.scale", "at least 0", self.scale)


BatchWeight = EntropyWeight | ForkingTokens
Weight = (
    MaskSampledEpistemic
    | AmplifySampledEpistemic
    | FlipSampledEpistemic
    | SuppressionGate
    | SampledSuppressionGate
    | EntropyGate
    | DirectionAdaptive
    | EntropyWeight
    | ForkingTokens
    | TokenImportance
    | PositionSlope
    | SkipFirst
    | ContrastMask
)


def require_network(name: str, value: str) -> None:
    known = value in ("student", "teacher", "reference")
    require(known, name, "'student', 'teacher' or 'reference'", value)


# ---------------------------------------------------------------------------- at one position


def position_weight(
    weights: tuple[Weight, ...], positions: Positions, epistemic: Epistemic
) -> Float[Array, "B T"]:
    """The product of those weights that look at their own position alone."""
    product_BT = jnp.ones(positions.sampled.tokens_BT.shape, jnp.float32)
    for weight in weights:
        if not isinstance(weight, BatchWeight):
            product_BT = product_BT * one_weight(weight, positions, epistemic)
    return product_BT


def one_weight(weight: Weight, positions: Positions, epistemic: Epistemic) -> Array:
    is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
    student = positions.student_logp_BTV
    match weight:
        case MaskSampledEpistemic():
            return 1.0 - is_epistemic_BT
        case AmplifySampledEpistemic(strength, if_teacher_agrees):
            if if_teacher_agrees:
                is_epistemic_BT &= teacher_gap(positions) <= 0
            return 1.0 + strength * is_epistemic_BT
        case FlipSampledEpistemic(up_to_reference):
            flipped = -1.0
            if up_to_reference:
                tokens = positions.of_token(student), positions.of_token(positions.reference)
                flipped = jnp.where(jnp.less_equal(*tokens), -1.0, 0.0)
            return jnp.where(is_epistemic_BT, flipped, 1.0)
        case SuppressionGate():
            return suppression_gate(weight, positions, epistemic)
        case SampledSuppressionGate(threshold):
            return 1.0 - (is_epistemic_BT & (teacher_gap(positions) > threshold))
        case EntropyGate(of, keep, threshold, floor):
            is_below_BT = entropy_of(of, positions) < threshold
            return jnp.where(is_below_BT == (keep == "below"), 1.0, floor)
        case DirectionAdaptive(threshold, drop):
            return jnp.where(losses.entropy(student) < threshold, 1.0, 0.0 if drop else -1.0)
        case TokenImportance():
            return token_importance(weight, positions)
        case PositionSlope(slope):
            middle_BT = jnp.asarray(positions.sampled.index_BT) + 0.5
            length_BT = jnp.maximum(positions.rows.length_BT, 1)
            return 1.0 + slope * (2.0 * middle_BT / length_BT - 1.0)
        case SkipFirst(count):
            return jnp.greater_equal(positions.sampled.index_BT, count).astype(jnp.float32)
        case ContrastMask(scale):
            distance_BT = losses.forward_kl(positions.contrast, positions.teacher)
            return jnp.where(distance_BT > 0, distance_BT / (distance_BT + scale), 0.0)
        case _:
            raise AssertionError(weight)


def teacher_gap(positions: Positions) -> Float[Array, "B T"]:
    """log R(y) - log T(y): how much less likely the teacher finds the sampled token."""
    return positions.of_token(positions.reference) - positions.of_token(positions.teacher)


def suppression_gate(
    gate: SuppressionGate, positions: Positions, epistemic: Epistemic
) -> Float[Array, "B T"]:
    log_masses = (
        losses.log_mass(logp, epistemic.is_member_V)
        for logp in (positions.reference, positions.teacher)
    )
    if gate.relative:
        gap_BT = jnp.subtract(*log_masses)
        gap_BT = jnp.where(jnp.isnan(gap_BT), 0.0, gap_BT)  # neither has any mass
    else:
        gap_BT = jnp.subtract(*map(jnp.exp, log_masses))
    if gate.softness == 0:
        return (gap_BT <= gate.threshold).astype(jnp.float32)
    return jax.nn.sigmoid((gate.threshold - gap_BT) / gate.softness)


def entropy_of(network: Network, positions: Positions) -> Float[Array, "B T"]:
    match network:
        case "student":
            return losses.entropy(positions.student_logp_BTV)
        case "teacher":
            return losses.entropy(positions.teacher)
        case "reference":
            return losses.entropy(positions.reference)


def token_importance(weight: TokenImportance, positions: Positions) -> Float[Array, "B T"]:
    student = positions.student_logp_BTV
    undecided_BT = losses.entropy(student) / np.log(student.shape[-1])
    wrong_BT = losses.jensen_shannon(student, positions.teacher) / np.log(2.0)
    # Rounding can leave either slightly below 0, where a power is not a number.
    powers = (undecided_BT, weight.entropy_power), (wrong_BT, weight.divergence_power)
    return jnp.prod(jnp.stack([jnp.maximum(x, 0.0) ** power for x, power in powers]), axis=0)


# ------------------------------------------------------------------------------ of the whole batch


def batch_score(weight: BatchWeight, positions: Positions) -> Float[Array, "B T"]:
    """What must be known of every position before any one's factor is."""
    match weight:
        case EntropyWeight(of, rate):
            return -rate * entropy_of(of, positions)
        case ForkingTokens():
            return losses.entropy(positions.student_logp_BTV)


def batch_factor(
    weight: BatchWeight, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Factors from the scores of the whole batch; positions of loss weight 0 do not take part."""
    counts_BT = loss_weight_BT > 0
    match weight:
        case EntropyWeight():
            # A softmax: however small they all are, their mean is 1.
            log_BT = jnp.where(counts_BT, score_BT, -jnp.inf)
            share_BT = jax.nn.softmax(log_BT.reshape(-1)).reshape(score_BT.shape)
            return jnp.where(counts_BT, share_BT * counts_BT.sum(), 0.0)
        case ForkingTokens(fraction, keep):
            order = score_BT if keep == "high" else -score_BT
            return exactly_top(order, counts_BT, fraction).astype(jnp.float32)


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
