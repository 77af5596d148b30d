"""Divergences of the student from its target (see `losses.divergences`), in nats."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require
from jaxdistill.objectives.support import Logps


class Comparison(NamedTuple):
    """The input of a divergence: student and target, on V tokens and on the support."""

    student_logp_BTV: Float[Array, "B T V"]  # as returned by the target's `edit`
    target_logp_BTV: Float[Array, "B T V"]
    positions: Positions
    epistemic: Epistemic
    support: Any  # a `choices.Support`, which has `restrict`
    keeps_epistemic: bool  # the target's: whether a support must keep the epistemic ids

    @property
    def on_support(self) -> Logps:
        """(student, target), [B, T, C]: all V tokens, or the candidates and a tail bucket."""
        return self.support.restrict(
            self.student_logp_BTV, self.target_logp_BTV, self.epistemic, self.keeps_epistemic
        )

    @property
    def of_token(self) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """(student, target) of the sampled token, [B, T]; the support does not apply."""
        networks = self.student_logp_BTV, self.target_logp_BTV
        student_BT, target_BT = (self.positions.of_token(logp_BTV) for logp_BTV in networks)
        # `DropEpistemicSlice` removes a token from both. They agree on it: the log-ratio is 0, not
        # the NaN of -inf - -inf.
        is_dropped_BT = jnp.isneginf(student_BT) & jnp.isneginf(target_BT)
        return jnp.where(is_dropped_BT, 0.0, student_BT), jnp.where(is_dropped_BT, 0.0, target_BT)


@dataclass(frozen=True)
class ForwardKL:
    """KL(T||S), which makes the student cover every token that the teacher finds likely.

    `entry_clip` is the upper bound of each vocabulary entry's term, in nats (OPSD: 0.05), so that
    one token such as "Wait" cannot dominate. It equalises the suppression rather than removing it.
    """

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.forward_kl(*compared.on_support, self.entry_clip)


@dataclass(frozen=True)
class ReverseKL:
    """KL(S||T), equation 1 of arXiv 2603.24472. `entry_clip` as in `ForwardKL`."""

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.reverse_kl(*compared.on_support, self.entry_clip)


@dataclass(frozen=True)
class JensenShannon:
    """The generalised Jensen-Shannon divergence (`losses.jensen_shannon`).

    It lies between KL(T||S) (alpha = 0) and KL(S||T) (alpha = 1); the released runs use 0.5.
    `normalize` makes the family continuous in alpha. `entry_clip` as in `ForwardKL`.
    """

    alpha: float = 0.5
    normalize: bool = False
    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "JensenShannon.alpha", "from 0 to 1", self.alpha)
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        student_logp, target_logp = compared.on_support
        return losses.jensen_shannon(
            student_logp, target_logp, self.alpha, self.normalize, self.entry_clip
        )


@dataclass(frozen=True)
class SampledReverseKL:
    """The k1 estimator of KL(S||T) at the sampled token, with a score-function gradient.

    It is the cheapest and the noisiest divergence. Its loss depends on the sampled token, so that
    weights by the sampled token decide what is learnt. The support does not apply.
    """

    may_be_negative = True  # log S(y) - log T(y) has either sign

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.sampled_reverse_kl(*compared.of_token)


# A clip of 0 would remove every positive entry and leave a loss that is only ever negative.
def require_entry_clip(divergence: Any) -> None:
    clip, name = divergence.entry_clip, type(divergence).__name__
    require(clip is None or clip > 0, f"{name}.entry_clip", "above 0 or None", clip)
