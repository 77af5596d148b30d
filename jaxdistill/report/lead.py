"""The finding in one sentence, and the cards under it: what a reader takes away from a page.

Every clause follows from an interval. A change whose interval includes zero is called small only if
the interval is narrow, and unsettled if it is not.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.evaluation.measures import MEASURES, mean_of_rows
from jaxdistill.report.findings import (
    BASE,
    Cell,
    CellKey,
    change,
    is_measured,
    last_rows,
    references,
)
from jaxdistill.report.load import AXES, Row, Run, StudyResults
from jaxdistill.report.words import (
    METHOD_LABELS,
    change_text,
    method_label,
    number_text,
    range_text,
    sentence,
    split_label,
    value_text,
)

HARMED = "sdpo"
# Methods that learn from rewards, and are no remedies for what a teacher does.
REWARDED = (
    *("grpo", "grpo_kl", "rlsd", "epi_rlsd", "rlcsd", "srpo"),
    *("mix_sdpo", "mix_gate", "mix_anchor"),
    *("rescue_gate", "rescue_hint", "fade_gate", "grpo_at_mixture_rate"),
    *("mix_gate_at_grpo_rate", "mix_anchor_at_grpo_rate"),
    *("rescue_gate_at_grpo_rate", "rescue_hint_at_grpo_rate"),
)
# Plain self-distillation again, with a rate and a divergence of its own.
TUNED = ("sdpo_tuned", "sdpo_ema_tuned", "sdpo_mask_tuned")
DOUBT = "epistemic_per_response"
# A change whose whole interval is nearer to zero than this is called small: 5 points, a fourth of
# the fall that the paper is about. Chosen, not measured.
SMALL = 0.05


class Card(NamedTuple):
    """A key figure and up to three lines on it; `method` gives the colour."""

    title: str
    value: str
    lines: tuple[str, ...]
    method: str = ""


class Featured(NamedTuple):
    """The cells that a page speaks about first, all of one world and one split."""

    base: Cell | None
    harmed: Cell | None  # plain self-distillation
    best: Cell | None  # the other self-distilled method with the highest accuracy
    rewarded: Cell | None  # GRPO
    rivals: int  # how many methods `best` is the best of

    @property
    def methods(self) -> list[str]:
        """The models whose answers are shown beside each other."""
        return [c.method for c in (self.base, self.harmed, self.best) if c is not None]


def featured(study: StudyResults, cells: dict[CellKey, Cell]) -> Featured:
    """Choose the first world and its unseen problems; the best method is best by accuracy there."""
    world, split = first_world(study), first_split(study)
    here = {
        key[1]: cell
        for key, cell in cells.items()
        if (key[0], key[2]) == (world, split) and is_measured(cell, "accuracy")
    }
    rivals = [c for name, c in here.items() if name not in (BASE, HARMED, *TUNED, *REWARDED)]
    return Featured(
        base=here.get(BASE),
        harmed=here.get(HARMED),
        best=max(rivals, key=lambda cell: cell.value("accuracy"), default=None),
        rewarded=here.get("grpo"),
        rivals=len(rivals),
    )


def explained_methods(shown: Featured) -> list[str]:
    """The methods whose names the first sentence uses: they are explained right after it."""
    if shown.base is None or shown.harmed is None:
        return []
    return [cell.method for cell in (shown.harmed, shown.best) if cell is not None]


def cards_note(shown: Featured) -> str:
    """What the choice of the best method does to its interval; "" if there was no choice."""
    if shown.best is None or shown.rivals < 2:
        return ""
    return (
        f"“Best of {shown.rivals} others” is the highest {split_label(shown.best.split)} accuracy "
        "among the methods besides SDPO that learn from a teacher; the choice was made on these "
        "same problems, which its interval does not cover."
    )


def first_world(study: StudyResults) -> str:
    worlds = list(dict.fromkeys(row["world"] for row in study.rows))
    return "main" if "main" in worlds else next(iter(worlds or study.worlds))


def first_split(study: StudyResults) -> str:
    """The split of unseen problems that every sentence is about; "" if nothing was evaluated."""
    unseen = [s for s in study.splits if not s.startswith("train")]
    return next(iter(unseen or study.splits), "")


# ---------------------------------------------------------------------------------- sentences


def finding_sentence(study: StudyResults, cells: dict[CellKey, Cell]) -> str:
    """What this study or these runs found, in one sentence that holds for every outcome."""
    shown = featured(study, cells)
    if shown.base is not None and shown.harmed is not None:
        clauses = [_effect("self-distillation (SDPO)", shown.base, shown.harmed)]
        if shown.best is not None:
            clauses.append(_remedy(shown.base, shown.harmed, shown.best, shown.rivals))
        return sentence("; ".join(clauses)) + "."
    if not cells:
        return _never_evaluated(study)
    return sentence(_of_runs(study, cells)) + "."


def _effect(subject: str, before: Cell, after: Cell) -> str:
    """What a method did to accuracy, and then to doubt if both cells counted it."""
    clause = f"{subject} {_moved(before, after)}"
    if not (is_measured(before, DOUBT) and is_measured(after, DOUBT)):
        return clause
    ends = [value_text(DOUBT, cell.value(DOUBT)) for cell in (before, after)]
    verb = _verb(change(after, before, DOUBT), ("fell", "rose", "did not clearly move,"))
    return f"{clause}, and its epistemic tokens per response {verb} from {ends[0]} to {ends[1]}"


def _moved(before: Cell, after: Cell) -> str:
    """The verb, the ends and the interval of a change of accuracy."""
    difference = change(after, before, "accuracy")
    what = f"{split_label(after.split)} accuracy"
    low, high = (value_text("accuracy", cell.value("accuracy")) for cell in (before, after))
    ends = f"from {low} to {high} ({change_text('accuracy', difference)})"
    if not difference.is_bounded:
        return f"took {what} {ends}, without an interval to judge it by"
    if difference.high < 0:
        return f"lowered {what} {ends}"
    if difference.low > 0:
        return f"raised {what} {ends}"
    if max(-difference.low, difference.high) <= SMALL:
        by = change_text("accuracy", difference)
        return f"did not measurably change {what} ({low} before, {high} after, {by})"
    return f"leaves open whether {what} changed: {ends} is within the noise"


def _verb(difference: Interval, verbs: tuple[str, str, str]) -> str:
    fell, rose, unclear = verbs
    if not difference.is_bounded:
        return "went"
    if difference.high < 0:
        return fell
    return rose if difference.low > 0 else unclear


def _remedy(base: Cell, harmed: Cell, best: Cell, rivals: int) -> str:
    """What the best of the other objectives does, against SDPO and against the base."""
    name = _the(best.method)
    against_base = change(best, base, "accuracy")
    value = value_text("accuracy", best.value("accuracy"))
    ends = f"{value} ({change_text('accuracy', against_base)} against the base)"
    fell = change(harmed, base, "accuracy")
    helps = change(best, harmed, "accuracy")
    if not fell.is_bounded or not helps.is_bounded:
        return f"{name} ends at {ends}"
    if fell.high >= 0:
        which = name if rivals == 1 else f"the best of {rivals} others, {name},"
        return f"{which} ends at {ends}"
    if helps.low <= 0:
        which = name if rivals == 1 else f"the best of {rivals} others, {name},"
        return f"{which} is not clearly better: {ends}"
    if against_base.high < 0:
        return f"{name} prevents part of the loss: it ends at {ends}"
    if against_base.low > 0:
        return f"{name} prevents the loss and gains: it ends at {ends}"
    return f"{name} prevents the loss: it ends at {ends}"


def _the(method: str) -> str:
    label = method_label(method)
    return f"the {label}" if label.startswith("epistemic") else label


def _of_runs(study: StudyResults, cells: dict[CellKey, Cell]) -> str:
    """The sentence of a page without SDPO beside a base: each run against its own start."""
    world, split = first_world(study), first_split(study)
    here = [c for key, c in cells.items() if (key[0], key[2]) == (world, split)]
    starts = references(study, cells)
    trained = [c for c in here if c.method != BASE]
    if len(trained) == 1:
        (cell,) = trained
        return _of_one(_named(study, cell.method), cell, starts.get((world, cell.method, split)))
    trained.sort(key=lambda cell: -cell.value("accuracy"))
    if trained:
        return _of_several(study, trained, starts)
    begin = f"the base model has {_value(here[0])}" if here else "the base model was not evaluated"
    return "; ".join([begin, *_of_sweeps(study, world, split)])


def _of_sweeps(study: StudyResults, world: str, split: str) -> Iterator[str]:
    """A clause per method of a study that varies coverage or context alone: where it ends."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in study.sweep_rows:
        if (row["world"], row["split"]) == (world, split):
            label = ", ".join(f"{axis} {row[axis]}" for axis in AXES if row.get(axis) is not None)
            groups.setdefault(row["method"], {}).setdefault(label, []).append(row)
    for method, by_label in groups.items():
        means = {
            label: mean_of_rows(last_rows(rows), "accuracy") for label, rows in by_label.items()
        }
        ends = [(value, label) for label, value in means.items() if value is not None]
        low, high = (
            f"{value_text('accuracy', v)} ({label})" for v, label in (min(ends), max(ends))
        )
        between = f"between {low} and {high}" if len(ends) > 1 else f"at {low}"
        yield f"{method_label(method)} ends {between}"


def _named(study: StudyResults, method: str) -> str:
    """What a method is called; the name of a run's folder is followed by that of its objective."""
    label, run = method_label(method), study.runs.get(("", method, 0))
    is_method = method.partition("-")[0] in METHOD_LABELS
    if is_method or run is None or run.method is None:
        return label
    return f"{label} ({method_label(run.method)})"


def _of_one(name: str, cell: Cell, start: Cell | None) -> str:
    if start is None:
        when = f"after {cell.step} steps" if cell.step else "at step 0, before training"
        alone = "this is its only evaluation, so nothing is known about what training changed"
        return f"{name} has {_value(cell)} {when}; {alone}"
    if start.method == BASE:
        return _effect(name, start, cell)
    if start.step == 0:
        return _effect(f"{cell.step} steps of {name}", start, cell)
    late = f"{name} was not evaluated before step {start.step}, so what its first steps changed is"
    since = f"steps {start.step} to {cell.step}"
    return f"{late} unknown; {_effect(since, start, cell)}"


def _of_several(study: StudyResults, trained: Sequence[Cell], starts: dict[CellKey, Cell]) -> str:
    """The highest and the lowest of several runs, and whether they differ."""
    best, worst = trained[0], trained[-1]
    gap = change(best, worst, "accuracy")
    ends = [f"{_named(study, c.method)} at {_value(c)}{_since(c, starts)}" for c in (best, worst)]
    verdict = "their difference"
    if gap.is_bounded and gap.low <= 0:
        verdict = "which does not settle that they differ"
    return (
        f"of {len(trained)} runs {ends[0]} ends highest, and {ends[1]} lowest; {verdict}: "
        f"{change_text('accuracy', gap)}"
    )


def _since(cell: Cell, starts: dict[CellKey, Cell]) -> str:
    start = starts.get((cell.world, cell.method, cell.split))
    if start is None:
        return ""
    where = "the base" if start.method == BASE else f"its step {start.step}"
    return f" ({change_text('accuracy', change(cell, start, 'accuracy'))} against {where})"


def _value(cell: Cell) -> str:
    estimate = cell.estimate("accuracy")
    text = value_text("accuracy", estimate.value)
    return f"{text} {range_text('accuracy', estimate)}".strip() + (
        f" {split_label(cell.split)} accuracy"
    )


def _never_evaluated(study: StudyResults) -> str:
    """Only the rewards of training samples are known; they are not called a change of skill."""
    runs = list(study.runs.items())
    if len(runs) > 1:
        return f"None of the {len(runs)} runs was evaluated, so this page cannot compare them."
    ((_, method, _), run) = runs[0]
    name = sentence(_named(study, method))
    rewards = _rewards(run)
    if len(rewards) < 2:
        return f"{name} was not evaluated, so this page cannot tell what training changed."
    # Tenths of the run, since the reward of a single step is noise.
    tenth = max(1, len(rewards) // 10)
    first, last = (sum(part) / tenth for part in (rewards[:tenth], rewards[-tenth:]))
    steps = "step" if tenth == 1 else f"{tenth} steps"
    return (
        f"{name} was not evaluated; the mean reward of its training samples is {first:.2f} in the "
        f"first {steps} and {last:.2f} in the last, which are different problems."
    )


def _rewards(run: Run) -> list[float]:
    values = [row.get("reward") for row in run.metrics]
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


# -------------------------------------------------------------------------------------- cards


def cards(study: StudyResults, cells: dict[CellKey, Cell]) -> list[Card]:
    """Final accuracies against one baseline; for a single run, each measure against its start."""
    shown = featured(study, cells)
    starts = references(study, cells)
    if shown.base is not None:
        found = [shown.base, shown.harmed, shown.best, shown.rewarded]
        return [_card(c, starts, _title(c, shown)) for c in found if c is not None]
    world, split = first_world(study), first_split(study)
    here = [c for key, c in cells.items() if (key[0], key[2]) == (world, split)]
    if len({cell.method for cell in cells.values()}) == 1:
        return _cards_of_one(study, cells, starts)
    # More than six would not be read at a glance; the tables have them all.
    here.sort(key=lambda cell: -cell.value("accuracy"))
    return [_card(c, starts, method_label(c.method)) for c in here[:6]]


def _title(cell: Cell, shown: Featured) -> str:
    label = method_label(cell.method)
    if cell is shown.best and shown.rivals > 1:
        return f"{label}, best of {shown.rivals} others"
    return label


def _card(cell: Cell, starts: dict[CellKey, Cell], title: str) -> Card:
    start = starts.get((cell.world, cell.method, cell.split))
    bounds = range_text("accuracy", cell.estimate("accuracy"))
    lines = [f"{split_label(cell.split)} accuracy {bounds}".strip()]
    if cell.method == BASE:
        lines.append("the baseline of the others")
    elif start is None:
        lines.append("no earlier evaluation")
    else:
        against = "the base" if start.method == BASE else f"step {start.step}"
        difference = change_text("accuracy", change(cell, start, "accuracy"))
        lines.append(f"{difference} against {against}")
    if is_measured(cell, DOUBT):
        lines.append(f"{number_text(DOUBT, cell.value(DOUBT))} epistemic tokens per response")
    value = value_text("accuracy", cell.value("accuracy"))
    return Card(sentence(title), value, tuple(lines), cell.method)


def _cards_of_one(
    study: StudyResults, cells: dict[CellKey, Cell], starts: dict[CellKey, Cell]
) -> list[Card]:
    """Accuracy on each split of unseen problems, then doubt and length on the first."""
    split = first_split(study)
    unseen = [s for s in study.splits if not s.startswith("train")]
    wanted = [(s, "accuracy") for s in unseen or study.splits]
    wanted += [(split, DOUBT), (split, "length")]
    by_split = {key[2]: cell for key, cell in cells.items()}
    found = []
    for name, measure in wanted:
        cell = by_split.get(name)
        if cell is None or not is_measured(cell, measure):
            continue
        start = starts.get((cell.world, cell.method, cell.split))
        value, after = value_text(measure, cell.value(measure)), f"at step {cell.step}"
        lines = [f"{after} {range_text(measure, cell.estimate(measure))}".strip()]
        if start is not None and is_measured(start, measure):
            before = value_text(measure, start.value(measure))
            lines.append(f"from {before} at step {start.step}")
            lines.append(change_text(measure, change(cell, start, measure)))
        title = f"{MEASURES[measure].label}, {split_label(name)}"
        found.append(Card(sentence(title), value, tuple(lines), cell.method))
    return found
