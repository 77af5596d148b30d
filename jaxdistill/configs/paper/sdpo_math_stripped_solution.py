r"""SDPO on DAPO mathematics with the solution shown without its thinking (c = s\think).

Purpose: the poorer of the paper's two contexts. The teacher sees what a correct response says after
its thinking, on average 640 of 13,054 tokens in the paper.
Expected: as `sdpo_math`, but weaker: shorter responses with fewer epistemic words, and AIME24 below
the initial model's (the paper gives no number).
Hardware and time: as `sdpo_math`; teacher prompts are shorter.
Command: jaxdistill train sdpo_math_stripped_solution --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu
Deviations: those of `sdpo_math`. As in the paper's code, a response without a closing think tag is
shown whole; a student without thinking makes this recipe the same as `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.tasks.contexts import SolutionWithoutThinking


def sdpo_math_stripped_solution(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    parent = sdpo_math(student, scale)
    return replace(
        parent,
        name=run_name("sdpo_math_stripped_solution", student, scale),
        experience=replace(parent.experience, context=SolutionWithoutThinking()),
    )
