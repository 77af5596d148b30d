"""Fine-tuning on correct responses that were written with the solution in view (section 4, D_sg).

Purpose: show that suppressed doubt hurts although every trace is correct. The prompts are the plain
questions; only the writing of the responses was guided.
Expected: a collapse. The paper reports avg@16 of 20.21, 12.71, 57.03 and 65.52 on AIME24, AIME25,
AMC23 and MATH500, where `sft_unguided` has 51.04, 40.00, 87.66 and 90.93.
Hardware and time: as `sft_unguided`, but training takes a sixth: responses have 2,000 tokens.
Data: the command of `sft_unguided` writes both files. Nearly all guided responses are correct:
2,700 of 350 problems. `--set steps=1500` makes as many updates as 800 rows in 15 epochs.
Command: jaxdistill train sft_guided --set experience.source=runs/guided/solution.jsonl
Deviations and choices: those of `sft_unguided`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name
from jaxdistill.configs.paper.sft_unguided import sft_unguided
from jaxdistill.models.students import R1_7B, Student


def sft_guided(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    parent = sft_unguided(student, scale)
    return replace(
        parent,
        name=run_name("sft_guided", student, scale),
        experience=replace(parent.experience, source="runs/guided/solution.jsonl"),
    )
