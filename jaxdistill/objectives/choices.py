"""The kinds of choices that an objective is made of, each open to a recipe's own classes.

A choice is a frozen dataclass with its kind's method. The `Own...` protocols say which: an instance
of any class that has it may stand where ours do. Beside the method a class may have

    reads             networks that must score the samples, beside the student and in a
                      distillation the teacher: a frozenset of "teacher", "reference", "contrast"
    keeps_epistemic   of a target: a top-C support keeps the epistemic ids (False)
    may_be_negative   of a divergence: not every clip fits it then (False)
    takes_negative    of a clip: whether it fits such a divergence (True)
    level             of a rollout correction: "token" or "sequence" ("token")

and where it has none, what is said in brackets holds, or no further network is read.
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

# -------------------------------------------------------------------------- what each kind must do


@runtime_checkable
class OwnWeight(Protocol):
    """Where the student learns: one factor per position, without a gradient."""

    def factor(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnBatchWeight(Protocol):
    """A weight of the whole batch: the scores of all positions become factors, together.

    Positions of loss weight 0 do not take part: padding, and what other weights have dropped.
    """

    def score(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...

    def over_batch(
        self, score_BT: Float[Array, "B T"], loss_weight_BT: Float[Array, "B T"]
    ) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnTarget(Protocol):
    """What is imitated: log-probabilities, or a `Pair` where the student is edited too."""

    def edit(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T V"] | Pair: ...


@runtime_checkable
class OwnDivergence(Protocol):
    """How far the student is from the target, in nats."""

    def divergence(self, compared: Comparison) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnSupport(Protocol):
    """Which part of the vocabulary is compared: (student, target) there."""

    def restrict(
        self,
        student_logp_BTV: Float[Array, "B T V"],
        target_logp_BTV: Float[Array, "B T V"],
        epistemic: Epistemic,
        keeps_epistemic: bool,
    ) -> Logps: ...


@runtime_checkable
class OwnClip(Protocol):
    """What bounds a position's divergence."""

    def clip(self, loss_BT: Float[Array, "B T"]) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnTerm(Protocol):
    """What is added to the loss at each position."""

    def penalty(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnCredit(Protocol):
    """Each token's advantage, without a gradient; with `score` and `over_batch` a factor too."""

    def advantage(self, positions: Positions, epistemic: Epistemic) -> Float[Array, "B T"]: ...


@runtime_checkable
class OwnCorrection(Protocol):
    """The weight of samples from log pi_old - log pi_rollout, of a token or of a sequence."""

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
    | OwnTarget
)
Divergence = (
    divs.ForwardKL
    | divs.ReverseKL
    | divs.JensenShannon
    | divs.SampledReverseKL
    | literature.EntropySwitchedKL
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

# ------------------------------------------------------------------------------ checked where made

NETWORKS = frozenset({"teacher", "reference", "contrast"})


def reads_of(*choices: object) -> frozenset[str]:
    """The networks that any of them reads; nothing of a class that does not say."""
    return frozenset().union(*(getattr(choice, "reads", ()) for choice in choices))


def require_choice_and_reads(name: str, value: object, union: Any) -> None:
    """`own_classes.require_choice`, and `reads` must name networks, where the class has it."""
    own_classes.require_choice(name, value, union)
    reads = getattr(value, "reads", frozenset())
    where = f"{name}: {type(value).__name__}.reads"
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    is_field = any(field.name == "reads" for field in fields)
    require(not is_field, where, "no field: write it without annotation, or as ClassVar", reads)
    known = isinstance(reads, frozenset) and reads <= NETWORKS
    require(known, where, "a frozenset of 'teacher', 'reference', 'contrast'", reads)
    if OwnCorrection in get_args(union):
        level = getattr(value, "level", "token")
        known = level in ("token", "sequence")
        require(known, f"{name}: {type(value).__name__}.level", "'token' or 'sequence'", level)


def require_choices(name: str, values: object, union: Any) -> None:
    """The same of a tuple of choices."""
    require(isinstance(values, tuple), name, "a tuple of choices, as (A(), B())", values)
    assert isinstance(values, tuple)
    for value in values:
        require_choice_and_reads(name, value, union)
