"""SDPO towards a teacher whose epistemic mass is the initial model's (epi_anchor).

Purpose: learn from the teacher what to write, and from the initial model how often to doubt.
Expected: the epistemic mass stays where it was and most of the accuracy with it, as in the toy
world (docs/toy_study.md). No published figure for these models.
Hardware and time: as `sdpo_math`; the initial model is scored without the solution too.
Command: jaxdistill train epi_anchor_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: ours, not the paper's; everything else is `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import epi_anchor


def epi_anchor_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    return replace(
        sdpo_math(student, scale),
        name=run_name("epi_anchor_math", student, scale),
        objective=epi_anchor(),
    )
