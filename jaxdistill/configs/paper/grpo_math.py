"""GRPO on DAPO mathematics: the paper's reinforcement-learning baseline (section 5).

Purpose: the same questions, samples and updates as `sdpo_math`, with the grader's verdict as the
only signal: advantages less the group's mean, clipped at 0.2 and 0.28, dual clip 3, no KL term.
Expected: AIME24 is kept or rises, and with it the use of epistemic words. The paper reports 56.0
against 54.7 for DeepSeek-R1-Distill-Qwen-7B, AMC23 91.1 against 89.3.
Hardware and time: as `sdpo_math`, without the teacher's pass.
Command: jaxdistill train grpo_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: those of `sdpo_math` that concern grading, updates and evaluations.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import grpo
from jaxdistill.tasks.contexts import NoContext


def grpo_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    parent = sdpo_math(student, scale)
    return replace(
        parent,
        name=run_name("grpo_math", student, scale),
        experience=replace(parent.experience, context=NoContext()),
        objective=grpo(),
        optimizer=replace(parent.optimizer, peak_lr=1e-6),
    )
