"""Sparse rewards in the toy world: does a distillation that keeps doubt beat GRPO?

Purpose: compare tuned methods at equal rollouts where the base solves a third of its training
problems and fails all eight rollouts of many (`toy_sparse_base`), so that rewards are silent about
them while reference solutions exist. The full profile has every method of `configs.toy._sparse`
with the learning rate and knob that `toy_sparse_tune` chose, three seeds each, and SDPO and its EMA
teacher once more as published at the gate's rate. Where the search gave GRPO and the best of the
first four mixtures different rates, each is also run at the other's. Search first: a method that
was not tuned yet has 1e-4 and its usual value. The curves are over rollouts.
Expected: predicted in docs/log.md before any run; docs/toy_sparse.md has what was measured.
Hardware and time: `jaxdistill train toy_sparse_base --run-dir runs/toy_sparse_base` first, in the
same folder. Profile quick, 2 CPU cores, under ten minutes, one seed; profile full, 55 runs of 60
steps of 256 rollouts, one H200, about three minutes with 14 workers.
Command: jaxdistill study toy_sparse [--profile full] [--run-dir runs/toy_sparse_full]
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._sparse import (
    MIXTURES,
    SPARSE_METHODS,
    WORLD,
    at_full_size,
    base,
    best_tuned,
    parents,
    sparse_run,
    tuned_point,
)
from jaxdistill.errors import UserError
from jaxdistill.run.arms import Arm
from jaxdistill.run.search import Point
from jaxdistill.run.study import Study

# As in `toy_study`: tuned for accuracy they end where they do least, so that the full profile has
# them as published at the gate's rate, and tuned.
HARMFUL = ("sdpo", "sdpo_ema")
QUICK = ("sdpo", "epi_gate", "grpo", "mix_gate", "rescue_gate", "rescue_hint")


def toy_sparse(profile: str = "quick") -> Study:
    profiles = {"quick": quick, "full": full}
    if profile not in profiles:
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    return Study(
        name="toy_sparse",
        profile=profile,
        arms=tuple(profiles[profile]()),
        workers=2,
        one_device=True,
        over="rollouts",
    )


def quick() -> Iterator[Arm]:
    """One seed of thirty steps of 48 rollouts, all at one rate: tuned ones are for full runs."""
    sdpo, grpo = parents()
    yield base(sdpo)
    for name in QUICK:
        point = Point(sdpo.optimizer.peak_lr, tuned_point(name).value)
        config = sparse_run(name, sdpo, grpo, point)
        yield Arm(world=WORLD, method=name, config=config)


def full() -> Iterator[Arm]:
    """Three seeds."""
    sdpo, grpo = (at_full_size(parent) for parent in parents())
    yield base(sdpo)
    for name, config in full_methods(sdpo, grpo).items():
        for seed in range(3):
            yield Arm(world=WORLD, method=name, config=replace(config, seed=seed))


def full_methods(sdpo: RunConfig, grpo: RunConfig) -> dict[str, RunConfig]:
    """{name: its run}: the harmful ones at the gate's rate, all of them tuned, and two swapped."""
    rate = tuned_point("epi_gate").rate
    usual = {name: SPARSE_METHODS[name].knob.values[0] for name in HARMFUL}
    found = {name: sparse_run(name, sdpo, grpo, Point(rate, usual[name])) for name in HARMFUL}
    for name in SPARSE_METHODS:
        called = f"{name}_tuned" if name in HARMFUL else name
        found[called] = replace(sparse_run(name, sdpo, grpo, tuned_point(name)), name=called)
    return found | swapped_rates(sdpo, grpo)


def swapped_rates(sdpo: RunConfig, grpo: RunConfig) -> dict[str, RunConfig]:
    """GRPO at the best mixture's tuned rate, and that mixture at GRPO's; none if they are equal.

    Their tuned rates need not be equal, and the rate alone moves held-out accuracy against that of
    larger problems: only at one rate is a difference that of the losses. The search and its scores
    name the mixture; knobs stay as tuned.
    """
    mixture = best_tuned(MIXTURES)
    rewarded, mixed = tuned_point("grpo"), tuned_point(mixture)
    if rewarded.rate == mixed.rate:
        return {}
    points = {
        "grpo_at_mixture_rate": ("grpo", Point(mixed.rate, rewarded.value)),
        f"{mixture}_at_grpo_rate": (mixture, Point(rewarded.rate, mixed.value)),
    }
    return {
        called: replace(sparse_run(name, sdpo, grpo, point), name=called)
        for called, (name, point) in points.items()
    }
