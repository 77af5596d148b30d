"""All figures of a page; `curves` draws those over training steps, `themes` says how they look."""

from typing import TYPE_CHECKING

from jaxdistill.report.curves import (
    SMOOTHING_STEPS,
    curves,
    mass,
    mass_panels,
    panels_of,
    title_columns,
)
from jaxdistill.report.findings import Cell, CellKey, change
from jaxdistill.report.load import BASE, StudyResults, in_order
from jaxdistill.report.themes import (
    WIDE,
    Picture,
    Theme,
    add_legend,
    colour_of,
    new_figure,
    picture,
)
from jaxdistill.report.words import context_label, method_label, split_label, world_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


def draw_all(study: StudyResults, cells: dict[CellKey, Cell]) -> dict[str, Picture]:
    """Every figure for which this study has data, by name."""
    panels = panels_of(study)
    caption = CURVES_CAPTION
    if any(panel.bases for panel in panels):
        who = "base model" if BASE in study.methods else "model at step 0"
        caption += f" The dotted line and its band are the {who} and its interval."
    caption += SEEDS_CAPTION if any(seed != 0 for _, _, seed in study.runs) else ""
    found = [picture("curves", caption, lambda *look: curves(study, panels, *look))]
    if BASE in study.methods and len(study.methods) > 1:
        found.append(
            picture("differences", FOREST_CAPTION, lambda *look: forest(study, cells, *look))
        )
    if mass_panels(study):
        found.append(picture("epistemic_mass", MASS_CAPTION, lambda *look: mass(study, *look)))
    if any(study.probe.values()):
        found.append(picture("probe", PROBE_CAPTION, lambda *look: probe(study, *look)))
    return {drawn.name: drawn for drawn in found}


def forest(study: StudyResults, cells: dict[CellKey, Cell], theme: Theme, width: float) -> "Figure":
    """Each method's accuracy minus the base's, with its interval, per world and split."""
    methods = [m for m in study.methods if m != BASE]
    splits = [s for s in study.splits if s != "train"] or study.splits
    fig = new_figure(width, 0.34 * len(methods) * len(splits) + 1.3)
    axes = fig.subplots(len(splits), len(study.worlds), squeeze=False, sharex=True, sharey=True)
    for split, row_axes in zip(splits, axes):
        for world, ax in zip(study.worlds, row_axes):
            ax.axvline(0, color=theme.faint, linewidth=1)
            for height, method in enumerate(reversed(methods)):
                colour = colour_of(study, method, theme)
                _draw_difference(ax, cells, (world, method, split), height, colour)
            ax.set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])
            ax.set_ylim(-0.6, len(methods) - 0.4)
        row_axes[0].set_ylabel(split_label(split))
    title_columns(axes, study)
    for ax in axes[-1]:
        ax.set_xlabel("accuracy minus base, points" if width == WIDE else "minus base, points")
    return fig


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


def probe(study: StudyResults, theme: Theme, width: float) -> "Figure":
    """What the base would write next at each fork, by context: bars that are split by kind."""
    worlds = {world: rows for world, rows in study.probe.items() if rows}
    every = [row for rows in worlds.values() for row in rows]
    places = in_order((str(row.get("place", "")) for row in every), PLACES)
    contexts = list(dict.fromkeys(str(row.get("context", "")) for row in every))
    fig = new_figure(width, (0.26 * len(contexts) + 0.55) * len(worlds) + 0.8)
    axes = fig.subplots(len(worlds), len(places), squeeze=False, sharex=True, sharey=True)
    for (world, rows), row_axes in zip(worlds.items(), axes):
        for place, ax in zip(places, row_axes):
            _draw_bars(ax, [r for r in rows if str(r.get("place", "")) == place], contexts, theme)
            ax.set_title(PLACES.get(place, place))
            ax.grid(visible=False)
        row_axes[0].set_ylabel(world_label(world))
    axes[0, 0].set_yticks(range(len(contexts)), [context_label(name) for name in contexts])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, 1)
    axes[0, 0].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    for ax in axes[-1]:
        ax.set_xlabel("probability")
    handles = [_swatch(theme, colour) for colour in KINDS.values()]
    add_legend(fig, handles, [KIND_LABELS[kind] for kind in KINDS], 4)
    return fig


def _draw_bars(ax: "Axes", rows: list[dict], contexts: list[str], theme: Theme) -> None:
    for row in rows:
        left, height = 0.0, contexts.index(str(row.get("context", "")))
        for kind, colour in KINDS.items():
            share = row.get(kind) or 0.0
            ax.barh(height, share, left=left, height=0.72, color=_colour(theme, colour))
            left += share


def _swatch(theme: Theme, colour: str) -> "Patch":
    from matplotlib.patches import Patch

    return Patch(color=_colour(theme, colour))


def _colour(theme: Theme, name: str) -> str:
    return theme.grid if name == "grid" else theme.methods[name]


# The places of the probe, in the order of a trace; and its kinds of word with their colours.
PLACES = {"start": "at the start", "miss": "after a miss", "match": "after a hit"}
KINDS = {"epistemic": "sdpo_mask", "check": "epi_gate", "then": "base", "answer": "grid"}
KIND_LABELS = {
    "epistemic": "a word of doubt",
    "check": "“check”",
    "then": "another try without doubt",
    "answer": "the answer",
}

CURVES_CAPTION = (
    f"Training reward is a moving mean over {SMOOTHING_STEPS} steps of the reward of the training "
    "samples; the other panels are evaluations (length and epistemic tokens on held-out problems, "
    "where there are any), with bars for their 95% intervals from resampling problems."
)
SEEDS_CAPTION = " Bands run from the lowest to the highest seed."
FOREST_CAPTION = (
    "Accuracy of the last step minus the base model's on the same problems; bars are 95% "
    "intervals from resampling problems."
)
MASS_CAPTION = (
    "Epistemic mass: the probability that a network puts on epistemic words, averaged over the "
    f"positions of training samples (moving mean over {SMOOTHING_STEPS} steps). The teacher is the "
    "model that sees the solution; the reference is the initial model, without it. A line is "
    "missing where a run did not log it."
)
PROBE_CAPTION = (
    "The probability that the base model gives to each kind of next word at the forks of a trace, "
    "by what it was shown. A teacher with that context teaches these probabilities. The rest of a "
    "bar is any other word."
)
