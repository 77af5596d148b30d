"""The two looks of a figure (light and dark), its two widths, and how it becomes files.

A figure is drawn in light colours, once for each width, as an SVG whose style sheet replaces them
by the dark ones. A wide one is shown at 900 pixels, so a point of type is about 1.4 pixels; a
narrow one at the 370 pixels of a phone, so that its letters are about as large.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.report.load import StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 9.0, 4.4  # inches
# Of the PNG, which is for slides: 1,440 pixels across.
DPI = 160


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
    "svg.hashsalt": "jaxdistill",  # otherwise the ids in a file are random
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
        "#000000",
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


def _colours(theme: Theme) -> list[str]:
    named = [theme.background, theme.ink, theme.faint, theme.grid]
    return [*named, *theme.methods.values(), *theme.others]


# Light colour -> dark colour; all light ones differ.
DARK_FOR = dict(zip(_colours(LIGHT), _colours(DARK), strict=True))


class Picture(NamedTuple):
    """A finished figure: its name, an SVG for each width, a PNG, its caption, and its text."""

    name: str
    wide: bytes
    narrow: bytes
    png: bytes  # wide and light
    caption: str
    says: str  # for those who cannot see it

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content."""
        return {
            f"{self.name}.svg": self.wide,
            f"{self.name}-narrow.svg": self.narrow,
            f"{self.name}.png": self.png,
        }


def picture(
    name: str, caption: str, draw: Callable[[Theme, float], "Figure"], says: str = ""
) -> Picture:
    """Draw in both widths. A file holds no date or version: equal data, equal bytes."""
    # Imported only when a figure is drawn: Markdown does not need it.
    import matplotlib

    with matplotlib.rc_context(LIGHT.settings), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the tables show the whole name.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        narrow = _svg(draw(LIGHT, NARROW))
        figure = draw(LIGHT, WIDE)
        wide, png = _svg(figure), io.BytesIO()
        figure.set_layout_engine("none")  # it is laid out, which is half of the work
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(
        name=name,
        wide=wide,
        narrow=narrow,
        png=png.getvalue(),
        caption=caption,
        says=says or name.replace("_", " "),
    )


def _svg(figure: "Figure") -> bytes:
    """The figure as an SVG that follows the reader's colour scheme."""
    buffer = io.StringIO()
    # Letters are paths: they look the same everywhere.
    unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=unnamed)
    text = re.sub(
        r"#[0-9a-f]{6}\b", lambda colour: f"var({_variable(colour[0])})", buffer.getvalue()
    )
    start, end = text.index("<style"), text.index("</style>")
    return (text[:start] + f"<style>{STYLE}" + text[end:]).encode()


def _variable(light: str) -> str:
    return f"--{light[1:]}"


def _style() -> str:
    """The style sheet of an SVG: the light colours, and the dark ones for a dark screen."""
    light = "".join(f"{_variable(colour)}: {colour}; " for colour in DARK_FOR)
    dark = "".join(f"{_variable(colour)}: {other}; " for colour, other in DARK_FOR.items())
    return (
        f":root {{ {light}}} @media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"
        # Matplotlib's own rule, which this sheet replaces.
        " * { stroke-linejoin: round; stroke-linecap: butt }"
    )


STYLE = _style()


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def colour_of(study: StudyResults, method: str, theme: Theme) -> str:
    """The method's own colour; an unknown method takes the next of a fixed list."""
    if method in theme.methods:
        return theme.methods[method]
    unknown = [m for m in study.methods if m not in theme.methods]
    return theme.others[unknown.index(method) % len(theme.others)]


def add_legend(fig: "Figure", handles: list, labels: list[str], columns: int) -> None:
    """A legend above the axes, with fewer columns on a narrow figure or where labels are long."""
    if fig.get_figwidth() < WIDE:
        columns = min(columns, 2)
    for ncols in range(min(columns, len(labels)), 0, -1):
        legend = fig.legend(handles, labels, loc="outside upper left", ncols=ncols)
        # What lies beyond the figure is cut off.
        if ncols == 1 or legend.get_window_extent().x1 <= fig.bbox.width:
            return
        legend.remove()
