"""Supports: the part of the vocabulary that a divergence compares (see `losses.support`)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, require, require_literals

# (student, target) on a support.
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
    """The c most likely tokens of the student, of the teacher or of both.

    `tail` adds one bucket with the probability of all other tokens. `keep_epistemic` adds the
    epistemic ids to the c candidates. None does so if the target edits them: where the student has
    lost its epistemic mass they are not among its candidates, and nothing could be learnt there.
    """

    c: int = 100  # as in the released runs
    tail: bool = True
    support: Literal["student", "teacher", "union"] = "student"  # whose likeliest tokens
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
