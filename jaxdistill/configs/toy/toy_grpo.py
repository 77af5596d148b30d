"""GRPO in the toy world: the baseline that keeps its doubt.

Purpose: compare with `toy_selfdistill`: the same questions, with the verifier's reward as the only
signal. Unlike the paper's GRPO (`objective=grpo`), this one divides the advantage by the standard
deviation and averages over tokens.
Expected: accuracy rises by several points, and double checks become more frequent.
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
