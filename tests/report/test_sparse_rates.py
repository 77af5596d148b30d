"""The tables by learning rate, and what limits the methods: read from a search's own folder."""

import json

import pytest
from synthetic_study import build_study

from jaxdistill.report import sparse_rates
from jaxdistill.report.load import load_study_results

TRIED = {  # accuracy by method, rate and value of the knob
    ("grpo", "0.0001", "form=DAPO"): 0.70,
    ("grpo", "0.0001", "form=Dr-GRPO"): 0.60,
    ("grpo", "0.0003", "form=DAPO"): 0.90,
    ("rescue_gate", "0.0001", "share=0.3"): 0.98,
    ("rescue_gate", "0.0001", "share=0.1"): 0.70,
    ("rescue_gate", "0.0003", "share=0.3"): 0.89,
}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A search's folder: its splits are those of validation."""
    folder = tmp_path_factory.mktemp("search")
    names = {f"{m}-peak_lr={rate}-{knob}": end for (m, rate, knob), end in TRIED.items()}
    ends = {name: (end, 3.0, 40.0, 0.4) for name, end in names.items()}
    build_study(folder, ends={"sparse": ends}, num_problems=60, num_rollouts=6, seeds=(0, 1))
    rows = json.loads((folder / "summary.json").read_text())
    splits = {"heldout": "validation", "ood": "validation_ood"}
    kept = [r | {"split": splits[r["split"]]} for r in rows if r["split"] in splits]
    (folder / "summary.json").write_text(json.dumps(kept))
    for path in list(folder.glob("runs/*/evals/*/*.jsonl")):
        if path.stem in splits:
            path.rename(path.with_name(f"{splits[path.stem]}.jsonl"))
    return load_study_results(folder)


def test_each_rate_has_the_better_value_of_the_knob_and_the_best_is_marked(search):
    best = sparse_rates.best_by_rate(sparse_rates.all_tried(search))
    assert {key: one.value for key, one in best.items()} == {
        ("grpo", 1e-4): "DAPO",
        ("grpo", 3e-4): "DAPO",
        ("rescue_gate", 1e-4): "0.3",
        ("rescue_gate", 3e-4): "0.3",
    }
    table = sparse_rates.front_table(search, best)
    assert table.headers == ["", "1e-4", "3e-4"]
    marks = {row[0].text: [entry.small for entry in row[1:]] for row in table.rows}
    assert marks["GRPO"] == ["", "(chosen)"]
    assert marks["gate on unsolved groups and GRPO"] == ["(chosen)", ""]


def test_a_mixture_is_compared_with_grpo_at_the_same_rate(search):
    """At 1e-4 it is far above GRPO at 1e-4, whose tuned rate is another."""
    table = sparse_rates.equal_table(sparse_rates.best_by_rate(sparse_rates.all_tried(search)))
    rows = {row[1].text: [entry.text for entry in row] for row in table.rows}
    assert set(rows) == {"1e-4", "3e-4"}
    assert rows["1e-4"][3] == "above"
    assert float(rows["1e-4"][2]) == pytest.approx(28, abs=8)
    assert abs(float(rows["3e-4"][2].replace("−", "-"))) < 8


def test_a_later_method_has_its_lines_once_it_has_runs(search):
    best = sparse_rates.best_by_rate(sparse_rates.all_tried(search))
    one = best["rescue_gate", 1e-4]
    for more, expected in (({}, []), ({("fade_gate", 1e-4): one._replace(method="fade_gate")},
                                      [["fading gate and GRPO", "1e-4"]])):  # fmt: skip
        for table in (sparse_rates.equal_table(best | more),
                      sparse_rates.course_table(search, best | more)):  # fmt: skip
            found = [[entry.text for entry in row[:2]] for row in table.rows]
            assert [row for row in found if row[0].startswith("fading")] == expected


def test_tries_are_whole_if_they_use_all_numbers_and_the_cut_one_is_not_counted():
    records = [
        {"question_id": "4 5 6 -> 3", "response": "4 + 5 = 9 - 6 = 3 </think> answer 4 + 5 - 6"},
        {"question_id": "4 5 6 -> 3", "response": "4 + 5 = 9 wait 4 * 5 = 21 hmm 4 - 5"},
    ]
    tries = sparse_rates.count_tries(records)
    assert tries.per_answer == 1.5
    assert tries.whole == pytest.approx(1 / 3)
    assert tries.wrong == pytest.approx(1 / 4)  # of 9, 3, 9 and 21


def test_the_parts_of_a_mixed_gradient_follow_from_three_norms():
    """|g| = 2, |d| = 3 and 60 degrees between them: the product of both is 3."""

    def mixed(share):
        return ((1 - share) ** 2 * 4 + share**2 * 9 + 2 * share * (1 - share) * 3) ** 0.5

    found = sparse_rates.parts_of(2.0, (0.1, 0.3), [mixed(0.1), mixed(0.3)])
    assert found == pytest.approx((1.5, 0.5))


def test_unsolved_problems_are_counted_within_and_outside_the_habit(tmp_path):
    """Two problems with +, of which one is never solved, and one with -, solved once."""
    ends = {"grpo": (0.9, 3.0, 40.0, 0.6)}
    folder = build_study(tmp_path / "s", ends={"sparse": ends}, num_problems=3, num_rollouts=2)
    answers = {"1 + 2 - 3": (0, 0), "4 + 1 + 1": (1, 0), "9 - 8 + 7": (0, 1)}
    for path in folder.glob("runs/*/evals/*/train.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        rights = [(gold, right) for gold, both in answers.items() for right in both]
        path.write_text("".join(
            json.dumps(record | {"question_id": gold, "answer": gold, "correct": bool(right)})
            + "\n" for record, (gold, right) in zip(records, rights, strict=True)
        ))  # fmt: skip
    (row,) = (r for r in sparse_rates.silent_table(load_study_results(folder)).rows
              if r[0].text == "GRPO")  # fmt: skip
    assert [entry.text for entry in row[-4:]] == ["50.0", "50.0", "0.0", "0.0"]
