"""The page of a trace: what it says, and that no text of a model becomes markup or a script."""

import base64
import dataclasses
import hashlib
import html.parser
import json

import numpy as np
import pytest
from made_trace import HOSTILE, made_trace
from rendering import WIDTHS, open_browser

from jaxdistill.tracing import page
from jaxdistill.tracing.numbers import visible


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))
        self.inside.append(self.found[-1])

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, _, texts in self.inside[-1:]:
            texts.append(data)

    def of(self, tag):
        return [(attrs, "".join(texts)) for name, attrs, texts in self.found if name == tag]


@pytest.fixture(scope="module")
def elements():
    return Elements(made_trace().html())


def test_no_text_becomes_markup(elements):
    assert not elements.of("img")
    scripts = elements.of("script")
    assert [attrs.get("type") for attrs, _ in scripts] == ["application/json", None]
    assert json.loads(scripts[0][1])["words"][2] == visible(HOSTILE)
    assert all(set(attrs) <= {"type", "id"} for attrs, _ in scripts)
    handlers = [name for _, attrs, _ in elements.found for name in attrs if name.startswith("on")]
    assert handlers == []


def test_only_the_pages_own_script_may_run(elements):
    (policy,) = (a["content"] for a, _ in elements.of("meta") if "http-equiv" in a)
    script = elements.of("script")[1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "url(" not in elements.of("style")[0][1]


def test_the_text_stands_in_the_page_with_the_heat_of_doubt(elements):
    trace = made_trace()
    tokens = [(attrs.get("class", ""), text) for attrs, text in elements.of("b")]
    tokens = tokens[-len(trace.ids) :]  # the legend has some before
    assert [text.strip() for _, text in tokens] == [visible(t).strip() for t in trace.texts]
    shades = page.shades(page.heats(trace)[0])
    for (classes, _), shade, fall in zip(tokens, shades, trace.doubt_taken):
        assert (f"s{shade}" in classes.split()) == (shade != 0)
        # The root of the fall, in eighths: what is below a hundredth has no colour.
        assert abs(np.sign(fall) * 8 * abs(fall) ** 0.5 - shade) <= 0.5 + (abs(fall) < 0.01)


def test_text_without_line_breaks_is_laid_out_in_blocks_that_start_at_a_space():
    trace = made_trace(2000)
    words = [text if i % 3 else f" {text.strip()}" for i, text in enumerate(trace.texts)]
    for texts, size in ((words, page.LONG_BLOCK + 3), (["字"] * 2000, page.LONGEST_BLOCK)):
        plain = dataclasses.replace(trace, texts=[text.replace("\n", "x") for text in texts])
        inside = plain.html().partition('<div id="text">')[2].partition("</div></div>")[0]
        blocks = inside.removeprefix("<div>").split("</div><div>")
        assert max(block.count("<b") for block in blocks) <= size
        assert all(block.startswith(" ") or size == page.LONGEST_BLOCK for block in blocks[1:])
        assert sum(block.count("</b>") for block in blocks) == 2000


def test_a_trace_without_reference_and_objective_shows_neither():
    text = made_trace(reference="", objective="").html()
    data = json.loads(Elements(text).of("script")[0][1])
    assert (len(data["networks"]), data["objective"]) == (2, None)
    assert [h.name for h in page.heats(made_trace(reference="", objective=""))] == ["taken", "kl"]


def test_numbers_that_are_not_finite_do_not_break_the_page():
    trace = made_trace()
    trace = dataclasses.replace(trace, kl=np.full(60, np.inf), push=np.full(60, np.nan))
    data = json.loads(Elements(trace.html()).of("script")[0][1])
    assert data["kl"] == [None] * 60


# ------------------------------------------------------------------------------- in a browser


@pytest.mark.browser
@pytest.mark.parametrize("T", [60, 20_000])
def test_nothing_is_cut_off_or_fetched_and_a_long_answer_opens_in_three_seconds(tmp_path, T):
    file = tmp_path / "trace.html"
    made_trace(T).html(file)
    with open_browser() as browser:
        for width in WIDTHS:
            for is_dark in (False, True):
                looked = browser.look(file, width, is_dark=is_dark)
                assert looked.scroll_width <= width
                assert (looked.cut_off, looked.requests, looked.errors) == ([], [], [])
                assert looked.seconds < 3
                assert browser.run("document.title").startswith("Trace")
                # Fork to fork: the panel follows, and the page scrolls to the token.
                forks = browser.run(
                    "data.heats[0].values.flatMap((x, t) => Math.abs(x) >= 0.1 ? [t] : [])"
                )
                for t in forks[:3]:
                    browser.press("n")
                    assert browser.run("at") == t
                    # The panel does not cover the token: it is what a tap there would meet.
                    box = "nodes[at].getBoundingClientRect()"
                    met = f"document.elementFromPoint({box}.left + 3, {box}.top + 3)"
                    assert browser.run(f"places.get({met})") == t
                browser.press("p")
                assert browser.run("at") == forks[1]
                browser.run("show(T - 1, true)")
                box = "nodes[T - 1].getBoundingClientRect()"
                assert 0 <= browser.run(f"{box}.top") <= WIDTHS[width]
                assert browser.run("document.documentElement.scrollWidth") <= width
