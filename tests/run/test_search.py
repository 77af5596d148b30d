"""The rule by which a search chooses, as a function of the rows of summary.json."""

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.run.search import Candidate, Knob, Search, name_of

LADDER = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TAU = Knob(name="tau", values=(2.0, 1.0, 3.0), ladder=(0.5, 1.0, 2.0, 3.0, 4.0))
KIND = Knob(name="kind", values=("b", "a", "c"))


def searching(knob=TAU, **settings) -> Search:
    def configure(rate, value):
        return tiny(steps=7)

    names = {"rates": LADDER[1:5], "ladder": LADDER, "seeds": (0, 1), "splits": ("in", "out")}
    candidate = Candidate(method="m", knob=knob, configure=configure)
    return Search(candidates=(candidate,), **{**names, **settings})


def row(method, seed, split, accuracy, step=7, world="main"):
    return {"world": world, "method": method, "seed": seed, "step": step, "split": split,
            "accuracy": accuracy}  # fmt: skip


def run_all(search, accuracy):
    """The rows after all rounds, and the number of runs of each round."""
    rows, rounds = [], []
    while arms := search.next_arms(rows):
        rounds.append(len(arms))
        assert len({arm.name for arm in arms}) == len(arms)
        for arm in arms:
            rate, value = arm.method.removeprefix("m-peak_lr=").split("-tau=")[-2:]
            for split in search.splits:
                found = accuracy(float(rate), float(value), arm.config.seed, split)
                rows.append(row(arm.method, arm.config.seed, split, found))
        assert len(rounds) < 20
    return rows, rounds


def peak(rate_at, value_at):
    """Highest at one point, and falling from it in both directions."""
    import math

    def accuracy(rate, value, seed, split):
        return 0.9 - 0.05 * abs(math.log10(rate / rate_at)) - 0.02 * abs(value - value_at)

    return accuracy


def test_the_grid_is_run_once_if_the_best_lies_inside():
    search = searching()
    rows, rounds = run_all(search, peak(1e-4, 2.0))
    assert rounds == [4 * 3 * 2]
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["knob"], found["value"]) == (1e-4, "tau", 2.0)
    assert (found["at_edge"], found["extensions"], found["num_runs"]) == ([], 0, 24)
    assert found["score"] == pytest.approx(0.9)
    assert len(found["tried"]) == 12
    assert found["runs"] == ["main-m-peak_lr=0.0001-tau=2-s0", "main-m-peak_lr=0.0001-tau=2-s1"]


def test_a_best_rate_at_the_edge_adds_a_rate_at_all_values():
    search = searching()
    rows, rounds = run_all(search, peak(1e-6, 2.0))
    assert rounds == [24, 6]  # 1e-6 x 3 values x 2 seeds; the ladder ends there
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["at_edge"], found["extensions"]) == (1e-6, [], 1)


def test_both_edges_grow_at_once_and_the_grid_stays_complete():
    search = searching()
    rows, rounds = run_all(search, peak(1e-1, 4.0))
    assert rounds == [24, (5 * 4 - 4 * 3) * 2]
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["value"]) == (1e-1, 4.0)


def test_the_bound_of_extensions_is_said_when_it_is_hit():
    search = searching(extensions=1, rates=LADDER[3:5])
    rows, _ = run_all(search, peak(1e-6, 2.0))
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["at_edge"], found["extensions"]) == (1e-4, ["peak_lr"], 1)


def test_a_knob_without_an_order_has_no_edge():
    search = searching(KIND)
    scores = {"a": 0.5, "b": 0.6, "c": 0.9}
    rows = []
    for arm in search.first_arms():
        rate, kind = arm.method.removeprefix("m-peak_lr=").split("-kind=")
        value = scores[kind] - (rate != "0.001") * 0.1
        rows += [row(arm.method, arm.config.seed, split, value) for split in search.splits]
    assert search.next_arms(rows) == ()
    assert search.outcome(rows)["m"]["value"] == "c"


def test_of_equal_scores_the_smaller_rate_and_then_the_usual_value_win():
    search = searching(extensions=0)
    rows, _ = run_all(search, lambda rate, value, seed, split: 0.5)
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["value"], found["at_edge"]) == (1e-5, 2.0, ["peak_lr"])


def test_the_score_is_the_mean_over_seeds_and_splits_at_the_last_step_of_its_world():
    search = searching()
    (candidate,) = search.candidates
    point = search.grid(candidate, {}).points[0]
    name = name_of(candidate, point)
    rows = [
        row(name, 0, "in", 0.1, step=3), row(name, 0, "in", 0.8), row(name, 0, "out", 0.4),
        row(name, 1, "in", 1.0), row(name, 1, "out", 0.2), row(name, 1, "heldout", 0.0),
        row(name, 1, "out", 0.9, world="control"),
    ]  # fmt: skip
    known = search.accuracies(rows)
    assert search.score(candidate, point, known) == pytest.approx((0.8 + 0.4 + 1.0 + 0.2) / 4)
    assert search.score(candidate, point, known, splits=("out",)) == pytest.approx(0.3)
    assert search.score(candidate, point, search.accuracies(rows[:3])) is None


def test_the_order_of_rows_and_rows_of_other_methods_change_nothing():
    search = searching()
    rows, _ = run_all(search, peak(1e-2, 1.0))
    others = [row("base", 0, split, 1.0, step=0) for split in search.splits]
    assert search.outcome([*others, *reversed(rows)]) == search.outcome(rows)


def test_a_missing_run_is_named():
    search = searching()
    rows, _ = run_all(search, peak(1e-4, 2.0))
    kept = [r for r in rows if (r["method"], r["seed"]) != ("m-peak_lr=0.001-tau=3", 1)]
    with pytest.raises(
        UserError, match=r"1 runs are missing, such as main-m-peak_lr=0.001-tau=3-s"
    ):
        search.outcome(kept)


def test_values_are_neighbours_in_an_ascending_ladder():
    for values, ladder in (((1, 3), (1, 2, 3)), ((1, 2), (2, 1)), ((1, 5), (1, 2))):
        with pytest.raises(UserError, match="`ladder` must be ascending and have all values next"):
            Knob(name="k", values=values, ladder=ladder)
    with pytest.raises(UserError, match="`values` must be two at least, and different"):
        Knob(name="k", values=(1, 1))
