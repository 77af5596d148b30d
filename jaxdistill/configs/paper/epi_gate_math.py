"""SDPO without the positions where the teacher would suppress doubt (epi_gate).

Purpose: drop the loss where the teacher's epistemic mass is below the initial model's, and learn
everything else from the teacher.
Expected: length and epistemic words stay near the initial model's and AIME24 is kept, as in the toy
world (docs/toy_study.md). No published figure for these models.
Hardware and time: as `sdpo_math`; the initial model is scored without the solution too.
Command: jaxdistill train epi_gate_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: ours, not the paper's; everything else is `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import epi_gate


def epi_gate_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    return replace(
        sdpo_math(student, scale),
        name=run_name("epi_gate_math", student, scale),
        objective=epi_gate(),
    )
