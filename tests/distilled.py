"""Losses of one distillation objective, its targets and its factors."""

import dataclasses

import numpy as np
from made_positions import (
    IDS,
    V,
    positions,
)

from jaxdistill.objectives import (
    Distill,
    FullVocabulary,
)
from jaxdistill.objectives.distill import distill_factor, distill_scores
from jaxdistill.objectives.positions import epistemic_of
from jaxdistill.objectives.targets import edited

EPISTEMIC = epistemic_of(IDS, V)

FULL = Distill(support=FullVocabulary(), importance_clip=None)


def with_divergence(divergence, **changes):
    return dataclasses.replace(FULL, divergence=divergence, **changes)


def target_of(choice, given=None):
    return edited(choice, positions() if given is None else given, EPISTEMIC).target_logp_BTV


# ------------------------------------------------------------------------------ of the whole batch


def factor_of(objective, loss_weight_BT, given=None):
    given = positions() if given is None else given
    scores = distill_scores(objective, given, EPISTEMIC)
    return np.asarray(distill_factor(objective, scores, loss_weight_BT))
