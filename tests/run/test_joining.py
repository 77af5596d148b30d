"""The page of the runs of a study that are finished, copied from wherever they were made."""

import dataclasses
import json
import shutil

import pytest
from synthetic_study import ENDS, build_study
from tiny_run import tiny

from jaxdistill.config import to_json
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO
from jaxdistill.run.arms import folder_of
from jaxdistill.run.joining import join_runs
from jaxdistill.run.search import Candidate, Knob, Search
from jaxdistill.run.study import Arm, Study, known_so_far, prepare

METHODS = {"base": {"steps": 0}, "sdpo": {}, "grpo": {"objective": GRPO()}}
PROVENANCE = {
    "time_utc": "2026-03-0{day}T10:00:00+00:00",
    "git": None,
    "python": "3.12.3",
    "packages": {"jax": "0.11.2"},
    "devices": {"count": 1, "kind": "NVIDIA H200", "platform": "gpu", "processes": 1},
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("jaxdistill.report.figures.draw_all", lambda study, cells: {})


@pytest.fixture(scope="module")
def study():
    runs = {name: tiny(**{"steps": 40, **changes}) for name, changes in METHODS.items()}
    arms = tuple(Arm(world="main", method=name, config=run) for name, run in runs.items())
    return Study(name="small", profile="quick", arms=arms, workers=1)


@pytest.fixture
def copied(study, tmp_path):
    """The runs of base and SDPO as if copied here from another machine; GRPO was not finished."""
    ends = {"main": {name: ENDS["main"][name] for name in ("sdpo", "grpo")}}
    made = build_study(tmp_path / "made", ends=ends, num_problems=6, num_rollouts=2)
    rows = json.loads((made / "summary.json").read_text())
    for day, arm in enumerate(study.arms, start=1):
        run = made / "runs" / arm.name
        provenance = json.dumps(PROVENANCE).replace("{day}", str(day))
        (run / "provenance.json").write_text(provenance)
        (run / "config.json").write_text(json.dumps(to_json(arm.config)))
        if arm.method != "grpo":
            (run / "finished.json").write_text(json.dumps({"step": arm.steps}))
        for folder in (run / "evals").iterdir():
            step = int(folder.name.removeprefix("step_"))
            means = {r["split"]: r for r in rows if (r["method"], r["step"]) == (arm.method, step)}
            (folder / "summary.json").write_text(json.dumps(means))
    folder = tmp_path / "study"
    shutil.copytree(made / "runs", folder / "runs")
    return folder, [row for row in rows if row["method"] != "grpo"]


def test_the_page_is_of_the_finished_runs_and_the_others_are_named(study, copied, capsys):
    folder, rows = copied
    (folder / "runs" / "main-other-s0").mkdir()
    page = join_runs(study, folder)
    assert page == folder / "report.html"
    found = json.loads((folder / "summary.json").read_text())
    places = ("method", "seed", "step", "split", "accuracy", "length", "n")
    key = [[row[name] for name in places] for row in rows]
    assert sorted([row[name] for name in places] for row in found) == sorted(key)
    said = capsys.readouterr().err
    assert "2 of 3 runs are finished, missing: main-grpo-s0\n" in said
    assert "left out, as no runs of this study: main-other-s0\n" in said
    facts = json.loads((folder / "study.json").read_text())
    assert (facts["date"], facts["device"]) == ("2026-03-02", "1 x NVIDIA H200")
    assert facts["versions"] == {"python": "3.12.3", "jax": "0.11.2"}


def test_a_search_that_has_grown_elsewhere_is_joined_as_a_whole(tmp_path):
    def configure(rate, value):
        config = tiny(steps=2)
        return dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, peak_lr=rate)
        )

    knob = Knob(name="rate", values=(0.1,))
    search = Search(
        candidates=(Candidate(method="ema", knob=knob, configure=configure),),
        rates=(1e-4, 1e-3), ladder=(1e-5, 1e-4, 1e-3), seeds=(0,), splits=("heldout",),
    )  # fmt: skip
    arms = search.first_arms()
    study = Study(name="s", profile="quick", arms=arms, workers=1, search=search)
    made = []
    while more := [a for a in known_so_far(search, arms, tmp_path) if a.name not in made]:
        for arm in more:
            rate = arm.config.optimizer.peak_lr
            means = {"heldout": {"accuracy": 0.5 - rate, "n": 1}}  # the smallest is the best
            files = {
                "config.json": to_json(arm.config), "finished.json": {"step": 2},
                "provenance.json": PROVENANCE, "evals/step_2/summary.json": means,
            }  # fmt: skip
            for name, content in files.items():
                path = folder_of(arm, tmp_path) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content))
            made.append(arm.name)
        path = join_runs(study, tmp_path)
        assert path.name == ("tuned_so_far.json" if len(made) == 2 else "tuned.json")
    assert len(made) == 3
    found = json.loads((tmp_path / "tuned.json").read_text())
    assert found["methods"]["ema"]["peak_lr"] == 1e-5


def test_the_study_then_continues_in_the_folder_and_keeps_what_is_known_of_it(study, copied):
    folder, _ = copied
    join_runs(study, folder)
    prepare(study, folder)  # as `study` does before its first run
    (folder / "study.json").write_text('{"name": "as it was", "seconds": 5}')
    join_runs(study, folder)
    assert json.loads((folder / "study.json").read_text())["name"] == "as it was"


def test_a_run_with_other_settings_is_refused_by_the_setting(study, copied):
    folder, _ = copied
    path = folder / "runs" / "main-sdpo-s0" / "config.json"
    path.write_text(path.read_text().replace('"peak_lr": 0.01', '"peak_lr": 0.5'))
    with pytest.raises(UserError, match=r"main-sdpo-s0 .*`optimizer\.peak_lr` is 0\.5"):
        join_runs(study, folder)
    assert not (folder / "summary.json").exists()


def test_without_a_finished_run_it_is_said_where_one_is_expected(study, tmp_path):
    with pytest.raises(UserError, match=r"no such folder; copy finished runs to .*/runs"):
        join_runs(study, tmp_path / "none")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"no run is finished; expected one such as .*main-base-s0"):
        join_runs(study, tmp_path)
