r"""Fine-tuning on the model's own correct responses, written without help (section 4, D_ug).

Purpose: the control of `sft_guided`: traces of the same problems, all of them correct, with the
doubt that the model has by itself.
Expected: nearly nothing changes. The paper reports avg@16 of 51.04, 40.00, 87.66 and 90.93 on
AIME24, AIME25, AMC23 and MATH500, from 54.79, 37.92, 89.06 and 92.19.
Hardware and time: `--scale paper`, 4 or 8 GPUs of 80 GB: about 4 hours on 8 H200 (estimate).
`--scale one_gpu`, one GPU of 80 to 141 GB with DeepSeek-R1-Distill-Qwen-1.5B or Qwen3-1.7B: about 2
hours on an H200 for 800 responses of 12,000 tokens, 15 times at 19,700 tokens/s, and about 2.5
hours for each of the two evaluations, 9,600 responses of 5,000 tokens at 5,550 tokens/s (estimate;
`--set evaluation.samples=4` makes a quarter of them).
Data: jaxdistill guide MODEL --data tfds:dapo_math_17k --contexts none,solution --problems 350 \
  --out runs/guided
  (of 350 problems at the paper's mean score of 0.30 about 840 responses are correct); then
  jaxdistill data prepare aime24, and the same for aime25, amc23 and math500
Command: jaxdistill train sft_unguided --set experience.source=runs/guided/none.jsonl
Deviations: no row is cut. The paper's cut-off is unknown; 16,384 tokens, its authors' default
elsewhere, would cut the end of the longest traces, which teaches not to stop.
Chosen: everything but the data, since the paper's settings were not published: those of LIMO (full
fine-tuning, AdamW, 5e-6, cosine, no warm-up, 15 epochs, batch 8), without weight decay. one_gpu
changes the student alone.
"""

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.sdpo_math import AIME24, AMC23, at_scale, evaluated, run_name
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.students import R1_7B, Student
from jaxdistill.objectives import CrossEntropy
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.traces import Traces

AIME25 = Split("aime25", MathTask("tfds:aime25"))
MATH500 = Split("math500", MathTask("tfds:math500"))


def sft_unguided(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    at_scale(student, scale)  # refuses a student that is too large
    return RunConfig(
        name=run_name("sft_unguided", student, scale),
        model=Pretrained(student.model),
        expected=student.expected,
        experience=Traces(
            "runs/guided/none.jsonl",
            correct=True,
            batch_size=8,
            epochs=15,
            # Section 3's longest response, 32,768 tokens, and its prompt.
            max_tokens=student.prompt_tokens + 32_768,
            student_thinking=student.thinking,
        ),
        objective=CrossEntropy(),
        optimizer=Optimizer(peak_lr=5e-6, warmup_steps=0, schedule="cosine", weight_decay=0.0),
        evaluation=Evaluation(
            splits=(AIME24, AIME25, AMC23, MATH500),
            samples=16,
            sampling=evaluated(student, student.evaluation_tokens),
            evaluation_thinking=student.evaluation_thinking,
        ),
        rollouts_every=0,
    )
