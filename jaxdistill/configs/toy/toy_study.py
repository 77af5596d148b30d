"""The main result in the toy world: the damage done by self-distillation, and its prevention.

Purpose: compare base, SDPO, SDPO with an EMA teacher, `sdpo_mask` (a mask that does not protect),
`epi_gate`, `epi_anchor` and GRPO, in the main world and in the control world, whose teacher keeps
verifying.
Expected (main world, held-out problems): SDPO loses most epistemic tokens and over ten points of
accuracy, `epi_anchor` keeps most of both, and GRPO gains accuracy. In the control world SDPO loses
most words of doubt and no accuracy. `docs/toy_study.md` has the figures.
Hardware and time: profile quick, 2 CPU cores, under ten minutes; profile full (3 seeds, sweeps over
coverage and richness of the context), one H200, under 25 minutes.
Command: jaxdistill study toy_study [--profile full] [--run-dir runs/toy_study]
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy.toy_grpo import toy_grpo
from jaxdistill.configs.toy.toy_selfdistill import SPLITS, toy_selfdistill
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.objectives import AnchorEpistemicMass, MaskSampledEpistemic, SuppressionGate
from jaxdistill.run.study import Arm, Study
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks import contexts
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.teachers import EMA

WORLDS = ("main", "control")
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


def methods(parent: RunConfig, grpo: RunConfig) -> dict[str, RunConfig]:
    """Each method as its visible difference from plain self-distillation."""
    loss = parent.objective
    return {
        "sdpo": parent,
        "sdpo_ema": replace(parent, teacher=EMA()),
        "sdpo_mask": replace(parent, objective=replace(loss, weights=(MaskSampledEpistemic(),))),
        "epi_gate": replace(parent, objective=replace(loss, weights=(SuppressionGate(),))),
        "epi_anchor": replace(parent, objective=replace(loss, target=AnchorEpistemicMass())),
        "grpo": grpo,
    }


def toy_study(profile: str = "quick") -> Study:
    profiles = {"quick": quick, "full": full}
    if profile not in profiles:
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    arms = tuple(profiles[profile]())
    # Two workers, one per core of the quick profile: XLA gains little from a second core here.
    return Study(name="toy_study", profile=profile, arms=arms, workers=2)


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
    parent, grpo = toy_selfdistill(), toy_grpo()
    for world in WORLDS:
        yield base(parent, world)
        for name, config in methods(parent, grpo).items():
            yield Arm(world=world, method=name, config=in_world(config, world, name))


def full() -> Iterator[Arm]:
    """Three seeds, 256 rollouts per step; then sweeps of coverage and context in the main world."""
    parent, grpo = at_full_size(toy_selfdistill(), 1e-4), at_full_size(toy_grpo(), 3e-4)
    seeds = range(3)
    for world in WORLDS:
        yield base(parent, world)
        for name, config in methods(parent, grpo).items():
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


def at_full_size(config: RunConfig, peak_lr: float) -> RunConfig:
    splits = tuple(
        Split(split.name, dataclasses.replace(split.task, count=192)) for split in SPLITS
    )
    return replace(
        config,
        steps=60,
        experience=replace(config.experience, questions=32),
        optimizer=replace(config.optimizer, peak_lr=peak_lr),
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
