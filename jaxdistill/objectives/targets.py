"""What is imitated: the teacher as it is, or edited (mathematics: `losses.edits`).

A target has `edit(positions, epistemic)`, which returns the target's log-probabilities, or a `Pair`
where it edits the student too. With `keeps_epistemic` a top-C support keeps the epistemic ids among
its candidates. Of no epistemic ids an epistemic edit is none, bit for bit.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.losses import edits
from jaxdistill.objectives.positions import Epistemic, Positions, require, require_literals


class Pair(NamedTuple):
    """The two distributions to compare, and how much the position then counts."""

    student_logp_BTV: Float[Array, "B T V"]
    target_logp_BTV: Float[Array, "B T V"]
    factor_BT: Float[Array, "B T"] | float = 1.0


@dataclass(frozen=True)
class TeacherTarget:
    """The student is pulled towards the teacher as it is."""

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"]:
        return positions.teacher


@dataclass(frozen=True)
class AnchorEpistemicMass:
    """... towards the teacher with its epistemic mass replaced (`edits.anchor_mass`).

    `"ref"` takes the reference's mass, `"floor"` the larger of the two, `"mix"` the teacher's moved
    by `mix` of the way to the reference's (only this mode reads `mix`). The ratios inside E come
    from `shape`: with the teacher's this is the E-logit restore, one constant on all E logits.
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
    """Student and teacher given that the token is not epistemic: E logits get no gradient.

    It does not freeze m_S (`edits.without_epistemic`): `AnchorEpistemicMass` does. With
    `weighted` the position counts 1 - m_T, as in the chain rule of KL(T||S).
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
    """... with `strength * u` added to its epistemic logits, renormalised.

    u is H(R) / ln V (`"entropy"`), 1 where H(R) exceeds `threshold` nats (`"fork"`), or 1 where
    the reference doubts more than the teacher (`"suppressed"`). The mass is never lifted above
    `max_mass`; where it lies above already, it stays. A teacher that lost nearly all doubt has
    little to amplify: with `base="floor"` its mass is first lifted to the reference's.
    """

    strength: float = 1.0
    where: Literal["entropy", "fork", "suppressed"] = "suppressed"
    # 0.672 nats, here and in other choices: the 80th percentile of the entropies of a reasoning
    # model's tokens (arXiv 2506.01939); above it lies the fifth of them where answers fork.
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
        if self.base == "floor":
            base = edits.anchor_mass(base, reference, epistemic.is_member_V, "floor")
        bins = losses.epistemic_bins(base, epistemic.is_member_V)
        # In log-odds an amplification is a shift: the cap is one too.
        room_BT = np.log(self.max_mass / (1 - self.max_mass)) - (bins[..., 0] - bins[..., 1])
        strength_BT = jnp.minimum(self.strength * u_BT, jnp.maximum(room_BT, 0.0))
        return edits.amplify(base, epistemic.is_member_V, strength_BT)
