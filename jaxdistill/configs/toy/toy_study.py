"""The main result in the toy world: the damage done by self-distillation, and its prevention.

Purpose: compare base, SDPO, `sdpo_mask` (a mask that does not protect), `epi_gate`, `epi_anchor`
and GRPO, in the main world and in the control world, whose teacher keeps verifying. The full
profile has every method of `configs.toy._methods`, with the learning rate and the knob that
`toy_tune` has chosen for it (`docs/toy_tune.md`); it also has SDPO, with an EMA teacher and with
the mask, as published at the gate's rate, which shows the harm.
Expected (main world, held-out problems): SDPO loses most epistemic tokens and over ten points of
accuracy, `epi_anchor` keeps most of both, and GRPO gains accuracy. In the control world SDPO loses
most words of doubt and no accuracy. `docs/toy_study.md` has the figures.
Hardware and time: profile quick, 2 CPU cores, under ten minutes; profile full (3 seeds, sweeps over
coverage and richness of the context), one H200, about 20 minutes, or a third of it on four.
Command: jaxdistill study toy_study [--profile full] [--run-dir runs/toy_study]
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import METHODS, configured, tuned_point, usual
from jaxdistill.configs.toy.toy_grpo import toy_grpo
from jaxdistill.configs.toy.toy_selfdistill import SPLITS, toy_selfdistill
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.run.arms import Arm
from jaxdistill.run.search import Point
from jaxdistill.run.study import Study
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks import contexts
from jaxdistill.training.on_policy import OnPolicy

WORLDS = ("main", "control")
# Methods that do harm. Tuned for accuracy they end at the rate at which they do least, so that the
# full profile has them twice: as published at the gate's rate, the same loss but for the positions
# that the gate drops, which is the harm that is to be prevented; and tuned.
HARMFUL = ("sdpo", "sdpo_ema", "sdpo_mask")
# AD-OPSD in place of the EMA teacher: the time of a laptop suffices for one of them.
QUICK = ("sdpo", "ad_opsd", "sdpo_mask", "epi_gate", "epi_anchor", "grpo")
COVERAGES: tuple[int | str, ...] = (1, 8, 64, 512, "all")
# Distinct problems. A full run draws 60 steps x 32 questions, so it sees none of them twice.
ALL_TRAIN = 20_000
CONTEXTS: tuple[contexts.Context, ...] = (
    contexts.NoContext(),
    contexts.PartialSolution(),
    contexts.AnswerOnly(),
    contexts.SolutionWithoutThinking(),
    contexts.Solution(),
)


def toy_study(profile: str = "quick") -> Study:
    profiles = {"quick": quick, "full": full}
    if profile not in profiles:
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    arms = tuple(profiles[profile]())
    # Two workers, one per core of the quick profile: XLA gains little from a second core here.
    return Study(name="toy_study", profile=profile, arms=arms, workers=2, one_device=True)


def in_world(config: RunConfig, world: str, name: str, seed: int = 0) -> RunConfig:
    """The same run from a world's base. A study keeps measurements only, no weights."""
    return replace(
        config,
        model=ToyBase(world),
        name=name,
        seed=seed,
        # The arm of the base measures what every run starts from.
        evaluation=replace(config.evaluation, at_start=False),
        export=False,
        save_checkpoints=False,
    )


def base(config: RunConfig, world: str) -> Arm:
    run = in_world(replace(config, steps=0), world, "base")
    return Arm(world=world, method="base", config=run)


def quick() -> Iterator[Arm]:
    """One seed. The knobs are the tuned ones; the rates are not.

    A rate that was tuned for 60 steps of 256 rollouts is too small for 30 steps of 48. All methods
    have that of the two recipes.
    """
    sdpo, grpo = (measured_once(packed(run)) for run in (toy_selfdistill(), toy_grpo()))
    rate = sdpo.optimizer.peak_lr
    for world in WORLDS:
        yield base(sdpo, world)
        for name in QUICK:
            value = usual(name) if name in HARMFUL else tuned_point(name).value
            config = configured(name, sdpo, grpo, Point(rate, value))
            yield Arm(world=world, method=name, config=in_world(config, world, name))


def packed(config: RunConfig) -> RunConfig:
    """The same run in packed rows, for a CPU: it changes results by rounding alone.

    Half of the positions of the recipe's padded rows are padding. 128 is the least power of two
    that holds a prompt and a completion, of 11 and at most 80 tokens: attention computes all pairs
    of positions in a row, also those of two sequences, so that longer rows would cost more. A
    teacher's prompt has 17 tokens and a demonstration of at most 80; to 104 all have one width.
    """
    assert isinstance(config.experience, OnPolicy)
    experience = replace(config.experience, teacher_prompt_multiple=104)
    return replace(config, experience=experience, compute=replace(config.compute, pack=128))


def measured_once(config: RunConfig) -> RunConfig:
    """Evaluated after the last step alone, which the tables show.

    Twelve evaluations half-way would take a tenth of the profile's time. The metrics of every step
    have the course of reward, length and epistemic mass.
    """
    return replace(config, evaluation=replace(config.evaluation, every=0))


def full() -> Iterator[Arm]:
    """Three seeds, 256 rollouts per step; then sweeps of coverage and context in the main world."""
    seeds = range(3)
    methods = full_methods(at_full_size(toy_selfdistill()), at_full_size(toy_grpo()))
    parent, grpo = methods["sdpo"], methods["grpo"]
    for world in WORLDS:
        yield base(parent, world)
        for name, config in methods.items():
            for seed in seeds:
                run = in_world(config, world, name, seed)
                yield Arm(world=world, method=name, config=run)
    for coverage in COVERAGES:
        for name, config in {"sdpo": parent, "grpo": grpo}.items():
            for seed in seeds:
                run = in_world(on_problems(config, coverage), "main", name, seed)
                labels = (("coverage", coverage),)
                yield Arm(world="main", method=name, config=run, labels=labels)
    for context in CONTEXTS:
        for seed in seeds:
            told = replace(parent, experience=replace(parent.experience, context=context))
            run = in_world(told, "main", "sdpo", seed)
            labels = (("context", type(context).__name__),)
            yield Arm(world="main", method="sdpo", config=run, labels=labels)


def full_methods(sdpo: RunConfig, grpo: RunConfig) -> dict[str, RunConfig]:
    """{name: its run}: the harmful ones at the gate's rate, then all of them tuned."""
    rate = tuned_point("epi_gate").rate
    found = {name: configured(name, sdpo, grpo, Point(rate, usual(name))) for name in HARMFUL}
    for name in METHODS:
        called = f"{name}_tuned" if name in HARMFUL else name
        found[called] = configured(name, sdpo, grpo, tuned_point(name))
    return found


def at_full_size(config: RunConfig) -> RunConfig:
    """Sixty steps of 256 rollouts. The learning rate stays: that of a method is tuned."""
    splits = tuple(
        Split(split.name, dataclasses.replace(split.task, count=192)) for split in SPLITS
    )
    return replace(
        config,
        steps=60,
        experience=replace(config.experience, questions=32),
        evaluation=replace(config.evaluation, splits=splits, every=30, questions_per_batch=192),
        rollouts_every=0,
    )


def on_problems(config: RunConfig, coverage: int | str) -> RunConfig:
    """Train on `coverage` distinct problems, and evaluate the train split on the same problems."""
    count = ALL_TRAIN if coverage == "all" else int(coverage)
    assert isinstance(config.experience, OnPolicy)
    task = replace(config.experience.task, count=count)
    shown = replace(task, count=min(count, 192))
    splits = tuple(
        Split(s.name, shown if s.name == "train" else s.task) for s in config.evaluation.splits
    )
    return replace(
        config,
        experience=replace(config.experience, task=task),
        evaluation=replace(config.evaluation, splits=splits),
    )
