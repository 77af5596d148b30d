"""SDPO on DAPO mathematics with a teacher that follows the student (section 5.4).

Purpose: compare the frozen teacher of `sdpo_math` with an exponential moving average of the student
at rate 0.05, which moves once per step.
Expected: responses shorten faster and AIME24 falls further than with the frozen teacher: each
generation of the teacher is terser than the last (the paper gives no number).
Hardware and time: as `sdpo_math`; the teacher's own float32 weights take 4 bytes per parameter.
Command: jaxdistill train sdpo_math_ema --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: those of `sdpo_math`. The teacher is in the checkpoints; the paper's is not.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.training.teachers import EMA


def sdpo_math_ema(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    return replace(
        sdpo_math(student, scale),
        name=run_name("sdpo_math_ema", student, scale),
        teacher=EMA(rate=0.05),
    )
