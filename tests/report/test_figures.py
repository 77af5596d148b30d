"""The figures of a page."""

import base64

import pytest

from jaxdistill.report import themes
from jaxdistill.report.curves import Point, smoothed


def test_the_embedded_figures_are_those_in_the_folder(study_dir, page):
    embedded = {base64.b64decode(link.partition(",")[2]) for link in page.pictures}
    saved = {path.read_bytes() for path in (study_dir / "figures").glob("*.png")}
    assert embedded == saved
    assert all(png.startswith(b"\x89PNG") for png in saved)
    names = {path.name for path in (study_dir / "figures").glob("*.png")}
    assert {
        "curves.png",
        "curves-dark.png",
        "differences-narrow.png",
        "probe-narrow-dark.png",
    } <= names


def test_a_moving_mean_keeps_a_constant_and_a_straight_line_inside():
    line = [Point(float(i), float(i), 0.0, 1.0) for i in range(9)]
    assert [p.value for p in smoothed(line)][2:-2] == pytest.approx(list(range(2, 7)))
    assert all((p.lowest, p.highest) == (0.0, 1.0) for p in smoothed(line))


def test_a_name_in_a_figure_is_no_formula_and_may_lack_a_glyph(recwarn):
    def draw(theme, width):
        drawn = themes.new_figure(width, 1.0)
        drawn.suptitle("a$\\frac$ 日本 r$_{")
        return drawn

    assert themes.picture("name", "A name.", draw).light
    assert not recwarn.list
