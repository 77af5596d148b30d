"""The kinds of choices that an objective is composed of, each open to a recipe's own classes.

A choice is a frozen dataclass with the method of its kind. The `Own...` protocols declare these
methods: an instance of any class that has the method can be used like a built-in choice. A class
may also define the following attributes; the default of a missing one is in brackets.

    reads             the networks that must score the samples in addition to the student, and to
                      the teacher of a distillation: a frozenset of "teacher", "reference" and
                      "contrast" (none)
    keeps_epistemic   of a target: a top-C support keeps the epistemic ids (False)
    may_be_negative   of a divergence: a clip must then accept negative losses (False)
    takes_negative    of a clip: whether it accepts negative losses (True)
    level             of a rollout correction: "token" or "sequence" ("token")
"""

import dataclasses
from typing import Any, Protocol, get_args, runtime_checkable

from jaxtyping import Array, Float

from jaxdistill import own_classes
from jaxdistill.objectives import credit, literature, targets, weights
from jaxdistill.objectives import divergences as divs
from jaxdistill.objectives import literature_weights as more_weights
from jaxdistill.objectives.divergences import Comparison
from jaxdistill.objectives.importance import RolloutCorrection
from jaxdistill.objectives.positions import Epistemic, Positions, require
from jaxdistill.objectives.support import FullVocabulary, Logps, TopC
from jaxdistill.objectives.targets import Pair

# -------------------------------------------------------------------------- the method of each kind


@runtime_checkable
class OwnWeight(Protocol):
    """How much each position is learnt: a factor per position, without a gradient."""

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnBatchWeight(Protocol):
    """A weight that depends on the whole batch: `over_batch` maps all scores to factors at once.

    Positions of loss weight 0 are excluded: padding, and positions that other weights drop.
    """

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnTarget(Protocol):
    """The distribution to imitate, as log-probabilities; a `Pair` if the student is edited too."""

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"] | Pair: ...


@runtime_checkable
class OwnBatchTarget(OwnTarget, OwnBatchWeight, Protocol):
    """A target that depends on the whole batch.

    `edit` finds the factors of `over_batch` in `positions.sampled.target_factor_BT`.
    """


@runtime_checkable
class OwnDivergence(Protocol):
    """The distance of the student from the target at each position, in nats."""

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnSupport(Protocol):
    """The part of the vocabulary that is compared: (student, target) restricted to it."""

    def restrict(
        self,
        student_logp_BTV: Float[Array, "B T V"],
        target_logp_BTV: Float[Array, "B T V"],
        epistemic: Epistemic,
        keeps_epistemic: bool,
    ) -> Logps: ...


@runtime_checkable
class OwnClip(Protocol):
    """A bound on each position's divergence."""

    def clip(self, loss_BT: Float[Array, "B T"]) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnTerm(Protocol):
    """A penalty that is added to the loss at each position."""

    def penalty(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnCredit(Protocol):
    """Each token's advantage, without a gradient.

    With the methods of `OwnBatchWeight` it also scales the loss by a factor per position.
    """

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnCorrection(Protocol):
    """The samples' weight, from log pi_old - log pi_rollout of a token or of a sequence."""

    def weight(self, log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]: ...


Weight = (
    weights.MaskSampledEpistemic
    | weights.FlipSampledEpistemic
    | weights.SuppressionGate
    | weights.EntropyWeight
    | more_weights.AmplifySampledEpistemic
    | more_weights.SampledSuppressionGate
    | more_weights.EntropyGate
    | more_weights.DirectionAdaptive
    | more_weights.ForkingTokens
    | more_weights.TokenImportance
    | more_weights.PositionSlope
    | more_weights.SkipFirst
    | more_weights.ContrastMask
    | more_weights.UnsolvedGroups
    | more_weights.WrongPrefix
    | more_weights.StudentTeacherRatio
    | OwnWeight
    | OwnBatchWeight
)
Target = (
    targets.TeacherTarget
    | targets.AnchorEpistemicMass
    | targets.DropEpistemicSlice
    | targets.AmplifyEpistemic
    | literature.FixedEpistemicMass
    | literature.Barycentre
    | literature.Purified
    | literature.Contrasted
    | literature.AnchorForks
    | OwnTarget
)
Divergence = (
    divs.ForwardKL
    | divs.ReverseKL
    | divs.JensenShannon
    | divs.SampledReverseKL
    | literature.EntropySwitchedKL
    | literature.OutcomeKL
    | literature.ScoreFunctionReverseKL
    | literature.SampledK3
    | OwnDivergence
)
Support = FullVocabulary | TopC | OwnSupport
Clip = literature.ClipPosition | literature.SmoothClip | OwnClip
Term = literature.MassPenalty | literature.ReferenceKL | literature.ReferenceK3 | OwnTerm
Credit = (
    credit.EqualCredit
    | credit.RLSD
    | credit.RLCSD
    | literature.AntiSD
    | literature.SuppressUnlikely
    | OwnCredit
)
Correction = RolloutCorrection | OwnCorrection

# -------------------------------------------------------------------- checks when a choice is made

NETWORKS = frozenset({"teacher", "reference", "contrast"})


def reads_of(*choices: object) -> frozenset[str]:
    """The union of the networks that the choices read; a class without `reads` reads none."""
    return frozenset().union(*(getattr(choice, "reads", ()) for choice in choices))


def require_choice_and_reads(name: str, value: object, union: Any) -> None:
    """`own_classes.require_choice`, with checks of the attributes `reads` and `level`.

    Raises UserError naming the field or the attribute.
    """
    own_classes.require_choice(name, value, union)
    reads = getattr(value, "reads", frozenset())
    where = f"{name}: {type(value).__name__}.reads"
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    # An annotated `reads` would be a setting in config.json, though it belongs to the formula.
    is_field = any(field.name == "reads" for field in fields)
    require(not is_field, where, "no field: write it without annotation, or as ClassVar", reads)
    known = isinstance(reads, frozenset) and reads <= NETWORKS
    require(known, where, "a frozenset of 'teacher', 'reference', 'contrast'", reads)
    if OwnCorrection in get_args(union):
        level = getattr(value, "level", "token")
        known = level in ("token", "sequence")
        require(known, f"{name}: {type(value).__name__}.level", "'token' or 'sequence'", level)


def require_choices(name: str, values: object, union: Any) -> None:
    """`require_choice_and_reads` for each choice of a tuple."""
    require(isinstance(values, tuple), name, "a tuple of choices, such as (A(), B())", values)
    assert isinstance(values, tuple)
    for value in values:
        require_choice_and_reads(name, value, union)
