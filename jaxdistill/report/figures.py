"""The figures, each drawn with a light and a dark theme by the same calls under other rc settings.

A figure is 9 inches wide and shown at 900 pixels, so a point of type is about 1.4 pixels.
"""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.report.findings import Cell, CellKey, change
from jaxdistill.report.load import BASE, StudyResults
from jaxdistill.report.words import method_label, sentence, split_label, world_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 9.0
# 1,440 pixels across: sharp at 900 CSS pixels on screens of up to 1.6 device pixels per CSS pixel.
DPI = 160
SMOOTHING_STEPS = 5  # chosen by eye: smooths the noise of single steps in runs of tens of steps


class Theme(NamedTuple):
    """The colours of one background; a method has the same hue in both themes."""

    name: str
    background: str
    ink: str
    faint: str
    grid: str
    methods: dict[str, str]
    others: tuple[str, ...]  # for methods that `methods` lacks; all differ from its colours

    @property
    def settings(self) -> dict[Any, Any]:
        """Matplotlib's rc settings for everything except the data."""
        colours = {
            "savefig.facecolor": self.background,
            "axes.facecolor": self.background,
            "axes.edgecolor": self.faint,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "legend.labelcolor": self.ink,
            "grid.color": self.grid,
            "text.color": self.faint,
            "xtick.color": self.faint,
            "ytick.color": self.faint,
        }
        return colours | RC


# Chosen by eye at 900 pixels across.
RC = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.parse_math": False,  # a `$` in a name is a dollar sign, not mathematics
}


# Okabe-Ito hues (safe for colour-blind readers), lightened for the dark background.
LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#24211d",
    faint="#6f6a62",
    grid="#e6e2da",
    methods={
        "base": "#7a756d",
        "sdpo": "#c8401c",
        "sdpo_ema": "#8c2d4f",
        "sdpo_mask": "#b88400",
        "epi_gate": "#3f97c9",
        "epi_anchor": "#1f4e9c",
        "grpo": "#16805c",
    },
    others=(
        "#7b3fa0",
        "#e08a1e",
        "#5f8f00",
        "#d46bb0",
        "#00a0a0",
        "#6b4a2b",
        "#24211d",
        "#9aa6ff",
    ),
)
DARK = Theme(
    name="dark",
    background="#1b1a18",
    ink="#ece8e1",
    faint="#a8a297",
    grid="#37342f",
    methods={
        "base": "#a39d93",
        "sdpo": "#ff7a4d",
        "sdpo_ema": "#e0719a",
        "sdpo_mask": "#e5b53a",
        "epi_gate": "#7cc8f2",
        "epi_anchor": "#7fa3ff",
        "grpo": "#4cc79a",
    },
    others=(
        "#b98cf0",
        "#ffb45c",
        "#a9cf3a",
        "#ff9fdc",
        "#4fe0e0",
        "#b8936d",
        "#ffffff",
        "#5f6bd6",
    ),
)
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


class Picture(NamedTuple):
    """A finished figure: its name, a PNG in each theme, and its caption."""

    name: str
    light: bytes
    dark: bytes
    caption: str


def picture(name: str, caption: str, draw: Callable[[Theme], "Figure"]) -> Picture:
    """Draw in both themes. The PNG holds no date or version, so equal data give equal bytes."""
    # Imported only when a figure is drawn: Markdown does not need it.
    import matplotlib

    png = {}
    for theme in (LIGHT, DARK):
        buffer = io.BytesIO()
        with matplotlib.rc_context(theme.settings), warnings.catch_warnings():
            # A letter that the font lacks is drawn as a box; the tables show the whole name.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            draw(theme).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        png[theme.name] = buffer.getvalue()
    return Picture(name, png["light"], png["dark"], caption)


def curves(study: StudyResults, theme: Theme) -> "Figure":
    """Training reward, accuracy by split, length and epistemic tokens over training steps."""
    panels = _curve_panels(study)
    fig = _figure(1.75 * len(panels) + 1.0)
    axes = fig.subplots(len(panels), len(study.worlds), squeeze=False, sharex="col", sharey="row")
    for (title, split, key), row_axes in zip(panels, axes):
        for world, ax in zip(study.worlds, row_axes):
            for method in study.methods:
                points = (
                    _eval_series(study, world, method, split, key)
                    if split
                    else _metric_series(study, world, method, key)
                )
                _draw_series(ax, points, _colour(study, method, theme), is_base=method == BASE)
            if not ax.lines:
                middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
                ax.text(0.5, 0.5, "not recorded", fontsize=8, **middle)
        if key in MEASURES and MEASURES[key].is_share:  # in percent, as in the tables
            title = f"{title}, %"
            row_axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        row_axes[0].set_ylabel(title)
    axes[-1, 0].set_ylim(bottom=0)
    _title_columns(axes, study)
    for ax in axes[-1]:
        ax.set_xlabel("training step")
    _legend(fig, study, theme)
    return fig


def _curve_panels(study: StudyResults) -> list[tuple[str, str, str]]:
    """(label, split, field) from top to bottom; split "" means the metrics of training samples.

    The other measures come from held-out problems, or from those metrics if nothing was evaluated.
    """
    splits = [s for s in study.splits if s != "train"] or study.splits
    split = splits[0] if splits else ""
    return [
        ("training reward", "", "reward"),
        *((f"{split_label(s)} accuracy", s, "accuracy") for s in splits),
        *((m.panel, split, m.name) for m in MEASURES.values() if m.panel),
    ]


def forest(study: StudyResults, cells: dict[CellKey, Cell], theme: Theme) -> "Figure":
    """Each method's accuracy minus the base's, with its interval, per world and split."""
    methods = [m for m in study.methods if m != BASE]
    splits = [s for s in study.splits if s != "train"] or study.splits
    fig = _figure(0.34 * len(methods) * len(splits) + 1.3)
    axes = fig.subplots(len(splits), len(study.worlds), squeeze=False, sharex=True, sharey=True)
    for split, row_axes in zip(splits, axes):
        for world, ax in zip(study.worlds, row_axes):
            ax.axvline(0, color=theme.faint, linewidth=1)
            for height, method in enumerate(reversed(methods)):
                _draw_difference(
                    ax, cells, (world, method, split), height, _colour(study, method, theme)
                )
            ax.set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])
            ax.set_ylim(-0.6, len(methods) - 0.4)
        row_axes[0].set_ylabel(split_label(split))
    _title_columns(axes, study)
    for ax in axes[-1]:
        ax.set_xlabel("accuracy minus base, points")
    return fig


def mass_panels(study: StudyResults) -> list[tuple[str, str]]:
    """(world, method) of the runs that logged an epistemic mass."""
    return [
        (world, method)
        for world in study.worlds
        for method in study.methods
        if any(_metric_series(study, world, method, f"epistemic_mass_{w}") for w in MASS_LINES)
    ]


def mass(study: StudyResults, theme: Theme) -> "Figure":
    """Epistemic probability mass of student, teacher and reference at each step."""
    panels = mass_panels(study)
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    fig = _figure(2.1 * num_rows + 0.7)
    axes = fig.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for (world, method), ax in zip(panels, axes.flat):
        for who, (kind, style) in MASS_LINES.items():
            points = smoothed(_metric_series(study, world, method, f"epistemic_mass_{who}"))
            colour = theme.methods[kind]
            ax.plot(
                [p[0] for p in points],
                [p[1] for p in points],
                color=colour,
                linestyle=style,
                linewidth=1.7,
                label=who,
            )
        place = f", {world_label(world)}" if world else ""
        ax.set_title(method_label(method) + place)
    for ax in axes[-1]:
        ax.set_xlabel("training step")
    # After all curves are drawn, because setting a limit ends the shared autoscaling.
    axes.flat[0].set_ylim(bottom=0)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    _legend_of(fig, handles, labels, 3)
    return fig


# network -> (the method whose colour it uses, line style)
MASS_LINES = {
    "student": ("sdpo", "solid"),
    "teacher": ("epi_anchor", DASHES[1]),
    "reference": ("base", DASHES[2]),
}

Points = list[tuple[float, float, float, float]]  # step, mean over seeds, lowest, highest


def smoothed(points: Points, width: int = SMOOTHING_STEPS) -> Points:
    """Centred moving mean over `width` points, and over fewer at the ends."""
    half = width // 2
    values = np.array([p[1:] for p in points])
    return [
        (points[i][0], *values[max(0, i - half) : i + half + 1].mean(axis=0).tolist())
        for i in range(len(points))
    ]


def _eval_series(study: StudyResults, world: str, method: str, split: str, key: str) -> Points:
    """One point per evaluation; a method without a step 0 starts at the base's value."""
    rows = study.select(world=world, method=method, split=split)
    if rows and method != BASE and min(row["step"] for row in rows) > 0:
        start = study.select(world=world, method=BASE, split=split)
        rows = [dict(row, step=0) for row in start] + rows
    return _by_step((row["step"], row.get(key)) for row in rows)


def _metric_series(study: StudyResults, world: str, method: str, key: str) -> Points:
    runs = [r for (w, m, _), r in study.runs.items() if (w, m) == (world, method)]
    return _by_step((line["step"], line.get(key)) for run in runs for line in run.metrics)


def _by_step(pairs: Any) -> Points:
    values: dict[float, list[float]] = {}
    for step, value in pairs:
        if isinstance(value, int | float) and np.isfinite(value):
            values.setdefault(step, []).append(value)
    return [(step, float(np.mean(v)), min(v), max(v)) for step, v in sorted(values.items())]


def _draw_series(ax: "Axes", points: Points, colour: str, *, is_base: bool) -> None:
    """A line through the seeds' means and a band from the lowest seed to the highest."""
    if not points:
        return
    if is_base:
        ax.axhline(points[0][1], color=colour, linewidth=1.2, linestyle=DASHES[2])
        return
    # With fewer points, much of the smoothed curve would be the shorter means at its ends.
    is_dense = len(points) >= 4 * SMOOTHING_STEPS
    steps, means, lows, highs = zip(*(smoothed(points) if is_dense else points))
    ax.plot(
        steps,
        means,
        color=colour,
        linewidth=1.8,
        marker="" if is_dense else "o",
        markersize=3.2,
        solid_capstyle="round",
    )
    if any(low < high for low, high in zip(lows, highs)):
        ax.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _draw_difference(
    ax: "Axes", cells: dict[CellKey, Cell], key: CellKey, height: int, colour: str
) -> None:
    cell, base = cells.get(key), cells.get((key[0], BASE, key[2]))
    if cell is None or base is None:
        return
    difference = change(cell, base, "accuracy")
    if difference.is_bounded:
        ax.plot(
            [100 * difference.low, 100 * difference.high],
            [height, height],
            color=colour,
            linewidth=2.2,
            solid_capstyle="round",
        )
    ax.plot([100 * difference.value], [height], "o", color=colour, markersize=5.5)


def _colour(study: StudyResults, method: str, theme: Theme) -> str:
    """The method's own colour; an unknown method takes the next of a fixed list."""
    if method in theme.methods:
        return theme.methods[method]
    unknown = [m for m in study.methods if m not in theme.methods]
    return theme.others[unknown.index(method) % len(theme.others)]


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, height))


def _title_columns(axes: Any, study: StudyResults) -> None:
    for world, ax in zip(study.worlds, axes[0]):
        if world:
            ax.set_title(sentence(world_label(world)), fontsize=10, fontweight="bold")


def _legend(fig: "Figure", study: StudyResults, theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=_colour(study, m, theme),
            linewidth=1.2 if m == BASE else 2,
            linestyle=DASHES[2] if m == BASE else "solid",
        )
        for m in study.methods
    ]
    _legend_of(fig, handles, [method_label(m) for m in study.methods], 4)


def _legend_of(fig: "Figure", handles: list, labels: list[str], columns: int) -> None:
    fig.legend(handles, labels, loc="outside upper left", ncols=min(columns, len(labels)))


def draw_all(study: StudyResults, cells: dict[CellKey, Cell]) -> dict[str, Picture]:
    """Every figure for which this study has data, by name."""
    caption = CURVES_CAPTION + (
        " The dotted line is the base model." if BASE in study.methods else ""
    )
    caption += SEEDS_CAPTION if any(seed != 0 for _, _, seed in study.runs) else ""
    pictures = {"curves": picture("curves", caption, lambda theme: curves(study, theme))}
    if BASE in study.methods and len(study.methods) > 1:
        pictures["differences"] = picture(
            "differences", FOREST_CAPTION, lambda theme: forest(study, cells, theme)
        )
    if mass_panels(study):
        pictures["epistemic_mass"] = picture(
            "epistemic_mass", MASS_CAPTION, lambda theme: mass(study, theme)
        )
    return pictures


CURVES_CAPTION = (
    f"Training reward is a moving mean over {SMOOTHING_STEPS} steps of the reward of the training "
    "samples; the other panels are evaluations (length and epistemic tokens on held-out problems, "
    "where there are any)."
)
SEEDS_CAPTION = " Bands run from the lowest to the highest seed."
FOREST_CAPTION = (
    "Accuracy of the last step minus the base model's on the same problems; bars are 95% "
    "intervals from resampling problems."
)
MASS_CAPTION = (
    "Probability that the student, its teacher and the frozen reference put on epistemic words, "
    f"averaged over the positions of training samples (moving mean over {SMOOTHING_STEPS} steps)."
)
