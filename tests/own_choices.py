"""A class of each kind of choice, as a recipe may bring it, and which of ours it is."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdistill import losses
from jaxdistill.losses import advantages, edits
from jaxdistill.objectives import (
    AnchorEpistemicMass,
    ClipPosition,
    EntropyWeight,
    ForwardKL,
    MassPenalty,
    RolloutCorrection,
    SampledReverseKL,
    SkipFirst,
    SuppressionGate,
    SuppressUnlikely,
    TopC,
)


@dataclass(frozen=True)
class OwnSkip:
    count: int = 1

    def factor(self, positions, epistemic):
        return positions.sampled.index_BT >= self.count  # true and false are 1 and 0


@dataclass(frozen=True)
class OwnGate:
    threshold: float = 0.02

    reads = frozenset({"reference"})

    def factor(self, positions, epistemic):
        gap_BT = epistemic.mass(positions.reference) - epistemic.mass(positions.teacher)
        return (gap_BT <= self.threshold).astype(jnp.float32)


@dataclass(frozen=True)
class OwnMeanOne:
    """exp(-H(T)), of mean 1 over the batch."""

    def score(self, positions, epistemic):
        return jnp.exp(-losses.entropy(positions.teacher))

    def over_batch(self, score_BT, loss_weight_BT):
        counts_BT = loss_weight_BT > 0
        return jnp.where(counts_BT, score_BT, 0.0) / jnp.mean(score_BT, where=counts_BT)


@dataclass(frozen=True)
class OwnAnchor:
    reads = frozenset({"reference"})
    keeps_epistemic = True

    def edit(self, positions, epistemic):
        return edits.anchor_mass(positions.teacher, positions.reference, epistemic.is_member_V)


@dataclass(frozen=True)
class OwnForks:
    """A target of the whole batch: half reference at the positions with H(S) above the mean."""

    reads = frozenset({"reference"})

    def score(self, positions, epistemic):
        return losses.entropy(positions.student_logp_BTV)

    def over_batch(self, score_BT, loss_weight_BT):
        return score_BT > jnp.mean(score_BT, where=loss_weight_BT > 0)

    def edit(self, positions, epistemic):
        half = losses.log_mix(positions.teacher, positions.reference, 0.5)
        is_fork_BT1 = positions.sampled.target_factor_BT[..., None] > 0
        return jnp.where(is_fork_BT1, half, positions.teacher)


@dataclass(frozen=True)
class OwnForwardKL:
    def divergence(self, compared):
        student_logp, target_logp = compared.on_support
        return losses.forward_kl(student_logp, target_logp)


@dataclass(frozen=True)
class OwnSampledKL:
    may_be_negative = True

    def divergence(self, compared):
        return losses.sampled_reverse_kl(*compared.of_token)


@dataclass(frozen=True)
class OwnSupport:
    c: int = 4

    def restrict(self, student_logp_BTV, target_logp_BTV, epistemic, keeps_epistemic):
        ids = epistemic.ids if keeps_epistemic else ()
        return losses.top_c(student_logp_BTV, target_logp_BTV, self.c, always_ids=ids)


@dataclass(frozen=True)
class OwnClip:
    def clip(self, loss_BT):
        return jnp.minimum(loss_BT, 0.3)


@dataclass(frozen=True)
class OwnTerm:
    reads = frozenset({"reference"})

    def penalty(self, positions, epistemic):
        networks = positions.reference, positions.student_logp_BTV
        return losses.bernoulli_kl(
            *(losses.epistemic_bins(x, epistemic.is_member_V) for x in networks)
        )


@dataclass(frozen=True)
class OwnCredit:
    def advantage(self, positions, epistemic):
        student = positions.student_logp_BTV
        V = student.shape[-1]
        return advantages.unlikely(
            positions.of_token(student), losses.entropy(student), V, strength=1.0, threshold=0.1
        )


@dataclass(frozen=True)
class OwnCorrection:
    def weight(self, log_ratio):
        return jnp.minimum(jnp.exp(log_ratio), 1.5)


@dataclass(frozen=True)
class OwnSequenceCorrection(OwnCorrection):
    level = "sequence"


# {own choice: ours}, by the field that holds it.
SAME = {
    "weights": {
        (OwnSkip(),): (SkipFirst(1),),
        (OwnGate(),): (SuppressionGate(0.02),),
        (OwnMeanOne(),): (EntropyWeight(),),
        (OwnSkip(), OwnMeanOne()): (SkipFirst(1), EntropyWeight()),
    },
    "target": {OwnAnchor(): AnchorEpistemicMass()},
    "divergence": {OwnForwardKL(): ForwardKL(), OwnSampledKL(): SampledReverseKL()},
    "support": {OwnSupport(): TopC(4)},
    "clip": {OwnClip(): ClipPosition(0.3)},
    "terms": {(OwnTerm(),): (MassPenalty(),)},
    "credit": {OwnCredit(): SuppressUnlikely(threshold=0.1)},
    "rollout_correction": {
        OwnCorrection(): RolloutCorrection(1.5),
        OwnSequenceCorrection(): RolloutCorrection(1.5, "sequence"),
    },
}
