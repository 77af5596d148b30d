"""Weights that no preset or recipe uses: from papers, and our own variants ("ours")."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require, require_literals
from jaxdistill.objectives.weights import NetworkName, entropy_of
from jaxdistill.own_classes import require_choice

# -------------------------------------------------------------------------- by epistemic tokens


@dataclass(frozen=True)
class AmplifySampledEpistemic:
    """The factor 1 + strength where the sampled token is epistemic (ours).

    Where the teacher doubts less than the reference this *increases* the suppression. With
    `if_teacher_agrees` it therefore applies only where the teacher finds the token at least as
    likely as the reference does. strength = -1 without that is `MaskSampledEpistemic`.
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
    """Drop the positions where the teacher would suppress a sampled epistemic token (ours).

    That is where log R(y) - log T(y) exceeds `threshold` nats. Meant for `SampledReverseKL`.
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
    """log R(y) - log T(y), in nats: how much less likely the teacher finds the sampled token."""
    return positions.of_token(positions.reference) - positions.of_token(positions.teacher)


# ------------------------------------------------------------------------------------ by entropy


@dataclass(frozen=True)
class EntropyGate:
    """The factor 1 where a network's entropy is below (or above) a threshold, else `floor`.

    `of` is the network and `threshold` is in nats (EGRSD, arXiv 2605.13255).
    """

    of: NetworkName = "teacher"
    keep: Literal["below", "above"] = "below"  # the side whose factor is 1
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
    """The factor 1 where H(S) is below `threshold` nats and -1 elsewhere, or 0 with `drop`.

    The student thus moves towards the teacher where it is certain and away from it elsewhere (after
    DASD, arXiv 2605.22263; the form is ours).
    """

    threshold: float = 0.672  # see `targets.AmplifyEpistemic`
    drop: bool = False

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_certain_BT = losses.entropy(positions.student_logp_BTV) < self.threshold
        return jnp.where(is_certain_BT, 1.0, 0.0 if self.drop else -1.0)


@dataclass(frozen=True)
class ForkingTokens:
    """Keep the fraction of the batch's positions with the highest H(S) (arXiv 2506.01939).

    With `keep="low"` those with the lowest H(S) are kept, which spares the forking tokens
    (arXiv 2607.05184). Exactly ceil(fraction N) of the N positions with a loss weight above 0 are
    kept; ties go to the earlier ones.
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
        return top_fraction(order_BT, loss_weight_BT > 0, self.fraction).astype(jnp.float32)


def top_fraction(
    score_BT: Float[Array, "B T"], counts_BT: Array, fraction: float | Float[Array, ""]
) -> Array:
    """Which positions have the ceil(fraction N) highest scores of the N where `counts_BT` is True.

    Ties go to the earlier positions.
    """
    score_X = jnp.where(counts_BT, score_BT, -jnp.inf).reshape(-1)
    # 1e-6: 0.2 * 15 is above 3 in floating point and must not keep a fourth.
    number = jnp.ceil(fraction * counts_BT.sum() - 1e-6).astype(jnp.int32)
    # All scores above the number-th highest are kept, and of those equal to it as many, from the
    # first, as are still missing. `jax.lax.top_k` would need a static number.
    least = jnp.sort(score_X)[score_X.size - jnp.maximum(number, 1)]
    above_X = score_X > least
    tied_X = (score_X == least) & counts_BT.reshape(-1)
    wanted = number - above_X.sum()
    return (above_X | (tied_X & (jnp.cumsum(tied_X) <= wanted))).reshape(score_BT.shape)


@dataclass(frozen=True)
class TokenImportance:
    """(H(S) / ln V)^a (JSD(S, T) / ln 2)^g, with a, g the two powers (TIP, arXiv 2604.14084).

    It is high where the student is undecided and differs from the teacher. The paper's code samples
    positions by this number; here it is their weight.
    """

    entropy_power: float = 1.0  # a
    divergence_power: float = 1.0  # g

    reads = frozenset({"teacher"})

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        student = positions.student_logp_BTV
        undecided_BT = losses.entropy(student) / np.log(student.shape[-1])
        wrong_BT = losses.jensen_shannon(student, positions.teacher) / np.log(2.0)
        # Rounding can leave either slightly below 0, where a fractional power is NaN.
        powers = (undecided_BT, self.entropy_power), (wrong_BT, self.divergence_power)
        return jnp.prod(jnp.stack([jnp.maximum(x, 0.0) ** power for x, power in powers]), axis=0)


# ------------------------------------------------------------------- by position, and by contrast


@dataclass(frozen=True)
class PositionSlope:
    """1 + slope (2 (t + 1/2) / n - 1) at token t of n, with mean 1 over a completion.

    slope = 1 emphasises late tokens (PW-OPSD, arXiv 2605.21606), -1 early ones (IW-OPD,
    arXiv 2606.22600).
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
    """Drop the first `count` tokens of each completion (as in the code of tinker and TRL).

    The divergence is very large where the two prompts' different templates meet the completion.
    """

    count: int = 3  # chosen, not measured

    def __post_init__(self) -> None:
        require(self.count >= 0, "SkipFirst.count", "at least 0", self.count)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return jnp.greater_equal(positions.sampled.index_BT, self.count).astype(jnp.float32)


@dataclass(frozen=True)
class ContrastMask:
    """d / (d + scale) with d = KL(T||C): 0 where the contrast C predicts the same as the teacher.

    From the code of RLCSD (arXiv 2606.11709).
    """

    scale: float = 0.05  # nats; chosen, not measured

    reads = frozenset({"contrast"})

    def __post_init__(self) -> None:
        require(self.scale >= 0, "ContrastMask.scale", "at least 0", self.scale)

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        distance_BT = losses.forward_kl(positions.contrast, positions.teacher)
        return jnp.where(distance_BT > 0, distance_BT / (distance_BT + self.scale), 0.0)


# -------------------------------------------------------------------- by outcome, and by completion


@dataclass(frozen=True)
class UnsolvedGroups:
    """Keep the completions of questions that no rollout of the batch solved.

    There a policy gradient has no signal (HDPO, arXiv 2603.23871, known from a summary: it distils
    on such questions alone). For the distillation in `Mixed`: a group without a success is known by
    its advantages, which are all exactly 0. A distillation alone has no advantages, and the weight
    then keeps every incorrect completion.
    """

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        is_wrong_BT = jnp.equal(positions.rows.correct_BT, 0)
        has_no_signal_BT = jnp.equal(positions.rows.advantage_BT, 0)
        return (is_wrong_BT & has_no_signal_BT).astype(jnp.float32)


@dataclass(frozen=True)
class ShareOfEntropy:
    """The shortest prefix with the fraction `share` of the completion's summed entropy."""

    share: float = 0.5  # chosen, not measured; 1 is the whole completion
    of: NetworkName = "teacher"  # whose entropy

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "ShareOfEntropy.share", "in (0, 1]", self.share)
        require_literals(self)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})

    def amount(self, positions: Positions) -> Float[Array, "B T"]:
        return entropy_of(self.of, positions)

    def holds(self, amount_BT: Array, counts_BT: Array) -> Bool[Array, "B T"]:
        return first_share(amount_BT, self.share)


@dataclass(frozen=True)
class MeanEntropyBelow:
    """The longest prefix whose mean entropy is at most `limit` nats."""

    limit: float = 0.3  # chosen, not measured
    of: NetworkName = "teacher"  # whose entropy

    def __post_init__(self) -> None:
        require(self.limit >= 0, "MeanEntropyBelow.limit", "at least 0", self.limit)
        require_literals(self)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.of} - {"student"})

    def amount(self, positions: Positions) -> Float[Array, "B T"]:
        return entropy_of(self.of, positions)

    def holds(self, amount_BT: Array, counts_BT: Array) -> Bool[Array, "B T"]:
        number_BT = jnp.maximum(jnp.cumsum(counts_BT, axis=1), 1)
        is_end_BT = counts_BT & (jnp.cumsum(amount_BT, axis=1) / number_BT <= self.limit)
        # A prefix holds every position before the last possible end.
        return jnp.flip(jnp.cumsum(jnp.flip(is_end_BT, axis=1), axis=1), axis=1) > 0


@dataclass(frozen=True)
class ShareOfPositions:
    """The first ceil(share n) of a completion's n positions."""

    share: float = 0.5  # chosen, not measured; 1 is the whole completion

    reads = frozenset()

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "ShareOfPositions.share", "in (0, 1]", self.share)

    def amount(self, positions: Positions) -> Float[Array, "B T"]:
        return jnp.ones(positions.sampled.tokens_BT.shape, jnp.float32)

    def holds(self, amount_BT: Array, counts_BT: Array) -> Bool[Array, "B T"]:
        return first_share(amount_BT, self.share)


def first_share(amount_BT: Float[Array, "B T"], share: float) -> Bool[Array, "B T"]:
    """The positions of each row's shortest prefix with `share` of the row's total amount.

    All of them if the share is 1 or the total 0.
    """
    if share == 1:
        return jnp.ones(amount_BT.shape, bool)
    total_BT = jnp.sum(amount_BT, axis=1, keepdims=True)
    before_BT = jnp.cumsum(amount_BT, axis=1) - amount_BT
    # 1e-6: 0.2 * 15 is above 3 in floating point and must not keep a fourth (`top_fraction`).
    return (before_BT < share * total_BT * (1 - 1e-6)) | (total_BT == 0)


Prefix = ShareOfEntropy | MeanEntropyBelow | ShareOfPositions


@dataclass(frozen=True)
class WrongPrefix:
    """Keep correct completions whole and only a prefix of each incorrect one (after OG-OPSD).

    Of arXiv 2610.05070 only the abstract and a third party's summary were seen: forward KL on whole
    correct completions, reverse KL on prefixes of incorrect ones (`OutcomeKL`), with the prefix
    chosen by the "cumulative average teacher entropy". The rule itself was not seen: the kinds of
    prefix, their numbers and the default are ours.
    """

    until: Prefix = ShareOfEntropy()  # where the prefix of an incorrect completion ends

    def __post_init__(self) -> None:
        require_choice("WrongPrefix.until", self.until, Prefix)

    @property
    def reads(self) -> frozenset[str]:
        return self.until.reads

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        """The amount that is summed along a completion, or -1 in a correct one."""
        is_right_BT = jnp.greater(positions.rows.correct_BT, 0)
        # An entropy that rounding left below 0 must not mark its row as correct.
        return jnp.where(is_right_BT, -1.0, jnp.maximum(self.until.amount(positions), 0.0))

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        counts_BT = loss_weight_BT > 0
        amount_BT = jnp.where(counts_BT, jnp.maximum(score_BT, 0.0), 0.0)
        is_in_BT = self.until.holds(amount_BT, counts_BT)
        return (is_in_BT | (score_BT < 0)).astype(jnp.float32)


@dataclass(frozen=True)
class StudentTeacherRatio:
    """A weight per completion: high where the teacher finds some of its tokens unlikely (ReNIO).

    That is exp(r / temperature), divided by its mean over the batch, where r is the mean of
    log S(y) - log T(y), clipped at `clip` nats, over the tokens where it is at least `threshold`
    nats, and 0 if there are none; None takes all tokens, clipped on both sides. Such completions
    are mostly incorrect, and keep more reflection (arXiv 2606.23104, whose abstract and code were
    seen; the defaults are those of the code's trainer). The code's mean is over the rows of one
    device, ours over the batch, weighted as the loss is; its last clamp, at 10, is left out,
    because exp(clip / temperature) bounds the weight already.
    """

    threshold: float | None = 0.3  # its scripts take 0.01 to 0.8, by model
    clip: float = 2.0
    temperature: float = 1.0

    reads = frozenset({"teacher"})

    def __post_init__(self) -> None:
        require(self.clip > 0, "StudentTeacherRatio.clip", "above 0", self.clip)
        within = self.threshold is None or 0 <= self.threshold <= self.clip
        name = "StudentTeacherRatio.threshold"
        require(within, name, f"None or from 0 to the clip, {self.clip}", self.threshold)
        name = "StudentTeacherRatio.temperature"
        require(self.temperature > 0, name, "above 0", self.temperature)

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        networks = positions.student_logp_BTV, positions.teacher
        ratio_BT = losses.log_ratio(*(positions.of_token(logp_BTV) for logp_BTV in networks))
        # NaN is -inf - -inf: neither network could have sampled the token, and they agree.
        return jnp.clip(jnp.where(jnp.isnan(ratio_BT), 0.0, ratio_BT), -self.clip, self.clip)

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        counts_BT = loss_weight_BT > 0
        takes_BT = counts_BT if self.threshold is None else counts_BT & (score_BT >= self.threshold)
        number_B1 = jnp.maximum(takes_BT.sum(axis=1, keepdims=True), 1)
        mean_B1 = jnp.sum(jnp.where(takes_BT, score_BT, 0.0), axis=1, keepdims=True) / number_B1
        weight_BT = jnp.where(counts_BT, jnp.exp(mean_B1 / self.temperature), 0.0)
        total = jnp.sum(weight_BT * loss_weight_BT)
        # Mean 1, so that the batch's loss keeps its scale. The inner `where` is for an empty batch.
        scale = jnp.sum(loss_weight_BT) / jnp.where(total > 0, total, 1.0)
        return weight_BT * scale
