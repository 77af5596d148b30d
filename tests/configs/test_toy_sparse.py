"""The study of sparse rewards: its world, its search, and the changes that it tries."""

import collections
from dataclasses import replace

import numpy as np
import pytest

from jaxdistill.config import load_recipe, load_study_recipe
from jaxdistill.configs.toy import _sparse, toy_sparse
from jaxdistill.configs.toy._sparse import (
    MIXTURES,
    SPARSE_METHODS,
    read_sparse_tuned,
    tuned_point,
)
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, RLSD, Mixed, UnsolvedGroups
from jaxdistill.report import sparse
from jaxdistill.report.words import METHOD_LABELS
from jaxdistill.run.search import Point
from jaxdistill.storage.toy import toy_base_folder
from jaxdistill.tasks.contexts import PartialSolution, Solution
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.tasks.toy import problems


@pytest.fixture(scope="module")
def studies():
    return {n: load_study_recipe(n, "full") for n in ("toy_sparse", "toy_sparse_tune")}


def test_every_method_of_the_search_has_the_same_number_of_runs(studies):
    counts = collections.Counter(
        arm.method.split("-peak_lr")[0] for arm in studies["toy_sparse_tune"].arms
    )
    assert counts.pop("base") == 1
    assert set(counts) == set(SPARSE_METHODS)
    assert set(counts.values()) == {4 * 2 * 2}


def test_all_runs_draw_as_many_rollouts_from_the_same_base(studies):
    arms = [arm for study in studies.values() for arm in study.arms]
    assert len({arm.config.model for arm in arms}) == 1
    drawn = {
        arm.config.steps * arm.config.experience.questions * arm.config.experience.rollouts
        for arm in arms
        if arm.method != "base"
    }
    assert drawn == {60 * 256}
    assert studies["toy_sparse"].over == "rollouts"


def test_no_problem_of_the_search_is_trained_on_or_reported(studies):
    tune, study = (studies[name] for name in ("toy_sparse_tune", "toy_sparse"))
    validation = {s.task for s in tune.arms[0].config.evaluation.splits}
    others = {arm.config.experience.task for arm in (*tune.arms, *study.arms)}
    others |= {s.task for s in study.arms[0].config.evaluation.splits}

    def texts(tasks):
        return [question.prompt for task in tasks for question in task.questions()]

    assert len(texts(validation)) == len(set(texts(validation))) == 2 * 192
    assert not set(texts(validation)) & set(texts(others))
    # Three splits, and the training problems, of which the train split is a part.
    assert len(set(texts(others))) == 2000 + 2 * 192


def test_the_changes_differ_from_their_mixture_in_what_they_distil(studies):
    arms = {arm.name: arm.config for arm in studies["toy_sparse"].arms}
    mixed, gate, hint = (
        arms[f"sparse-{name}-s1"] for name in ("mix_gate", "rescue_gate", "rescue_hint")
    )
    assert isinstance(mixed.objective, Mixed)
    weights = (UnsolvedGroups(), *mixed.objective.distill.weights)
    distill = replace(mixed.objective.distill, weights=weights)
    # The shares are tuned, each method's for itself.
    assert gate.objective == Mixed(distill, mixed.objective.policy_gradient, gate.objective.share)
    assert (gate.experience.context, hint.experience.context) == (Solution(), PartialSolution())
    assert hint.objective.distill.weights == (UnsolvedGroups(),)


def test_the_fading_gate_is_the_gates_mixture_but_for_its_share(studies):
    """It starts at 0.9 and is 0 from the tuned step on, after which GRPO alone remains."""
    arms = {arm.name: arm.config for arm in studies["toy_sparse"].arms}
    mixed, fading = (arms[f"sparse-{name}-s2"] for name in ("mix_gate", "fade_gate"))
    steps = tuned_point("fade_gate").value
    assert steps in (10, 20)
    assert fading.objective == replace(mixed.objective, share=0.9, anneal_steps=steps)
    assert fading.experience == mixed.experience
    assert fading.teacher == mixed.teacher


def test_protected_rlsd_is_tuned_grpo_but_for_its_credit_and_the_teachers_context(studies):
    arms = {arm.name: arm.config for arm in studies["toy_sparse"].arms}
    grpo, credited, distilled = (
        arms[f"sparse-{name}-s2"] for name in ("grpo", "epi_rlsd", "epi_gate")
    )
    assert tuned_point("grpo").value == "DAPO"
    strength = tuned_point("epi_rlsd").value
    assert strength in (0.5, 1.0)
    credit = RLSD(strength=float(strength), protect_epistemic=True)
    assert isinstance(grpo.objective, GRPO)
    assert credited.objective == replace(grpo.objective, credit=credit)
    # Its teacher is shown what the distillations' is, and is as frozen.
    assert credited.experience == distilled.experience
    assert credited.experience == replace(grpo.experience, context=Solution())
    assert credited.teacher == distilled.teacher


def test_a_better_score_of_a_later_method_exchanges_no_arm(studies, monkeypatch):
    """docs/log.md predicts the two arms at each other's rate by name."""
    names = [arm.name for arm in studies["toy_sparse"].arms]
    swapped = [name for name in names if "_rate-" in name]
    found = read_sparse_tuned()
    best = {"peak_lr": 1e-3, "knob": "anneal_steps", "value": 20, "score": 0.99}
    tuned = found | {"methods": found["methods"] | {"fade_gate": best}}
    monkeypatch.setattr(_sparse, "read_sparse_tuned", lambda: tuned)
    now = [arm.name for arm in toy_sparse.full()]
    assert now == names
    assert [name for name in now if "_rate-" in name] == swapped
    assert len(swapped) == 6


def test_every_training_problem_has_a_reference_solution_and_most_lie_outside_the_habit():
    questions = ToyTask("train", 4, 500).questions()
    found = [problems.parse(q.prompt) for q in questions]
    assert all(question.solution for question in questions)
    assert 0.55 < np.mean([problem.solution[0] != "+" for problem in found]) < 0.65
    # What docs/toy_sparse.md says of the chains that a writer with the habit uses up first.
    usual = [sum(chain[0] == "+" for chain in problem.chains) for problem in found]
    assert np.mean([4 <= count <= 6 for count in usual]) > 0.9


def test_without_its_base_the_study_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "jaxdistill train toy_sparse_base --run-dir runs/toy_sparse_base"
    with pytest.raises(UserError, match=command):
        toy_base_folder("sparse")
    assert load_recipe("toy_sparse_base", []).export
    folder = tmp_path / "runs" / "toy_sparse_base" / "export"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert toy_base_folder("sparse").resolve() == folder.resolve()


def test_grpo_and_the_best_mixture_are_run_at_each_others_rate(studies, monkeypatch):
    """By the search's own file, read anew: no rate and no method is written down for them."""
    arms = {arm.method: arm.config for arm in studies["toy_sparse"].arms}
    tuned = read_sparse_tuned()["methods"]
    best = max(MIXTURES, key=lambda name: tuned[name]["score"])
    swapped = {f"{best}_at_grpo_rate": (best, "grpo"), "grpo_at_mixture_rate": ("grpo", best)}
    assert tuned["grpo"]["peak_lr"] != tuned[best]["peak_lr"]
    for called, (own, other) in swapped.items():
        rate = arms[other].optimizer.peak_lr
        optimizer = replace(arms[own].optimizer, peak_lr=rate)
        assert arms[called] == replace(arms[own], optimizer=optimizer, name=called)
        assert called in METHOD_LABELS
    seeds = [arm.config.seed for arm in studies["toy_sparse"].arms if arm.method in swapped]
    assert sorted(seeds) == [0, 0, 1, 1, 2, 2]
    # Of equal rates there is nothing to swap.
    monkeypatch.setattr(toy_sparse, "tuned_point", lambda name: Point(1e-4, 0.1))
    assert toy_sparse.swapped_rates(arms["sdpo"], arms["grpo"]) == {}


def test_a_method_that_was_not_tuned_yet_has_its_usual_value():
    for name, method in SPARSE_METHODS.items():
        chosen = read_sparse_tuned()["methods"].get(name)
        expected = (1e-4, method.knob.values[0])
        if chosen is not None:
            expected = (chosen["peak_lr"], chosen["value"])
        assert tuned_point(name) == expected


def test_the_report_knows_the_mixtures_and_their_runs_at_another_rate():
    assert set(sparse.MIXTURES) == set(MIXTURES)
    assert set(sparse.SWAPPED) <= METHOD_LABELS.keys()
    # The later methods are no part of what was predicted of the first, and come after them.
    assert tuple(SPARSE_METHODS)[-len(sparse.LATER) :] == sparse.LATER
    assert not set(sparse.LATER) & set(MIXTURES)
    assert set(SPARSE_METHODS) <= METHOD_LABELS.keys()
