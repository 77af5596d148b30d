"""SDPO without the epistemic tokens: the loss skips positions whose sample is one (epi_mask).

Purpose: the simplest protection, which is tempting and weak: the sampled-token loss without the
positions at which the student wrote an epistemic token. With a loss over the vocabulary it would
protect almost nothing.
Expected: doubt falls more slowly than under `sdpo_math`, and falls all the same: in the toy world
the mask only delays it (docs/toy_study.md). No published figure for these models.
Hardware and time: as `sdpo_math`.
Command: jaxdistill train epi_mask_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: ours, not the paper's; everything else is `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import epi_mask


def epi_mask_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    return replace(
        sdpo_math(student, scale),
        name=run_name("epi_mask_math", student, scale),
        objective=epi_mask(),
    )
