"""The figures of a page."""

import pytest

from jaxdistill.report import themes
from jaxdistill.report.curves import Point, smoothed


def test_a_moving_mean_keeps_a_constant_and_a_straight_line_inside():
    line = [Point(float(i), float(i), 0.0, 1.0) for i in range(9)]
    assert [p.value for p in smoothed(line)][2:-2] == pytest.approx(list(range(2, 7)))
    assert all((p.lowest, p.highest) == (0.0, 1.0) for p in smoothed(line))


def test_a_name_in_a_figure_is_no_formula_and_may_lack_a_glyph(recwarn):
    def draw(theme, width):
        drawn = themes.new_figure(width, 1.0)
        drawn.suptitle("a$\\frac$ 日本 r$_{")
        return drawn

    assert themes.picture("name", "A name.", draw).wide
    assert not recwarn.list


@pytest.mark.parametrize("width", [themes.WIDE, themes.NARROW])
def test_a_legend_with_long_labels_has_as_few_columns_as_fit(width):
    from matplotlib.lines import Line2D

    labels = [f"{place}: gate on unsolved groups and GRPO" for place in range(9)]
    fig = themes.new_figure(width, 5.0)
    themes.add_legend(fig, [Line2D([], []) for _ in labels], labels, 4)
    (legend,) = fig.legends
    fig.draw_without_rendering()
    assert [text.get_text() for text in legend.get_texts()] == labels
    assert all(text.get_window_extent().x1 <= fig.bbox.width for text in legend.get_texts())
    short = themes.new_figure(width, 5.0)
    themes.add_legend(short, [Line2D([], [])] * 4, list("abcd"), 4)
    assert short.legends[0]._ncols == (4 if width == themes.WIDE else 2)
