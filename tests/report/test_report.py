"""The report: sentences that follow the numbers, text that cannot break out, files that explain."""

import base64
import copy
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_study import BASE_STATE, ENDS, build_study

from jaxdistill.errors import UserError
from jaxdistill.evaluation.intervals import Interval
from jaxdistill.report import findings as findings_module
from jaxdistill.report import study_markdown, write_run_report, write_study_report
from jaxdistill.report.examples import examples_of
from jaxdistill.report.figures import smoothed
from jaxdistill.report.findings import HOLDS, OPEN, OPPOSITE, UNMEASURED, kept_share, tabulate
from jaxdistill.report.load import load_study_results, read_rows, split_grid
from jaxdistill.report.tables import sweep_table
from jaxdistill.report.words import change_text, marked, movement, number_text

VOID = {"meta", "img", "br", "source"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study_dir):
    path = write_study_report(study_dir)
    assert path == study_dir / "report.html"
    return Page(path.read_text())


def verdicts(folder) -> dict[str, str]:
    judged = findings_module.findings(tabulate(load_study_results(folder)))
    return {f.claim: f.verdict for f in judged}


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of a report's time; tests of the text do without."""
    monkeypatch.setattr("jaxdistill.report.figures.draw_all", lambda study, cells: {})


def with_ends(world, **changed):
    ends = copy.deepcopy(ENDS)
    ends[world].update(changed)
    return {world: ends[world] for world in ends}


def records_path(folder, method, split="heldout", world="main", step=40):
    return (
        folder / "runs" / f"{world}-{method}-s0" / "evals" / f"step_{step:06d}" / f"{split}.jsonl"
    )


def rewrite_records(path, **fields):
    records = [{**record, **fields} for record in read_rows(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


# ------------------------------------------------------------------------- sentences and verdicts


def test_a_study_that_follows_the_paper_has_every_ordering_hold(study_dir):
    found = verdicts(study_dir)
    assert set(found.values()) == {HOLDS}
    assert len(found) == len(findings_module.ORDERINGS) + 1


def test_the_headline_numbers_are_those_of_the_rows(study_dir, page):
    rows = json.loads((study_dir / "summary.json").read_text())

    def final(method):
        return next(r["accuracy"] for r in rows if r["world"] == "main" and r["split"] == "heldout"
                    and r["method"] == method and r["step"] in (0, 40) and
                    (method == "base") == (r["step"] == 0))  # fmt: skip

    base, sdpo = final("base"), final("sdpo")
    assert f"SDPO: held-out accuracy fell from {100 * base:.1f}% to {100 * sdpo:.1f}%" in page.text
    assert f"−{100 * (base - sdpo):.1f} points" in page.text


def test_a_study_that_contradicts_the_paper_says_so(tmp_path):
    better = (0.95, 5.0, 50.0, 0.9)
    worse_grpo = (0.5, 3.0, 40.0, 0.2)
    folder = build_study(tmp_path / "s", ends=with_ends("main", sdpo=better, grpo=worse_grpo))
    found = verdicts(folder)
    assert found["SDPO ends below the base, held-out"] == OPPOSITE
    assert found["SDPO says fewer epistemic tokens"] == OPPOSITE
    assert found["GRPO ends above the base"] == OPPOSITE
    text = study_markdown(folder)
    assert "SDPO: held-out accuracy rose from" in text
    assert "GRPO: held-out accuracy fell from" in text
    assert "there is none to keep" in text


def test_a_method_that_does_not_move_is_not_settled(tmp_path):
    folder = build_study(tmp_path / "s", ends=with_ends("main", sdpo=BASE_STATE))
    assert verdicts(folder)["SDPO ends below the base, held-out"] == OPEN
    assert "SDPO: held-out accuracy did not clearly move: from" in study_markdown(folder)


def test_what_a_study_did_not_run_is_not_measured_and_makes_no_sentence(tmp_path):
    folder = build_study(tmp_path / "s", ends={"main": {"grpo": ENDS["main"]["grpo"]}})
    found = verdicts(folder)
    assert found.pop("GRPO ends above the base") == HOLDS
    assert set(found.values()) == {UNMEASURED}
    text = study_markdown(folder)
    assert "SDPO: held-out" not in text
    assert "No control world was run" in text
    write_study_report(folder)


def test_without_records_there_are_values_but_no_intervals_and_the_page_says_why(
    tmp_path, without_figures
):
    folder = build_study(tmp_path / "s")
    shutil.rmtree(folder / "runs")
    assert verdicts(folder)["SDPO ends below the base, held-out"] == "holds (no interval)"
    text = Page(write_study_report(folder).read_text()).text
    assert "No per-response records, hence no intervals" in text
    cell = tabulate(load_study_results(folder))["main", "sdpo", "heldout"]
    assert not cell.estimate("accuracy").is_bounded


def test_records_that_disagree_with_the_summary_are_reported(tmp_path, without_figures):
    folder = build_study(tmp_path / "s")
    rewrite_records(records_path(folder, "grpo"), correct=True)
    text = Page(write_study_report(folder).read_text()).text
    assert re.search(
        r"main/grpo/heldout: summary\.json says .* the records say 100\.0%", text, re.I
    )


def test_low_copy_fidelity_is_named_as_a_reason(tmp_path):
    folder = build_study(tmp_path / "s")
    assert "do not explain the changes" in study_markdown(folder)
    rewrite_records(records_path(folder, "sdpo"), copy=False)
    assert "part of the change in accuracy there comes from wrongly copied" in study_markdown(
        folder
    )


def test_the_kept_share_is_the_part_of_the_loss_that_is_not_lost(study_dir):
    cells = tabulate(load_study_results(study_dir))
    base, sdpo, anchor = (cells["main", m, "heldout"] for m in ("base", "sdpo", "epi_anchor"))
    b, s, a = (cell.value("accuracy") for cell in (base, sdpo, anchor))
    share = kept_share(base, sdpo, anchor)
    assert share is not None
    assert share.value == pytest.approx((a - s) / (b - s))
    assert share.low < share.value < share.high
    assert kept_share(sdpo, base, anchor) is None  # the base lost nothing


def test_the_verb_follows_the_interval_not_the_value():
    assert movement(Interval(-0.1, -0.2, -0.01, 9)) == "fell"
    assert movement(Interval(0.1, 0.01, 0.2, 9)) == "rose"
    assert "not clearly" in movement(Interval(-0.1, -0.2, 0.01, 9))


def test_numbers_read_as_percent_points_with_a_true_minus_and_no_negative_zero():
    assert number_text("accuracy", -0.2114, signed=True) == "−21.1"
    assert number_text("accuracy", -0.0001, signed=True) == "0.0"
    assert number_text("epistemic", 0.601) == "0.60"
    text = change_text("accuracy", Interval(-0.211, -0.25, -0.172, 9)).replace("\xa0", " ")
    assert text == "−21.1 points [−25.0, −17.2]"


def test_several_seeds_are_pooled_by_problem_and_their_spread_is_shown(tmp_path):
    folder = build_study(tmp_path / "s", seeds=(0, 1, 2))
    cell = tabulate(load_study_results(folder))["main", "sdpo", "heldout"]
    assert len(cell.clusters["accuracy"].ids) == 60  # problems, not problems x seeds
    assert cell.clusters["accuracy"].weight_Q.tolist() == [18.0] * 60
    per_seed = [row["accuracy"] for row in cell.rows]
    assert cell.value("accuracy") == pytest.approx(np.mean(per_seed))
    assert "lowest, highest seed" in study_markdown(folder)
    assert "Training seeds per method: 3." in study_markdown(folder)


# --------------------------------------------------------------------------------------- the page


def test_the_page_is_whole_and_asks_nothing_of_the_network_or_of_scripts(page):
    assert "script" not in page.tags
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for heading in ("The course of training", "Where each method ends", "Epistemic mass",
                    "The same problem", "The probe", "does not", "Provenance"):  # fmt: skip
        assert heading in page.text
    assert "jaxdistill study toy_study --out x" in page.text
    assert "6 min 12 s" in page.text


def test_the_embedded_figures_are_those_in_the_folder(study_dir, page):
    embedded = {base64.b64decode(link.partition(",")[2]) for link in page.links}
    saved = {path.read_bytes() for path in (study_dir / "figures").glob("*.png")}
    assert embedded == saved
    assert all(png.startswith(b"\x89PNG") for png in saved)
    names = {path.name for path in (study_dir / "figures").glob("*.png")}
    assert {"curves.png", "curves-dark.png", "differences.png", "epistemic_mass.png"} <= names


def test_equal_folders_give_equal_pages(study_dir, page, tmp_path):
    before = (study_dir / "report.html").read_bytes()
    other = tmp_path / "copy"
    shutil.copytree(study_dir, other)
    assert write_study_report(other).read_bytes() == before


def test_a_question_or_response_with_a_script_stays_text(tmp_path, without_figures):
    evil = "<script>alert('x')</script> & wait"
    folder = build_study(
        tmp_path / "s", ends={"main": {"sdpo": ENDS["main"]["sdpo"]}}, question=evil
    )
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, WAIT", "<mark>Wait</mark>, <mark>WAIT</mark>"),
        ("waiter await wait2", "waiter await <mark>wait</mark>2"),
        ("a<b & wait", "a&lt;b &amp; <mark>wait</mark>"),
        ("éwait wait.", "éwait <mark>wait</mark>."),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_whole_words_are_marked_after_escaping(text, expected):
    assert marked(text, ["wait"]) == expected


def test_a_word_list_cannot_break_an_entity_or_match_inside_one():
    assert marked("<amp> don't", ["lt", "gt", "amp", "don't", "x27"]) == (
        "&lt;<mark>amp</mark>&gt; <mark>don&#x27;t</mark>"
    )


def test_the_longest_of_overlapping_words_is_marked():
    assert marked("let me check", ["let me", "let me check"]) == "<mark>let me check</mark>"


def test_the_examples_are_problems_the_base_has_right_and_sdpo_wrong(study_dir):
    chosen = examples_of(load_study_results(study_dir))
    assert len(chosen.examples) == 3
    for example in chosen.examples:
        by_method = {answer.method: answer for answer in example.answers}
        assert set(by_method) == {"base", *ENDS["main"]}
        assert by_method["base"].is_right
        assert not by_method["sdpo"].is_right
    assert examples_of(load_study_results(study_dir)) == chosen


def test_without_such_problems_the_examples_are_the_first_ones_and_say_so(tmp_path):
    folder = build_study(tmp_path / "s", ends={"main": {"sdpo": ENDS["main"]["sdpo"]}})
    rewrite_records(records_path(folder, "sdpo"), correct=True)
    chosen = examples_of(load_study_results(folder))
    assert "wrong on 0" in chosen.how_chosen
    assert [e.question for e in chosen.examples] == [
        "20 0 -> 20 go",
        "20 1 -> 19 go",
        "20 2 -> 18 go",
    ]


# --------------------------------------------------------------------------- sweeps, metrics, runs


def test_coverage_and_context_rows_make_tables_and_stay_out_of_the_main_grid(
    tmp_path, without_figures
):
    axes = [{"coverage": c} for c in (64, 8, "all", 1)] + [{"context": "answer"}]
    folder = build_study(tmp_path / "s", sweeps=axes)
    study = load_study_results(folder)
    assert len(study.sweep_rows) == 3 * len(axes)
    table = sweep_table(study, "coverage")
    assert table is not None
    labels = [row[1].text for row in table.rows if row[0].text == "SDPO"]
    assert labels == ["1", "8", "64", "all", "as in the main grid"]
    text = Page(write_study_report(folder).read_text()).text
    assert "Task coverage" in text
    assert "Context richness" in text


def test_the_main_grid_is_the_common_value_when_every_row_names_one():
    rows = [{"coverage": "all"}, {"coverage": "all"}, {"coverage": 8}]
    assert split_grid(rows) == (rows[:2], rows[2:])


def test_a_moving_mean_keeps_a_constant_and_a_straight_line_inside():
    line = [(float(i), float(i), 0.0, 1.0) for i in range(9)]
    assert [p[1] for p in smoothed(line)][2:-2] == pytest.approx(list(range(2, 7)))
    assert all(p[2:] == (0.0, 1.0) for p in smoothed(line))


def test_absent_and_null_metrics_leave_gaps_and_a_cut_last_line_is_dropped(tmp_path):
    folder = build_study(tmp_path / "s", ends={"main": {"grpo": ENDS["main"]["grpo"]}})
    lines = '{"step": 1, "reward": null}\n{"step": 2, "reward": NaN}\n{"step": 3, "rew'
    (folder / "runs" / "main-grpo-s0" / "metrics.jsonl").write_text(lines)
    text = Page(write_study_report(folder).read_text()).text
    assert "Epistemic mass while training" not in text


def test_a_response_may_hold_a_unicode_line_separator(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"response": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    assert read_rows(path) == [{"response": "a\u2028b\x85c"}]


def test_plain_runs_are_compared_with_their_own_first_evaluation(study_dir, tmp_path):
    runs = [study_dir / "runs" / name for name in ("main-sdpo-s0", "main-grpo-s0")]
    path = write_run_report(runs, tmp_path / "out.html")
    parsed = Page(path.read_text())
    assert path == tmp_path / "out.html"
    assert (tmp_path / "figures" / "curves.png").is_file()
    for text in ("main-sdpo-s0", "main-grpo-s0", "vs its start", "Samples", "held-out"):
        assert text in parsed.text


def test_a_run_that_was_never_evaluated_shows_training_samples(tmp_path):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
    record = {"question_id": "a", "question": "2 + 2", "response": "wait 4", "correct": True}
    (run / "rollouts" / "step_000002.jsonl").write_text((json.dumps(record) + "\n") * 2)
    path = write_run_report([run], tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    text = path.read_text()
    assert text.count("<mark>wait</mark> 4") == 1
    assert "training sample, step_000002" in text


def test_the_markdown_tables_are_rectangular_and_hold_every_method(study_dir):
    text = study_markdown(study_dir)
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(blocks) == 1 + 2 * 3 + 2  # orderings, worlds x splits, probes
    for block in blocks:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert "epistemic anchor" in blocks[1]


# ----------------------------------------------------------------------------------------- errors


def broken(tmp_path, name, text):
    folder = build_study(
        tmp_path / "s", ends={"main": {"sdpo": ENDS["main"]["sdpo"]}}, num_problems=4
    )
    path = folder / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", None, "summary.json: missing"),
        ("study.json", None, "study.json: missing"),
        ("summary.json", "{", "summary.json: not valid JSON"),
        ("summary.json", "[]", "expected a non-empty list of rows"),
        ("summary.json", "[1]", "row 1: expected an object"),
        ("summary.json", '[{"world": "main"}]', 'row 1: field "method" must be text'),
        ("study.json", "[]", "study.json: expected a JSON object"),
        ("probe.json", "[]", "probe.json: expected a JSON object"),
        ("runs/main-sdpo-s0/metrics.jsonl", "{}\n", 'field "step" must be an integer'),
        ("runs/main-sdpo-s0/metrics.jsonl", "x\n", "line 1 is not valid JSON"),
        ("runs/main-sdpo-s0/evals/step_000040/ood.jsonl", "", "no records"),
        ("runs/main-sdpo-s0/evals/step_000040/ood.jsonl", "{}", 'field "question_id" is missing'),
    ],
)
def test_a_missing_or_broken_file_is_one_clear_line(tmp_path, without_figures, name, text, message):
    folder = broken(tmp_path, name, text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        write_study_report(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_folders_that_are_none_of_ours_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such study folder"):
        write_study_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        write_run_report([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="no run folder given"):
        write_run_report([], tmp_path / "out")


def test_reporting_does_not_import_jax():
    code = "import sys, jaxdistill.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
