"""SDPO with half a nat more doubt than the initial model's (epi_amplify).

Purpose: the opposite of suppression: wherever the teacher has less epistemic mass than the initial
model, the target has more than that model.
Expected: more epistemic words and longer responses; whether accuracy gains is the question of this
run. In the toy world doubt rises a little. No published figure for these models.
Hardware and time: as `sdpo_math`; the initial model is scored without the solution too.
Command: jaxdistill train epi_amplify_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: ours, not the paper's; everything else is `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import epi_amplify


def epi_amplify_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    return replace(
        sdpo_math(student, scale),
        name=run_name("epi_amplify_math", student, scale),
        objective=epi_amplify(),
    )
