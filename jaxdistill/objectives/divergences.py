"""How far the student is from its target (mathematics: `losses.divergences`)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require
from jaxdistill.objectives.support import Logps


class Comparison(NamedTuple):
    """What a divergence is given: student and target, whole and on the objective's support."""

    student_logp_BTV: Float[Array, "B T V"]  # as the target's `edit` left it
    target_logp_BTV: Float[Array, "B T V"]
    positions: Positions
    epistemic: Epistemic
    support: Any  # has `restrict`
    keeps_epistemic: bool  # whether the target's epistemic entries matter

    @property
    def on_support(self) -> Logps:
        """(student, target) where they are compared: all V tokens, or C candidates and a tail."""
        return self.support.restrict(
            self.student_logp_BTV, self.target_logp_BTV, self.epistemic, self.keeps_epistemic
        )

    @property
    def of_token(self) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """(student, target) of the sampled token; the support is not read."""
        networks = self.student_logp_BTV, self.target_logp_BTV
        student_BT, target_BT = (self.positions.of_token(logp_BTV) for logp_BTV in networks)
        # A token that both have dropped says nothing; -inf - -inf would say NaN.
        is_dropped_BT = jnp.isneginf(student_BT) & jnp.isneginf(target_BT)
        return jnp.where(is_dropped_BT, 0.0, student_BT), jnp.where(is_dropped_BT, 0.0, target_BT)


@dataclass(frozen=True)
class ForwardKL:
    """KL(T||S): covers everything the teacher might say.

    `entry_clip` cuts every token's term at that many nats (OPSD: 0.05), so that "Wait" cannot
    dominate; it equalises the suppression rather than removing it.
    """

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.forward_kl(*compared.on_support, self.entry_clip)


@dataclass(frozen=True)
class ReverseKL:
    """KL(S||T): equation 1 of the paper. `entry_clip` as in `ForwardKL`."""

    entry_clip: float | None = None

    def __post_init__(self) -> None:
        require_entry_clip(self)

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.reverse_kl(*compared.on_support, self.entry_clip)


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

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        student_logp, target_logp = compared.on_support
        return losses.jensen_shannon(
            student_logp, target_logp, self.alpha, self.normalize, self.entry_clip
        )


@dataclass(frozen=True)
class SampledReverseKL:
    """The sampled token's k1 with the score function's gradient: cheapest, noisiest.

    Here alone the loss depends on what was sampled, so that weights which look at the sampled
    token decide what is learnt. The support is not read.
    """

    may_be_negative = True  # as one with an `entry_clip`

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]:
        return losses.sampled_reverse_kl(*compared.of_token)


def require_entry_clip(divergence: ForwardKL | ReverseKL | JensenShannon) -> None:
    clip, name = divergence.entry_clip, type(divergence).__name__
    require(clip is None or clip > 0, f"{name}.entry_clip", "above 0 or None", clip)
