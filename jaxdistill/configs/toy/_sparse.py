"""The sparse world's runs: their common settings, the methods, and where tuned settings are read.

Every run starts from the folder that `toy_sparse_base` makes. The teacher of a distillation is
shown a correct rollout or, where no rollout is correct, the problem's own reference solution: so it
has something to say about problems on which rewards are silent.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy._methods import (
    DIVERGENCES,
    METHODS,
    Method,
    Methods,
    checked,
    configured,
    mixed_with_grpo,
)
from jaxdistill.configs.toy.toy_grpo import toy_grpo
from jaxdistill.configs.toy.toy_selfdistill import toy_selfdistill
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.objectives import GRPO, RLSD, Mixed, PerTokens, SuppressionGate, UnsolvedGroups
from jaxdistill.run.arms import Arm
from jaxdistill.run.search import Knob, Point
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks.contexts import PartialSolution
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.on_policy import OnPolicy

WORLD = "sparse"
TUNED = Path(__file__).with_name("toy_sparse_tuned.json")
# Tokens of a response, in training and evaluation alike: five tries of four numbers. With 96 a
# search by habit often comes to its end and turns to what it had neglected: the base then solves
# 42 % of its training problems in place of 36 %, and 22 % of groups have no success, not 38 %.
TOKENS = 80
NUMBERS, LARGER = 4, 5  # of the training problems, and of those out of distribution


def knob(name: str, *values: Any) -> Knob:
    """Two values each, and no ladder: the search extends the rates alone."""
    return Knob(name=name, values=values)


def of(name: str, *values: Any) -> Method:
    """A method of the main world's studies, with fewer values of its knob."""
    return replace(METHODS[name], knob=knob(METHODS[name].knob.name, *values))


def hinted(sdpo: RunConfig, grpo: RunConfig, share: float) -> RunConfig:
    """A teacher that is told the first operation alone, and so still searches and doubts."""
    run = mixed_with_grpo(weights=(UnsolvedGroups(),))(sdpo, grpo, share)
    return replace(run, experience=replace(run.experience, context=PartialSolution()))


def faded(sdpo: RunConfig, grpo: RunConfig, steps: int) -> RunConfig:
    """The gate almost alone at first; over these steps its share falls to 0, and GRPO remains.

    Distillation breaks the habit within 10 to 20 steps, and what is left to learn then, right
    results, only the reward teaches.
    """
    run = mixed_with_grpo(weights=(SuppressionGate(),))(sdpo, grpo, 0.9)
    assert isinstance(run.objective, Mixed)
    return replace(run, objective=replace(run.objective, anneal_steps=steps))


def credited(sdpo: RunConfig, grpo: RunConfig, strength: float) -> RunConfig:
    """GRPO whose teacher scales the advantage of each token but the epistemic, never its sign.

    The teacher is that of the distillations, in their context. A group without a success has the
    advantage 0, and nothing to scale.
    """
    assert isinstance(grpo.objective, GRPO)
    credit = RLSD(strength=strength, protect_epistemic=True)
    return replace(sdpo, objective=replace(grpo.objective, credit=credit))


# As in `_methods.GRPO_FORMS`; Dr. GRPO divides by the tokens that a response may have.
GRPO_FORMS = {
    "DAPO": GRPO(normalize_std=True, reduction="token"),
    "Dr-GRPO": GRPO(normalize_std=False, reduction=PerTokens(TOKENS)),
}
SHARES = (0.3, 0.1)
# The values are those that were best, or next to it, in the main world (docs/toy_tune.md), beside
# the usual ones. The two of unsolved groups follow from what was expected to limit the others:
# rewards say nothing about a problem that no rollout solves, and a teacher that knows the solution
# hardly doubts. The last two follow from what the runs showed: a distillation breaks the habit
# faster than GRPO, and teaches misses written as hits, which nobody but the reward corrects. So
# either the teacher leaves after 20 or 10 of 60 steps, or it never says in which direction. The
# strengths of `epi_rlsd` are RLSD's own, half of the ratio, and the whole of it.
SPARSE_METHODS: Methods = {
    "sdpo": of("sdpo", *list(DIVERGENCES)[:2]),
    "sdpo_ema": of("sdpo_ema", 0.05, 0.01),
    "epi_gate": of("epi_gate", 0.01, 0.001),
    "epi_anchor": of("epi_anchor", 1.0, 0.75),
    "epi_amplify": of("epi_amplify", 0.5, 2.0),
    "ad_opsd": of("ad_opsd", 1.0, 0.1),
    "grpo": Method(
        knob=knob("form", *GRPO_FORMS),
        configure=lambda sdpo, grpo, value: replace(grpo, objective=GRPO_FORMS[value]),
    ),
    "grpo_kl": of("grpo_kl", 0.04, 0.01),
    "mix_gate": of("mix_gate", *SHARES),
    "mix_anchor": of("mix_anchor", *SHARES),
    "rescue_gate": Method(
        knob=knob("share", *SHARES),
        configure=mixed_with_grpo(weights=(UnsolvedGroups(), SuppressionGate())),
    ),
    "rescue_hint": Method(knob=knob("share", *SHARES), configure=hinted),
    "fade_gate": Method(knob=knob("anneal_steps", 20, 10), configure=faded),
    "epi_rlsd": Method(knob=knob("strength", 0.5, 1.0), configure=credited),
}
# A distillation with GRPO. Of these the best one is run at GRPO's rate, and GRPO at its: written
# out, and without the last two methods, because docs/log.md predicts those two arms by name, and a
# better score of a method that was added later must not exchange them.
MIXTURES = ("mix_gate", "mix_anchor", "rescue_gate", "rescue_hint")


# ---------------------------------------------------------------------------------- the runs


def parents() -> tuple[RunConfig, RunConfig]:
    """The recipes `toy_selfdistill` and `toy_grpo` in the sparse world, at a laptop's size."""
    return in_sparse(toy_selfdistill()), in_sparse(toy_grpo())


def in_sparse(config: RunConfig) -> RunConfig:
    """The same run on this world's problems, from its base. A study keeps no weights."""
    experience, evaluation = config.experience, config.evaluation
    assert isinstance(experience, OnPolicy)
    return replace(
        config,
        model=ToyBase(WORLD),
        experience=replace(
            experience,
            # A run of the full size draws 1,920 questions, and so hardly any of them twice.
            task=ToyTask(pool="train", numbers=NUMBERS, count=2000),
            demonstration="sibling_or_reference",
            sampling=replace(experience.sampling, max_new_tokens=TOKENS),
            completion_multiple=TOKENS,
        ),
        evaluation=replace(
            evaluation,
            splits=splits("train", "heldout"),
            sampling=replace(evaluation.sampling, max_new_tokens=TOKENS),
            # The arm of the base measures what every run starts from.
            at_start=False,
        ),
        export=False,
        save_checkpoints=False,
    )


def splits(*pools: str, count: int = 64) -> tuple[Split, ...]:
    """Each pool's problems of four numbers, and the last pool's of five."""
    larger = {"heldout": "ood"}.get(pools[-1], f"{pools[-1]}_ood")
    return (
        *(Split(pool, ToyTask(pool=pool, numbers=NUMBERS, count=count)) for pool in pools),
        Split(larger, ToyTask(pool=pools[-1], numbers=LARGER, count=count)),
    )


def at_full_size(config: RunConfig) -> RunConfig:
    """Sixty steps of 256 rollouts, as in the main world; evaluated every 5,120 rollouts."""
    return replace(
        config,
        steps=60,
        experience=replace(config.experience, questions=32),
        evaluation=replace(
            config.evaluation,
            splits=splits("train", "heldout", count=192),
            every=20,
            questions_per_batch=192,
        ),
        rollouts_every=0,
    )


def base(config: RunConfig) -> Arm:
    """The arm that measures the base, which is not trained."""
    return Arm(world=WORLD, method="base", config=replace(config, steps=0, name="base"))


def tuned_point(name: str) -> Point:
    """The rate and value that `toy_sparse_tune` chose; before it was run, 1e-4 and the usual one.

    1e-4 is the rate of GRPO and of the protected distillations in the main world.
    """
    chosen = read_sparse_tuned()["methods"].get(name)
    if chosen is None:
        return Point(1e-4, SPARSE_METHODS[name].knob.values[0])
    return Point(chosen["peak_lr"], chosen["value"])


def best_tuned(names: Sequence[str]) -> str:
    """Of these methods the one with the highest tuned score; the first of equal ones, or of none.

    The score is too high by about its noise, as all are: it chooses what to run again, no more.
    """
    chosen = read_sparse_tuned()["methods"]
    return max(names, key=lambda name: chosen.get(name, {}).get("score", 0.0))


@functools.cache
def read_sparse_tuned(path: Path = TUNED) -> dict[str, Any]:
    """The file that `toy_sparse_tune` wrote. Raises UserError that names what is wrong in it."""
    return checked(path, SPARSE_METHODS)


def sparse_run(name: str, sdpo: RunConfig, grpo: RunConfig, point: Point) -> RunConfig:
    """A method's run at a learning rate and a value of its knob."""
    config = configured(name, sdpo, grpo, point, SPARSE_METHODS)
    return replace(config, name=name)
