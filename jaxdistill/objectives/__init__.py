"""What does the student minimise? Small frozen configs, composed into one function of positions.

May import `losses`, `tasks` and everything below them, but never `config` or a network's code.

A self-distillation loss is composed of a target distribution, a divergence, a support (the part of
the vocabulary that is compared), weights per position, and terms that are added; a variant is
another choice of one of these. `presets` names the usual compositions, and
`docs/add_an_objective.md` explains how to add a choice.

Axes: B rows, T completion positions of a chunk, V vocabulary, C candidates of a support. S, T and R
in formulas are the distributions of student, teacher and reference, H an entropy, E the set of
epistemic tokens, and m_S, m_T, m_R the probability mass on E. Distances and entropies are in nats.
"""

from jaxdistill.objectives.checking import check_objective
from jaxdistill.objectives.compose import (
    CrossEntropy,
    Objective,
    ObjectiveFn,
    Reduced,
    Scores,
    distill_of,
    factors,
    make_objective,
    make_scores,
    needs_contrast,
    needs_reference,
    needs_teacher,
    needs_whole_batch,
    policy_gradient_of,
    reduced,
)
from jaxdistill.objectives.credit import RLCSD, RLSD, EqualCredit
from jaxdistill.objectives.distill import Distill
from jaxdistill.objectives.divergences import (
    Comparison,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SampledReverseKL,
)
from jaxdistill.objectives.importance import RolloutCorrection
from jaxdistill.objectives.literature import (
    AntiSD,
    Barycentre,
    ClipPosition,
    Contrasted,
    EntropySwitchedKL,
    FixedEpistemicMass,
    MassPenalty,
    Purified,
    ReferenceK3,
    ReferenceKL,
    SampledK3,
    ScoreFunctionReverseKL,
    SmoothClip,
    SuppressUnlikely,
)
from jaxdistill.objectives.literature_weights import (
    AmplifySampledEpistemic,
    ContrastMask,
    DirectionAdaptive,
    EntropyGate,
    ForkingTokens,
    PositionSlope,
    SampledSuppressionGate,
    SkipFirst,
    TokenImportance,
)
from jaxdistill.objectives.mixtures import Mixed, Routed
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.positions import Epistemic, Positions, Rows, Sampled
from jaxdistill.objectives.presets import (
    PRESETS,
    anti_e,
    epi_amplify,
    epi_anchor,
    epi_floor,
    epi_gate,
    epi_mask,
    epi_slice,
    grpo,
    opsd,
    rlcsd,
    rlsd,
    sdpo,
    srpo,
)
from jaxdistill.objectives.reduction import PerTokens, Reduction, loss_weights
from jaxdistill.objectives.support import FullVocabulary, TopC
from jaxdistill.objectives.targets import (
    AmplifyEpistemic,
    AnchorEpistemicMass,
    DropEpistemicSlice,
    Pair,
    TeacherTarget,
)
from jaxdistill.objectives.weights import (
    EntropyWeight,
    FlipSampledEpistemic,
    MaskSampledEpistemic,
    SuppressionGate,
)

__all__ = [
    "GRPO",
    "PRESETS",
    "RLCSD",
    "RLSD",
    "AmplifyEpistemic",
    "AmplifySampledEpistemic",
    "AnchorEpistemicMass",
    "AntiSD",
    "Barycentre",
    "ClipPosition",
    "Comparison",
    "ContrastMask",
    "Contrasted",
    "CrossEntropy",
    "DirectionAdaptive",
    "Distill",
    "DropEpistemicSlice",
    "EntropyGate",
    "EntropySwitchedKL",
    "EntropyWeight",
    "Epistemic",
    "EqualCredit",
    "FixedEpistemicMass",
    "FlipSampledEpistemic",
    "ForkingTokens",
    "ForwardKL",
    "FullVocabulary",
    "JensenShannon",
    "MaskSampledEpistemic",
    "MassPenalty",
    "Mixed",
    "Objective",
    "ObjectiveFn",
    "Pair",
    "PerTokens",
    "PositionSlope",
    "Positions",
    "Purified",
    "Reduced",
    "Reduction",
    "ReferenceK3",
    "ReferenceKL",
    "ReverseKL",
    "RolloutCorrection",
    "Routed",
    "Rows",
    "Sampled",
    "SampledK3",
    "SampledReverseKL",
    "SampledSuppressionGate",
    "ScoreFunctionReverseKL",
    "Scores",
    "SkipFirst",
    "SmoothClip",
    "SuppressUnlikely",
    "SuppressionGate",
    "TeacherTarget",
    "TokenImportance",
    "TopC",
    "anti_e",
    "check_objective",
    "distill_of",
    "epi_amplify",
    "epi_anchor",
    "epi_floor",
    "epi_gate",
    "epi_mask",
    "epi_slice",
    "factors",
    "grpo",
    "loss_weights",
    "make_objective",
    "make_scores",
    "needs_contrast",
    "needs_reference",
    "needs_teacher",
    "needs_whole_batch",
    "opsd",
    "policy_gradient_of",
    "reduced",
    "rlcsd",
    "rlsd",
    "sdpo",
    "srpo",
]
