"""The table of measures: means by hand, and an added row that appears everywhere."""

import json

import pytest
from counted_responses import RECORDS, record
from tiny_run import tiny

from jaxdistill.evaluation.measures import (
    MEASURES,
    Measure,
    mean_of_rows,
    study_row,
    summarize,
)
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.evaluation.summary import summary_lines
from jaxdistill.report import curves, figures, study_markdown, write_study_report
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results
from jaxdistill.run.study import Arm, arm_rows


def test_a_summary_by_hand():
    assert summarize(RECORDS) == pytest.approx({
        "accuracy": 3 / 6,
        "length": 200 / 6,
        "epistemic_per_response": 6 / 6,
        "epistemic_per_1k": 1000 * 6 / 200,  # of all tokens, not a mean of ratios
        "check_rate": 2 / 6,
        "copy_fidelity": 3 / 4,
        "finished": 4 / 6,
        "n": 6,
    })  # fmt: skip


def test_what_no_response_can_tell_is_null():
    summary = summarize([record("a", correct=True)])
    assert summary["check_rate"] is None
    assert summary["copy_fidelity"] is None
    assert summarize([]) == dict.fromkeys(summary, None) | {"n": 0}
    assert summarize([record("a", correct=False, tokens=0)])["epistemic_per_1k"] is None


def test_a_row_has_the_columns_that_every_reader_of_summary_json_relies_on():
    assert list(study_row(summarize(RECORDS))) == [
        "accuracy", "length", "epistemic_per_response", "check_rate", "copy_fidelity", "n",
    ]  # fmt: skip


def test_rows_are_weighted_by_their_responses_and_empty_ones_are_left_out():
    rows = [{"x": 1.0, "n": 30}, {"x": 0.0, "n": 10}, {"x": None, "n": 99}, {"n": 99}]
    assert mean_of_rows(rows, "x") == 0.75
    assert mean_of_rows(rows[2:], "x") is None


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_every_measure_has_its_name_as_key_and_is_read_from_records(measure):
    assert MEASURES[measure.name] is measure
    assert measure.field in RECORDS[0]
    assert not set(measure.shown) - {"rows"} or "value" in measure.shown


def test_one_more_row_of_the_table_is_a_measure_everywhere(tmp_path, monkeypatch):
    made_up = Measure(
        name="shouts",
        field="bangs",
        label="shouting",
        subject="share of responses that shout",
        is_share=True,
        digits=0,
        shown=("rows", "value", "change"),
        sweep_splits=("ood",),
        panel="share that shouts",
    )
    monkeypatch.setitem(MEASURES, made_up.name, made_up)
    rows = []
    for method, bangs in (("base", [3, 1, 0, 2, 0, 0]), ("sdpo", [0, 0, 0, 1, None, None])):
        records = [{**r, "bangs": n} for r, n in zip(RECORDS, bangs)]
        run_dir = tmp_path / "runs" / f"main-{method}-s0"
        folder = evaluation_folder(run_dir, 0)
        summary = {"heldout": summarize(records)}
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = "".join(json.dumps(each) + "\n" for each in records)
        (folder / "heldout.jsonl").write_text(lines)
        assert summary["heldout"]["shouts"] == {"base": 3 / 6, "sdpo": 1 / 4}[method]
        assert f"{'shouts':<24}{summary['heldout']['shouts']:.1%}" in summary_lines(records, 2)
        rows += arm_rows(Arm(world="main", method=method, config=tiny()), tmp_path)
    assert [row["shouts"] for row in rows] == [3 / 6, 1 / 4]
    sweep = [{**row, "split": "ood", "coverage": 8} for row in rows if row["method"] == "sdpo"]
    (tmp_path / "summary.json").write_text(json.dumps(rows + sweep))
    (tmp_path / "study.json").write_text("{}")

    text = study_markdown(tmp_path)
    assert "| shouting, % | vs base, points |" in text
    assert "| OOD shouting, % |" in text
    study = load_study_results(tmp_path)
    cell = tabulate(study)["main", "sdpo", "heldout"]
    assert cell.estimate("shouts").value == 1 / 4  # of the four with a measurement
    assert ("share that shouts", "shouts") in [x[:2] for x in curves.panels_of(study)]
    monkeypatch.setattr(figures, "draw_all", lambda study, cells: {})
    assert "<th>shouting, %</th>" in write_study_report(tmp_path).read_text()
