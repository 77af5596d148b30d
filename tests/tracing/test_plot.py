"""The figure of a trace shows its numbers."""

import io

import numpy as np
from made_trace import made_trace


def test_the_figure_shows_each_networks_mass_and_the_divergence():
    trace = made_trace()
    figure = trace.plot()
    upper, lower = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in upper.lines}
    for n, name in enumerate(("student", "teacher", "reference")):
        np.testing.assert_array_equal(drawn[name], trace.mass[:, n])
    assert [bar.get_height() for bar in lower.patches] == trace.kl.tolist()
    labels = [text.get_text() for text in lower.get_xticklabels()]
    assert labels[:2] == ["wait", "hmm"]
    # Hostile texts are no mathematics and no new lines, which matplotlib would refuse to draw.
    figure.savefig(io.BytesIO(), format="svg")


def test_a_long_answer_has_no_labels_and_no_reference_of_its_own():
    upper, lower = made_trace(500, reference="").plot().axes
    assert len(upper.lines) == 2
    assert lower.get_xlabel() == "token"
