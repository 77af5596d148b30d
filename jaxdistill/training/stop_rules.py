"""When a run stops itself: rules over what it has measured so far.

A recipe may define its own rule (`OwnStopRule`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

from jaxdistill import own_classes
from jaxdistill.errors import UserError, require_number
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.training.checkpointing import KeepBest

Measured = Sequence[tuple[int, float]]  # (step, value), in the order of the steps


@dataclass(kw_only=True)
class History:
    """What a run has measured since its start, also before it was resumed.

    metrics: the lines of metrics.jsonl. evaluations: {step: {data set: {measure: mean}}}. since:
    the step at which a rule stopped this run before; what was measured up to it does not stop the
    resumed run again. 0: none did.
    """

    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    evaluations: dict[int, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    since: int = 0

    def of_metric(self, name: str) -> Measured:
        """The values of a metric. Raises UserError for a metric that no step has."""
        known = self.metrics[-1] if self.metrics else {}
        if known and not any(name in row for row in self.metrics):
            near = get_close_matches(name, known, 3, 0.4) or list(known)
            raise UserError(f"stop_when: no metric {name!r}; nearest: {', '.join(near)}")
        found = [(row["step"], row.get(name)) for row in self.metrics]
        return [(step, value) for step, value in found if isinstance(value, int | float)]

    def of_evaluation(self, data: str, measure: str) -> Measured:
        """The values of a measure of a data set."""
        steps = sorted(self.evaluations)
        found = [(step, self.evaluations[step].get(data, {}).get(measure)) for step in steps]
        return [(step, value) for step, value in found if isinstance(value, int | float)]


@runtime_checkable
class OwnStopRule(Protocol):
    """A frozen dataclass with this method, defined in this file or in a recipe."""

    def reason(self, history: History) -> str | None:
        """Why the run stops now, as the end of a line; None: it continues.

        Called after each step, and after the step's evaluation if it has one.
        """
        ...


@dataclass(frozen=True)
class OfStart:
    """A limit that is a share of the run's first value: of step 0, where it is evaluated there."""

    share: float

    def __post_init__(self):
        require_number("OfStart.share", self.share, 0, open_low=True, expected="above 0")

    def limit(self, first: float) -> float:
        return self.share * first


@dataclass(frozen=True)
class Value:
    """A limit that is the same `value` for every run."""

    value: float

    def __post_init__(self):
        require_number("Value.value", self.value, -1e30, 1e30, expected="that is finite")

    def limit(self, first: float) -> float:
        return self.value


Limit = OfStart | Value


@dataclass(frozen=True)
class EvaluationFalls:
    """Stop when a measure of an evaluation is below a limit, `patience` evaluations in a row."""

    data: str  # the name of one of `evaluation.splits`
    measure: str = "accuracy"
    below: Limit = OfStart(0.5)
    patience: int = 1

    def __post_init__(self):
        _require_patience(self)

    def reason(self, history: History) -> str | None:
        values = history.of_evaluation(self.data, self.measure)
        return _fallen(f"{self.measure} on {self.data}", values, history.since, self)


@dataclass(frozen=True)
class MetricFalls:
    """Stop when a metric of metrics.jsonl is below a limit, `patience` steps in a row.

    `epistemic_mass_student` and `length` are those that collapse.
    """

    metric: str = "epistemic_mass_student"
    below: Limit = OfStart(0.1)
    patience: int = 10  # of single batches, which are noisy. Chosen, not measured.

    def __post_init__(self):
        _require_patience(self)

    def reason(self, history: History) -> str | None:
        return _fallen(self.metric, history.of_metric(self.metric), history.since, self)


StopRule = EvaluationFalls | MetricFalls | OwnStopRule


def check_rules(keep_best: Any, stop_when: Any, splits: Sequence[str], *, saves: bool) -> None:
    """Raise UserError unless the rules are rules, of data sets that the run evaluates."""
    if not isinstance(keep_best, KeepBest | None):
        raise UserError(f"keep_best: expected KeepBest(...) or None, got {keep_best!r:.80}")
    if not isinstance(stop_when, tuple):
        raise UserError(f"stop_when: expected a tuple of rules, got {stop_when!r:.80}")
    for index, rule in enumerate(stop_when):
        own_classes.require_choice(f"stop_when[{index}]", rule, StopRule)
    evaluated = [(f"stop_when[{i}]", r) for i, r in enumerate(stop_when)]
    for name, rule in [("keep_best", keep_best), *evaluated]:
        if isinstance(rule, KeepBest | EvaluationFalls) and rule.data not in splits:
            known = ", ".join(splits) or "none"
            raise UserError(
                f"{name}.data={rule.data!r:.80}: the run evaluates no such data set "
                f"(`evaluation.splits`: {known})"
            )
        if isinstance(rule, EvaluationFalls) and rule.measure not in MEASURES:
            near = get_close_matches(str(rule.measure), MEASURES, 3, 0.4) or list(MEASURES)
            raise UserError(
                f"{name}.measure={rule.measure!r:.80}: no such measure; nearest: {', '.join(near)}"
            )
    if keep_best is not None and not saves:
        raise UserError("keep_best needs checkpoints, and `save_checkpoints` is False")


def _require_patience(rule: EvaluationFalls | MetricFalls) -> None:
    name = f"{type(rule).__name__}.patience"
    require_number(name, rule.patience, 1, whole=True, expected="of at least 1, an int")


def _fallen(
    what: str, values: Measured, since: int, rule: EvaluationFalls | MetricFalls
) -> str | None:
    """The reason to stop, if the last `patience` values after `since` are all below the limit."""
    if not values:
        return None
    first_step, first = values[0]
    limit = rule.below.limit(first)
    last = [value for step, value in values if step > since][-rule.patience :]
    if len(last) < rule.patience or not all(value < limit for value in last):
        return None
    in_a_row = f", in {rule.patience} measurements in a row" if rule.patience > 1 else ""
    share = ""
    if isinstance(rule.below, OfStart):
        share = f" ({rule.below.share:g} of {first:.4g} at step {first_step})"
    return f"{what} is {last[-1]:.4g}, below {limit:.4g}{share}{in_a_row}"
