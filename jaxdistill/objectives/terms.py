"""What is added to the loss: penalties towards the reference.

Inside a distillation they act, as all of it, on the rows that have a demonstration.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, Positions, require


@dataclass(frozen=True)
class MassPenalty:
    """strength * kl(m_R, m_S): least, and 0, where the student doubts as much as the reference."""

    strength: float = 1.0

    reads: ClassVar = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "MassPenalty.strength", "at least 0", self.strength)


@dataclass(frozen=True)
class ReferenceKL:
    """strength * KL(S||R), or KL(R||S): the anchor of GRPO.

    With `only_epistemic` over the epistemic tokens one by one and one bucket for all others, so
    that the rest of the vocabulary may go where it likes.
    """

    strength: float = 0.01
    direction: Literal["reverse", "forward"] = "reverse"
    only_epistemic: bool = False

    reads: ClassVar = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "ReferenceKL.strength", "at least 0", self.strength)
        known = self.direction in ("reverse", "forward")
        require(known, "ReferenceKL.direction", "'reverse' or 'forward'", self.direction)


@dataclass(frozen=True)
class ReferenceK3:
    """strength * k3(R(y) / S(y)) of the sampled token: KL(S||R) by value, as most GRPO code."""

    strength: float = 0.01

    reads: ClassVar = frozenset({"reference"})

    def __post_init__(self) -> None:
        require(self.strength >= 0, "ReferenceK3.strength", "at least 0", self.strength)


Term = MassPenalty | ReferenceKL | ReferenceK3


def added(
    terms: tuple[Term, ...], positions: Positions, epistemic: Epistemic
) -> Float[Array, "B T"] | float:
    """The sum of the terms at each position; exactly 0 where there is none."""
    return sum((one_term(term, positions, epistemic) for term in terms), start=0.0)


def one_term(term: Term, positions: Positions, epistemic: Epistemic) -> Array | float:
    is_about_epistemic = isinstance(term, MassPenalty) or (
        isinstance(term, ReferenceKL) and term.only_epistemic
    )
    if is_about_epistemic and not epistemic.ids:
        return 0.0
    student, reference = positions.student_logp_BTV, positions.reference
    match term:
        case MassPenalty(strength):
            pair = (losses.epistemic_bins(x, epistemic.is_member_V) for x in (reference, student))
            return strength * losses.bernoulli_kl(*pair)
        case ReferenceK3(strength):
            tokens = positions.of_token(student), positions.of_token(reference)
            return strength * losses.k3(*tokens)
        case ReferenceKL(strength, direction, only_epistemic):
            if only_epistemic:
                student, reference = (
                    losses.and_rest(x, epistemic.ids) for x in (student, reference)
                )
            kl = losses.reverse_kl if direction == "reverse" else losses.forward_kl
            return strength * kl(student, reference)
