"""Tune every method of `toy_sparse`: its learning rate, and one of two values of its own knob.

Purpose: a fair comparison with GRPO. The rule is that of `toy_tune` (`run.search` is its code), of
which the number of values is cut: every method is run at 4 learning rates x 2 values of its knob
(`configs.toy._sparse`) with 2 seeds, 16 runs each. The highest mean over seeds of the mean accuracy
on problems of four and of five numbers after the last step wins, on the pools of validation, which
no table reports. Of equal ones the smaller rate wins. A best rate at the edge extends the rates, at
most three times and not below 1e-5; the two values of a knob have no order and are not extended.
Steps, rollouts and all else are the study's.
Expected: a rate near 1e-4 for GRPO and its mixtures. Measured (docs/toy_sparse.md): 3e-4 for GRPO,
1e-4 for all of its mixtures, of which two score as high at 3e-4.
It writes `tuned.json` into its folder; `docs/toy_sparse.md` shows it, and `toy_sparse` reads it
from `jaxdistill/configs/toy/toy_sparse_tuned.json`.
Hardware and time: `toy_sparse_base` first. Profile full, 225 runs and more where rates are
extended, one H200: 15 minutes with 14 workers (estimate; 13 for the 197 of the first twelve
methods). The same command continues it, also in a folder that lacks the later two. Profile quick
is a check on 2 CPU cores, under ten minutes: two methods, one seed, 10 steps of 48 rollouts.
Command: jaxdistill study toy_sparse_tune --profile full [--workers 14] [--time-limit 9m]
"""

from dataclasses import replace
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._sparse import (
    SPARSE_METHODS,
    WORLD,
    at_full_size,
    base,
    parents,
    sparse_run,
    splits,
)
from jaxdistill.configs.toy.toy_tune import LADDER, RATES
from jaxdistill.errors import UserError
from jaxdistill.run.search import Candidate, Point, Search
from jaxdistill.run.study import Study


def toy_sparse_tune(profile: str = "quick") -> Study:
    if profile not in ("quick", "full"):
        raise UserError(f"`--profile` must be quick or full, got {profile!r}")
    if profile == "full":
        sdpo, grpo = (validated(at_full_size(run), 192) for run in parents())
        names, seeds, rates = tuple(SPARSE_METHODS), (0, 1), RATES
    else:
        sdpo, grpo = (validated(replace(run, steps=10), 64) for run in parents())
        names, seeds, rates = ("grpo", "rescue_gate"), (0,), RATES[1:3]
    search = Search(
        candidates=tuple(candidate(name, sdpo, grpo) for name in names),
        rates=rates,
        ladder=LADDER,
        seeds=seeds,
        splits=tuple(split.name for split in sdpo.evaluation.splits),
        world=WORLD,
        extensions=3 if profile == "full" else 1,
    )
    return Study(
        name="toy_sparse_tune",
        profile=profile,
        arms=(base(sdpo), *search.first_arms()),
        workers=2,
        one_device=True,
        search=search,
    )


def candidate(name: str, sdpo: RunConfig, grpo: RunConfig) -> Candidate:
    def configure(rate: float, value: Any) -> RunConfig:
        return sparse_run(name, sdpo, grpo, Point(rate, value))

    return Candidate(method=name, knob=SPARSE_METHODS[name].knob, configure=configure)


def validated(run: RunConfig, count: int) -> RunConfig:
    """Measured once, at its end, and only on what the rule reads."""
    evaluation = replace(
        run.evaluation, splits=splits("validation", count=count), every=0, questions_per_batch=count
    )
    return replace(run, evaluation=evaluation, rollouts_every=0)
