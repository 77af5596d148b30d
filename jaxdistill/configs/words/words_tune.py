"""Tune the learning rate of each of the first methods in words, on problems no other table reports.

Purpose: a fair rate for each method of `words_study`'s first five but SDPO, which is compared at
the gate's rate, as in the toy world. The rule is that of `toy_tune` (`run.search` is its code) with
the rate alone: three rates, a knob at its usual value, one seed, 30 steps. The highest mean of the
accuracies on problems of three and of four numbers after the last step wins, on the pools of
validation, which no table reports; of equal ones the smaller rate. A best rate at the edge extends
the rates, at most twice and not below 5e-6. It is less than the toy world's search: one seed of 128
and 64 problems with four answers each tells rates apart that differ by about 4 points.
Expected: rates near 5e-5.
It writes `tuned.json` into its folder. No study reads it: `words_study` compares all at one rate,
which `--set optimizer.peak_lr=RATE` changes.
Hardware and time: one H200 and SmolLM2-135M, 13 runs and at most 8 more, 15 to 25 minutes
(estimate).
Data: the run of `words_base` in runs/words_base
Command: jaxdistill study words_tune [--student RUN] [--time-limit 9m]
"""

from dataclasses import replace
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import METHODS, configured, usual
from jaxdistill.configs.words.words_grpo import words_grpo
from jaxdistill.configs.words.words_sdpo import BASE, words_sdpo
from jaxdistill.configs.words.words_study import FIRST, WORLD, alone, base
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.models.students import Student
from jaxdistill.run.search import Candidate, Knob, Point, Search
from jaxdistill.run.study import Study
from jaxdistill.tasks.words.task import WordsTask

# Half an order of magnitude apart, around the rate of `words_sdpo`.
RATES = (5e-5, 1.5e-4, 1.5e-5)
LADDER = (5e-6, 1.5e-5, 5e-5, 1.5e-4, 5e-4, 1.5e-3)
STEPS = 30
SPLITS = (
    Split("validation", WordsTask(pool="validation", count=128)),
    Split("validation_ood", WordsTask(pool="validation", numbers=4, count=64)),
)


def words_tune(profile: str = "quick", student: Student = BASE) -> Study:
    if profile != "quick":
        raise UserError(f"`--profile` must be quick, got {profile!r}")
    search = Search(
        candidates=tuple(candidate(name, student) for name in FIRST[1:]),
        rates=RATES,
        ladder=LADDER,
        seeds=(0,),
        splits=tuple(split.name for split in SPLITS),
        world=WORLD,
        extensions=2,
    )
    start = base(student)
    arms = (replace(start, config=measured(start.config)), *search.first_arms())
    return Study(name="words_tune", profile=profile, arms=arms, workers=1, search=search)


def candidate(name: str, student: Student) -> Candidate:
    sdpo, grpo = words_sdpo(student), words_grpo(student)

    def configure(rate: float, value: Any) -> RunConfig:
        run = replace(configured(name, sdpo, grpo, Point(rate, value)), steps=STEPS)
        return measured(replace(alone(run, 0), export=False))

    knob = Knob(name=METHODS[name].knob.name, values=(usual(name),))
    return Candidate(method=name, knob=knob, configure=configure)


def measured(config: RunConfig) -> RunConfig:
    """Measured at its end, and only on what the rule reads."""
    evaluation = replace(config.evaluation, splits=SPLITS, every=0)
    return replace(config, evaluation=evaluation, rollouts_every=0, rollouts_token_ids=False)
