"""Every preset of `jaxdistill.objectives` in the toy world, one short run each.

Purpose: check that each objective runs and changes the student as it promises. The presets are not
tuned; the student starts from the main base, and the teacher sees correct siblings (for `rlcsd`
also wrong ones).
Expected: `sdpo` loses nine tenths of the epistemic mass, `epi_mask` and `srpo` about half.
`epi_anchor`, `epi_floor`, `epi_gate` and `epi_slice` keep it; `epi_amplify` and `anti_e` raise it a
little, and `opsd` raises it a lot. The rest of the GRPO family hardly changes it.
`docs/toy_study.md` has the figures.
Hardware and time: profile quick, 2 CPU cores, about ten minutes; profile full, three seeds of 60
steps with 256 rollouts each, one H200.
Command: jaxdistill study toy_presets [--profile full] [--run-dir runs/toy_presets]
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy.toy_selfdistill import toy_selfdistill
from jaxdistill.configs.toy.toy_study import at_full_size, base, in_world
from jaxdistill.errors import UserError
from jaxdistill.objectives import PRESETS
from jaxdistill.run.arms import Arm
from jaxdistill.run.study import Study


def toy_presets(profile: str = "quick") -> Study:
    if profile not in ("quick", "full"):
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    parent = toy_selfdistill()
    run = (
        short(parent)
        if profile == "quick"
        else replace(at_full_size(parent), optimizer=replace(parent.optimizer, peak_lr=1e-4))
    )
    arms = tuple(presets(run, range(1 if profile == "quick" else 3)))
    return Study(name="toy_presets", profile=profile, arms=arms, workers=2, one_device=True)


def presets(parent: RunConfig, seeds: range) -> Iterator[Arm]:
    yield base(parent, "main")
    for name, preset in PRESETS.items():
        for seed in seeds:
            config = replace(parent, objective=preset())
            run = in_world(config, "main", name, seed)
            yield Arm(world="main", method=name, config=run)


def short(parent: RunConfig) -> RunConfig:
    """Twenty steps, measured once at their end."""
    splits = tuple(
        replace(split, task=replace(split.task, count=64))
        for split in parent.evaluation.splits
        if split.name == "heldout"
    )
    return replace(
        parent,
        steps=20,
        evaluation=replace(parent.evaluation, splits=splits, every=0),
        rollouts_every=0,
    )
