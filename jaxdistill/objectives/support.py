"""Which part of the vocabulary is compared: all, or top candidates (maths: `losses.support`)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, require, require_literals

Logps = tuple[Float[Array, "B T C"], Float[Array, "B T C"]]


@dataclass(frozen=True)
class FullVocabulary:
    """The divergence is summed over every token."""

    def restrict(
        self,
        student_logp_BTV: Float[Array, "B T V"],
        target_logp_BTV: Float[Array, "B T V"],
        epistemic: Epistemic,
        keeps_epistemic: bool,
    ) -> Logps:
        return student_logp_BTV, target_logp_BTV


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
        require_literals(self)

    def restrict(
        self,
        student_logp_BTV: Float[Array, "B T V"],
        target_logp_BTV: Float[Array, "B T V"],
        epistemic: Epistemic,
        keeps_epistemic: bool,
    ) -> Logps:
        keeps = keeps_epistemic if self.keep_epistemic is None else self.keep_epistemic
        return losses.top_c(
            student_logp_BTV,
            target_logp_BTV,
            self.c,
            tail=self.tail,
            always_ids=epistemic.ids if keeps else (),
            support=self.support,
        )
