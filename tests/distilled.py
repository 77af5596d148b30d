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
from jaxdistill.objectives.positions import epistemic_of
from jaxdistill.objectives.targets import Pair

EPISTEMIC = epistemic_of(IDS, V)

FULL = Distill(support=FullVocabulary(), importance_clip=None)


def with_divergence(divergence, **changes):
    return dataclasses.replace(FULL, divergence=divergence, **changes)


def target_of(choice, given=None):
    edited = choice.edit(positions() if given is None else given, EPISTEMIC)
    return edited.target_logp_BTV if isinstance(edited, Pair) else edited


# ------------------------------------------------------------------------------ of the whole batch


def factor_of(objective, loss_weight_BT, given=None):
    given = positions() if given is None else given
    scores = objective.batch_scores(given, EPISTEMIC)
    return np.asarray(objective.batch_factor(scores, loss_weight_BT))
