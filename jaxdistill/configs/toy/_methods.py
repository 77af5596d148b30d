"""The methods of the toy studies: what each is, and its one own knob.

`toy_tune` chooses every method's learning rate and knob, and writes them to `tuned.json`;
`toy_study` reads them from the copy of that file in this folder.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    GRPO,
    PRESETS,
    AmplifyEpistemic,
    AnchorEpistemicMass,
    Distill,
    ForwardKL,
    JensenShannon,
    MaskSampledEpistemic,
    Mixed,
    PerTokens,
    ReferenceK3,
    ReverseKL,
    SuppressionGate,
)
from jaxdistill.run.search import Knob, Point
from jaxdistill.storage import hf_files
from jaxdistill.training.teachers import EMA

TUNED = Path(__file__).with_name("tuned.json")

Configure = Callable[[RunConfig, RunConfig, Any], RunConfig]


@dataclass(frozen=True, kw_only=True)
class Method:
    """`configure(sdpo, grpo, value)` gives the run, made of the two runs that all start from."""

    knob: Knob
    configure: Configure


def distilled(**changes: Callable[[Any], Any]) -> Configure:
    """Plain self-distillation, with fields of its objective that are functions of the knob."""

    def configure(sdpo: RunConfig, grpo: RunConfig, value: Any) -> RunConfig:
        fields = {field: make(value) for field, make in changes.items()}
        return replace(sdpo, objective=replace(sdpo.objective, **fields))

    return configure


def rewarded(**changes: Callable[[Any], Any]) -> Configure:
    """GRPO with fields of its objective that are functions of the knob."""

    def configure(sdpo: RunConfig, grpo: RunConfig, value: Any) -> RunConfig:
        fields = {field: make(value) for field, make in changes.items()}
        return replace(grpo, objective=replace(grpo.objective, **fields))

    return configure


def mixed_with_grpo(**changes: Any) -> Configure:
    """`share` of a distillation and the rest of GRPO; the knob is the share."""

    def configure(sdpo: RunConfig, grpo: RunConfig, value: Any) -> RunConfig:
        distill, rewarded = replace(sdpo.objective, **changes), grpo.objective
        assert isinstance(distill, Distill)
        assert isinstance(rewarded, GRPO)
        return replace(sdpo, objective=Mixed(distill, rewarded, share=value))

    return configure


def of_ad_opsd(sdpo: RunConfig, grpo: RunConfig, value: Any) -> RunConfig:
    """The preset's target, in the loss of the other methods; the knob is its gate's temperature."""
    target = replace(PRESETS["ad_opsd"]().target, temperature=value)  # pyright: ignore
    return replace(sdpo, objective=replace(sdpo.objective, target=target))


# ---------------------------------------------------------------------------------- the knobs
# Ladders go further than three extensions of the values, or to where the knob has no more meaning.

# The divergences of a loss over the vocabulary. The released runs have the first.
DIVERGENCES = {
    "JensenShannon": JensenShannon(),
    "ReverseKL": ReverseKL(),
    "ForwardKL": ForwardKL(),
}
DIVERGENCE = Knob(name="divergence", values=tuple(DIVERGENCES))
# How GRPO normalises: advantages by the group's standard deviation or not, and the mean over
# tokens, over responses, or over the 80 tokens that a response may have.
GRPO_FORMS = {
    "DAPO": GRPO(normalize_std=True, reduction="token"),
    "GRPO": GRPO(normalize_std=True, reduction="sequence"),
    "Dr-GRPO": GRPO(normalize_std=False, reduction=PerTokens(80)),
}
SHARE = Knob(
    name="share", values=(0.3, 0.1, 0.6), ladder=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)
)

AD_OPSD = Method(
    knob=Knob(
        name="temperature",
        values=(1.0, 0.3, 3.0),
        ladder=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    ),
    configure=of_ad_opsd,
)

Methods = dict[str, Method]
METHODS: Methods = {
    "sdpo": Method(knob=DIVERGENCE, configure=distilled(divergence=DIVERGENCES.get)),
    "sdpo_ema": Method(
        knob=Knob(
            name="rate",
            values=(0.05, 0.01, 0.2),
            ladder=(0.0001, 0.0005, 0.002, 0.01, 0.05, 0.2, 0.5, 1.0),
        ),
        configure=lambda sdpo, grpo, value: replace(sdpo, teacher=EMA(value)),
    ),
    "sdpo_mask": Method(
        knob=DIVERGENCE,
        configure=distilled(
            divergence=DIVERGENCES.get,
            weights=lambda value: (MaskSampledEpistemic(),),
        ),
    ),
    "epi_gate": Method(
        knob=Knob(
            name="threshold",
            values=(0.01, 0.003, 0.03),
            ladder=(0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        ),
        configure=distilled(weights=lambda value: (SuppressionGate(threshold=value),)),
    ),
    "epi_anchor": Method(
        # 1 is the reference's mass, 0 the teacher's.
        knob=Knob(name="mix", values=(1.0, 0.75, 0.5), ladder=(0.0, 0.25, 0.5, 0.75, 1.0)),
        configure=distilled(
            target=lambda value: (
                AnchorEpistemicMass() if value == 1 else AnchorEpistemicMass(mode="mix", mix=value)
            ),
        ),
    ),
    "epi_floor": Method(
        knob=DIVERGENCE,
        configure=distilled(
            divergence=DIVERGENCES.get,
            target=lambda value: AnchorEpistemicMass(mode="floor"),
        ),
    ),
    "epi_amplify": Method(
        knob=Knob(
            name="strength",
            values=(0.5, 0.25, 1.0),
            ladder=(0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        ),
        configure=distilled(target=lambda v: AmplifyEpistemic(v, base="floor")),
    ),
    "ad_opsd": AD_OPSD,
    "grpo": Method(
        knob=Knob(name="form", values=tuple(GRPO_FORMS)),
        configure=lambda sdpo, grpo, value: replace(grpo, objective=GRPO_FORMS[value]),
    ),
    "grpo_kl": Method(
        knob=Knob(
            name="beta",
            values=(0.04, 0.01, 0.16),
            ladder=(0.00004, 0.00015, 0.0006, 0.0025, 0.01, 0.04, 0.16, 0.64, 2.5, 10.0, 40.0),
        ),
        configure=rewarded(terms=lambda value: (ReferenceK3(value),)),
    ),
    "mix_sdpo": Method(knob=SHARE, configure=mixed_with_grpo()),
    "mix_gate": Method(knob=SHARE, configure=mixed_with_grpo(weights=(SuppressionGate(),))),
    "mix_anchor": Method(knob=SHARE, configure=mixed_with_grpo(target=AnchorEpistemicMass())),
}


def configured(
    name: str, sdpo: RunConfig, grpo: RunConfig, point: Point, methods: Methods = METHODS
) -> RunConfig:
    """A method at a learning rate and a value of its knob."""
    config = methods[name].configure(sdpo, grpo, point.value)
    return replace(config, optimizer=replace(config.optimizer, peak_lr=point.rate))


def usual(name: str) -> Any:
    """The value of the knob that a method has before any tuning."""
    return METHODS[name].knob.values[0]


# ---------------------------------------------------------------------------------- tuned.json


@functools.cache
def read_tuned(path: Path = TUNED) -> dict[str, Any]:
    """The file that `toy_tune` wrote. Raises UserError that names what is wrong in it."""
    return checked(path, METHODS)


def checked(path: Path, methods: Methods) -> dict[str, Any]:
    """The file that a search over these methods wrote. Raises UserError as `read_tuned` does."""
    found = hf_files.read_json(path)
    of_methods = found.get("methods")
    if not isinstance(of_methods, dict):
        raise UserError(f"{path}: `methods` must be an object, got {of_methods!r:.80}")
    for name, chosen in of_methods.items():
        if name not in methods:
            continue  # of a version that has more methods
        if not isinstance(chosen, dict):
            raise UserError(f"{path}: {name}: expected an object, got {chosen!r:.80}")
        knob, rate = methods[name].knob, chosen.get("peak_lr")
        if not isinstance(rate, float) or not 0 < rate < 1:
            raise UserError(f"{path}: {name}: `peak_lr` must lie between 0 and 1, got {rate!r:.80}")
        known = knob.ladder or knob.values
        if chosen.get("knob") != knob.name or chosen.get("value") not in known:
            raise UserError(
                f"{path}: {name}: `knob` must be {knob.name!r} and `value` one of {known}, got "
                f"{chosen.get('knob')!r:.40} and {chosen.get('value')!r:.40}"
            )
    return found


def tuned_point(name: str) -> Point:
    """A method's tuned rate and value; those of plain `sdpo`'s recipe if it was not tuned yet."""
    chosen = read_tuned()["methods"].get(name)
    return Point(1e-4, usual(name)) if chosen is None else Point(chosen["peak_lr"], chosen["value"])
