"""SDPO and GRPO on 1, 8, 64, 128 and 512 distinct problems (section 6.2, task coverage).

Purpose: find out how the number of training problems decides whether suppressed doubt pays. Every
arm is scored on its own training problems (split train_N) and out of domain (aime24, math500).
Expected: up to 128 problems SDPO reaches a high training score quickly, with responses about eight
times shorter; at 512 it lowers the training score; out of domain it is below the initial model
throughout, most with few problems. GRPO gains with the number of problems. The paper has figures
without numbers.
Hardware and time: profile full, `--scale paper`: 8 GPUs of 80 GB, about 26 hours on 8 H200, 15 of
them for evaluations (estimate, responses of 1,500 tokens). `--scale one_gpu` with
Qwen3-1.7B-think-off: about 24 hours on an H200 (estimate at the rates of benchmarks/README.md).
Profile quick: SDPO on 8 and on 512 problems, a fifth of that. Each arm keeps its last checkpoint,
12 bytes per parameter; `--set save_checkpoints=false` keeps none, and an arm that is stopped then
starts again.
Data: jaxdistill data prepare coverage/1, and the same for coverage/8, coverage/64, coverage/128,
coverage/512, aime24 and math500
Command: jaxdistill study coverage_math --profile full
  or --student Qwen3-1.7B-think-off --scale one_gpu
Deviations: those of `sdpo_math`. Evaluated responses have at most 20,480 tokens; the paper's
evaluation code allows 38,912.
Chosen: 100 steps, in the paper 100 to 150; 64 rows of each training set are scored; one_gpu divides
the questions and the lengths as in `sdpo_math` and draws 4 instead of 16 samples per question.
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.paper.grpo_math import grpo_math
from jaxdistill.configs.paper.sdpo_math import AIME24, SCALES, sdpo_math
from jaxdistill.configs.paper.sft_unguided import MATH500
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.models.students import QWEN3_8B_THINK_OFF, Student
from jaxdistill.run.study import Arm, Study
from jaxdistill.tasks.tasks import MathTask

PROBLEMS = (1, 8, 64, 128, 512)
METHODS = {"sdpo": sdpo_math, "grpo": grpo_math}
PROFILES = {"quick": ((8, 512), ("sdpo",)), "full": (PROBLEMS, ("sdpo", "grpo"))}
OUT_OF_DOMAIN = (AIME24, MATH500)


def coverage_math(
    profile: str = "quick", student: Student = QWEN3_8B_THINK_OFF, scale: str = "paper"
) -> Study:
    if profile not in PROFILES:
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    return Study(
        name="coverage_math",
        profile=profile,
        arms=tuple(arms(*PROFILES[profile], student=student, scale=scale)),
        workers=1,
    )


def arms(
    problems: tuple[int, ...], methods: tuple[str, ...], *, student: Student, scale: str
) -> Iterator[Arm]:
    """The initial model on every split, then each method on each number of problems."""
    parent = on_problems(sdpo_math(student, scale), problems[-1], scale)
    seen = tuple(in_domain(number) for number in problems)
    evaluation = replace(parent.evaluation, splits=(*seen, *OUT_OF_DOMAIN))
    base = replace(parent, name="base", steps=0, evaluation=evaluation, export=False)
    yield Arm(world="dapo", method="base", config=base)
    for method in methods:
        for number in problems:
            run = on_problems(METHODS[method](student, scale), number, scale)
            run = replace(
                run,
                name=f"{method}-{number}",
                # The arm of the base measures what every run starts from.
                evaluation=replace(run.evaluation, at_start=False),
                export=False,
                keep_checkpoints=1,
            )
            labels = (("coverage", number),)
            yield Arm(world="dapo", method=method, config=run, labels=labels)


def in_domain(number: int) -> Split:
    # The files of 1 and 8 problems repeat them to 64 rows, so that every set has 64.
    return Split(f"train_{number}", MathTask(f"tfds:coverage/{number}", limit=64))


def on_problems(config: RunConfig, number: int, scale: str) -> RunConfig:
    """The run on a training set of `number` problems, 64 questions per step."""
    fewer, _ = SCALES[scale]
    return replace(
        config,
        experience=replace(
            config.experience, task=MathTask(f"tfds:coverage/{number}"), questions=64 // fewer
        ),
        evaluation=replace(
            config.evaluation,
            splits=(in_domain(number), *OUT_OF_DOMAIN),
            samples=16 if scale == "paper" else 4,
        ),
    )
