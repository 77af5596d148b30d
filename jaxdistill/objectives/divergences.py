"""How far the student is from its target, and clipped how (mathematics: `losses.divergences`)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Positions, require
from jaxdistill.objectives.support import Support, restrict

# ----------------------------------------------------------------------------------- divergences


@dataclass(frozen=True)
class ForwardKL:
    """KL(T||S): covers everything the teacher might say.

    `entry_clip` cuts every token's term at so many nats (OPSD: 0.05), so that "Wait" cannot
    dominate; it equalises the suppression rather than removing it.
    """

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)


@dataclass(frozen=True)
class ReverseKL:
    """KL(S||T): equation 1 of the paper. `entry_clip` as in `ForwardKL`."""

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)


@dataclass(frozen=True)
class JensenShannon:
    """`losses.jensen_shannon`: between the two; the released runs' choice, at 0.5.

    `normalize` makes the family continuous in alpha. `entry_clip` as in `ForwardKL`.
    """

    alpha: float = 0.5
    normalize: bool = False
    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "JensenShannon.alpha", "from 0 to 1", self.alpha)
        require_entry_clip(self)


@dataclass(frozen=True)
class EntropySwitchedKL:
    """KL(S||T), and KL(T||S) added where the target's entropy exceeds `threshold` nats.

    Mode seeking costs diversity where the teacher itself is undecided (arXiv 2603.07079).
    """

    threshold: float = 0.672  # nats; see `targets.AmplifyEpistemic`


@dataclass(frozen=True)
class ScoreFunctionReverseKL:
    """KL(S||T) whose gradient keeps no teacher-free term on a truncated support

    (`losses.score_function_reverse_kl`; arXiv 2605.11182).
    """


@dataclass(frozen=True)
class SampledReverseKL:
    """The sampled token's k1 with the score function's gradient: cheapest, noisiest.

    Here alone the loss depends on what was sampled, so that weights which look at the sampled
    token decide what is learnt. The support is not read.
    """


@dataclass(frozen=True)
class SampledK3:
    """The sampled token's k3 (`losses.k3`); its gradient's mean is KL(T||S)'s."""


Divergence = (
    ForwardKL
    | ReverseKL
    | JensenShannon
    | EntropySwitchedKL
    | ScoreFunctionReverseKL
    | SampledReverseKL
    | SampledK3
)


def require_entry_clip(divergence: ForwardKL | ReverseKL | JensenShannon) -> None:
    clip, name = divergence.entry_clip, type(divergence).__name__
    require(clip is None or clip > 0, f"{name}.entry_clip", "above 0 or None", clip)


def divergence_of(
    divergence: Divergence,
    support: "Support",
    student_logp_BTV: Float[Array, "B T V"],
    target_logp_BTV: Float[Array, "B T V"],
    positions: Positions,
    always_ids: tuple[int, ...],
) -> Float[Array, "B T"]:
    """The divergence at each position, in nats; `always_ids` stay in a truncated support."""
    if isinstance(divergence, SampledReverseKL | SampledK3):
        estimator = {SampledReverseKL: losses.sampled_reverse_kl, SampledK3: losses.k3}
        pair = positions.of_token(student_logp_BTV), positions.of_token(target_logp_BTV)
        # A token that both have dropped says nothing; -inf - -inf would say NaN.
        is_dropped_BT = jnp.isneginf(pair[0]) & jnp.isneginf(pair[1])
        return estimator[type(divergence)](*(jnp.where(is_dropped_BT, 0.0, x) for x in pair))
    student, target = restrict(support, student_logp_BTV, target_logp_BTV, always_ids)
    match divergence:
        case ForwardKL(clip):
            return losses.forward_kl(student, target, clip)
        case ReverseKL(clip):
            return losses.reverse_kl(student, target, clip)
        case JensenShannon(alpha, normalize, clip):
            return losses.jensen_shannon(student, target, alpha, normalize, clip)
        case ScoreFunctionReverseKL():
            return losses.score_function_reverse_kl(student, target)
        case EntropySwitchedKL(threshold):
            undecided_BT = losses.entropy(target_logp_BTV) > threshold
            forward_BT = losses.forward_kl(student, target)
            return losses.reverse_kl(student, target) + jnp.where(undecided_BT, forward_BT, 0.0)


# ------------------------------------------------------------------------------------------ clips


@dataclass(frozen=True)
class ClipPosition:
    """min(loss, limit): a position above it teaches nothing (RLCSD's token clip)."""

    limit: float = 0.05  # nats, as OPSD's clip of an entry

    def __post_init__(self) -> None:
        require(self.limit > 0, "ClipPosition.limit", "above 0", self.limit)


@dataclass(frozen=True)
class SmoothClip:
    """`losses.smooth_clip_tanh` or `smooth_clip_rational`: bounded, with a gradient everywhere.

    The rational form is for losses that are never negative.
    """

    limit: float = 1.0
    form: Literal["tanh", "rational"] = "tanh"

    FORMS: ClassVar = {"tanh": losses.smooth_clip_tanh, "rational": losses.smooth_clip_rational}

    def __post_init__(self) -> None:
        require(self.limit > 0, "SmoothClip.limit", "above 0", self.limit)
        require(self.form in self.FORMS, "SmoothClip.form", "'tanh' or 'rational'", self.form)


Clip = ClipPosition | SmoothClip


def require_fitting(divergence: Divergence, clip: Clip | None) -> None:
    """Refuse a clip for losses that are never negative on one that may be.

    `ClipPosition` would cut one sign alone, and the rational form has a pole.
    """
    may_be_negative = isinstance(divergence, SampledReverseKL) or (
        isinstance(divergence, ForwardKL | ReverseKL | JensenShannon)
        and divergence.entry_clip is not None
    )
    is_tanh = isinstance(clip, SmoothClip) and clip.form == "tanh"
    fits = clip is None or is_tanh or not may_be_negative
    require(fits, "Distill.clip", "SmoothClip(form='tanh') for a loss that may be negative", clip)


def clipped(clip: Clip | None, loss_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    match clip:
        case None:
            return loss_BT
        case ClipPosition(limit):
            return losses.clip_position(loss_BT, limit)
        case SmoothClip(limit, form):
            return SmoothClip.FORMS[form](loss_BT, limit)
