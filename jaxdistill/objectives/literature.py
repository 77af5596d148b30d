"""Choices that no preset or recipe uses: from papers, and our own variants ("ours").

Targets, divergences, clips, terms and credits; weights are in `literature_weights`.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.losses import advantages, edits
from jaxdistill.objectives.credit import where_taught
from jaxdistill.objectives.divergences import Comparison, require_entry_clip
from jaxdistill.objectives.literature_weights import top_fraction
from jaxdistill.objectives.positions import (
    Epistemic,
    Positions,
    Weighted,
    require,
    require_literals,
)
from jaxdistill.objectives.targets import Pair

# ---------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class FixedEpistemicMass:
    """The teacher with its epistemic mass set to `mass` at every position (ours).

    The edit is `edits.restore_mass`. It is meant for measuring accuracy as a function of doubt.
    """

    mass: float = 0.02  # chosen, not measured

    keeps_epistemic = True

    def __post_init__(self) -> None:
        require(0 < self.mass < 1, "FixedEpistemicMass.mass", "between 0 and 1", self.mass)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        teacher = positions.teacher
        if not epistemic.ids:
            return teacher
        log_mass_BT = jnp.full(teacher.shape[:-1], np.log(self.mass), jnp.float32)
        return edits.restore_mass(teacher, epistemic.is_member_V, log_mass_BT)


@dataclass(frozen=True)
class Barycentre:
    """T^w B^(1-w), renormalised: the geometric path from a base B (w = 0) to the teacher (w = 1).

    B is the reference (beta-OPSD, w = 1/beta, arXiv 2607.28582) or the current student (a trust
    region; DemoPSD, arXiv 2607.02502). `decay` lowers w to w exp(-decay KL(T||B)) where teacher and
    base disagree. With `only_epistemic` w applies to E only and is 1 elsewhere, which restores the
    base's epistemic mass approximately.
    """

    weight: float = 0.5  # w
    base: Literal["reference", "student"] = "reference"
    decay: float = 0.0
    only_epistemic: bool = False

    def __post_init__(self) -> None:
        require(self.weight >= 0, "Barycentre.weight", "at least 0", self.weight)
        require(self.decay >= 0, "Barycentre.decay", "at least 0", self.decay)
        require_literals(self)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.base} - {"student"})

    @property
    def keeps_epistemic(self) -> bool:
        return self.only_epistemic

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        teacher = positions.teacher
        if self.only_epistemic and not epistemic.ids:
            return teacher
        # A target is a constant, also where it is made of the student's own distribution.
        base = (
            positions.reference
            if self.base == "reference"
            else jax.lax.stop_gradient(positions.student_logp_BTV)
        )
        weight: float | Array = self.weight
        if self.decay:
            weight = weight * jnp.exp(-self.decay * losses.forward_kl(base, teacher))[..., None]
        if self.only_epistemic:
            weight = jnp.where(jnp.broadcast_to(epistemic.is_member_V, teacher.shape), weight, 1.0)
        return edits.barycentre(teacher, base, weight)


@dataclass(frozen=True)
class Purified:
    """R exp(strength (log T - log C)), renormalised (Purified OPSD, arXiv 2607.02234; form ours).

    It keeps only what the context adds to the question, and removes what the context predicts
    without it. C is the contrast, for which `experience.contrast=ContextOnly()` is meant
    (`edits.purified`).
    """

    strength: float = 1.0

    reads = frozenset({"reference", "contrast"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "Purified.strength", "at least 0", self.strength)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        return edits.purified(
            positions.reference, positions.teacher, positions.contrast, self.strength
        )


@dataclass(frozen=True)
class Contrasted:
    """T exp(strength (log T - log C)), renormalised: the teacher moved away from the contrast C.

    This is RLCSD's `opsd_ectr` (arXiv 2606.11709); log C is at least -30 nats, as in its code.
    """

    strength: float = 1.0

    reads = frozenset({"contrast"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "Contrasted.strength", "at least 0", self.strength)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        return edits.contrasted(positions.teacher, positions.contrast, self.strength)


@dataclass(frozen=True)
class AnchorForks:
    """U R + (1 - U) T at forking positions, the teacher elsewhere (AD-OPSD, arXiv 2607.10805).

    Forks are the `fraction` of the batch's positions with the highest H(S), as in `ForkingTokens`.
    U = sigmoid(S(y) (log S(y) - log T(y)) / temperature) is near 1 where the teacher would suppress
    the sampled token y, and 1/2 where the two agree. U is a constant: no gradient passes through
    it. Metric `reference_share`: the mean of U over the forks.

    The paper itself was not seen. The formula is that of two third parties; its temperature, the
    divergence that it is used with, and whether its share of positions is of a batch or of a
    sequence are not in them and are our choices.
    """

    fraction: float = 0.2  # both third parties name it
    temperature: float = 1.0  # nats; chosen, not measured: 1 is the formula without a scale

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(0 <= self.fraction <= 1, "AnchorForks.fraction", "from 0 to 1", self.fraction)
        require(self.temperature > 0, "AnchorForks.temperature", "above 0", self.temperature)

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        return losses.entropy(positions.student_logp_BTV)

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        return top_fraction(score_BT, loss_weight_BT > 0, self.fraction).astype(jnp.float32)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Pair:
        student, teacher = positions.student_logp_BTV, positions.teacher
        of_token = jax.lax.stop_gradient(positions.of_token(student)), positions.of_token(teacher)
        log_odds_BT = losses.kl_entry(*of_token) / self.temperature
        is_fork_BT = positions.sampled.target_factor_BT
        is_fork_BT = jnp.ones_like(log_odds_BT) if is_fork_BT is None else jnp.asarray(is_fork_BT)
        mixed = edits.mixture(teacher, positions.reference, log_odds_BT)
        target = jnp.where(is_fork_BT[..., None] > 0, mixed, teacher)
        share = Weighted(jax.nn.sigmoid(log_odds_BT), is_fork_BT)
        return Pair(student, target, metrics={"reference_share": share})


# ------------------------------------------------------------------------- divergences and clips


@dataclass(frozen=True)
class EntropySwitchedKL:
    """KL(S||T), plus KL(T||S) where the target's entropy exceeds `threshold` nats.

    The forward KL counteracts mode seeking, which would cost diversity at positions where the
    teacher itself is undecided (arXiv 2603.07079).
    """

    threshold: float = 0.672  # nats; see `targets.AmplifyEpistemic`

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        # The entropy over all V tokens: a tail bucket would understate it.
        undecided_BT = losses.entropy(compared.target_logp_BTV) > self.threshold
        student, target = compared.on_support
        forward_BT = losses.forward_kl(student, target)
        return losses.reverse_kl(student, target) + jnp.where(undecided_BT, forward_BT, 0.0)


@dataclass(frozen=True)
class OutcomeKL:
    """KL(T||S) in correct completions and KL(S||T) in all others (OG-OPSD, arXiv 2610.05070).

    The paper restricts the second to prefixes: add `WrongPrefix`, which says what was seen of it.
    Two third parties disagree on the directions. This is the one that describes them in a sentence;
    the other is a one-line sketch of code. `entry_clip` as in `ForwardKL`.
    """

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        is_right_BT = jnp.greater(compared.positions.rows.correct_BT, 0)
        pair = compared.on_support
        forward_BT = losses.forward_kl(*pair, self.entry_clip)
        return jnp.where(is_right_BT, forward_BT, losses.reverse_kl(*pair, self.entry_clip))


@dataclass(frozen=True)
class ScoreFunctionReverseKL:
    """KL(S||T) with a gradient that has no teacher-independent term on a truncated support.

    See `losses.score_function_reverse_kl` (arXiv 2605.11182).
    """

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.score_function_reverse_kl(*compared.on_support)


@dataclass(frozen=True)
class SampledK3:
    """The k3 estimator at the sampled token (`losses.k3`); its mean gradient is KL(T||S)'s."""

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.k3(*compared.of_token)


@dataclass(frozen=True)
class ClipPosition:
    """min(loss, limit), with no gradient above the limit (RLCSD's token clip, arXiv 2606.11709)."""

    limit: float = 0.05  # nats; the value of OPSD's clip of vocabulary entries

    takes_negative = False  # it would clip only one sign

    def __post_init__(self) -> None:
        require(self.limit > 0, "ClipPosition.limit", "above 0", self.limit)

    def clip(self, loss_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
        return losses.clip_position(loss_BT, self.limit)


@dataclass(frozen=True)
class SmoothClip:
    """A bounded loss with a gradient everywhere (ours).

    The forms are `losses.smooth_clip_tanh` and `losses.smooth_clip_rational`. The rational form has
    a pole at a negative loss and accepts only losses that are never negative.
    """

    limit: float = 1.0  # nats; chosen, not measured
    form: Literal["tanh", "rational"] = "tanh"

    def __post_init__(self) -> None:
        require(self.limit > 0, "SmoothClip.limit", "above 0", self.limit)
        require_literals(self)

    @property
    def takes_negative(self) -> bool:
        return self.form == "tanh"

    def clip(self, loss_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
        if self.form == "tanh":
            return losses.smooth_clip_tanh(loss_BT, self.limit)
        return losses.smooth_clip_rational(loss_BT, self.limit)


# ------------------------------------------------------- terms: penalties towards the reference
# In a distillation they apply, like the rest of it, only to rows with a demonstration.


@dataclass(frozen=True)
class MassPenalty:
    """strength * kl(m_R, m_S), the Bernoulli KL divergence of the epistemic masses (ours).

    It is 0, its minimum, where the student doubts as much as the reference.
    """

    strength: float = 1.0

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "MassPenalty.strength", "at least 0", self.strength)

    def penalty(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        if not epistemic.ids:
            return jnp.zeros(positions.sampled.tokens_BT.shape)
        networks = positions.reference, positions.student_logp_BTV
        bins = (losses.epistemic_bins(logp_BTV, epistemic.is_member_V) for logp_BTV in networks)
        return self.strength * losses.bernoulli_kl(*bins)


@dataclass(frozen=True)
class ReferenceKL:
    """strength * KL(S||R) ("reverse") or KL(R||S) ("forward"): GRPO's penalty (arXiv 2402.03300).

    With `only_epistemic` the divergence is over the individual epistemic tokens and one bucket for
    all others, so that the distribution over the others is unconstrained.
    """

    strength: float = 0.01
    direction: Literal["reverse", "forward"] = "reverse"  # see the formula
    only_epistemic: bool = False

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "ReferenceKL.strength", "at least 0", self.strength)
        require_literals(self)

    def penalty(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        student, reference = positions.student_logp_BTV, positions.reference
        if self.only_epistemic and not epistemic.ids:
            return jnp.zeros(positions.sampled.tokens_BT.shape)
        # The bucket of all other tokens keeps both distributions normalised, and hence the KL >= 0.
        if self.only_epistemic:
            student, reference = (losses.and_rest(x, epistemic.ids) for x in (student, reference))
        kl = losses.reverse_kl if self.direction == "reverse" else losses.forward_kl
        return self.strength * kl(student, reference)


@dataclass(frozen=True)
class ReferenceK3:
    """strength * k3(R(y) / S(y)) at the sampled token, an estimate of KL(S||R).

    Most GRPO implementations use this estimator; its mean gradient is that of KL(R||S).
    """

    strength: float = 0.01

    reads = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "ReferenceK3.strength", "at least 0", self.strength)

    def penalty(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        networks = positions.student_logp_BTV, positions.reference
        return self.strength * losses.k3(*(positions.of_token(logp_BTV) for logp_BTV in networks))


# ---------------------------------------------------------------------------------------- credits


@dataclass(frozen=True)
class AntiSD:
    """A + strength * `advantages.anti_jensen_shannon` (arXiv 2605.11609), where A is the advantage.

    It reinforces tokens that the teacher finds unlikely. It applies only where H(T) exceeds
    `entropy_threshold` nats (None: everywhere), and with `only_epistemic` only where the sampled
    token is epistemic (ours).
    """

    strength: float = 1.0
    entropy_threshold: float | None = 0.1
    only_epistemic: bool = False

    reads = frozenset({"teacher"})

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        networks = positions.student_logp_BTV, positions.teacher
        tokens = (positions.of_token(logp_BTV) for logp_BTV in networks)
        anti_BT = advantages.anti_jensen_shannon(*tokens)
        shaped_BT = jnp.asarray(positions.rows.advantage_BT) + self.strength * anti_BT
        is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT)
        applies_BT = is_epistemic_BT if self.only_epistemic else jnp.ones_like(is_epistemic_BT)
        if self.entropy_threshold is not None:
            applies_BT &= losses.entropy(positions.teacher) > self.entropy_threshold
        return where_taught(positions, applies_BT, shaped_BT)


@dataclass(frozen=True)
class SuppressUnlikely:
    """A control without verifier and teacher: discourage tokens below `threshold` in probability.

    With `adaptive` the penalty grows as the student's entropy falls (`advantages.unlikely`;
    arXiv 2608.31046, the form is ours).
    """

    strength: float = 1.0  # the penalty of such a token
    threshold: float = 0.05
    adaptive: bool = True

    def __post_init__(self) -> None:
        within = 0 < self.threshold < 1
        require(within, "SuppressUnlikely.threshold", "between 0 and 1", self.threshold)

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]:
        student = positions.student_logp_BTV
        return advantages.unlikely(
            positions.of_token(student),
            losses.entropy(student) if self.adaptive else None,
            student.shape[-1],
            self.strength,
            self.threshold,
        )
