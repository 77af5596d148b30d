"""Figures over training steps: reward, evaluations with intervals, and the epistemic mass."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdistill.evaluation.intervals import interval
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.report.findings import Cell, make_cell
from jaxdistill.report.load import BASE, StudyResults
from jaxdistill.report.settings import configs_of
from jaxdistill.report.themes import DASHES, WIDE, Theme, add_legend, colour_of, new_figure
from jaxdistill.report.words import method_label, sentence, split_label, world_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_STEPS = 5  # chosen by eye: smooths the noise of single steps in runs of tens of steps
# An axis of shares spans at least this much, so that noise does not look like a change.
LEAST_SPAN = 0.2
# Intervals of different methods at one step stand beside each other: this share of the axis apart.
DODGE = 0.008


class Point(NamedTuple):
    """A value at a step: the mean over seeds, the seeds' ends, and its 95 % interval or NaN."""

    step: float
    value: float
    lowest: float
    highest: float
    low: float = math.nan
    high: float = math.nan


class Panel(NamedTuple):
    """One row of the figure; `lines` and `bases` are by (world, method) and by world."""

    title: str
    key: str
    lines: dict[tuple[str, str], list[Point]]
    bases: dict[str, Point]

    @property
    def is_share(self) -> bool:
        return self.key in MEASURES and MEASURES[self.key].is_share


def panels_of(study: StudyResults) -> list[Panel]:
    """What the figure shows, from top to bottom: training reward, accuracies, other measures.

    The other measures come from held-out problems, or from the metrics of training samples if
    nothing was evaluated.
    """
    course = _evaluations(study)
    splits = [s for s in study.splits if s != "train"] or study.splits
    split = splits[0] if splits else ""
    wanted = [
        ("training reward", "", "reward"),
        *((f"{split_label(s)} accuracy", s, "accuracy") for s in splits),
        *((m.panel, split, m.name) for m in MEASURES.values() if m.panel),
    ]
    return [_panel(study, course, title, split=split, key=key) for title, split, key in wanted]


def _panel(study: StudyResults, course: Any, title: str, *, split: str, key: str) -> Panel:
    places = [(world, method) for world in study.worlds for method in study.methods]
    if not split:
        lines = {place: metric_series(study, *place, key) for place in places}
        return Panel(title, key, lines, {})
    lines = {place: _series(course.get((*place, split), []), key) for place in places}
    bases = _base_points(study, lines)
    for (world, method), points in lines.items():
        # A method of a study starts where the base is; the base is measured once, for all.
        base = lines.get((world, BASE))
        if method != BASE and points and base and points[0].step > 0:
            lines[world, method] = [base[-1]._replace(step=0), *points]
    return Panel(title, key, {k: v for k, v in lines.items() if k[1] != BASE}, bases)


def _base_points(
    study: StudyResults, lines: dict[tuple[str, str], list[Point]]
) -> dict[str, Point]:
    """The initial model's value per world: the base's, or the step 0 that all runs share."""
    found = {}
    for world in study.worlds:
        if base := lines.get((world, BASE)):
            found[world] = base[-1]
            continue
        starts = [points[0] for (w, _), points in lines.items() if w == world and points]
        if starts and all(p.step == 0 and p.value == starts[0].value for p in starts):
            found[world] = starts[0]
    return found


def _evaluations(study: StudyResults) -> dict[tuple[str, str, str], list[Cell]]:
    """The cells of every evaluated step, in order, by (world, method, split)."""
    found: dict[tuple[str, str, str], dict[int, list]] = {}
    for row in study.rows:
        steps = found.setdefault((row["world"], row["method"], row["split"]), {})
        steps.setdefault(row["step"], []).append(row)
    return {
        place: [make_cell(study, rows) for _, rows in sorted(steps.items())]
        for place, steps in found.items()
    }


def _series(cells: list[Cell], measure: str) -> list[Point]:
    points = []
    for cell in cells:
        values = [row[measure] for row in cell.rows if row.get(measure) is not None]
        value = cell.value(measure)
        if math.isnan(value) or not values:
            continue
        found = interval(cell.clusters[measure]) if measure in cell.clusters else None
        point = Point(step=cell.step, value=value, lowest=min(values), highest=max(values))
        points.append(point._replace(low=found.low, high=found.high) if found else point)
    return points


def metric_series(study: StudyResults, world: str, method: str, key: str) -> list[Point]:
    """A field of metrics.jsonl at each step, over the runs (seeds) of a method."""
    runs = [r for (w, m, _), r in study.runs.items() if (w, m) == (world, method)]
    values: dict[float, list[float]] = {}
    for line in (line for run in runs for line in run.metrics):
        value = line.get(key)
        if isinstance(value, int | float) and np.isfinite(value):
            values.setdefault(line["step"], []).append(value)
    return [Point(step, float(np.mean(v)), min(v), max(v)) for step, v in sorted(values.items())]


def smoothed(points: list[Point], width: int = SMOOTHING_STEPS) -> list[Point]:
    """Centred moving mean over `width` points, and over fewer at the ends."""
    half = width // 2
    values = np.array([p[1:] for p in points])
    return [
        Point._make([point.step, *values[max(0, i - half) : i + half + 1].mean(axis=0).tolist()])
        for i, point in enumerate(points)
    ]


# ------------------------------------------------------------------------------------ drawing


def curves(study: StudyResults, panels: list[Panel], theme: Theme, width: float) -> "Figure":
    """Training reward, accuracy by split, length and epistemic tokens over training steps."""
    fig = new_figure(width, 1.75 * len(panels) + 1.0)
    axes = fig.subplots(len(panels), len(study.worlds), squeeze=False, sharex="col", sharey="row")
    for panel, row_axes in zip(panels, axes):
        for world, ax in zip(study.worlds, row_axes):
            _draw_panel(ax, study, panel, world, theme)
        if panel.is_share:  # in percent, as in the tables
            row_axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        row_axes[0].set_ylabel(f"{panel.title}, %" if panel.is_share else panel.title)
        _set_limits(row_axes[0], panel, is_last=panel is panels[-1])
    title_columns(axes, study)
    for ax in axes[-1]:
        ax.set_xlabel("training step")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if each := rollouts_per_step(study):
            ax.set_xlabel(f"rollouts, {each} per training step")
            ax.xaxis.set_major_formatter(lambda step, _, each=each: f"{each * step:,.0f}")
    _legend(fig, study, theme, has_base=any(panel.bases for panel in panels))
    return fig


def rollouts_per_step(study: StudyResults) -> int | None:
    """The rollouts of each step; None unless the study counts them and all runs have as many."""
    if study.info.get("over") != "rollouts":
        return None
    sampled = (config.get("experience", {}) for config in configs_of(study).values())
    found = {one.get("questions", 0) * one.get("rollouts", 0) for one in sampled}
    return found.pop() or None if len(found) == 1 else None


def _draw_panel(ax: "Axes", study: StudyResults, panel: Panel, world: str, theme: Theme) -> None:
    methods = [m for m in study.methods if panel.lines.get((world, m))]
    if base := panel.bases.get(world):
        grey = theme.methods[BASE]
        ax.axhline(base.value, color=grey, linewidth=1.2, linestyle=DASHES[2])
        if not math.isnan(base.low):
            ax.axhspan(base.low, base.high, color=grey, alpha=0.12, linewidth=0)
    last = max((panel.lines[world, m][-1].step for m in methods), default=0)
    for index, method in enumerate(methods):
        shift = DODGE * last * (index - (len(methods) - 1) / 2)
        _draw_series(ax, panel.lines[world, method], colour_of(study, method, theme), shift)
    if not ax.lines:
        middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "not recorded", fontsize=8, **middle)


def _draw_series(ax: "Axes", points: list[Point], colour: str, shift: float) -> None:
    """A line through the means, a band over the seeds, and an interval at each evaluation."""
    # With fewer points, much of the smoothed curve would be the shorter means at its ends.
    is_dense = len(points) >= 4 * SMOOTHING_STEPS
    shown = smoothed(points) if is_dense else points
    steps, means, lowest, highest, lows, highs = (np.array(x) for x in zip(*shown))
    ax.plot(
        steps,
        means,
        color=colour,
        linewidth=1.8,
        marker="" if is_dense else "o",
        markersize=3.2,
        solid_capstyle="round",
    )
    if np.any(lowest < highest):
        ax.fill_between(steps, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    if is_dense:  # bars at every step would hide the curves; NaN leaves a gap
        ax.fill_between(steps, lows, highs, color=colour, alpha=0.10, linewidth=0)
    else:
        after = steps > 0  # all start at the same value, whose interval is the base's
        ax.vlines((steps + shift)[after], lows[after], highs[after], colour, linewidth=1, alpha=0.7)


def _set_limits(ax: "Axes", panel: Panel, *, is_last: bool) -> None:
    low, high = ax.get_ylim()
    if panel.is_share and high - low < LEAST_SPAN:
        middle = min(max((low + high) / 2, LEAST_SPAN / 2), 1 - LEAST_SPAN / 2)
        ax.set_ylim(middle - LEAST_SPAN / 2 - 0.01, middle + LEAST_SPAN / 2 + 0.01)
    if is_last:  # a count, whose zero matters; a little lower, so that a line at zero is seen
        ax.set_ylim(bottom=-0.03 * high)


def mass_panels(study: StudyResults) -> list[tuple[str, str]]:
    """(world, method) of the runs that logged an epistemic mass."""
    return [
        (world, method)
        for world in study.worlds
        for method in study.methods
        if any(metric_series(study, world, method, f"epistemic_mass_{w}") for w in MASS_LINES)
    ]


def mass(study: StudyResults, theme: Theme, width: float) -> "Figure":
    """Epistemic probability mass of student, teacher and reference at each step."""
    panels = mass_panels(study)
    num_columns = min(3 if width == WIDE else 2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    fig = new_figure(width, 2.1 * num_rows + 0.7)
    axes = fig.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    drawn = {}
    for (world, method), ax in zip(panels, axes.flat):
        for who, (kind, style) in MASS_LINES.items():
            points = smoothed(metric_series(study, world, method, f"epistemic_mass_{who}"))
            if points:
                steps, values = zip(*(p[:2] for p in points))
                look = {"color": theme.methods[kind], "linestyle": style, "linewidth": 1.7}
                (drawn[who],) = ax.plot(steps, values, **look)
        place = [world_label(world)] if world else []
        ax.set_title((", " if width == WIDE else "\n").join([method_label(method), *place]))
    for ax in axes[-1]:
        ax.set_xlabel("training step")
        ax.xaxis.get_major_locator().set_params(integer=True)
    # After all curves are drawn, because setting a limit ends the shared autoscaling.
    axes.flat[0].set_ylim(bottom=0)
    names = [who for who in MASS_LINES if who in drawn]
    add_legend(fig, [drawn[who] for who in names], names, 3)
    return fig


# network -> (the method whose colour it uses, line style)
MASS_LINES = {
    "student": ("sdpo", "solid"),
    "teacher": ("epi_anchor", DASHES[1]),
    "reference": ("base", DASHES[2]),
}


def title_columns(axes: Any, study: StudyResults) -> None:
    for world, ax in zip(study.worlds, axes[0]):
        if world:
            ax.set_title(sentence(world_label(world)), fontsize=10, fontweight="bold")


def _legend(fig: "Figure", study: StudyResults, theme: Theme, *, has_base: bool) -> None:
    from matplotlib.lines import Line2D

    methods: Iterable[str] = [m for m in study.methods if m != BASE]
    handles = [Line2D([], [], color=colour_of(study, m, theme), linewidth=2) for m in methods]
    labels = [method_label(m) for m in methods]
    if has_base:
        grey = {"color": theme.methods[BASE], "linewidth": 1.2, "linestyle": DASHES[2]}
        handles.insert(0, Line2D([], [], **grey))
        labels.insert(0, method_label(BASE) if BASE in study.methods else "step 0")
    add_legend(fig, handles, labels, 4)
