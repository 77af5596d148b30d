"""The findings of a study: final values, changes from the base, and which orderings hold.

An interval decides the wording of every sentence. Nothing is claimed that the rows and records of
this run do not show, and an expectation that fails is reported as failing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.evaluation.intervals import (
    Clusters,
    Interval,
    bootstrap,
    difference_of_changes,
    interval,
    paired_difference,
)
from jaxdistill.evaluation.measures import MEASURES, mean_of_rows
from jaxdistill.report.load import BASE, Row, StudyResults
from jaxdistill.report.words import (
    METHOD_LABELS,
    change_text,
    method_label,
    movement,
    sentence,
    share_text,
    split_label,
    value_text,
)

CellKey = tuple[str, str, str]  # world, method, split


@dataclass(frozen=True)
class Cell:
    """One method at one step on one split, all its seeds pooled."""

    world: str
    method: str
    split: str
    step: int
    rows: list[Row]  # one per seed
    clusters: dict[str, Clusters]  # by measure; empty without per-response records

    def value(self, measure: str) -> float:
        """The measure's mean, from the records where they exist; NaN if it was not measured."""
        if measure in self.clusters:
            return self.clusters[measure].mean
        value = mean_of_rows(self.rows, measure)
        return math.nan if value is None else value

    def estimate(self, measure: str) -> Interval:
        """The measure's value with its 95 % interval, without bounds if records are missing."""
        if measure in self.clusters:
            return interval(self.clusters[measure])
        return _unbounded(self.value(measure))


class Ordering(NamedTuple):
    """An expected ordering: `subject` lies on this `side` of `other` (both: world, method)."""

    claim: str
    subject: tuple[str, str]
    side: str  # "below" or "above"
    other: tuple[str, str]
    measure: str = "accuracy"
    split: str = "heldout"


class Finding(NamedTuple):
    """An expectation, what was measured, and whether it holds in this run."""

    claim: str
    measured: str
    verdict: str


HOLDS = "holds"
OPPOSITE = "opposite"
OPEN = "not settled"
UNMEASURED = "not measured"
NO_INTERVAL = " (no interval)"

MAIN = {method: ("main", method) for method in METHOD_LABELS}
SDPO = MAIN["sdpo"]
GRPO = MAIN["grpo"]
ANCHOR = MAIN["epi_anchor"]
ORDERINGS = (
    Ordering("SDPO ends below the base, held-out", SDPO, "below", MAIN[BASE]),
    Ordering("SDPO ends below the base, OOD", SDPO, "below", MAIN[BASE], split="ood"),
    Ordering(
        "SDPO uses fewer epistemic tokens", SDPO, "below", MAIN[BASE], "epistemic_per_response"
    ),
    Ordering("SDPO gives shorter answers", SDPO, "below", MAIN[BASE], "length"),
    Ordering("SDPO double-checks less often", SDPO, "below", MAIN[BASE], "check_rate"),
    Ordering("SDPO with an EMA teacher ends below SDPO", MAIN["sdpo_ema"], "below", SDPO),
    Ordering("GRPO ends above the base", GRPO, "above", MAIN[BASE]),
    Ordering("GRPO ends above SDPO", GRPO, "above", SDPO),
    Ordering("the anchor ends above SDPO", ANCHOR, "above", SDPO),
    Ordering("the anchor ends above SDPO, OOD", ANCHOR, "above", SDPO, split="ood"),
    Ordering(
        "the anchor keeps more epistemic tokens", ANCHOR, "above", SDPO, "epistemic_per_response"
    ),
    Ordering("the gate ends above SDPO", MAIN["epi_gate"], "above", SDPO),
    Ordering("the anchor ends above the mask", ANCHOR, "above", MAIN["sdpo_mask"]),
    Ordering(
        "control world: SDPO uses fewer epistemic tokens there too",
        ("control", "sdpo"),
        "below",
        ("control", BASE),
        "epistemic_per_response",
    ),
)


def tabulate(study: StudyResults) -> dict[CellKey, Cell]:
    """The cell of every method's last step on the main grid."""
    cells = {}
    for world in study.worlds:
        for method in study.methods:
            for split in study.splits:
                rows = study.select(world=world, method=method, split=split)
                if rows:
                    cells[world, method, split] = make_cell(study, last_rows(rows))
    return cells


def last_rows(rows: list[Row]) -> list[Row]:
    """The rows of the last step that every seed reached. Raises UserError if there is none."""
    steps = [{row["step"] for row in rows if row["seed"] == seed} for seed in _seeds(rows)]
    shared = set.intersection(*steps)
    if not shared:
        raise UserError(
            f"summary.json: the seeds of {rows[0]['world']}/{rows[0]['method']} share no "
            "evaluated step; evaluate all seeds at the same steps"
        )
    return sorted((r for r in rows if r["step"] == max(shared)), key=lambda r: r["seed"])


def make_cell(study: StudyResults, rows: list[Row]) -> Cell:
    """Pool the seeds of one (world, method, split, step)."""
    head = rows[0]
    runs = [study.runs.get((head["world"], head["method"], row["seed"])) for row in rows]
    per_seed = [run.records(head["step"], head["split"]) if run else None for run in runs]
    records = [record for seed_records in per_seed if seed_records for record in seed_records]
    # Only if every seed has records: those of some seeds would not give the mean of all rows.
    sums = {name: m.of(records) for name, m in MEASURES.items()} if all(per_seed) else {}
    return Cell(
        world=head["world"],
        method=head["method"],
        split=head["split"],
        step=head["step"],
        rows=rows,
        clusters={name: found for name, found in sums.items() if found is not None},
    )


def references(study: StudyResults, cells: dict[CellKey, Cell]) -> dict[CellKey, Cell]:
    """The cell that each one is compared with: the base, or without a base its own first step."""
    if BASE in study.methods:
        found = {key: cells.get((key[0], BASE, key[2])) for key in cells if key[1] != BASE}
        return {key: base for key, base in found.items() if base is not None}
    first = {}
    for key, cell in cells.items():
        rows = study.select(world=key[0], method=key[1], split=key[2])
        start = min(row["step"] for row in rows)
        if start < cell.step:
            first[key] = make_cell(study, [row for row in rows if row["step"] == start])
    return first


def change(first: Cell, second: Cell, measure: str) -> Interval:
    """first - second: paired by problem where both have records, otherwise without an interval."""
    if measure in first.clusters and measure in second.clusters:
        return paired_difference(first.clusters[measure], second.clusters[measure])
    return _unbounded(first.value(measure) - second.value(measure))


def is_measured(cell: Cell | None, measure: str) -> bool:
    return cell is not None and not math.isnan(cell.value(measure))


def kept_share(base: Cell, harmed: Cell, protected: Cell) -> Interval | None:
    """The share of `harmed`'s loss of accuracy that `protected` does not lose.

    None unless the loss is certain, that is, its whole interval lies below zero.
    """
    loss = change(harmed, base, "accuracy")
    if loss.value >= 0 or (loss.is_bounded and loss.high >= 0):
        return None
    cells = (base, harmed, protected)
    if not all("accuracy" in cell.clusters for cell in cells):
        b, h, p = (cell.value("accuracy") for cell in cells)
        return _unbounded((p - h) / (b - h))
    # The ratio is resampled as a whole, because its parts share the same problems.
    clusters = [cell.clusters["accuracy"] for cell in cells]
    return bootstrap(clusters, lambda b, h, p: (p - h) / (b - h))


def control_contrast(cells: dict[CellKey, Cell], split: str = "heldout") -> Interval | None:
    """SDPO's change in the control world minus its change in the main world (accuracy)."""
    keys = [(w, m, split) for w in ("control", "main") for m in ("sdpo", BASE)]
    if not all(key in cells for key in keys):
        return None
    after_c, before_c, after_m, before_m = (cells[key] for key in keys)
    if all("accuracy" in cells[key].clusters for key in keys):
        c, d, e, f = (cells[key].clusters["accuracy"] for key in keys)
        return difference_of_changes((c, d), (e, f))
    value = (
        change(after_c, before_c, "accuracy").value - change(after_m, before_m, "accuracy").value
    )
    return _unbounded(value)


def judge(difference: Interval) -> str:
    """The verdict on a difference that is expected to be positive."""
    if difference.is_bounded:
        if difference.low > 0:
            return HOLDS
        return OPPOSITE if difference.high < 0 else OPEN
    if math.isnan(difference.value) or difference.value == 0:
        return OPEN + NO_INTERVAL
    return (HOLDS if difference.value > 0 else OPPOSITE) + NO_INTERVAL


def findings(cells: dict[CellKey, Cell]) -> list[Finding]:
    """Each expected ordering against this run's numbers; none if the study measured none.

    The orderings are those of the toy worlds: a grid of a user's own recipe has other methods.
    """
    judged = [_judged(ordering, cells) for ordering in ORDERINGS]
    contrast = control_contrast(cells)
    claim = "control world: SDPO loses less held-out accuracy than in the main world"
    if contrast is None:
        judged.append(Finding(claim, "", UNMEASURED))
    else:
        judged.append(Finding(claim, change_text("accuracy", contrast), judge(contrast)))
    return [] if all(finding.verdict == UNMEASURED for finding in judged) else judged


def verdict_sentence(judged: Iterable[Finding]) -> str:
    """One sentence that counts the verdicts on the expected orderings; empty if there are none."""
    verdicts = [f.verdict.removesuffix(NO_INTERVAL) for f in judged if f.verdict != UNMEASURED]
    if not verdicts:
        return ""
    counts = {kind: verdicts.count(kind) for kind in (HOLDS, OPPOSITE, OPEN)}
    are = "is" if counts[OPEN] == 1 else "are"
    return (
        f"Of {len(verdicts)} expected orderings measured, {counts[HOLDS]} hold, "
        f"{counts[OPPOSITE]} come out opposite and {counts[OPEN]} {are} not settled "
        "(the interval includes zero)."
    )


def headline(cells: dict[CellKey, Cell]) -> list[str]:
    """Sentences on what happened, each built from the numbers of this run."""
    lines = [
        _movement_sentence(cells, "main", "sdpo", measure=measure, split=split)
        for measure, split in (
            ("accuracy", "heldout"),
            ("accuracy", "ood"),
            ("epistemic_per_response", "heldout"),
            ("length", "heldout"),
        )
    ]
    lines += [
        _anchor_sentence(cells),
        _movement_sentence(cells, "main", "grpo"),
        _control_sentence(cells),
    ]
    return [line for line in lines if line]


def _judged(ordering: Ordering, cells: dict[CellKey, Cell]) -> Finding:
    sides = [cells.get((*place, ordering.split)) for place in (ordering.subject, ordering.other)]
    subject, other = sides
    if subject is None or other is None or not all(is_measured(c, ordering.measure) for c in sides):
        return Finding(ordering.claim, "", UNMEASURED)
    measure = ordering.measure
    ends = " against ".join(value_text(measure, c.value(measure)) for c in (subject, other))
    shown = change_text(measure, change(subject, other, measure))
    high, low = (subject, other) if ordering.side == "above" else (other, subject)
    return Finding(ordering.claim, f"{ends}: {shown}", judge(change(high, low, measure)))


def _movement_sentence(
    cells: dict[CellKey, Cell],
    world: str,
    method: str,
    measure: str = "accuracy",
    split: str = "heldout",
) -> str:
    before, after = cells.get((world, BASE, split)), cells.get((world, method, split))
    if before is None or after is None:
        return ""
    difference = change(after, before, measure)
    subject = MEASURES[measure].subject
    if measure == "accuracy":
        subject = f"{split_label(split)} accuracy"
    ends = [value_text(measure, cell.value(measure)) for cell in (before, after)]
    return (
        f"{method_label(method)}: {subject} {movement(difference)} from {ends[0]} to {ends[1]}, "
        f"{change_text(measure, difference)}."
    )


def _anchor_sentence(cells: dict[CellKey, Cell]) -> str:
    base, sdpo, anchor = (cells.get(("main", m, "heldout")) for m in (BASE, "sdpo", "epi_anchor"))
    if base is None or sdpo is None or anchor is None:
        return ""
    value = value_text("accuracy", anchor.value("accuracy"))
    gain = change_text("accuracy", change(anchor, sdpo, "accuracy"))
    end = f"The anchored objective ends at {value} held-out ({gain} against SDPO)"
    kept = kept_share(base, sdpo, anchor)
    if kept is None:
        return f"{end}; SDPO's loss of accuracy is not distinguishable from zero."
    return f"{end}: it keeps {share_text(kept)} of what SDPO lost."


def _control_sentence(cells: dict[CellKey, Cell]) -> str:
    keys = [("control", BASE, "heldout"), ("control", "sdpo", "heldout")]
    if not all(key in cells for key in keys):
        return ""
    before, after = (cells[key] for key in keys)
    parts = []
    for measure, place in (("epistemic_per_response", ""), ("accuracy", "held-out ")):
        subject = f"{place}{MEASURES[measure].subject}"
        difference = change(after, before, measure)
        parts.append(
            f"{subject} {movement(difference)} from "
            f"{value_text(measure, before.value(measure))} to "
            f"{value_text(measure, after.value(measure))}, "
            f"{change_text(measure, difference)}"
        )
    return sentence(f"control world, SDPO: {'; '.join(parts)}.")


def _seeds(rows: list[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def _unbounded(value: float) -> Interval:
    return Interval(value, math.nan, math.nan, 0)
