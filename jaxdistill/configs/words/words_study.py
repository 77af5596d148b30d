"""The main result in words: what self-distillation does to a pretrained model's doubt.

Purpose: the comparison of `toy_study` on the base of `words_base`: SDPO, the epistemic gate, GRPO,
the anchor, the gate mixed with GRPO, then the EMA teacher and the other mixtures. Runs come in the
order of importance, one seed of the first five before the second, so that a study that is not
finished still compares something: `jaxdistill study words_study --finished` writes the page of the
runs that are there.
Expected: as in the toy world: SDPO loses doubt, checks and accuracy, gate and anchor keep them, and
GRPO gains. It is a world whose guided style is assumed.
Hardware and time: one H200 and SmolLM2-135M: profile quick (base and five methods, two seeds),
about 20 minutes; profile full (eight methods) about 30 (estimates). A run takes two minutes, and a
study that was stopped continues with the runs that are missing.
Data: the run of `words_base` in runs/words_base
Command: jaxdistill study words_study [--profile full] [--student RUN] [--time-limit 9m]
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import configured, usual
from jaxdistill.configs.words.words_grpo import words_grpo
from jaxdistill.configs.words.words_sdpo import BASE, words_sdpo
from jaxdistill.errors import UserError
from jaxdistill.models.students import Student
from jaxdistill.run.arms import Arm
from jaxdistill.run.search import Point
from jaxdistill.run.study import Study

WORLD = "words"
# The five that answer the question, then the others.
FIRST = ("sdpo", "epi_gate", "grpo", "epi_anchor", "mix_gate")
REST = ("sdpo_ema", "mix_sdpo", "mix_anchor")
PROFILES = {"quick": (FIRST,), "full": (FIRST, REST)}
SEEDS = (0, 1)


def words_study(profile: str = "quick", student: Student = BASE) -> Study:
    if profile not in PROFILES:
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    arms = (base(student), *trained(PROFILES[profile], student))
    return Study(name="words_study", profile=profile, arms=tuple(arms), workers=1)


def base(student: Student) -> Arm:
    return Arm(world=WORLD, method="base", config=alone(replace(words_sdpo(student), steps=0), 0))


def trained(groups: tuple[tuple[str, ...], ...], student: Student) -> Iterator[Arm]:
    """Group by group, both seeds of its methods; knobs are the usual ones, and no rate is tuned."""
    sdpo, grpo = words_sdpo(student), words_grpo(student)
    for names in groups:
        for seed in SEEDS:
            for name in names:
                run = configured(name, sdpo, grpo, Point(sdpo.optimizer.peak_lr, usual(name)))
                yield Arm(world=WORLD, method=name, config=alone(run, seed))


def alone(config: RunConfig, seed: int) -> RunConfig:
    """A run that can be joined with others by its small files.

    Seed 0 exports its model, of which `jaxdistill trace` shows answers.
    """
    return replace(
        config,
        name="words",
        seed=seed,
        # The arm of the base measures what every run starts from.
        evaluation=replace(config.evaluation, at_start=False),
        export=seed == 0 and config.steps != 0,
        save_checkpoints=False,
        tracking=(),
        # What `jaxdistill trace RUN --step N --row I` needs of a saved row.
        rollouts_token_ids=seed == 0,
        rollouts_every=30,
        rollouts_rows=32,
    )
