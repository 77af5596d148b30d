"""Targets: the distribution to imitate, the teacher's or an edit of it (see `losses.edits`).

A target has `edit(positions, epistemic)`, which returns log-probabilities [B, T, V], or a `Pair` if
it edits the student too or has metrics. With `keeps_epistemic` a top-C support keeps the epistemic
ids among its candidates. Without epistemic ids an epistemic edit returns its input, bit for bit.

A target that depends on the whole batch also has `score` and `over_batch` of `weights`; `edit` then
finds the factors in `positions.sampled.target_factor_BT`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.losses import edits
from jaxdistill.objectives.positions import (
    Epistemic,
    Positions,
    Weighted,
    require,
    require_literals,
)


class Pair(NamedTuple):
    """The two distributions to compare, a factor of the position's divergence, and metrics."""

    student_logp_BTV: Float[Array, "B T V"]
    target_logp_BTV: Float[Array, "B T V"]
    factor_BT: Float[Array, "B T"] | float = 1.0
    metrics: dict[str, Weighted] | None = None


@dataclass(frozen=True)
class TeacherTarget:
    """The teacher's distribution, unchanged."""

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        return positions.teacher


@dataclass(frozen=True)
class AnchorEpistemicMass:
    """The teacher with its epistemic mass replaced (`edits.anchor_mass`).

    The new mass is the reference's (`"ref"`), the larger of the two (`"floor"`), or the fraction
    `mix` of the way from the teacher's to the reference's (`"mix"`, the only mode that reads
    `mix`). `shape` gives the ratios of the tokens inside E. With the teacher's, the edit adds one
    constant to all logits of E (E-logit restore).
    """

    mode: Literal["ref", "floor", "mix"] = "ref"
    mix: float = 1.0
    shape: Literal["teacher", "reference"] = "teacher"

    reads = frozenset({"reference"})
    keeps_epistemic = True

    def __post_init__(self) -> None:
        require_literals(self)
        require(0 <= self.mix <= 1, "AnchorEpistemicMass.mix", "from 0 to 1", self.mix)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        teacher, reference = positions.teacher, positions.reference
        if not epistemic.ids:
            return teacher
        return edits.anchor_mass(
            teacher,
            reference,
            epistemic.is_member_V,
            mode=self.mode,
            mix=self.mix,
            shape=self.shape,
        )


@dataclass(frozen=True)
class DropEpistemicSlice:
    """Student and teacher conditioned on a non-epistemic token: logits of E get no gradient.

    This does not keep m_S constant (`edits.without_epistemic`); `AnchorEpistemicMass` fixes its
    target. With `weighted` the divergence has the factor 1 - m_T, as in the chain rule of KL(T||S).
    """

    weighted: bool = False

    def edit(self, positions: Positions, epistemic: Epistemic) -> Pair:
        student, teacher = positions.student_logp_BTV, positions.teacher
        if not epistemic.ids:
            return Pair(student, teacher)
        return Pair(
            edits.without_epistemic(student, epistemic.is_member_V),
            edits.without_epistemic(teacher, epistemic.is_member_V),
            1.0 - epistemic.mass(teacher) if self.weighted else 1.0,
        )


@dataclass(frozen=True)
class AmplifyEpistemic:
    """The teacher with `strength * u` nats added to its epistemic logits, renormalised.

    u is H(R) / ln V (`"entropy"`), 1 where H(R) exceeds `threshold` nats (`"fork"`), or 1 where
    m_R > m_T (`"suppressed"`). The epistemic mass is raised to at most `max_mass`, and a larger one
    stays as it is. A teacher that has lost nearly all its epistemic mass has little to amplify;
    `base="floor"` first raises the mass to the reference's.
    """

    strength: float = 1.0
    where: Literal["entropy", "fork", "suppressed"] = "suppressed"
    # 0.672 nats, here and in other choices, is the 80th percentile of a reasoning model's token
    # entropies (arXiv 2506.01939). The fifth of the tokens above it are those where answers fork.
    threshold: float = 0.672
    max_mass: float = 0.9  # chosen, not measured
    base: Literal["teacher", "floor"] = "teacher"

    reads = frozenset({"reference"})
    keeps_epistemic = True

    def __post_init__(self) -> None:
        require(self.strength >= 0, "AmplifyEpistemic.strength", "at least 0", self.strength)
        within = 0 < self.max_mass < 1
        require(within, "AmplifyEpistemic.max_mass", "between 0 and 1", self.max_mass)
        require_literals(self)

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        reference, base = positions.reference, positions.teacher
        if not epistemic.ids:
            return base
        if self.where == "entropy":
            u_BT = losses.entropy(reference) / np.log(reference.shape[-1])
        elif self.where == "fork":
            u_BT = (losses.entropy(reference) > self.threshold).astype(jnp.float32)
        else:
            u_BT = (epistemic.mass(reference) > epistemic.mass(base)).astype(jnp.float32)
        # After `u_BT`: with the floor m_R would never exceed the base's mass.
        if self.base == "floor":
            base = edits.anchor_mass(base, reference, epistemic.is_member_V, "floor")
        bins = losses.epistemic_bins(base, epistemic.is_member_V)
        # Adding a constant to the logits of E adds it to the log-odds of the mass on E, so the
        # largest allowed strength is the distance of the log-odds from those of `max_mass`.
        limit_BT = np.log(self.max_mass / (1 - self.max_mass)) - (bins[..., 0] - bins[..., 1])
        strength_BT = jnp.minimum(self.strength * u_BT, jnp.maximum(limit_BT, 0.0))
        return edits.amplify(base, epistemic.is_member_V, strength_BT)
