"""Grids and seeds from the command line: which runs they mean, their names, and their report."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import tiny

from jaxdistill.config import load_study_recipe, with_presets
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO
from jaxdistill.overrides import apply_overrides
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results
from jaxdistill.run import study as studies
from jaxdistill.run import workers
from jaxdistill.run.grid import Axis, parse_axes, parse_seeds, points, recipe_study, varied
from jaxdistill.run.study import run_study
from jaxdistill.run.workers import share_out
from jaxdistill.training.teachers import EMA, Frozen


def configure(texts):
    return apply_overrides(tiny(), with_presets(list(texts)))


VALUES = st.lists(st.text(max_size=60), min_size=1, max_size=4, unique=True)


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_every_point_of_a_grid_has_a_name_of_its_own_that_a_shell_takes_as_it_is(values):
    axes = [Axis(f"a.{'bbc'[at]}", tuple(texts)) for at, texts in enumerate(values)]
    found = points(axes)
    wanted = [
        tuple(f"{axis.path}={text}" for axis, text in zip(axes, each))
        for each in itertools.product(*values)
    ]
    assert [point.overrides for point in found] == wanted
    assert len({point.name for point in found}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_.=+-]+", point.name) for point in found)


def test_names_are_short_where_they_are_clear():
    axes = parse_axes(["optimizer.peak_lr=1e-5,3e-5", "teacher=Frozen(), EMA(rate=0.05)"])
    assert [point.name for point in points(axes)][1:3] == [
        "peak_lr=1e-5-teacher=EMA-rate=0.05", "peak_lr=3e-5-teacher=Frozen",
    ]  # fmt: skip
    same_leaf = parse_axes(["experience.sampling.top_p=1", "evaluate.top_p=1"])
    assert points(same_leaf)[0].name == "experience.sampling.top_p=1-evaluate.top_p=1"


def test_a_study_is_repeated_at_each_point_and_seed_but_its_base_is_not():
    study = load_study_recipe("toy_study", "quick")
    axes = parse_axes(["optimizer.peak_lr=1e-5,3e-5", "steps=4,8"])
    found = varied(study, axes, parse_seeds("3"))
    trained = [arm for arm in study.arms if arm.method != "base"]
    assert len(found.arms) == len(study.arms) - len(trained) + 2 * 2 * 3 * len(trained)
    assert [arm for arm in found.arms if arm.method == "base"] == [
        arm for arm in study.arms if arm.method == "base"
    ]
    sdpo = [arm for arm in found.arms if arm.name.startswith("main-sdpo-peak_lr=3e-5-steps=8")]
    assert [(arm.config.seed, arm.config.steps, arm.config.optimizer.peak_lr) for arm in sdpo] == [
        (seed, 8, 3e-5) for seed in range(3)
    ]
    # An arm that has three seeds already takes the new ones once.
    full = load_study_recipe("toy_study", "full")
    two = varied(full, (), (5, 9))
    assert {arm.config.seed for arm in two.arms if arm.method != "base"} == {5, 9}
    assert 3 * sum(arm.method != "base" for arm in two.arms) == 2 * sum(
        arm.method != "base" for arm in full.arms
    )


def test_presets_and_choices_are_axes_of_a_recipe():
    axes = parse_axes(["objective=grpo,sdpo", "teacher=Frozen(),EMA(0.5)"])
    study = recipe_study("tiny", configure, axes, None)
    assert [arm.name for arm in study.arms][:2] == [
        "objective=grpo-teacher=Frozen-s0", "objective=grpo-teacher=EMA-0.5-s0",
    ]  # fmt: skip
    assert [isinstance(arm.config.objective, GRPO) for arm in study.arms] == [True] * 2 + [
        False
    ] * 2
    assert [arm.config.teacher for arm in study.arms] == [Frozen(), EMA(0.5)] * 2


REFUSED = {
    "an unknown path": (["optimizer.peak=1,2"], r"unknown setting 'optimizer.peak'.*peak_lr"),
    "a value of another type": (["steps=2,x"], "steps: expected int.*got 'x'"),
    "a value out of range": (["steps=2,-1"], "`steps` must be at least 0"),
    "a preset that is none": (["objective=sdpo,epi_gat"], "no such objective.*epi_gate"),
    "two ways to write a value": (["optimizer.peak_lr=1e-5,0.00001"], "1e-5 and .* the same set"),
    "an axis that a later one replaces": (
        ["teacher.rate=0.1,0.2", "teacher=Frozen(),EMA(0.3)"], "are the same settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_grid_that_cannot_run_as_a_whole_does_not_begin(name):
    texts, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        recipe_study("tiny", configure, parse_axes(texts), None)


def test_a_study_with_a_base_has_one_model():
    axes = parse_axes(["model=ToyBase('main'),ToyBase('control')"])
    with pytest.raises(UserError, match="--grid model: the study compares every run with its base"):
        varied(load_study_recipe("toy_study", "quick"), axes, None)


def test_an_arm_without_the_setting_is_named():
    axes = parse_axes(["objective.divergence.alpha=0,1"])
    with pytest.raises(UserError, match=r"main-grpo-s0: unknown setting 'objective.divergence.alp"):
        varied(load_study_recipe("toy_study", "quick"), axes, None)


def test_seeds_of_one_recipe_keep_all_workers_busy():
    arms = list(recipe_study("tiny", configure, (), range(5)).arms)
    shares = share_out(arms, 3)
    assert sorted(len(share) for share in shares) == [1, 2, 2]
    assert sorted(arm.name for share in shares for arm in share) == sorted(a.name for a in arms)


@pytest.mark.long
def test_a_study_of_a_recipe_goes_on_and_its_report_pools_the_seeds(tmp_path, monkeypatch):
    """Two seeds at two rates, stopped after two runs."""
    monkeypatch.setattr("jaxdistill.report.figures.draw_all", lambda study, cells: {})
    axes = parse_axes(["optimizer.peak_lr=1e-2,1e-3"])

    def small(texts):
        fixed = ("steps=2", "export=false", "save_checkpoints=false", "evaluation.at_start=true")
        return configure([*fixed, *texts])

    study = studies.dataclasses.replace(recipe_study("tiny", small, axes, (0, 4)), workers=1)
    begun, run = [], workers.run

    def counted(config, run_dir, **options):
        if len(begun) == 2:
            begun.append("stopped")
            raise KeyboardInterrupt
        begun.append(run_dir.name)
        return run(config, run_dir, **options)

    monkeypatch.setattr(workers, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "s", quiet=True)
    page = run_study(study, tmp_path / "s", quiet=True)
    names = [f"peak_lr={rate}-s{seed}" for rate in ("1e-2", "1e-3") for seed in (0, 4)]
    assert begun == [*names[:2], "stopped", *names[2:]]
    assert sorted(path.name for path in (tmp_path / "s" / "runs").iterdir()) == sorted(names)
    assert "peak_lr=1e-2" in page.read_text()
    with pytest.raises(UserError, match="holds another study"):
        run_study(recipe_study("tiny", small, axes, (0, 5)), tmp_path / "s", quiet=True)
    # Both seeds of a rate are one cell, whose mean and interval are over both seeds' answers.
    cells = tabulate(load_study_results(tmp_path / "s"))
    assert [key[1] for key in cells] == ["peak_lr=1e-2", "peak_lr=1e-3"]
    for (_, method, split), cell in cells.items():
        files = [tmp_path / "s" / "runs" / f"{method}-s{seed}" / "evals" / "step_000002" /
                 f"{split}.jsonl" for seed in (0, 4)]  # fmt: skip
        lengths = [
            json.loads(line)["num_tokens"] for f in files for line in f.read_text().splitlines()
        ]
        assert len(lengths) == 12
        estimate = cell.estimate("length")
        assert estimate.value == pytest.approx(np.mean(lengths))
        assert estimate.num_problems == 3
        assert estimate.is_bounded
