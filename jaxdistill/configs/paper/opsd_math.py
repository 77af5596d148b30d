"""OPSD (arXiv 2601.18734) on mathematics with reference solutions (the paper's appendix E).

Purpose: self-distillation as OPSD does it: one short sample per question, a teacher that sees the
data set's own solution, forward KL over the whole vocabulary with clipped terms.
Expected: with thinking in both roles accuracy, length and epistemic words fall steadily; a student
without thinking and a teacher with it gain at first and then decline (the paper gives no number).
OPSD's own page reports AIME24 between 47.5 and 51.7 over 500 steps, from 47.7, for Qwen3-1.7B.
Hardware and time: `--scale paper`, 8 GPUs of 80 GB: OPSD reports 3 hours on 8 H100. `--scale
one_gpu`, one GPU of 80 to 141 GB: about an hour on an H200 (estimate: 25 minutes of it for 11
evaluations of 70 responses of 10,000 tokens at 5,550 tokens/s).
Data: jaxdistill data prepare aime24, and the same for amc23; the questions come from the hub
Command: jaxdistill train opsd_math
  for the mixed roles --student Qwen3-1.7B-think-off --set experience.teacher_thinking=true
Deviations: all weights are trained, at a rate that is chosen, where OPSD trains LoRA at 2e-4; the
teacher's prompt has the wording of `sdpo_math`, and both roles use the chat template.
Chosen: 100 steps; the settings of samples, batch and data are those of OPSD's scripts
(siyan-zhao/OPSD at 590ec26, run_opsd_1b.sh), since appendix E's were not published. The batch fits
one GPU, so one_gpu changes evaluations alone.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import QWEN3_1_7B, Student
from jaxdistill.objectives import opsd
from jaxdistill.sampling import Sampling
from jaxdistill.tasks.tasks import MathTask


def opsd_math(student: Student = QWEN3_1_7B, scale: str = "paper") -> RunConfig:
    parent = sdpo_math(student, scale)
    return replace(
        parent,
        name=run_name("opsd_math", student, scale),
        experience=replace(
            parent.experience,
            # Rows whose solution has no box have no answer to grade by.
            task=MathTask("hub:siyanzhao/Openthoughts_math_30k_opsd", bad_rows="skip"),
            questions=32,
            rollouts=1,
            updates=1,
            sampling=Sampling(temperature=1.1, top_p=0.95, top_k=20, max_new_tokens=2048),
            demonstration="reference",
            max_prompt_tokens=student.prompt_tokens,
            max_demonstration_tokens=16_384,
        ),
        objective=opsd(),
    )
