r"""Self-distillation (SDPO) on DAPO mathematics, as in section 5 of the paper.

Purpose: measure what a teacher that sees a correct solution does to reasoning. Every row is
distilled towards the initial model with another correct response to its question in the context
(c = s). The other recipes of this folder change this one in visible lines.
Expected: the training reward rises and responses become much shorter, with fewer epistemic words;
AIME24 falls. The paper reports relative drops of 40.7 % for DeepSeek-R1-Distill-Qwen-7B (54.7 at
the start), 12.1 % for Qwen3-8B and 45.9 % for Qwen3-1.7B with thinking; without thinking Qwen3-8B
goes from 0.25 to 0.23 on AIME24, from 0.67 to 0.73 on AMC23, and its length halves.
Hardware and time: `--scale paper`, the paper's 4 B200 or 8 GPUs of 80 GB: about 20 hours on 8 H200
(estimate, responses of 10,000 tokens). `--scale one_gpu`, one GPU of 80 to 141 GB with Qwen3-1.7B
or DeepSeek-R1-Distill-Qwen-1.5B: about 8 hours on an H200 (estimate: 100 steps of 256 responses of
5,000 tokens on average, sampled at 5,550 and trained at 19,700 tokens/s, the rates of
benchmarks/README.md), and half an hour of evaluations.
Data: jaxdistill data prepare dapo_math_17k, and the same for aime24 and amc23
Command: jaxdistill train sdpo_math --student Qwen3-8B
  or --student Qwen3-1.7B --scale one_gpu; afterwards
  jaxdistill eval RUN --data tfds:aime24 --data tfds:amc23 --data tfds:aime25 --data tfds:math500 \
  --samples 16 --temperature 0.6 --top-p 0.95 --max-new-tokens 38912
  (0.7 and 0.8 for a student without thinking; --thinking or --no-thinking for Qwen3)
Deviations: the box of an answer may stand anywhere after the thinking, in the paper in the last 100
characters (`experience.task.last_chars=100`), and one grader serves training and evaluation. The
demonstration is drawn from the correct siblings, in the paper the first of a batch sorted by length
(`experience.demonstration_choice`), and never one that was cut off, correct or not
(`experience.cut_demonstrations`). A demonstration that is too long is cut itself, in the paper the
finished prompt, with its instruction, at 22,528 tokens. A teacher's sequence ends at the model's
positions: 40,960 for Qwen3, where the paper's could have 43,008. Updates are of whole questions in
their order, in the paper of a batch sorted by length. Evaluations during training add the start and
AMC23, and checkpoints are ten minutes apart and not ten steps.
`--set track_reference=true` adds the initial model's epistemic mass to the metrics, for another
forward pass.
Chosen: one_gpu divides the questions by 8 and the lengths by 2, and keeps rollouts, updates, rates
and steps.
"""

from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.students import R1_7B, STUDENTS, Student
from jaxdistill.objectives import sdpo
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.teachers import Frozen

AIME24 = Split("aime24", MathTask("tfds:aime24"))
AMC23 = Split("amc23", MathTask("tfds:amc23"))

# {scale: (the paper's questions divided by, its lengths divided by)}
SCALES = {"paper": (1, 1), "one_gpu": (8, 2)}
# float32 weights, gradient and moments take 16 bytes a parameter: 29 GB of 80 for 1.8 billion.
ONE_GPU_BILLIONS = 2.0


def sdpo_math(student: Student = R1_7B, scale: str = "paper") -> RunConfig:
    fewer, shorter = at_scale(student, scale)
    return RunConfig(
        name=run_name("sdpo_math", student, scale),
        model=Pretrained(student.model),
        expected=student.expected,
        experience=OnPolicy(
            task=MathTask("tfds:dapo_math_17k"),
            questions=256 // fewer,
            rollouts=8,
            updates=2,
            sampling=Sampling(temperature=1.0, max_new_tokens=student.response_tokens // shorter),
            context=Solution(),
            max_prompt_tokens=student.prompt_tokens // shorter,
            max_demonstration_tokens=student.response_tokens // shorter,
            student_thinking=student.thinking,
            teacher_thinking=student.teacher_thinking,
        ),
        objective=sdpo(),
        teacher=Frozen(),
        steps=100,
        optimizer=Optimizer(peak_lr=1e-5, warmup_steps=10),
        evaluation=Evaluation(
            splits=(AIME24, AMC23),
            every=10,
            samples=1,
            sampling=evaluated(student, student.response_tokens // shorter),
            evaluation_thinking=student.evaluation_thinking,
        ),
    )


def at_scale(student: Student, scale: str) -> tuple[int, int]:
    """The divisors of batches and of lengths. Raises UserError for another scale or size."""
    if scale not in SCALES:
        raise UserError(f"`--scale` must be {' or '.join(SCALES)}, got {scale!r}")
    if scale == "one_gpu" and student.billions > ONE_GPU_BILLIONS:
        fitting = [name for name, s in STUDENTS.items() if s.billions <= ONE_GPU_BILLIONS]
        raise UserError(
            f"`--scale one_gpu` is for students of up to {ONE_GPU_BILLIONS:g} billion parameters, "
            f"and {student.name} has {student.billions:g}; use --student {' or '.join(fitting)}"
        )
    return SCALES[scale]


def run_name(recipe: str, student: Student, scale: str) -> str:
    """The run's name, and so its default folder: `sdpo_math-Qwen3-1.7B-one_gpu`."""
    return "-".join([recipe, student.name, *([] if scale == "paper" else [scale])])


def evaluated(student: Student, tokens: int) -> Sampling:
    """The student's sampling in evaluations."""
    return Sampling(temperature=student.temperature, top_p=student.top_p, max_new_tokens=tokens)
