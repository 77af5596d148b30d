"""What the student minimises: small frozen configs, composed into one function of positions.

A self-distillation loss is (target of what distribution) o (divergence) o (support) o (weight of
which position); every variant is another choice of one of the four:

    sdpo        the paper's loss: Jensen-Shannon, the student's top 100 and a tail, every position
    epi_mask    drops positions whose sampled token is epistemic (nearly a no-op: see its class)
    epi_gate    drops positions where the teacher would lower the epistemic mass
    epi_anchor  puts the reference's epistemic mass into the target
    grpo        the paper's baseline

Letters as everywhere: B sequences, T completion positions of a chunk, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill import losses, targets
from jaxdistill.errors import UserError

# How the positions' losses become one number: "token" divides the sum over all positions by their
# number; "sequence" averages each completion first, then the completions (rows of weight zero
# count). The paper's runs do the latter, through micro-batches of one (`core_algos.py:1182`).
Reduction = Literal["token", "sequence"]


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise UserError(f"{name}: expected {expected}, got {got!r}")


class Positions(NamedTuple):
    """One chunk of aligned completion positions. Only `student_logp_BTV` carries a gradient."""

    student_logp_BTV: Float[Array, "B T V"]
    teacher_logp_BTV: Float[Array, "B T V"] | None
    reference_logp_BTV: Float[Array, "B T V"] | None
    tokens_BT: Int[Array, "B T"]
    behaviour_logp_BT: Float[Array, "B T"]
    advantage_B: Float[Array, " B"]


# --------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class ForwardKL:
    """KL(T||S): covers everything the teacher might say."""


@dataclass(frozen=True)
class ReverseKL:
    """KL(S||T): equation 1 of the paper."""


@dataclass(frozen=True)
class JensenShannon:
    """`losses.jensen_shannon`: between the two; the released runs' choice, at 0.5."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        _require(0 <= self.alpha <= 1, "JensenShannon.alpha", "from 0 to 1", self.alpha)


@dataclass(frozen=True)
class FullVocabulary:
    """The divergence is summed over every token."""


@dataclass(frozen=True)
class TopC:
    """The student's c likeliest tokens, and with `tail` one bucket for all others.

    An objective that reads epistemic masses keeps the epistemic ids beside the c others: else
    nothing could be learnt about doubt exactly where the student has already lost it.
    """

    c: int = 100
    tail: bool = True

    def __post_init__(self) -> None:
        _require(self.c >= 1, "TopC.c", "at least 1", self.c)


@dataclass(frozen=True)
class TeacherTarget:
    """The student is pulled towards the teacher as it is."""


@dataclass(frozen=True)
class AnchorEpistemicMass:
    """... towards the teacher with its epistemic mass replaced (`targets.anchor_mass`).

    `"ref"` takes the reference's mass, `"floor"` the larger of the two, `"mix"` the teacher's moved
    by `mix` of the way to the reference's (only this mode reads `mix`).
    """

    mode: Literal["ref", "floor", "mix"] = "ref"
    mix: float = 1.0

    def __post_init__(self) -> None:
        known = self.mode in ("ref", "floor", "mix")
        _require(known, "AnchorEpistemicMass.mode", "'ref', 'floor' or 'mix'", self.mode)
        _require(0 <= self.mix <= 1, "AnchorEpistemicMass.mix", "from 0 to 1", self.mix)


@dataclass(frozen=True)
class AllPositions:
    """Every position counts."""


@dataclass(frozen=True)
class MaskSampledEpistemic:
    """Positions where the *sampled* token is epistemic do not count.

    It protects almost nothing: a divergence over the vocabulary lowers the epistemic mass at every
    other position too, and 1 - m_S of the suppression remains. Use `SuppressionGate` instead.
    """


@dataclass(frozen=True)
class SuppressionGate:
    """Positions where the teacher would suppress doubt, m_R - m_T > threshold, do not count."""

    threshold: float = 0.01

    def __post_init__(self) -> None:
        _require(self.threshold >= 0, "SuppressionGate.threshold", "at least 0", self.threshold)


@dataclass(frozen=True)
class Distill:
    """Self-distillation; the defaults are the paper's runs (arXiv 2603.24472, SDPO).

    `importance_clip` bounds the weight pi(y_t)/pi_old(y_t) that corrects for samples of an older
    policy; None leaves it out.
    """

    divergence: ForwardKL | ReverseKL | JensenShannon = JensenShannon()
    support: FullVocabulary | TopC = TopC()
    target: TeacherTarget | AnchorEpistemicMass = TeacherTarget()
    weight: AllPositions | MaskSampledEpistemic | SuppressionGate = AllPositions()
    importance_clip: float | None = 2.0
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        clip = self.importance_clip
        _require(clip is None or clip > 0, "Distill.importance_clip", "positive or None", clip)
        _require_reduction(self)


@dataclass(frozen=True)
class GRPO:
    """The paper's baseline: mean-only advantages, asymmetric and dual clipping, no KL term.

    `normalize_std` is read where rewards become advantages (`losses.group_advantage`).
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    normalize_std: bool = False
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        _require(0 <= self.clip_low < 1, "GRPO.clip_low", "from 0 to below 1", self.clip_low)
        _require(self.clip_high >= 0, "GRPO.clip_high", "at least 0", self.clip_high)
        _require(self.dual_clip > 1, "GRPO.dual_clip", "above 1", self.dual_clip)
        _require_reduction(self)


@dataclass(frozen=True)
class CrossEntropy:
    """-log S(y_t): supervised fine-tuning and pre-training."""

    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        _require_reduction(self)


Objective = Distill | GRPO | CrossEntropy


def _require_reduction(objective: Objective) -> None:
    name, reduction = type(objective).__name__, objective.reduction
    known = reduction in get_args(Reduction)
    _require(known, f"{name}.reduction", "'token' or 'sequence'", reduction)


# --------------------------------------------------------------------------------------- presets


def sdpo() -> Distill:
    """The paper's self-distillation, which suppresses doubt."""
    return Distill()


def epi_mask() -> Distill:
    """`sdpo` without the positions whose sampled token is epistemic."""
    return Distill(weight=MaskSampledEpistemic())


def epi_gate() -> Distill:
    """`sdpo` without the positions where the teacher would suppress doubt."""
    return Distill(weight=SuppressionGate())


def epi_anchor() -> Distill:
    """`sdpo` towards a teacher that doubts as much as the reference does."""
    return Distill(target=AnchorEpistemicMass())


def grpo() -> GRPO:
    """The paper's reinforcement-learning baseline."""
    return GRPO()


# ---------------------------------------------------------------------------------- the function

Metrics = dict[str, Array]
ObjectiveFn = Callable[[Positions], tuple[Array, Array, Metrics]]


def needs_teacher(objective: Objective) -> bool:
    """Whether `Positions.teacher_logp_BTV` must be given."""
    return isinstance(objective, Distill)


def needs_contrast(objective: Objective) -> bool:
    """Whether the teacher is also shown other contexts, to set its answer against."""
    return False


def policy_gradient_of(objective: Objective) -> GRPO | None:
    """The part of the objective that follows the verifier's rewards, if it has one."""
    return objective if isinstance(objective, GRPO) else None


def needs_reference(objective: Objective) -> bool:
    """Whether `Positions.reference_logp_BTV` must be given."""
    return isinstance(objective, Distill) and (
        isinstance(objective.target, AnchorEpistemicMass)
        or isinstance(objective.weight, SuppressionGate)
    )


def make_objective(objective: Objective, epistemic_ids: tuple[int, ...]) -> ObjectiveFn:
    """Builds `fn(positions) -> (loss_BT, weight_BT, {name: value_BT})`, to be jitted by the caller.

    `loss_BT` carries the gradient; `weight_BT` (position weight times importance weight, no
    gradient) multiplies the completion mask. Every metric is one number a position, in nats where
    it is an entropy or a divergence:

        epistemic_mass_student, _teacher, _reference    m_S, m_T, m_R, where the array is given
        entropy_student                                 H(S)
        kl_teacher                                      KL(T||S), full vocabulary
        mass_kl                                         its Bernoulli term kl(m_T, m_S): suppression
        kept                                            1 where the position counts
        importance_ratio, clipped                       the policy ratio; 1 where it was clipped

    The vocabulary may be longer than the tokenizer (padded embeddings). Raises `UserError` when an
    epistemic id lies outside it: the lexicon is then another tokenizer's.
    """
    ids = tuple(sorted(set(epistemic_ids)))
    compute = {Distill: _distill, GRPO: _grpo, CrossEntropy: _cross_entropy}[type(objective)]

    def evaluate(positions: Positions) -> tuple[Array, Array, Metrics]:
        _check_given(objective, positions)
        is_epistemic_V = _membership(ids, positions.student_logp_BTV.shape[-1])
        positions = _with_constants(positions)
        loss_BT, weight_BT, ratios = compute(objective, positions, ids, is_epistemic_V)
        metrics = _observe(positions, is_epistemic_V) | ratios
        metrics["kept"] = (weight_BT > 0).astype(jnp.float32)
        return loss_BT, *jax.lax.stop_gradient((weight_BT, metrics))

    return evaluate


def _check_given(objective: Objective, positions: Positions) -> None:
    assert positions.teacher_logp_BTV is not None or not needs_teacher(objective), "no teacher"
    assert positions.reference_logp_BTV is not None or not needs_reference(objective), (
        "no reference"
    )


def _membership(ids: tuple[int, ...], vocab_size: int) -> Array:
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise UserError(
            f"epistemic id {outside[0]} is outside the model's vocabulary of {vocab_size}; "
            "build the lexicon from the model's own tokenizer"
        )
    return jnp.zeros(vocab_size, bool).at[jnp.array(ids, jnp.int32)].set(True)


def _with_constants(positions: Positions) -> Positions:
    """The one place where gradients stop on the teacher and the reference."""
    teacher, reference = jax.lax.stop_gradient(positions[1:3])
    return positions._replace(teacher_logp_BTV=teacher, reference_logp_BTV=reference)


# ---------------------------------------------------------------------------------- distillation


def _distill(
    objective: Distill, positions: Positions, ids: tuple[int, ...], is_epistemic_V: Array
) -> tuple[Array, Array, Metrics]:
    target_logp_BTV = _target(objective.target, positions, is_epistemic_V)
    # Target first, support second: masses are exact on the full vocabulary and only there.
    student, target = _restrict(objective, positions.student_logp_BTV, target_logp_BTV, ids)
    loss_BT = _divergence(objective.divergence, student, target)
    weight_BT = _position_weight(objective.weight, positions, is_epistemic_V)
    if objective.importance_clip is None:
        return loss_BT, weight_BT, {}
    token_logp_BT = losses.take_token(positions.student_logp_BTV, positions.tokens_BT)
    pair = token_logp_BT, positions.behaviour_logp_BT
    ratio_BT = losses.importance_ratio(*pair)
    ratios = {
        "importance_ratio": ratio_BT,
        "clipped": (ratio_BT > objective.importance_clip).astype(jnp.float32),
    }
    weight_BT = weight_BT * losses.importance_weight(*pair, objective.importance_clip)
    return loss_BT, weight_BT, ratios


def _target(
    target: TeacherTarget | AnchorEpistemicMass, positions: Positions, is_epistemic_V: Array
) -> Array:
    teacher, reference = positions.teacher_logp_BTV, positions.reference_logp_BTV
    assert teacher is not None
    match target:
        case TeacherTarget():
            return teacher
        case AnchorEpistemicMass(mode, mix):
            assert reference is not None
            return targets.anchor_mass(teacher, reference, is_epistemic_V, mode, mix)


def _restrict(
    objective: Distill, student_logp: Array, target_logp: Array, ids: tuple[int, ...]
) -> tuple[Array, Array]:
    match objective.support:
        case FullVocabulary():
            return student_logp, target_logp
        case TopC(c, tail):
            always = ids if _reads_epistemic(objective) else ()
            return losses.top_c(student_logp, target_logp, c, tail, always)


def _reads_epistemic(objective: Distill) -> bool:
    reads = AnchorEpistemicMass, SuppressionGate
    return isinstance(objective.target, reads) or isinstance(objective.weight, reads)


def _divergence(
    divergence: ForwardKL | ReverseKL | JensenShannon, student_logp: Array, target_logp: Array
) -> Array:
    match divergence:
        case ForwardKL():
            return losses.forward_kl(student_logp, target_logp)
        case ReverseKL():
            return losses.reverse_kl(student_logp, target_logp)
        case JensenShannon(alpha):
            return losses.jensen_shannon(student_logp, target_logp, alpha)


def _position_weight(
    weight: AllPositions | MaskSampledEpistemic | SuppressionGate,
    positions: Positions,
    is_epistemic_V: Array,
) -> Array:
    match weight:
        case AllPositions():
            keep_BT = jnp.ones(positions.tokens_BT.shape, bool)
        case MaskSampledEpistemic():
            keep_BT = ~is_epistemic_V[positions.tokens_BT]
        case SuppressionGate(threshold):
            assert positions.teacher_logp_BTV is not None
            assert positions.reference_logp_BTV is not None
            teacher_mass_BT = jnp.exp(losses.log_mass(positions.teacher_logp_BTV, is_epistemic_V))
            reference_mass_BT = jnp.exp(
                losses.log_mass(positions.reference_logp_BTV, is_epistemic_V)
            )
            keep_BT = reference_mass_BT - teacher_mass_BT <= threshold
    return keep_BT.astype(jnp.float32)


# ------------------------------------------------------------------------------------- the others


def _grpo(
    objective: GRPO, positions: Positions, ids: tuple[int, ...], is_epistemic_V: Array
) -> tuple[Array, Array, Metrics]:
    del ids, is_epistemic_V
    token_logp_BT = losses.take_token(positions.student_logp_BTV, positions.tokens_BT)
    ratio_BT = losses.importance_ratio(token_logp_BT, positions.behaviour_logp_BT)
    advantage_BT = jnp.broadcast_to(positions.advantage_B[:, None], ratio_BT.shape)
    loss_BT = losses.grpo_surrogate(
        ratio_BT, advantage_BT, objective.clip_low, objective.clip_high, objective.dual_clip
    )
    ratios = {
        "importance_ratio": ratio_BT,
        "clipped": (loss_BT != -advantage_BT * ratio_BT).astype(jnp.float32),
    }
    return loss_BT, jnp.ones_like(ratio_BT), ratios


def _cross_entropy(
    objective: CrossEntropy, positions: Positions, ids: tuple[int, ...], is_epistemic_V: Array
) -> tuple[Array, Array, Metrics]:
    del objective, ids, is_epistemic_V
    loss_BT = -losses.take_token(positions.student_logp_BTV, positions.tokens_BT)
    return loss_BT, jnp.ones_like(loss_BT), {}


def _observe(positions: Positions, is_epistemic_V: Array) -> Metrics:
    student, teacher, reference = positions[:3]
    student_bins = losses.epistemic_bins(student, is_epistemic_V)
    metrics = {
        "epistemic_mass_student": jnp.exp(student_bins[..., 0]),
        "entropy_student": losses.entropy(student),
    }
    if teacher is not None:
        teacher_bins = losses.epistemic_bins(teacher, is_epistemic_V)
        metrics["epistemic_mass_teacher"] = jnp.exp(teacher_bins[..., 0])
        metrics["kl_teacher"] = losses.forward_kl(student, teacher)
        metrics["mass_kl"] = losses.forward_kl(student_bins, teacher_bins)
    if reference is not None:
        log_mass_BT = losses.log_mass(reference, is_epistemic_V)
        metrics["epistemic_mass_reference"] = jnp.exp(log_mass_BT)
    return metrics
