"""Which of the paper's orderings hold, and the sentences that say so."""

import json
import re

import pytest
from synthetic_study import BASE_STATE, ENDS, build_study
from written_study import verdicts

from jaxdistill.report import findings, study_markdown, write_study_report
from jaxdistill.report.findings import HOLDS, OPEN, OPPOSITE, UNMEASURED, kept_share, tabulate
from jaxdistill.report.load import load_study_results


def main_world(**ends):
    return {"main": ends}


# ------------------------------------------------------------------------- sentences and verdicts


def test_a_study_that_follows_the_paper_has_every_ordering_hold(study_dir):
    found = verdicts(study_dir)
    assert set(found.values()) == {HOLDS}
    assert len(found) == len(findings.ORDERINGS) + 1


@pytest.mark.long
def test_a_study_that_contradicts_the_paper_says_so(tmp_path):
    better = (0.95, 5.0, 50.0, 0.9)
    worse_grpo = (0.5, 3.0, 40.0, 0.2)
    folder = build_study(
        tmp_path / "s",
        ends=main_world(sdpo=better, grpo=worse_grpo, epi_anchor=ENDS["main"]["epi_anchor"]),
    )
    found = verdicts(folder)
    assert found["SDPO ends below the base, held-out"] == OPPOSITE
    assert found["SDPO uses fewer epistemic tokens"] == OPPOSITE
    assert found["GRPO ends above the base"] == OPPOSITE
    text = study_markdown(folder)
    assert "SDPO: held-out accuracy rose from" in text
    assert "GRPO: held-out accuracy fell from" in text
    assert "SDPO's loss of accuracy is not distinguishable from zero" in text


def test_a_method_that_does_not_move_is_not_settled(tmp_path):
    folder = build_study(tmp_path / "s", ends=main_world(sdpo=BASE_STATE))
    assert verdicts(folder)["SDPO ends below the base, held-out"] == OPEN
    assert "SDPO: held-out accuracy did not clearly move: from" in study_markdown(folder)


def test_what_a_study_did_not_run_is_not_measured_and_makes_no_sentence(tmp_path, without_figures):
    folder = build_study(tmp_path / "s", ends={"main": {"grpo": ENDS["main"]["grpo"]}})
    found = verdicts(folder)
    assert found.pop("GRPO ends above the base") == HOLDS
    assert set(found.values()) == {UNMEASURED}
    text = study_markdown(folder)
    assert "SDPO: held-out" not in text
    assert "No control world was run" in text
    write_study_report(folder)


def test_a_study_of_other_methods_has_no_list_of_orderings_that_it_did_not_measure(
    tmp_path, without_figures
):
    """A grid of one recipe, whose methods are its settings, has no base either."""
    folder = build_study(tmp_path / "s", ends={"": {"peak_lr=1e-5": ENDS["main"]["grpo"]}})
    rows = json.loads((folder / "summary.json").read_text())
    kept = [row for row in rows if row["method"] != "base"]
    (folder / "summary.json").write_text(json.dumps(kept))
    page = write_study_report(folder).read_text()
    for text in (page, study_markdown(folder)):
        assert "peak_lr=1e-5" in text
        assert not re.search("expected ordering|not measured", text, re.IGNORECASE)


def test_the_kept_share_is_the_part_of_the_loss_that_is_not_lost(study_dir):
    cells = tabulate(load_study_results(study_dir))
    base, sdpo, anchor = (cells["main", m, "heldout"] for m in ("base", "sdpo", "epi_anchor"))
    b, s, a = (cell.value("accuracy") for cell in (base, sdpo, anchor))
    share = kept_share(base, sdpo, anchor)
    assert share is not None
    assert share.value == pytest.approx((a - s) / (b - s))
    assert share.low < share.value < share.high
    assert kept_share(sdpo, base, anchor) is None  # the base lost nothing
