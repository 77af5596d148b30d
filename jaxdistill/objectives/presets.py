"""Objectives by name, each composed of visible parts. `docs/papers.md` has the equations."""

from collections.abc import Callable
from dataclasses import replace

from jaxdistill.objectives.credit import RLCSD, RLSD
from jaxdistill.objectives.distill import Distill
from jaxdistill.objectives.divergences import ForwardKL, SampledReverseKL
from jaxdistill.objectives.importance import RolloutCorrection
from jaxdistill.objectives.literature import AnchorForks, OutcomeKL
from jaxdistill.objectives.literature_weights import StudentTeacherRatio, WrongPrefix
from jaxdistill.objectives.mixtures import Routed
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.support import FullVocabulary
from jaxdistill.objectives.targets import (
    AmplifyEpistemic,
    AnchorEpistemicMass,
    DropEpistemicSlice,
)
from jaxdistill.objectives.weights import (
    EntropyWeight,
    FlipSampledEpistemic,
    MaskSampledEpistemic,
    SuppressionGate,
)


def sdpo() -> Distill:
    """The paper's self-distillation, which suppresses doubt."""
    return Distill(rollout_correction=RolloutCorrection())


def opsd() -> Distill:
    """Forward KL over the whole vocabulary, each token's term clipped at 0.05 nats; token mean."""
    return replace(
        sdpo(),
        divergence=ForwardKL(entry_clip=0.05),
        support=FullVocabulary(),
        reduction="token",
    )


def epi_mask() -> Distill:
    """The sampled-token loss without the positions whose sampled token is epistemic.

    With `sdpo`'s divergence the same mask protects almost nothing; see `MaskSampledEpistemic`.
    """
    return replace(sdpo(), divergence=SampledReverseKL(), weights=(MaskSampledEpistemic(),))


def epi_gate() -> Distill:
    """`sdpo` without the positions where the teacher would suppress doubt."""
    return replace(sdpo(), weights=(SuppressionGate(),))


def epi_slice() -> Distill:
    """`sdpo` restricted to the other tokens: epistemic logits get no gradient."""
    return replace(sdpo(), target=DropEpistemicSlice())


def epi_anchor() -> Distill:
    """`sdpo` towards a teacher whose epistemic mass is the reference's."""
    return replace(sdpo(), target=AnchorEpistemicMass())


def epi_floor() -> Distill:
    """`sdpo` towards a teacher whose epistemic mass is at least the reference's."""
    return replace(sdpo(), target=AnchorEpistemicMass(mode="floor"))


def epi_amplify() -> Distill:
    """`sdpo` with half a nat more doubt than the reference's wherever the teacher has less."""
    return replace(sdpo(), target=AmplifyEpistemic(0.5, base="floor"))


def anti_e() -> Distill:
    """The sampled-token loss with its sign flipped on epistemic tokens, which reinforces doubt.

    A token that the student finds more likely than the reference does is not reinforced further.
    """
    flip = FlipSampledEpistemic(up_to_reference=True)
    return replace(sdpo(), divergence=SampledReverseKL(), weights=(flip,))


def ad_opsd() -> Distill:
    """`sdpo` towards the reference where the student is undecided and the teacher disagrees.

    AD-OPSD's target (arXiv 2607.10805) under `sdpo`'s divergence, so that the two differ in the
    target alone; the paper's own divergence was not seen (`AnchorForks`).
    """
    return replace(sdpo(), target=AnchorForks())


def og_opsd() -> Distill:
    """Forward KL on correct completions, reverse KL on a prefix of each incorrect one.

    After OG-OPSD (arXiv 2610.05070); see `WrongPrefix` for what was not seen of it.
    """
    return replace(sdpo(), divergence=OutcomeKL(), weights=(WrongPrefix(),))


def renio() -> Distill:
    """`sdpo` with more weight on completions that the teacher finds unlikely.

    ReNIO's weight (arXiv 2606.23104) under `sdpo`'s divergence: `StudentTeacherRatio`.
    """
    return replace(sdpo(), weights=(StudentTeacherRatio(),))


def rlsd() -> GRPO:
    """GRPO with per-token credit scaled by the teacher's likelihood ratio."""
    return GRPO(credit=RLSD(), rollout_correction=RolloutCorrection())


def rlcsd() -> GRPO:
    """GRPO with credit from the contrast of correct and incorrect contexts, where they differ."""
    return GRPO(credit=RLCSD(), rollout_correction=RolloutCorrection())


def srpo() -> Routed:
    """GRPO on correct samples; `sdpo` on incorrect ones, weighted down where H(T) is high."""
    return Routed(replace(sdpo(), weights=(EntropyWeight(),)), grpo())


def grpo() -> GRPO:
    """The paper's reinforcement-learning baseline, with its decoupled rollout correction."""
    return GRPO(rollout_correction=RolloutCorrection())


PRESETS: dict[str, Callable[[], Distill | GRPO | Routed]] = {
    preset.__name__: preset
    for preset in (
        sdpo,
        opsd,
        epi_mask,
        epi_gate,
        epi_slice,
        epi_anchor,
        epi_floor,
        epi_amplify,
        anti_e,
        ad_opsd,
        og_opsd,
        renio,
        rlsd,
        rlcsd,
        srpo,
        grpo,
    )
}
