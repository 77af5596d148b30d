"""The predictions of the two later changes are judged from the study's files, each of them anew."""

import dataclasses
import json

import pytest
from synthetic_study import build_study

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.report import sparse_changes, sparse_rates
from jaxdistill.report.load import load_study_results

RATES = {
    "grpo": 3e-4,
    "grpo_at_mixture_rate": 1e-4,
    "mix_gate": 1e-4,
    "fade_gate": 1e-4,
    "epi_rlsd": 3e-4,
}
ENDS = {"grpo": 0.95, "grpo_at_mixture_rate": 0.85, "mix_gate": 0.855, "fade_gate": 0.855,
        "epi_rlsd": 0.95}  # fmt: skip
# Training groups without a success until step 20: GRPO's, by rate, and those of the two.
SILENT = {"grpo": 0.2, "grpo_at_mixture_rate": 0.3, "mix_gate": 0.2, "fade_gate": 0.21,
          "epi_rlsd": 0.19}  # fmt: skip
WRONG = "7 - 3 = 5 "  # a result that is wrong, which a response may begin with


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """As predicted, but OOD, where the fading gate is below GRPO as it is held-out."""
    folder = tmp_path_factory.mktemp("study")
    ends = {name: (accuracy, 3.0, 40.0, 0.4) for name, accuracy in ENDS.items()}
    build_study(folder, ends={"sparse": ends}, num_problems=60, num_rollouts=4, seeds=(0, 1, 2))
    for path in folder.glob("runs/*/config.json"):
        name = path.parent.name.split("-")[1]
        if name in RATES:
            objective = {"anneal_steps": 10} if name == "fade_gate" else {}
            config = {"optimizer": {"peak_lr": RATES[name]}, "objective": objective}
            path.write_text(json.dumps(config))
    # After step 10, of 40, the fading gate writes twice as many wrong results as the mixture.
    for name, share in (("mix_gate", 4), ("fade_gate", 2)):
        for path in folder.glob(f"runs/sparse-{name}-*/evals/step_000010/heldout.jsonl"):
            records = [json.loads(line) for line in path.read_text().splitlines()]
            for number, record in enumerate(records):
                if number % share == 0:
                    record["response"] = f"{WRONG}wait {record['response']}"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return with_silence(load_study_results(folder), SILENT)


def with_silence(study, shares):
    """Groups without a success: up to 4 points more from step to step, alike for all methods."""
    runs = {}
    for (world, method, seed), run in study.runs.items():
        metrics = [
            line | {"solved": 1 - shares[method] - 0.02 * (line["step"] % 3)}
            for line in run.metrics
        ]
        runs[world, method, seed] = dataclasses.replace(run, metrics=metrics)
    return dataclasses.replace(study, runs=runs)


def without(study, *methods, seed=None):
    """The study without these methods' rows and runs, or without those of one seed."""

    def stays(method, of_seed):
        return method not in methods or (seed is not None and of_seed != seed)

    rows = [row for row in study.rows if stays(row["method"], row["seed"])]
    runs = {key: run for key, run in study.runs.items() if stays(*key[1:])}
    return dataclasses.replace(study, rows=rows, runs=runs)


def verdicts(study):
    lines = sparse_changes.predicted_changes(study)
    assert [line.split(".")[0] for line in lines] == list("123456")
    return [line.split(": ")[0].partition(". ")[2] for line in lines]


def test_a_study_as_predicted_holds_and_what_is_outside_its_range_fails(study):
    lines = sparse_changes.predicted_changes(study)
    assert verdicts(study) == ["holds", "holds", "fails", "holds", "holds", "holds"], lines
    assert "1e-4 and 10 steps" in lines[0]
    assert "after step 10 minus gate and GRPO +" in lines[3]
    # By hand: 21 % and a mean of 2.4 more in steps 16 to 20, 30 and 2.4 under GRPO.
    assert "fading gate and GRPO steps 16 to 20 23.4%, −9.0 points [−9.0, −9.0]" in lines[
        4
    ].replace("\N{NO-BREAK SPACE}", " ")
    assert "fading gate and GRPO − gate and GRPO" in lines[5]


def test_each_is_compared_with_grpo_at_its_own_rate_and_the_fading_gate_with_its_mixture(study):
    def pairs(study):
        return [[e.text for e in row[:3]] for row in sparse_rates.pairs_table(study).rows]

    later = [
        ["fading gate and GRPO", "GRPO, rate of the mixtures", "1e-4"],
        ["RLSD with protected doubt", "GRPO", "3e-4"],
        ["fading gate and GRPO", "gate and GRPO", "1e-4"],
    ]
    assert [pair for pair in pairs(study) if pair in later] == later
    rest = pairs(without(study, "fade_gate", "epi_rlsd"))
    assert rest == [pair for pair in pairs(study) if pair not in later]


def test_before_the_runs_nothing_is_said_and_of_one_method_nothing_holds(study):
    names = ("fade_gate", "epi_rlsd")
    none = sparse_changes.predicted_changes(without(study, *names))
    assert none == [f"{number}. not measured" for number in range(1, 7)]
    for name in names:
        assert "holds" not in verdicts(without(study, name))
    # Two seeds of three are not what was predicted of, and are not judged.
    assert verdicts(without(study, *names, seed=2)) == ["not measured"] * 6


@pytest.mark.parametrize("name", ["fade_gate", "epi_rlsd"])
def test_groups_without_a_success_refute_in_either_direction(study, name):
    for share in (0.01, 0.5):
        assert verdicts(with_silence(study, SILENT | {name: share}))[4] == "fails"


def test_a_difference_far_outside_its_range_refutes_and_a_wide_interval_settles_nothing(
    study, monkeypatch
):
    course = sparse_changes.Course(study)
    for found, verdict in ((Interval(0.2, 0.17, 0.23, 9), "fails"),
                           (Interval(0.0, -0.3, 0.3, 9), "not settled")):  # fmt: skip
        monkeypatch.setattr(sparse_changes, "difference", lambda *_, found=found: found)
        assert sparse_changes._heldout(course)[0] == verdict
        assert sparse_changes._equal(course)[0] == verdict


def test_ood_is_judged_by_the_rate_that_was_chosen(study, monkeypatch):
    """At the lower rate by the interval, at the higher one by how far the seeds lie apart."""
    course = sparse_changes.Course(study)
    monkeypatch.setattr(sparse_changes, "difference", lambda *_: Interval(0.1, 0.06, 0.14, 9))
    monkeypatch.setattr(sparse_changes, "APART", 0.0)
    assert sparse_changes._ood(course)[0] == "holds"
    monkeypatch.setattr(sparse_changes, "APART", 0.5)
    assert sparse_changes._ood(course)[0] == "fails"


def test_more_wrong_results_than_predicted_refute(study, monkeypatch):
    monkeypatch.setattr(sparse_changes, "ended_tries", lambda record: [WRONG.split()])
    assert verdicts(study)[3] == "fails"
