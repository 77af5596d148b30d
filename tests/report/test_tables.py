"""The tables of a study."""

import re

import numpy as np
import pytest
from synthetic_study import ONE_METHOD, build_study
from written_study import Page

from jaxdistill.report import study_markdown, write_study_report
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results
from jaxdistill.report.tables import sweep_table


def test_several_seeds_are_pooled_by_problem_and_their_spread_is_shown(tmp_path):
    folder = build_study(tmp_path / "s", ends=ONE_METHOD, seeds=(0, 1, 2))
    cell = tabulate(load_study_results(folder))["main", "sdpo", "heldout"]
    assert len(cell.clusters["accuracy"].ids) == 60  # problems, not problems x seeds
    assert cell.clusters["accuracy"].weight_Q.tolist() == [18.0] * 60
    per_seed = [row["accuracy"] for row in cell.rows]
    assert cell.value("accuracy") == pytest.approx(np.mean(per_seed))
    assert "lowest, highest seed" in study_markdown(folder)
    assert "Training seeds per method: 3." in study_markdown(folder)


# --------------------------------------------------------------------------- sweeps, metrics, runs


def test_coverage_and_context_rows_make_tables_and_stay_out_of_the_main_grid(
    tmp_path, without_figures
):
    axes = [{"coverage": c} for c in (64, 8, "all", 1)] + [{"context": "answer"}]
    folder = build_study(tmp_path / "s", ends=ONE_METHOD, sweeps=axes)
    study = load_study_results(folder)
    assert len(study.sweep_rows) == 3 * len(axes)
    table = sweep_table(study, "coverage")
    assert table is not None
    labels = [row[1].text for row in table.rows if row[0].text == "SDPO"]
    assert labels == ["1", "8", "64", "all", "as in the main grid"]
    text = Page(write_study_report(folder).read_text()).text
    assert "Task coverage" in text
    assert "Context richness" in text


def test_the_markdown_tables_are_rectangular_and_hold_every_method(study_dir):
    text = study_markdown(study_dir)
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(blocks) == 1 + 2 * 3 + 2  # orderings, worlds x splits, probes
    for block in blocks:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert "epistemic anchor" in blocks[1]
