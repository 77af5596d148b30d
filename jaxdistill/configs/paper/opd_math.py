"""On-policy distillation from a larger model on mathematics, without any privileged context.

Purpose: the baseline of section 5's question: what a student learns from a better model that sees
no more than itself. The teacher is Qwen3-8B, and the loss the reverse KL over the whole vocabulary.
With `--set 'experience.context=Solution()'` the larger teacher is privileged too.
Expected: accuracy rises towards the teacher's, and neither length nor epistemic words fall as under
`sdpo_math` (2607.05184 reports that on-policy distillation helps where a privileged one does not).
Hardware and time: `--scale paper`, 8 GPUs of 80 GB: about 5 hours on 8 H200 (estimate: an eighth of
the 20 hours of `sdpo_math`, whose rows it has an eighth of, doubled for the teacher). `--scale
one_gpu`, one GPU of 80 to 141 GB: about two hours on an H200 (the same estimate); the teacher adds
16 GB of weights.
Data: jaxdistill data prepare dapo_math_17k, and the same for aime24 and amc23
Command: jaxdistill train opd_math --student Qwen3-1.7B --scale one_gpu
  another teacher of the same tokenizer: --set "teacher=Fixed('Qwen/Qwen3-4B')"
Chosen: one response per question and one update per batch, since every row is distilled whatever
its verdict; all else is `sdpo_math`.
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import run_name, sdpo_math
from jaxdistill.models.students import QWEN3_1_7B, Student
from jaxdistill.objectives import Distill, FullVocabulary, ReverseKL
from jaxdistill.tasks.contexts import NoContext
from jaxdistill.training.teachers import Fixed


def opd_math(student: Student = QWEN3_1_7B, scale: str = "paper") -> RunConfig:
    parent = sdpo_math(student, scale)
    return replace(
        parent,
        name=run_name("opd_math", student, scale),
        experience=replace(parent.experience, rollouts=1, updates=1, context=NoContext()),
        objective=Distill(support=FullVocabulary(), divergence=ReverseKL(), reduction="token"),
        teacher=Fixed("Qwen/Qwen3-8B"),
    )
