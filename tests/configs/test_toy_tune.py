"""The toy methods, how they are tuned, and where toy_study takes its settings from."""

import collections
import json
from dataclasses import replace

import pytest

from jaxdistill import overrides
from jaxdistill.config import RunConfig, load_recipe, load_study_recipe
from jaxdistill.configs.toy import _methods as methods
from jaxdistill.configs.toy import toy_study
from jaxdistill.configs.toy._methods import METHODS, configured, read_tuned, usual
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, Mixed
from jaxdistill.run.search import Point
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.teachers import EMA


def settings(described, path=""):
    """The settings of a config.json by their dotted paths."""
    inner = described if isinstance(described, dict) else dict(enumerate(described))
    flat = {}
    for key, value in inner.items():
        if isinstance(value, dict | list) and value:
            flat |= settings(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def changed(config, parent):
    both = [settings(overrides.to_json(c)) for c in (config, parent)]
    return {p for p in both[0].keys() | both[1].keys() if both[0].get(p) != both[1].get(p)}


@pytest.fixture(scope="module")
def parents():
    return load_recipe("toy_selfdistill", []), load_recipe("toy_grpo", [])


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_values_differ_in_its_knob_and_methods_in_one_place(name, parents):
    sdpo, grpo = parents
    knob = METHODS[name].knob
    runs = [configured(name, sdpo, grpo, Point(1e-3, value)) for value in knob.values]
    assert len({json.dumps(overrides.to_json(run)) for run in runs}) == len(runs) == 3
    parent = grpo if isinstance(runs[0].objective, GRPO) else sdpo
    places = set()
    for run in runs:
        kept = json.loads(json.dumps(overrides.to_json(run)))
        assert overrides.from_json(RunConfig, kept) == run
        assert run.optimizer == replace(parent.optimizer, peak_lr=1e-3)
        paths = changed(run, parent) - {"optimizer.peak_lr"}
        places |= {path.split(".")[0] for path in paths}
    expected = {"sdpo_ema": {"teacher"}}.get(name, {"objective"})
    assert places == expected


def test_the_usual_values_are_the_published_methods(parents):
    sdpo, grpo = parents
    rate = sdpo.optimizer.peak_lr
    found = {n: configured(n, sdpo, grpo, Point(rate, usual(n))) for n in METHODS}
    assert found["sdpo"] == sdpo
    assert found["grpo"] == grpo
    assert found["sdpo_ema"].teacher == EMA()
    for name, preset in (("sdpo_mask", "weights"), ("epi_gate", "weights"),
                         ("epi_anchor", "target"), ("epi_floor", "target")):  # fmt: skip
        paths = changed(found[name], sdpo)
        assert all(path.startswith(f"objective.{preset}") for path in paths), name
    for name, part in (
        ("mix_gate", "epi_gate"),
        ("mix_anchor", "epi_anchor"),
        ("mix_sdpo", "sdpo"),
    ):
        assert found[name].objective == Mixed(found[part].objective, grpo.objective, share=0.3)


def test_every_method_has_the_same_number_of_runs_and_none_is_reported():
    study = load_study_recipe("toy_tune", "full")
    assert study.search is not None
    counts = collections.Counter(arm.method.split("-peak_lr")[0] for arm in study.arms)
    assert counts.pop("base") == 1
    assert set(counts) == set(METHODS)
    assert set(counts.values()) == {4 * 3 * 2}
    assert {arm.config.evaluation.splits for arm in study.arms} == {
        study.arms[0].config.evaluation.splits
    }
    reported = load_study_recipe("toy_study", "full").arms[0].config.evaluation.splits
    assert not {s.name for s in reported} & set(study.search.splits)


@pytest.mark.long
def test_no_validation_problem_is_trained_on_or_reported():
    """By content, over everything that the studies draw."""
    tune, study = (load_study_recipe(name, "full") for name in ("toy_tune", "toy_study"))
    validation = {s.task for s in tune.arms[0].config.evaluation.splits}
    others = {arm.config.experience.task for arm in (*tune.arms, *study.arms)}
    others |= {s.task for arm in study.arms for s in arm.config.evaluation.splits}
    others |= {ToyTask("heldout", n, 2000) for n in (3, 4)} | {ToyTask("train", 3, 20_000)}

    def texts(tasks):
        return {question.prompt for task in tasks for question in task.questions()}

    assert len(texts(validation)) == 2 * 192
    assert not texts(validation) & texts(others)


@pytest.fixture
def tuned_file(tmp_path, monkeypatch):
    """Writes a tuned.json that the recipes read instead of the package's."""

    def write(**chosen):
        path = tmp_path / "tuned.json"
        path.write_text(json.dumps({"source": "toy_tune", "methods": chosen}))
        read_tuned.cache_clear()
        monkeypatch.setattr(methods, "read_tuned", lambda: read_tuned(path))
        return path

    yield write
    read_tuned.cache_clear()


def test_the_study_runs_what_was_tuned(tuned_file):
    tuned_file(
        epi_gate={"peak_lr": 3e-5, "knob": "threshold", "value": 0.03},
        grpo={"peak_lr": 1e-3, "knob": "form", "value": "Dr-GRPO"},
        sdpo={"peak_lr": 1e-6, "knob": "divergence", "value": "ReverseKL"},
    )
    arms = {arm.name: arm.config for arm in toy_study.toy_study("full").arms}
    gate, grpo = arms["main-epi_gate-s2"], arms["control-grpo-s0"]
    assert (gate.optimizer.peak_lr, gate.objective.weights[0].threshold) == (3e-5, 0.03)
    assert (grpo.optimizer.peak_lr, grpo.objective.normalize_std) == (1e-3, False)
    # Plain self-distillation once as published at the gate's rate, and once tuned.
    harmful, tuned = arms["main-sdpo-s0"], arms["main-sdpo_tuned-s0"]
    assert harmful.optimizer.peak_lr == 3e-5
    assert harmful.objective == load_recipe("toy_selfdistill", []).objective
    assert (tuned.optimizer.peak_lr, type(tuned.objective.divergence).__name__) == (
        1e-6, "ReverseKL",
    )  # fmt: skip
    quick = {arm.name: arm.config for arm in toy_study.toy_study("quick").arms}
    assert quick["main-epi_gate-s0"].objective == gate.objective
    assert {config.optimizer.peak_lr for config in quick.values()} == {3e-4}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"peak_lr": 0, "knob": "form", "value": "DAPO"}, "grpo: `peak_lr` must lie between 0 and"),
        ({"peak_lr": 1e-4, "knob": "tau", "value": "DAPO"}, "grpo: `knob` must be 'form' and `val"),
        ({"peak_lr": 1e-4, "knob": "form", "value": "x"}, r"`value` one of .*got 'form' and 'x'"),
        (7, "grpo: expected an object, got 7"),
    ],
)
def test_a_broken_file_of_tuned_values_is_named(tuned_file, chosen, said):
    path = tuned_file(grpo=chosen)
    with pytest.raises(UserError, match=said) as caught:
        toy_study.toy_study("full")
    assert str(path) in str(caught.value)


def test_the_packages_file_has_every_method_and_says_where_it_is_from():
    found = read_tuned()
    assert set(found["methods"]) == set(METHODS)
    assert found["source"] in ("not tuned", "toy_tune")
    if found["source"] == "toy_tune":
        assert found["profile"] == "full"
