"""Which part of the vocabulary is compared: all, or top candidates (maths: `losses.support`)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, require


@dataclass(frozen=True)
class FullVocabulary:
    """The divergence is summed over every token."""


@dataclass(frozen=True)
class TopC:
    """The c likeliest tokens of the student, the teacher or each, and with `tail` one bucket more.

    `keep_epistemic` keeps the epistemic ids beside the c others; None does so where the target's
    epistemic entries matter: else nothing could be learnt about doubt exactly where the student
    has already lost it.
    """

    c: int = 100  # the released runs'
    tail: bool = True
    support: Literal["student", "teacher", "union"] = "student"
    keep_epistemic: bool | None = None

    def __post_init__(self) -> None:
        require(self.c >= 1, "TopC.c", "at least 1", self.c)
        known = self.support in ("student", "teacher", "union")
        require(known, "TopC.support", "'student', 'teacher' or 'union'", self.support)


Support = FullVocabulary | TopC


def kept_ids(support: Support, epistemic: Epistemic, reads_epistemic: bool) -> tuple[int, ...]:
    """The epistemic ids, where the support must not lose them."""
    if isinstance(support, FullVocabulary):
        return ()
    keeps = reads_epistemic if support.keep_epistemic is None else support.keep_epistemic
    return epistemic.ids if keeps else ()


def restrict(
    support: Support,
    student_logp: Float[Array, "*batch V"],
    target_logp: Float[Array, "*batch V"],
    always_ids: tuple[int, ...],
) -> tuple[Float[Array, "*batch C"], Float[Array, "*batch C"]]:
    """Both distributions on the support."""
    match support:
        case FullVocabulary():
            return student_logp, target_logp
        case TopC(c, tail, whose):
            return losses.top_c(
                student_logp, target_logp, c, tail=tail, always_ids=always_ids, support=whose
            )
