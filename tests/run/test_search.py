"""The rule by which a search chooses, as a function of the rows of summary.json."""

import dataclasses
import json
import math

import pytest
from tiny_run import tiny

from jaxdistill.errors import RunStopped, UserError
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.run import study as studies
from jaxdistill.run import workers
from jaxdistill.run.arms import folder_of, is_finished
from jaxdistill.run.grid import varied
from jaxdistill.run.search import Candidate, Knob, Point, Search, name_of
from jaxdistill.run.stopping import Stopping
from jaxdistill.run.study import Study, run_study, with_overrides
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.teachers import EMA

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
    for values in ((1, 1), ()):
        with pytest.raises(UserError, match="`values` must be one at least, and different"):
            Knob(name="k", values=values)


def test_a_knob_of_one_value_tunes_the_rate_alone():
    search = searching(Knob(name="tau", values=(2.0,)), rates=LADDER[1:4], extensions=1)
    rows, rounds = run_all(search, peak(1e-2, 2.0))
    assert rounds == [6, 2]  # three rates of two seeds, then the next rate
    found = search.outcome(rows)["m"]
    assert (found["peak_lr"], found["value"], found["num_runs"]) == (1e-2, 2.0, 8)
    assert found["at_edge"] == ["peak_lr"]


# --------------------------------------------------------------------- a study that searches


RATES = (1e-4, 1e-3)


def studied(**settings) -> Study:
    """A search over two rates and a knob of two values; the best rate is the smallest there is."""
    splits = tuple(Split(pool, ToyTask(pool, count=2)) for pool in ("train", "heldout"))
    evaluation = Evaluation(splits=splits, at_start=False)

    def configure(rate, value):
        config = tiny(steps=2, evaluation=evaluation, export=False, save_checkpoints=False)
        optimizer = dataclasses.replace(config.optimizer, peak_lr=rate)
        return dataclasses.replace(config, optimizer=optimizer, teacher=EMA(value))

    candidate = Candidate(
        method="ema", knob=Knob(name="rate", values=(0.1, 0.2)), configure=configure
    )
    search = Search(
        candidates=(candidate,),
        rates=RATES,
        ladder=(1e-5, *RATES),
        seeds=(0, 1),
        splits=("train", "heldout"),
    )
    study = Study(
        name="search", profile="quick", arms=search.first_arms(), workers=1, search=search
    )
    return with_overrides(study, [f"{path}={value}" for path, value in settings.items()])


@pytest.fixture
def runs(monkeypatch):
    """The names of the runs that a study made; they are not really trained."""
    made = []

    def run_arms(arms, study_dir, quiet, stopping):
        for arm in arms:
            made.append(arm.name)
            folder_of(arm, study_dir).mkdir(parents=True)

    def arm_rows(arm, study_dir):
        rate = arm.config.optimizer.peak_lr
        for split in arm.config.evaluation.splits:
            yield {"world": arm.world, "method": arm.method, "seed": arm.config.seed, "step": 2,
                   "split": split.name, "accuracy": 0.5 - rate}  # fmt: skip

    monkeypatch.setattr(studies, "run_arms", run_arms)
    monkeypatch.setattr(studies, "arm_rows", arm_rows)
    finished = lambda arm, study_dir: folder_of(arm, study_dir).is_dir()  # noqa: E731
    monkeypatch.setattr(studies, "is_finished", finished)
    return made


def test_a_search_extends_its_grid_and_writes_what_it_chose(tmp_path, runs):
    path = run_study(studied(), tmp_path / "s", quiet=True)
    assert path == tmp_path / "s" / "tuned.json"
    assert len(runs) == len(set(runs)) == (2 + 1) * 2 * 2
    assert [name for name in runs[8:]] == [
        f"main-ema-peak_lr=1e-05-rate={value}-s{seed}" for value in (0.1, 0.2) for seed in (0, 1)
    ]
    found = json.loads(path.read_text())
    chosen = found["methods"]["ema"]
    assert (chosen["peak_lr"], chosen["value"], chosen["extensions"]) == (1e-5, 0.1, 1)
    # There is no smaller rate to go on with, which is said; the knob has no order.
    assert (chosen["at_edge"], chosen["at_end"]) == ([], ["peak_lr"])
    assert chosen["score"] == pytest.approx(0.5 - 1e-5)
    assert found["source"] == "search"
    assert {"date", "command", "device", "seconds", "steps"} <= found.keys()
    assert len(json.loads((tmp_path / "s" / "summary.json").read_text())) == 12 * 2
    # The same command finds all runs done, and another search is another study.
    again = run_study(studied(), tmp_path / "s", quiet=True)
    assert json.loads(again.read_text())["methods"] == found["methods"]
    assert len(runs) == 12
    with pytest.raises(UserError, match="holds another study"):
        run_study(studied(steps=1), tmp_path / "s", quiet=True)


def test_a_search_that_has_got_another_method_runs_that_alone(tmp_path, runs):
    """The first method is not run again and keeps its choice; a changed knob is another search."""
    folder, study = tmp_path / "s", studied()
    before = json.loads(run_study(study, folder, quiet=True).read_text())["methods"]
    first = study.search
    assert first is not None
    (own,) = first.candidates
    runs.clear()

    def with_methods(*candidates):
        search = dataclasses.replace(first, candidates=candidates)
        return dataclasses.replace(study, search=search, arms=search.first_arms())

    changed = dataclasses.replace(own, knob=dataclasses.replace(own.knob, values=(0.1, 0.3)))
    for other in (changed, dataclasses.replace(own, method="another")):
        with pytest.raises(UserError, match="holds another study"):
            run_study(with_methods(other), folder, quiet=True)
    more = with_methods(own, dataclasses.replace(own, method="later"))
    found = json.loads(run_study(more, folder, quiet=True).read_text())["methods"]
    assert {name.split("-")[1] for name in runs} == {"later"}
    assert len(runs) == len(set(runs)) == 12
    assert found["ema"] == before["ema"]
    # One method less is another search again.
    with pytest.raises(UserError, match="holds another study"):
        run_study(study, folder, quiet=True)


def test_a_resumed_search_begins_in_the_round_where_it_was(tmp_path, runs, capsys, monkeypatch):
    """One run of the second round is lost: it is the only one made, in the first round of runs."""
    study, folder = studied(), tmp_path / "s"
    run_study(study, folder, quiet=True)
    lost = "main-ema-peak_lr=1e-05-rate=0.2-s1"
    (folder / "runs" / lost).rmdir()
    before = json.loads((folder / "tuned.json").read_text())["methods"]
    runs.clear()
    so_far = []

    def run_arms(*_):
        so_far.append(json.loads((folder / "tuned_so_far.json").read_text())["methods"]["ema"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(studies, "run_arms", run_arms)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, folder, quiet=True)
    # What the last complete grid says.
    assert [(c["peak_lr"], c["extensions"], c["missing"]) for c in so_far] == [(RATES[0], 0, 1)]
    again = run_study(study, folder)
    assert not (folder / "tuned_so_far.json").exists()
    assert runs == [lost]
    assert "11 of 12 runs are finished, 1 are missing" in capsys.readouterr().err
    assert json.loads(again.read_text())["methods"] == before


def test_a_run_that_is_finished_but_measured_nothing_is_named(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(studies, "arm_rows", lambda arm, study_dir: iter(()))
    with pytest.raises(UserError, match=r"8 runs are missing, such as main-ema-peak_lr"):
        run_study(studied(), tmp_path / "s", quiet=True)


def test_settings_of_all_runs_reach_those_of_later_rounds(tmp_path, runs):
    study = studied(steps=9)
    assert study.search is not None
    run_study(study, tmp_path / "s", quiet=True)
    later = study.search.arm(study.search.candidates[0], Point(1e-5, 0.1), 0)
    assert {arm.config.steps for arm in (*study.arms, later)} == {9}


def test_a_search_takes_no_grid_of_its_user():
    with pytest.raises(UserError, match="search chooses its settings and seeds itself; use --set"):
        varied(studied(), (), (0, 1))


def stops_itself(config, run_dir, **options):
    run_dir.mkdir(parents=True, exist_ok=True)
    raise RunStopped("stopped at step 3: steps were skipped")


def test_a_run_that_stops_itself_has_no_accuracy_where_the_study_allows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "run", stops_itself)
    arm = studied().arms[0]
    workers.run_arms([arm], tmp_path, True, Stopping())
    assert is_finished(arm, tmp_path)
    rows = list(studies.arm_rows(arm, tmp_path))
    assert [(row["split"], row["step"], row["accuracy"], row["n"]) for row in rows] == [
        ("train", 2, 0.0, 0), ("heldout", 2, 0.0, 0),
    ]  # fmt: skip
    assert "steps were skipped" in rows[0]["stopped"]
    with pytest.raises(RunStopped):
        workers.run_arms([dataclasses.replace(arm, may_stop=False)], tmp_path, True, Stopping())


@pytest.mark.parametrize("number", [0, -1, 1000])
def test_a_number_of_processes_that_cannot_be(tmp_path, number):
    with pytest.raises(UserError, match=f"--workers must be 1 to 256, got {number}"):
        run_study(studied(), tmp_path / "s", workers=number)
    assert not (tmp_path / "s").exists()
