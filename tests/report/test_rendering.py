"""Pages in a browser: nothing is cut off, nothing is fetched, at two widths, dark and light."""

import shutil

import pytest
from rendering import WIDTHS, chromium, open_browser
from synthetic_study import build_study

from jaxdistill.report import write_run_report, write_study_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium"),
]
LONG = "a question without any space " + "x" * 300
# Elements with text that is wider than its box, apart from tables, which scroll in theirs.
SQUEEZED = """
[...document.querySelectorAll('main *')].filter(e => e.clientWidth && !e.closest('.scroll')
  && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 120))
"""
# Titles, values and lines of the cards of a row: how many different heights each kind has.
UNEVEN = """
(() => {
  const rows = {};
  for (const card of document.querySelectorAll('.tile')) {
    const top = Math.round(card.getBoundingClientRect().top);
    const heights = [...card.children].map(e => Math.round(e.getBoundingClientRect().top));
    (rows[top] ??= []).push(heights);
  }
  return Object.values(rows).filter(row => row.some(h => String(h) != String(row[0])));
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A study's page, one of a run with its step 0, and one with a question that never breaks."""
    folder = build_study(tmp_path_factory.mktemp("pages") / "study")
    run = folder / "runs" / "main-sdpo-s0"
    start = "evals/step_000000"
    shutil.copytree(folder / "runs" / "main-base-s0" / start, run / start)
    one = write_run_report([run], folder.parent / "one")
    ends = {"main": {"sdpo": (0.55, 0.6, 33.0, 0.0)}}
    long = build_study(folder.parent / "long", ends=ends, num_problems=4, question=LONG)
    return [write_study_report(folder), one, write_study_report(long)]


def test_nothing_is_cut_off_or_fetched_and_the_cards_stand_on_common_lines(pages):
    with open_browser() as browser:
        for page in pages:
            for width in WIDTHS:
                for is_dark in (False, True):
                    seen = browser.look(page, width, is_dark=is_dark)
                    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
                    where = f"{page}, {width}, {is_dark}"
                    assert browser.run("document.documentElement.scrollWidth") == width, where
                    assert browser.run(SQUEEZED) == [], where
                    assert browser.run(UNEVEN) == [], where
                    assert (seen.cut_off, seen.requests, seen.errors) == ([], [], []), where


def test_on_a_phone_the_verdicts_are_whole_and_no_column_has_one_word_per_line(pages):
    with open_browser() as browser:
        browser.look(pages[0], 400)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        cells = browser.run(
            "[...document.querySelectorAll('table.prose td')].map(e => {"
            "const box = e.getBoundingClientRect(); return [box.left, box.right, box.width]})"
        )
        assert cells
        assert all(left >= 0 and right <= 400 and width > 300 for left, right, width in cells)
