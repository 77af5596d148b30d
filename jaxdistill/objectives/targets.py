"""What is imitated: the teacher as it is, or edited (mathematics: `losses.edits`)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses
from jaxdistill.losses import edits
from jaxdistill.objectives.positions import Epistemic, Positions, require

# Of every target: `reads`, the networks beside the teacher that it needs; `is_epistemic`, whether
# it edits the teacher at the epistemic ids (and is no edit without any); `keeps_epistemic`, whether
# a top-C support must keep those ids among its candidates.
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TeacherTarget:
    """The student is pulled towards the teacher as it is."""

    reads: ClassVar = NOTHING
    is_epistemic: ClassVar = False
    keeps_epistemic: ClassVar = False


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

    reads: ClassVar = frozenset({"reference"})
    is_epistemic: ClassVar = True
    keeps_epistemic: ClassVar = True

    def __post_init__(self) -> None:
        known = self.mode in ("ref", "floor", "mix")
        require(known, "AnchorEpistemicMass.mode", "'ref', 'floor' or 'mix'", self.mode)
        require(0 <= self.mix <= 1, "AnchorEpistemicMass.mix", "from 0 to 1", self.mix)
        known = self.shape in ("teacher", "reference")
        require(known, "AnchorEpistemicMass.shape", "'teacher' or 'reference'", self.shape)


@dataclass(frozen=True)
class FixedEpistemicMass:
    """... with its epistemic mass set to `mass` at every position (`edits.restore_mass`).

    A dose rather than a cure: how much doubt does what to accuracy?
    """

    mass: float = 0.02  # chosen, not measured

    reads: ClassVar = NOTHING
    is_epistemic: ClassVar = True
    keeps_epistemic: ClassVar = True

    def __post_init__(self) -> None:
        require(0 < self.mass < 1, "FixedEpistemicMass.mass", "between 0 and 1", self.mass)


@dataclass(frozen=True)
class DropEpistemicSlice:
    """Student and teacher given that the token is not epistemic: E logits get no gradient.

    It does not freeze m_S (`edits.without_epistemic`): `AnchorEpistemicMass` does. With
    `weighted` the position counts 1 - m_T, as in the chain rule of KL(T||S).
    """

    weighted: bool = False

    reads: ClassVar = NOTHING
    is_epistemic: ClassVar = True
    # What is dropped need not be among a top-C support's candidates.
    keeps_epistemic: ClassVar = False


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

    reads: ClassVar = frozenset({"reference"})
    is_epistemic: ClassVar = True
    keeps_epistemic: ClassVar = True

    def __post_init__(self) -> None:
        require(self.strength >= 0, "AmplifyEpistemic.strength", "at least 0", self.strength)
        require(
            0 < self.max_mass < 1, "AmplifyEpistemic.max_mass", "between 0 and 1", self.max_mass
        )
        known = self.where in ("entropy", "fork", "suppressed")
        require(known, "AmplifyEpistemic.where", "'entropy', 'fork' or 'suppressed'", self.where)
        known = self.base in ("teacher", "floor")
        require(known, "AmplifyEpistemic.base", "'teacher' or 'floor'", self.base)


@dataclass(frozen=True)
class Barycentre:
    """T^w B^(1-w), renormalised: the geometric path from a base (w = 0) to the teacher (w = 1).

    The base is the reference (beta-OPSD, w = 1/beta) or the student as it is (a trust region,
    DemoPSD). `decay` lowers w where teacher and base disagree: w exp(-decay KL(T||B)). With
    `only_epistemic` w holds on E alone and is 1 elsewhere: a soft restore, its mass not exact.
    """

    weight: float = 0.5
    base: Literal["reference", "student"] = "reference"
    decay: float = 0.0
    only_epistemic: bool = False

    def __post_init__(self) -> None:
        require(self.weight >= 0, "Barycentre.weight", "at least 0", self.weight)
        require(self.decay >= 0, "Barycentre.decay", "at least 0", self.decay)
        known = self.base in ("reference", "student")
        require(known, "Barycentre.base", "'reference' or 'student'", self.base)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"reference"}) if self.base == "reference" else NOTHING

    @property
    def is_epistemic(self) -> bool:
        return self.only_epistemic

    @property
    def keeps_epistemic(self) -> bool:
        return self.only_epistemic


@dataclass(frozen=True)
class Purified:
    """R exp(strength (log T - log C)): only what the context adds beyond what it says by itself.

    C is the contrast; give it `experience.contrast=ContextOnly()` (`edits.purified`).
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.strength >= 0, "Purified.strength", "at least 0", self.strength)

    reads: ClassVar = frozenset({"reference", "contrast"})
    is_epistemic: ClassVar = False
    keeps_epistemic: ClassVar = False


@dataclass(frozen=True)
class Contrasted:
    """T exp(strength (log T - log C)), renormalised: away from the contrast (RLCSD's `opsd_ectr`).

    log C is floored at -30 nats, as in its code.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.strength >= 0, "Contrasted.strength", "at least 0", self.strength)

    reads: ClassVar = frozenset({"contrast"})
    is_epistemic: ClassVar = False
    keeps_epistemic: ClassVar = False


Target = (
    TeacherTarget
    | AnchorEpistemicMass
    | FixedEpistemicMass
    | DropEpistemicSlice
    | AmplifyEpistemic
    | Barycentre
    | Purified
    | Contrasted
)


class Pair(NamedTuple):
    """The two distributions to compare, and how much the position then counts."""

    student_logp_BTV: Float[Array, "B T V"]
    target_logp_BTV: Float[Array, "B T V"]
    factor_BT: Float[Array, "B T"] | float = 1.0


def edited(target: Target, positions: Positions, epistemic: Epistemic) -> Pair:
    """Student and target; with no epistemic ids an epistemic edit is none, bit for bit."""
    student = positions.student_logp_BTV
    teacher = positions.teacher
    is_member_V = epistemic.is_member_V
    if target.is_epistemic and not epistemic.ids:
        return Pair(student, teacher)
    match target:
        case TeacherTarget():
            return Pair(student, teacher)
        case AnchorEpistemicMass(mode, mix, shape):
            anchored = edits.anchor_mass(
                teacher, positions.reference, is_member_V, mode=mode, mix=mix, shape=shape
            )
            return Pair(student, anchored)
        case FixedEpistemicMass(mass):
            log_mass_BT = jnp.full(teacher.shape[:-1], np.log(mass), jnp.float32)
            return Pair(student, edits.restore_mass(teacher, is_member_V, log_mass_BT))
        case DropEpistemicSlice(weighted):
            return Pair(
                edits.without_epistemic(student, is_member_V),
                edits.without_epistemic(teacher, is_member_V),
                1.0 - epistemic.mass(teacher) if weighted else 1.0,
            )
        case AmplifyEpistemic():
            return Pair(student, amplified(target, positions, epistemic))
        case Barycentre():
            return Pair(student, barycentre_of(target, positions, epistemic))
        case Purified(strength):
            purified = edits.purified(positions.reference, teacher, positions.contrast, strength)
            return Pair(student, purified)
        case Contrasted(strength):
            return Pair(student, edits.contrasted(teacher, positions.contrast, strength))


def amplified(
    target: AmplifyEpistemic, positions: Positions, epistemic: Epistemic
) -> Float[Array, "B T V"]:
    reference, base = positions.reference, positions.teacher
    match target.where:
        case "entropy":
            u_BT = losses.entropy(reference) / np.log(reference.shape[-1])
        case "fork":
            u_BT = (losses.entropy(reference) > target.threshold).astype(jnp.float32)
        case _:
            u_BT = (epistemic.mass(reference) > epistemic.mass(base)).astype(jnp.float32)
    if target.base == "floor":
        base = edits.anchor_mass(base, reference, epistemic.is_member_V, "floor")
    bins = losses.epistemic_bins(base, epistemic.is_member_V)
    # In log-odds an amplification is a shift: the cap is one too.
    room_BT = np.log(target.max_mass / (1 - target.max_mass)) - (bins[..., 0] - bins[..., 1])
    strength_BT = jnp.minimum(target.strength * u_BT, jnp.maximum(room_BT, 0.0))
    return edits.amplify(base, epistemic.is_member_V, strength_BT)


def barycentre_of(
    target: Barycentre, positions: Positions, epistemic: Epistemic
) -> Float[Array, "B T V"]:
    teacher = positions.teacher
    base = (
        positions.reference
        if target.base == "reference"
        else jax.lax.stop_gradient(positions.student_logp_BTV)
    )
    weight: float | Array = target.weight
    if target.decay:
        weight = weight * jnp.exp(-target.decay * losses.forward_kl(base, teacher))[..., None]
    if target.only_epistemic:
        weight = jnp.where(jnp.broadcast_to(epistemic.is_member_V, teacher.shape), weight, 1.0)
    return edits.barycentre(teacher, base, weight)
