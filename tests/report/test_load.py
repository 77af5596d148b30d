"""Reading a study's folder, and the errors about a broken one."""

import json
import re
import shutil

import pytest
from synthetic_study import ENDS, ONE_METHOD, build_study
from written_study import Page, records_path, rewrite_records, verdicts

from jaxdistill.errors import UserError
from jaxdistill.report import write_run_report, write_study_report
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results, read_rows, split_grid


def test_without_records_there_are_values_but_no_intervals_and_the_page_says_why(
    study_dir, tmp_path, without_figures
):
    folder = shutil.copytree(study_dir, tmp_path / "s", ignore=lambda *_: ["runs"])
    assert verdicts(folder)["SDPO ends below the base, held-out"] == "holds (no interval)"
    text = Page(write_study_report(folder).read_text()).text
    assert "No per-response records, hence no intervals" in text
    cell = tabulate(load_study_results(folder))["main", "sdpo", "heldout"]
    assert not cell.estimate("accuracy").is_bounded


def test_records_that_disagree_with_the_summary_are_reported(tmp_path, without_figures):
    folder = build_study(tmp_path / "s", ends={"main": {"grpo": ENDS["main"]["grpo"]}})
    assert "summary.json says" not in write_study_report(folder).read_text()
    rewrite_records(records_path(folder, "grpo"), correct=True)
    text = Page(write_study_report(folder).read_text()).text
    assert re.search(
        r"main/grpo/heldout: summary\.json says .* the records say 100\.0%", text, re.I
    )


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


# ----------------------------------------------------------------------------------------- errors


def broken(tmp_path, name, text):
    folder = build_study(tmp_path / "s", ends=ONE_METHOD, num_problems=4)
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


def test_the_main_grid_is_the_common_value_when_every_row_names_one():
    rows = [{"coverage": "all"}, {"coverage": "all"}, {"coverage": 8}]
    assert split_grid(rows) == (rows[:2], rows[2:])
