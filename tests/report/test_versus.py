"""Every method against one of them, and the words that the intervals allow."""

import json

import numpy as np
import pytest
from synthetic_study import build_study

from jaxdistill.report import study_markdown
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results
from jaxdistill.report.versus import by_seed, versus_sentences, versus_tables

# Accuracies of the synthetic study: far above GRPO's, equal to it, and far below.
LIKE_GRPO = (0.8, 3.0, 40.0, 0.5)
ENDS = {
    "main": {
        "sdpo": (0.5, 1.0, 30.0, 0.0),
        "grpo": LIKE_GRPO,
        "epi_gate": LIKE_GRPO,
        "epi_anchor": (0.99, 3.0, 40.0, 0.5),
    }
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = build_study(tmp_path_factory.mktemp("versus") / "s", ends=ENDS, seeds=(0, 1, 2))
    return load_study_results(folder)


def test_a_difference_is_of_the_same_problems_and_each_seed_is_listed(study):
    cells = tabulate(study)
    table = versus_tables(study, cells)[0]
    assert table.title == "main world, accuracy minus that of GRPO"
    row = next(row for row in table.rows if row[0].text == "SDPO")
    files = [
        study.folder / "runs" / f"main-{name}-s{seed}" / "evals" / "step_000040" / "heldout.jsonl"
        for name in ("sdpo", "grpo") for seed in (0, 1, 2)
    ]  # fmt: skip
    means = [
        np.mean([json.loads(line)["correct"] for line in file.read_text().splitlines()])
        for file in files
    ]
    by_hand = [f"{100 * (a - b):+.1f}".replace("-", "−") for a, b in zip(means[:3], means[3:])]
    assert row[3].text == ", ".join(by_hand)
    difference = float(row[1].text.replace("−", "-"))
    assert difference == pytest.approx(100 * (np.mean(means[:3]) - np.mean(means[3:])), abs=0.06)
    assert row[1].small.startswith("[")


def test_the_words_follow_from_the_intervals(study):
    cells = tabulate(study)
    against_grpo, against_base = versus_tables(study, cells)
    verdicts = {row[0].text: (row[2].text, row[5].text) for row in against_grpo.rows}
    assert verdicts["SDPO"] == ("below", "below")
    assert verdicts["epistemic anchor"] == ("above", "above")
    assert set(verdicts) == {"SDPO", "epistemic gate", "epistemic anchor"}
    assert {row[0].text for row in against_base.rows} == {*verdicts, "GRPO"}
    first = versus_sentences(study, cells)[0]
    start = "Held-out accuracy against GRPO (95% intervals). Above: epistemic anchor. Below: SDPO"
    assert first.startswith(start)


def test_the_only_run_of_the_base_stands_against_every_seed(study):
    cells = tabulate(study)
    cell, base = cells["main", "grpo", "ood"], cells["main", "base", "ood"]
    own = [row["accuracy"] - base.rows[0]["accuracy"] for row in cell.rows]
    assert by_seed(cell, base) == pytest.approx(own)


@pytest.mark.long
def test_one_seed_settles_no_ordering_of_methods(tmp_path):
    folder = build_study(tmp_path / "s", ends=ENDS)
    assert "minus that of" not in study_markdown(folder)
    assert "95% intervals). Above" not in study_markdown(folder)
