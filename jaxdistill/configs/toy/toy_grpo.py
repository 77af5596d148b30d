"""GRPO in the toy world: the baseline that keeps doubting.

Purpose: the comparison to `toy_selfdistill`; same questions, same samples, a verifier's reward.
Unlike the paper's (`objective=grpo`) it divides by the standard deviation and averages tokens.
Expected: accuracy rises by several points, double checks become more frequent.
Hardware and time: 2 CPU cores, about a minute.
Command: jaxdistill train toy_grpo --run-dir runs/grpo
"""

import dataclasses

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy.toy_selfdistill import toy_selfdistill
from jaxdistill.objectives import GRPO
from jaxdistill.tasks.contexts import NoContext


def toy_grpo() -> RunConfig:
    parent = toy_selfdistill()
    return dataclasses.replace(
        parent,
        name="toy_grpo",
        objective=GRPO(normalize_std=True, reduction="token"),
        experience=dataclasses.replace(parent.experience, context=NoContext()),
        optimizer=dataclasses.replace(parent.optimizer, peak_lr=3e-4),
    )
