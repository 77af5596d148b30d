"""`report`: a page about a run."""

from command_line import assert_mistake, call


def test_markdown_is_a_studys(place, run_dir):
    assert_mistake(
        ["report", run_dir, "--markdown"], "a study's tables, and .* is a run: give a st"
    )


def test_report_writes_a_page_about_a_run(place, run_dir):
    code, out, err = call("report", run_dir, "--out", place / "page.html")
    assert (code, err) == (0, "")
    assert out.strip() == str(place / "page.html")
    assert "<html" in (place / "page.html").read_text()
