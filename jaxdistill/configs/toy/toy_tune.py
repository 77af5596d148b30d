"""Tune every method of `toy_study`: its learning rate and its one own knob.

Purpose: baselines that are tuned as well as what they are compared with. The rule, stated before
any run (`run.search` is its code): every method is run at 4 learning rates x 3 values of its own
knob (`configs.toy._methods` names it) with 2 seeds, 24 runs each. The highest mean over seeds of
the mean of in-distribution and OOD accuracy after the last step wins, measured on the pools
`toy:validation` and `toy:validation_ood`, which no table of a study reports; they have no problem
in common with any other pool. Of equal ones the smaller rate wins. A best value at an edge of the
grid extends the grid, at most three times. The number of steps, 60, is the study's and not tuned.
Only the main world is used. No rate below 1e-5 is tried: this was not stated before any run, but
after the first extension (`LADDER`).
Expected: a rate near 1e-4 for GRPO and the gate. A method that does harm at every rate ends at the
smallest rate of all, where it does next to nothing: the file says so (`at_end`).
It writes `tuned.json` into its folder. `docs/toy_tune.md` shows it.
Hardware and time: profile full, 313 runs and more where a grid is extended: 429 runs took 16
minutes on two H200s with 14 workers. Profile quick is a check of the search on 2 CPU cores, five
minutes: two methods, one seed, 10 steps.
Command: jaxdistill study toy_tune --profile full [--workers 8] [--run-dir runs/toy_tune]
"""

from dataclasses import replace
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import METHODS, configured
from jaxdistill.configs.toy.toy_grpo import toy_grpo
from jaxdistill.configs.toy.toy_selfdistill import toy_selfdistill
from jaxdistill.configs.toy.toy_study import at_full_size, base, in_world
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.run.search import Candidate, Point, Search
from jaxdistill.run.study import Study
from jaxdistill.tasks.tasks import ToyTask

# Half an order of magnitude apart, around the rates of the two recipes. Upwards the ladder is
# longer than three extensions. Downwards it ends at 1e-5 for every method: there plain
# self-distillation scores .778 where the base model scores .780, so that smaller rates would only
# find where a harmful method does nothing. This end was set after the first extension had been
# seen, and before any run at a smaller rate was finished.
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
LADDER = (1e-5, *RATES, 3e-3, 1e-2, 3e-2, 1e-1)


def toy_tune(profile: str = "quick") -> Study:
    if profile not in ("quick", "full"):
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    if profile == "full":
        sdpo, grpo = (validated(at_full_size(run), 192) for run in (toy_selfdistill(), toy_grpo()))
        names, seeds, rates = tuple(METHODS), (0, 1), RATES
    else:
        short = (replace(run, steps=10) for run in (toy_selfdistill(), toy_grpo()))
        sdpo, grpo = (validated(run, 64) for run in short)
        names, seeds, rates = ("epi_gate", "grpo"), (0,), RATES[1:3]
    search = Search(
        candidates=tuple(candidate(name, sdpo, grpo) for name in names),
        rates=rates,
        ladder=LADDER,
        seeds=seeds,
        splits=tuple(split.name for split in sdpo.evaluation.splits),
        extensions=3 if profile == "full" else 1,
    )
    arms = (base(sdpo, "main"), *search.first_arms())
    return Study(
        name="toy_tune", profile=profile, arms=arms, workers=2, one_device=True, search=search
    )


def candidate(name: str, sdpo: RunConfig, grpo: RunConfig) -> Candidate:
    def configure(rate: float, value: Any) -> RunConfig:
        return in_world(configured(name, sdpo, grpo, Point(rate, value)), "main", name)

    return Candidate(method=name, knob=METHODS[name].knob, configure=configure)


def validated(run: RunConfig, count: int) -> RunConfig:
    """Measured once, at its end, and only on what the rule reads."""
    splits = (
        Split("validation", ToyTask(pool="validation", count=count)),
        Split("validation_ood", ToyTask(pool="validation", numbers=4, count=count)),
    )
    evaluation = replace(run.evaluation, splits=splits, every=0, questions_per_batch=count)
    return replace(run, evaluation=evaluation, rollouts_every=0)
