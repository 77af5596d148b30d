"""The report: sentences follow the numbers, text is escaped, and pages are self-contained."""

import base64
import json
import re
import shutil
import subprocess
import sys

import pytest
from synthetic_study import ENDS, ONE_METHOD, build_study
from written_study import Page, records_path, rewrite_records

from jaxdistill.report import study_markdown, themes, write_run_report, write_study_report


def test_the_headline_numbers_are_those_of_the_rows(study_dir, page):
    rows = json.loads((study_dir / "summary.json").read_text())

    def final(method):
        return next(r["accuracy"] for r in rows if r["world"] == "main" and r["split"] == "heldout"
                    and r["method"] == method and r["step"] in (0, 40) and
                    (method == "base") == (r["step"] == 0))  # fmt: skip

    base, sdpo = final("base"), final("sdpo")
    assert f"SDPO: held-out accuracy fell from {100 * base:.1f}% to {100 * sdpo:.1f}%" in page.text
    assert f"−{100 * (base - sdpo):.1f} points" in page.text


# --------------------------------------------------------------------------------------- the page


def test_the_page_is_whole_and_asks_nothing_of_the_network_or_of_scripts(page):
    assert "script" not in page.tags
    assert page.pictures
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.pictures)
    assert page.anchors
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.anchors)
    for heading in ("The course of training", "Where each method ends", "Epistemic mass", "Terms",
                    "The same problem", "would write next", "does not", "Settings"):  # fmt: skip
        assert heading in page.text
    assert "jaxdistill study toy_study --out x" in page.text
    assert "6 min 12 s" in page.text


@pytest.mark.long
def test_equal_folders_give_equal_pages(tmp_path):
    folder = build_study(tmp_path / "a", ends=ONE_METHOD, num_problems=8)
    other = shutil.copytree(folder, tmp_path / "b")
    assert write_study_report(other).read_bytes() == write_study_report(folder).read_bytes()


def test_a_question_or_response_with_a_script_stays_text(tmp_path, without_figures):
    evil = "<script>alert('x')</script> & wait"
    folder = build_study(tmp_path / "s", ends=ONE_METHOD, question=evil)
    for method, step in (("base", 0), ("sdpo", 40)):
        rewrite_records(records_path(folder, method, step=step), response=evil, answer=evil)
    info = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**info, "name": evil, "command": evil}))
    text = write_study_report(folder).read_text()
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; <mark>wait</mark>" in text
    assert parsed.text.count(evil) >= 6


NAMES = ("""a|b <img src=x onerror="f()"> `c`\nd""", "back\\|slash", "</title><script>f()<!--")


def hostile_study(folder):
    """Arms, a world, a context and a question that are no plain words."""
    method, world, context = NAMES
    states = {method: ENDS["main"]["sdpo"], "sdpo": ENDS["main"]["sdpo"]}
    ends = {"main": states, world: states}
    build_study(folder, ends=ends, num_problems=4, question=context, sweeps=[{"context": context}])
    probe = {world: [{"context": context, "place": method, "n": 3}]}
    (folder / "probe.json").write_text(json.dumps(probe))
    return folder


def test_hostile_names_stay_text_in_the_page(tmp_path, without_figures):
    text = write_study_report(hostile_study(tmp_path / "s")).read_text()
    parsed = Page(text)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [attribute for attribute in parsed.attributes if attribute.startswith("on")]
    for name in NAMES:
        assert parsed.text.count(name) >= 2
    runs = sorted((tmp_path / "s" / "runs").iterdir())
    parsed = Page(write_run_report(runs, tmp_path / "runs.html").read_text())
    assert not {"script", "img"} & set(parsed.tags)
    assert parsed.text.count(f"main-{NAMES[0]}-s0") >= 2


def test_hostile_names_end_no_cell_and_start_no_markup_in_markdown(tmp_path):
    text = study_markdown(hostile_study(tmp_path / "s"))
    assert "<" not in text
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(tables) == 1 + 2 * 3 + 1 + 1  # orderings, worlds x splits, contexts, probe
    for table in tables:
        # What a renderer sees: an escaped character is no delimiter.
        seen = [re.sub(r"\\.", "", line) for line in table.strip().splitlines()]
        assert len({line.count("|") for line in seen}) == 1
        assert not [line for line in seen if "`" in line]
    assert r'a\|b &lt;img src=x onerror="f()"> \`c\` d' in text
    assert r"back\\\|slash" in text  # a backslash, then an escaped bar


def test_the_pages_own_policy_forbids_all_but_its_style_and_pictures(page):
    (policy,) = page.policies
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    # The page uses what the policy allows: data images, a style element and style attributes.
    assert {"style", "img"} <= set(page.tags)
    assert "style" in page.attributes
    assert "link" not in page.tags


def test_plain_runs_are_compared_with_their_own_first_evaluation(
    study_dir, tmp_path, without_figures
):
    runs = [study_dir / "runs" / name for name in ("main-sdpo-s0", "main-grpo-s0")]
    path = write_run_report(runs, tmp_path / "out.html")
    parsed = Page(path.read_text())
    assert path == tmp_path / "out.html"
    for text in ("main-sdpo-s0", "main-grpo-s0", "vs its start", "Samples", "held-out"):
        assert text in parsed.text


def test_a_run_that_was_never_evaluated_shows_training_samples_and_curves(tmp_path):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
    record = {"question_id": "a", "question": "2 + 2", "response": "wait 4", "correct": True}
    (run / "rollouts" / "step_000002.jsonl").write_text((json.dumps(record) + "\n") * 2)
    path = write_run_report([run], tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert (tmp_path / "out" / "figures" / "curves.png").is_file()
    text = path.read_text()
    assert text.count("<mark>wait</mark> 4") == 1
    assert "training sample, step_000002" in text


def test_reporting_does_not_import_jax():
    code = "import sys, jaxdistill.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_embedded_figures_are_those_in_the_folder(study_dir, page):
    embedded = {base64.b64decode(link.partition(",")[2]) for link in page.pictures}
    saved = {path.read_bytes() for path in (study_dir / "figures").glob("*.svg")}
    assert embedded == saved
    names = {path.name for path in (study_dir / "figures").iterdir()}
    assert {"curves.svg", "curves-narrow.svg", "curves.png", "probe-narrow.svg"} <= names
    # 1,440 pixels across, for slides.
    png = (study_dir / "figures" / "curves.png").read_bytes()
    assert (png[:4], int.from_bytes(png[16:20], "big")) == (b"\x89PNG", 1440)


def test_every_colour_of_a_figure_has_its_dark_one(study_dir, page):
    assert len(themes.DARK_FOR) == len(set(themes.DARK_FOR.values())) == 19
    for path in (study_dir / "figures").glob("*.svg"):
        style, _, drawn = path.read_text(encoding="utf-8").partition("</style>")
        used = set(re.findall(r"var\((--[0-9a-f]{6})\)", drawn))
        assert {"--ffffff", "--24211d"} <= used
        assert all(style.count(f"{name}: #") == 2 for name in used)
        # Nothing else is coloured, and nothing but parts of the file is referred to.
        assert not re.findall(r"(?:fill|stroke): (?!var|none|\d)\S+", drawn)
        assert not re.findall(r"(?:href=\"|url\()(?!#)", drawn)
