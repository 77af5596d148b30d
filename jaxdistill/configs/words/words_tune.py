"""Three rates for each of the first methods in words, on problems that no other table reports.

Purpose: a fair rate for each method of `words_study`'s first five but SDPO, which is compared at
the gate's rate, as in the toy world. The rule: the highest mean of the two accuracies of the
report's tables wins, on the pools of validation, of three and of four numbers; of equal ones the
smaller rate. One seed, 30 steps, and the grid is not extended, so that a best rate at its edge is
said to be there. `words_study --set optimizer.peak_lr=RATE` has one rate for all.
Expected: rates near 5e-5.
Hardware and time: one H200 and SmolLM2-135M, 13 runs, 15 minutes (estimate).
Data: the run of `words_base` in runs/words_base
Command: jaxdistill study words_tune [--student RUN]
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import configured, usual
from jaxdistill.configs.words.words_grpo import words_grpo
from jaxdistill.configs.words.words_sdpo import BASE, words_sdpo
from jaxdistill.configs.words.words_study import FIRST, WORLD, alone, base
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.models.students import Student
from jaxdistill.run.arms import Arm
from jaxdistill.run.search import Point
from jaxdistill.run.study import Study
from jaxdistill.tasks.words.task import WordsTask

# Half an order of magnitude apart, around the rate of `words_sdpo`.
RATES = (5e-5, 1.5e-4, 1.5e-5)
STEPS = 30
SPLITS = (
    Split("validation", WordsTask(pool="validation", count=128)),
    Split("validation_ood", WordsTask(pool="validation", numbers=4, count=64)),
)


def words_tune(profile: str = "quick", student: Student = BASE) -> Study:
    if profile != "quick":
        raise UserError(f"`--profile` must be quick, got {profile!r}")
    start = base(student)
    arms = (replace(start, config=measured(start.config)), *tried(student))
    return Study(name="words_tune", profile=profile, arms=arms, workers=1)


def tried(student: Student) -> Iterator[Arm]:
    """Rate by rate, so that a study that is not finished compares the methods at one."""
    sdpo, grpo = words_sdpo(student), words_grpo(student)
    for rate in RATES:
        for name in FIRST[1:]:
            run = replace(configured(name, sdpo, grpo, Point(rate, usual(name))), steps=STEPS)
            config = measured(replace(alone(run, 0), export=False))
            yield Arm(world=WORLD, method=f"{name}-peak_lr={rate:g}", config=config, may_stop=True)


def measured(config: RunConfig) -> RunConfig:
    """Measured at its end, and only on what the rule reads."""
    evaluation = replace(config.evaluation, splits=SPLITS, every=0)
    return replace(config, evaluation=evaluation, rollouts_every=0, rollouts_token_ids=False)
