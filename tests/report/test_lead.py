"""The sentence at the top of a page, for every outcome."""

import json
import shutil

import pytest
from synthetic_study import BASE_STATE, ENDS, ONE_METHOD, build_study
from written_study import Page

from jaxdistill.report import write_run_report
from jaxdistill.report.findings import tabulate
from jaxdistill.report.lead import cards, featured, finding_sentence
from jaxdistill.report.load import load_runs, load_study_results

LIKE_BASE = (0.801, *BASE_STATE[1:])  # a state of its own draws its own records


def sentence_of(study):
    return finding_sentence(study, tabulate(study)).replace("\xa0", " ")


def of_ends(folder, num_problems=60, **ends):
    built = build_study(folder, ends={"main": ends}, num_problems=num_problems)
    return sentence_of(load_study_results(built))


@pytest.mark.long
def test_the_harm_and_its_remedy_are_one_sentence_with_the_numbers_of_the_rows(study_dir):
    rows = json.loads((study_dir / "summary.json").read_text())
    last = {
        row["method"]: f"{100 * row['accuracy']:.1f}%"
        for row in rows
        if (row["world"], row["split"]) == ("main", "heldout") and row["step"] in (0, 40)
    }
    text = sentence_of(load_study_results(study_dir))
    assert text.startswith(
        f"Self-distillation (SDPO) lowered held-out accuracy from {last['base']} to {last['sdpo']}"
    )
    assert f"; the epistemic anchor prevents part of the loss: it ends at {last['epi_anchor']}" in (
        text
    )
    assert text.count(". ") == 0


@pytest.mark.parametrize(
    ("sdpo", "gate", "said", "num_problems"),
    [
        ((0.95, 5.0, 50.0, 0.9), BASE_STATE, "(SDPO) raised held-out accuracy", 60),
        pytest.param(
            LIKE_BASE,
            BASE_STATE,
            "(SDPO) did not measurably change held-out accuracy",
            400,
            marks=pytest.mark.long,
        ),
        (LIKE_BASE, BASE_STATE, "(SDPO) leaves open whether held-out accuracy changed", 12),
        pytest.param(
            ENDS["main"]["sdpo"],
            BASE_STATE,
            "the epistemic gate prevents the loss: it ends",
            200,
            marks=pytest.mark.long,
        ),
        (ENDS["main"]["sdpo"], (0.552, 3.2, 41.0, 0.5), "gate is not clearly better", 60),
        (ENDS["main"]["sdpo"], (0.97, 3.2, 41.0, 0.5), "prevents the loss and gains", 60),
    ],
)
def test_the_verb_follows_the_interval(tmp_path, sdpo, gate, said, num_problems):
    assert said in of_ends(tmp_path / "s", num_problems, sdpo=sdpo, epi_gate=gate)


def test_without_records_the_sentence_claims_no_direction(study_dir, tmp_path):
    folder = shutil.copytree(study_dir, tmp_path / "s", ignore=lambda *_: ["runs"])
    text = sentence_of(load_study_results(folder))
    assert "without an interval to judge it by" in text
    assert not {"lowered", "prevents"} & set(text.split())


@pytest.mark.long
def test_the_best_objective_is_the_most_accurate_that_learns_from_a_teacher(study_dir):
    study = load_study_results(study_dir)
    cells = tabulate(study)
    shown = featured(study, cells)
    ends = {m: cells["main", m, "heldout"].value("accuracy") for m in ENDS["main"]}
    assert shown.methods[:2] == ["base", "sdpo"]
    assert shown.best is not None
    assert ends["grpo"] == max(ends.values())
    rivals = [ends[m] for m in ends if m not in ("sdpo", "grpo")]
    assert shown.best.value("accuracy") == max(rivals)
    assert [card.method for card in cards(study, cells)] == [*shown.methods, "grpo"]


# --------------------------------------------------------------------------------- plain runs


@pytest.fixture
def run(study_dir, tmp_path):
    """A run with evaluations at steps 0, 10, 20 and 40."""
    run = tmp_path / "mine"
    shutil.copytree(study_dir / "runs" / "main-sdpo-s0", run)
    start = study_dir / "runs" / "main-base-s0" / "evals" / "step_000000"
    shutil.copytree(start, run / "evals" / start.name)
    return run


@pytest.mark.long
def test_a_single_run_is_compared_with_its_step_0(run, without_figures):
    assert sentence_of(load_runs([run])).startswith("40 steps of mine lowered held-out accuracy")
    page = Page(write_run_report([run], run).read_text())
    assert "from 78.3% at step 0" in page.text
    assert "step 0's first answer is right and step 40's wrong" in page.text


OBJECTIVE = {"type": "Distill", "target": {"type": "TeacherProbabilities"}, "weights": []}
GATED = OBJECTIVE | {"weights": [{"type": "SuppressionGate"}]}
CALLED = [
    ("sdpo", OBJECTIVE, "SDPO"),
    ("sdpo", GATED, "other/sdpo (epistemic gate)"),
    ("sdpo", {"type": "GRPO"}, "other/sdpo (GRPO)"),
    ("sdpo_ema", OBJECTIVE, "other/sdpo_ema (SDPO)"),
    ("epi_gate-peak_lr=1", OBJECTIVE, "other/epi_gate, peak_lr=1 (SDPO)"),
    ("epi_gate-peak_lr=1", GATED, "epistemic gate, peak_lr=1"),
    ("a1", GATED, "a1 (epistemic gate)"),
    ("a1", {"type": "MyOwn"}, "a1"),
    ("grpo", None, "other/grpo"),
]


def test_a_run_is_called_after_its_objective_whatever_its_folder_is(tmp_path):
    for number, (folder, objective, said) in enumerate(CALLED):
        run = tmp_path / str(number) / "other" / folder
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"objective": objective}))
        (run / "metrics.jsonl").write_text('{"step": 1}\n')
        text = sentence_of(load_runs([run]))
        assert text.startswith(f"{said[0].upper()}{said[1:]} was not evaluated")


def test_a_run_without_a_step_0_says_that_its_beginning_is_unknown(run):
    shutil.rmtree(run / "evals" / "step_000000")
    text = sentence_of(load_runs([run]))
    assert text.startswith("Mine was not evaluated before step 10, so what its first steps changed")
    for step in (10, 20):
        shutil.rmtree(run / "evals" / f"step_{step:06d}")
    assert "this is its only evaluation" in sentence_of(load_runs([run]))
    shutil.rmtree(run / "evals")
    assert "the mean reward of its training samples is" in sentence_of(load_runs([run]))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "cannot tell what training changed" in sentence_of(load_runs([run]))


@pytest.mark.long
def test_several_runs_are_ordered_and_a_difference_within_noise_is_called_so(study_dir, run):
    runs = [study_dir / "runs" / f"main-{method}-s0" for method in ("sdpo", "grpo")]
    text = sentence_of(load_runs(runs))
    assert text.startswith("Of 2 runs main-grpo-s0 at")
    assert "does not settle" not in text
    twin = shutil.copytree(run, run.parent / "twin")
    assert "which does not settle that they differ" in sentence_of(load_runs([run, twin]))


def test_a_study_of_coverage_alone_says_where_its_method_ends(tmp_path):
    axes = [{"coverage": 8}, {"coverage": 64}]
    folder = build_study(tmp_path / "s", ends=ONE_METHOD, num_problems=4, sweeps=axes)
    rows = json.loads((folder / "summary.json").read_text())
    rows = [row for row in rows if row["method"] == "base" or "coverage" in row]
    for row in rows:
        row["accuracy"] = {8: 0.25, 64: 0.5}.get(row.get("coverage"), row["accuracy"])
    (folder / "summary.json").write_text(json.dumps(rows))
    text = sentence_of(load_study_results(folder))
    assert text.endswith("; SDPO ends between 25.0% (coverage 8) and 50.0% (coverage 64).")
