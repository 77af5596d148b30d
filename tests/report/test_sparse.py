"""What was predicted of the sparse study is judged from its files, and can come out otherwise."""

import dataclasses
import json

import pytest
from synthetic_study import build_study

from jaxdistill.report import sparse
from jaxdistill.report.load import load_run, load_study_results

# Accuracy, epistemic tokens, length, share that checks, at the last of the steps 10, 20 and 40;
# the base has 0.80. As predicted: alone below GRPO, and the rescues ahead of it.
AS_PREDICTED = {
    "epi_gate": (0.90, 3.0, 40.0, 0.4),
    "epi_anchor": (0.89, 3.0, 40.0, 0.4),
    "epi_amplify": (0.90, 3.0, 40.0, 0.4),
    "ad_opsd": (0.88, 3.0, 40.0, 0.4),
    "sdpo": (0.87, 1.0, 30.0, 0.0),
    "grpo": (0.99, 3.0, 40.0, 0.6),
    "rescue_gate": (0.99, 3.0, 40.0, 0.6),
    "rescue_hint": (0.99, 3.0, 40.0, 0.6),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build_study(folder, ends={"sparse": AS_PREDICTED}, num_problems=50, num_rollouts=4)
    return load_study_results(folder)


def verdicts(study):
    lines = sparse.predicted(study)
    assert [line.split(".")[0] for line in lines] == list("123456")
    return [line.split(": ")[0].partition(". ")[2] for line in lines]


@pytest.mark.long
def test_a_distillation_below_grpo_confirms_the_first_prediction_and_one_above_refutes_it(study):
    assert verdicts(study)[0] == "holds"
    assert verdicts(renamed(study, {"grpo": "epi_gate", "epi_gate": "grpo"}))[0] == "fails"


def test_no_head_start_refutes_the_third_prediction_and_equal_mixtures_hold_the_fourth(study):
    """GRPO and the mixtures have the same course here."""
    assert verdicts(study)[2:4] == ["fails", "holds"]


def renamed(study, names):
    """The study with the rows and runs of these methods under each other's names."""
    rows = [row | {"method": names.get(row["method"], row["method"])} for row in study.rows]
    runs = {(w, names.get(m, m), s): run for (w, m, s), run in study.runs.items()}
    return dataclasses.replace(study, rows=rows, runs=runs)


@pytest.mark.long
def test_a_method_below_grpo_that_is_above_it_ood_refutes_the_sixth_prediction(study, tmp_path):
    """GRPO and SDPO exchange their OOD answers; all others keep their places on both splits."""
    assert "on the other side" not in sparse.predicted(study)[5]
    ends = AS_PREDICTED | {"sdpo": (0.60, 1.0, 30.0, 0.0)}  # far below: both differences settle
    folder = build_study(tmp_path / "s", ends={"sparse": ends}, num_problems=50, num_rollouts=4)
    runs = folder / "runs"
    for own in (runs / "sparse-grpo-s0").glob("evals/*/ood.jsonl"):
        other = runs / "sparse-sdpo-s0" / own.relative_to(runs / "sparse-grpo-s0")
        texts = own.read_text(), other.read_text()
        other.write_text(texts[0])
        own.write_text(texts[1])
    line = sparse.predicted(load_study_results(folder))[5]
    assert line.startswith("6. fails")
    assert "on the other side of GRPO OOD: SDPO" in line


def test_a_method_that_was_added_later_does_not_change_what_was_predicted_before(study):
    """As good as GRPO held-out and OOD or not: neither order nor sides are about it."""
    before = sparse.predicted(study)
    later = {"sdpo": "fade_gate", "epi_gate": "epi_rlsd"}  # with answers of their own
    added = renamed(study, later)
    rows = [*study.rows, *(row for row in added.rows if row["method"] in sparse.LATER)]
    runs = added.runs | study.runs
    assert sparse.predicted(dataclasses.replace(study, rows=rows, runs=runs)) == before


def test_groups_without_a_success_are_counted_from_the_metrics(study):
    runs = {}
    for (world, method, seed), run in study.runs.items():
        solved = 0.9 if method.startswith("rescue") else 0.7
        metrics = [line | {"solved": solved} for line in run.metrics]
        runs[world, method, seed] = dataclasses.replace(run, metrics=metrics)
    counted = dataclasses.replace(study, runs=runs)
    assert sparse.unsolved(counted, "grpo", 10) == pytest.approx(0.3)
    assert verdicts(counted)[4] == "holds"
    assert "not measured" in sparse.predicted(study)[4]


def test_accuracy_is_split_by_the_first_operation_of_the_solution(tmp_path):
    """By hand: two problems with +, one with -; two answers each."""
    answers = {"1 + 2 - 3": (1, 1), "4 + 1 + 1": (1, 0), "9 - 8 + 7": (0, 0)}
    lines = [
        json.dumps({
            "question_id": gold, "question": gold, "answer": gold, "rollout": rollout,
            "response": "9 - 8 = 1" if rollout else "9 + 8 = 17", "correct": bool(right),
            "verdict": "", "finished": not rollout, "num_tokens": 5, "epistemic": 0, "words": {},
        })
        for gold, rights in answers.items() for rollout, right in enumerate(rights)
    ]  # fmt: skip
    folder = tmp_path / "evals" / "step_000007"
    folder.mkdir(parents=True)
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n")
    (row,) = sparse.groups_table(load_run(tmp_path)).rows
    found = [entry.text for entry in row]
    assert found == ["held-out", "3", "2", "50.0", "33.3", "33.3", "50.0", "75.0", "0.0"]


def test_the_table_of_the_habit_has_a_line_per_method(study):
    table = sparse.habit_table(study)
    assert table.rows[0][0].text == "base model"
    assert len(table.rows) == 1 + len(AS_PREDICTED)
    assert all(len(row) == len(table.headers) for row in table.rows)


def test_leaving_the_habit_is_told_apart_by_whether_the_solution_lies_outside_it(tmp_path):
    """One problem with +, tried with - once of two times, and one with -, tried with - always."""
    ends = {"grpo": (0.9, 3.0, 40.0, 0.6)}
    folder = build_study(tmp_path / "s", ends={"sparse": ends}, num_problems=2, num_rollouts=2)
    answers = [("1 + 2", "1 + 2 = 3", 1), ("1 + 2", "1 - 2 = 1", 0)]
    answers += [("9 - 8", "9 - 8 = 1", 1), ("9 - 8", "9 - 8 = 2", 1)]
    for path in folder.glob("runs/*/evals/*/heldout.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(
            json.dumps(record | {"answer": gold, "response": text, "correct": bool(right)}) + "\n"
            for record, (gold, text, right) in zip(records, answers, strict=True)
        ))  # fmt: skip
    for row in sparse.habit_table(load_study_results(folder)).rows:
        assert [entry.text for entry in row[1:]] == ["50.0", "100.0", "75.0", "50.0", "100.0"]


def test_the_five_points_of_the_second_prediction_are_not_asked_of_sdpo(study, monkeypatch):
    """SDPO settled at three points above the base is as predicted; the gate there is not."""
    above, barely, below = (0.10, 0.06, 0.14), (0.03, 0.01, 0.045), (-0.1, -0.12, -0.08)
    course = sparse.Course(study)
    for name, verdict in (("sdpo", "holds"), ("epi_gate", "fails")):
        bounds = dict.fromkeys((*sparse.ALONE, "sdpo"), above) | {name: barely}

        def difference(course, first, second, at, bounds=bounds):
            return (first, *(bounds[first] if second == "base" else below))

        monkeypatch.setattr(sparse, "_difference", difference)
        assert sparse._above_base(course)[0] == verdict
