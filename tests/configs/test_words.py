"""The recipes in words: what the study runs, in which order; and each method in a small model."""

import json
import math
from dataclasses import replace

import pytest

from jaxdistill.config import load_recipe, load_study_recipe, to_json
from jaxdistill.configs.words._students import SMOLLM2
from jaxdistill.configs.words.words_base import words_base
from jaxdistill.configs.words.words_study import FIRST, REST, words_study
from jaxdistill.models.students import Student
from jaxdistill.run.loop import run
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.words import texts


def test_the_study_begins_with_the_base_and_a_seed_of_each_of_the_first_five():
    arms = load_study_recipe("words_study", "full").arms
    assert (arms[0].method, arms[0].config.steps) == ("base", 0)
    firsts = [("words", name, seed) for seed in (0, 1) for name in FIRST]
    rests = [("words", name, seed) for seed in (0, 1) for name in REST]
    assert [(a.world, a.method, a.config.seed) for a in arms[1:]] == firsts + rests
    quick = load_study_recipe("words_study", "quick").arms
    assert quick == arms[: len(quick)]
    assert len(quick) == 11


def test_a_method_differs_from_sdpo_in_objective_teacher_and_context_alone():
    arms = load_study_recipe("words_study", "full").arms
    (sdpo,) = (a for a in arms if (a.method, a.config.seed) == ("sdpo", 0))
    for arm in arms[1:]:
        both = to_json(arm.config), to_json(sdpo.config)
        places = {key for key in both[0] if both[0][key] != both[1][key]}
        assert places <= {"objective", "teacher", "seed", "export", "rollouts_token_ids"} | (
            {"experience"} if arm.method == "grpo" else set()
        )
    methods = [arm.config for arm in arms if arm.config.seed == 0 and arm.config.steps]
    assert len({(run.objective, run.teacher) for run in methods}) == len(FIRST + REST)


def test_no_table_of_the_study_has_a_problem_of_training_tuning_or_fine_tuning():
    study, tune = (
        load_study_recipe(name, "quick").arms[1] for name in ("words_study", "words_tune")
    )
    shown = {
        question.id
        for split in study.config.evaluation.splits
        if split.name != "train"
        for question in split.task.questions()
    }
    assert len(shown) == 192
    used = {q.id for q in study.config.experience.task.questions()}
    used |= {q.id for s in tune.config.evaluation.splits for q in s.task.questions()}
    assert len(used) == 2000 + 192
    assert not shown & used
    parsed = [problems.parse(text) for text in shown]
    for numbers in (3, 4):
        those = [p for p in parsed if len(p.numbers) == numbers]
        assert set(problems.pools_of(those)) == {"heldout"}  # the texts' pool is `pretrain`


def test_the_rates_are_searched_for_on_the_pools_of_validation():
    study = load_study_recipe("words_tune", "quick")
    assert [c.method for c in study.search.candidates] == list(FIRST[1:])
    assert len(study.arms) == 1 + 3 * len(FIRST[1:])
    for arm in study.arms:
        splits = arm.config.evaluation.splits
        assert tuple(split.name for split in splits) == study.search.splits
        assert {split.task.pool for split in splits} == {"validation"}


def test_another_model_is_named_in_the_runs_name_and_opened_everywhere():
    other = replace(SMOLLM2.expected, student="Other")
    student = Student(model="elsewhere", expected=other, billions=0.1)
    assert words_base(student).name == "words_base-Other"
    models = {arm.config.model for arm in words_study("full", student).arms}
    assert models == {Pretrained("elsewhere")}


# ------------------------------------------------------------------------------ in a small model

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The recipe `words_base` for 40 steps of 8 texts; its run folder."""
    from words_model import write_words_model

    folder = tmp_path_factory.mktemp("words")
    model = write_words_model(folder)
    texts.write_rows(folder / "texts.jsonl", 320)
    config = load_recipe(
        "words_base",
        [
            f"experience.source={folder / 'texts.jsonl'}", "experience.batch_size=8", "steps=40",
            "experience.max_tokens=320", "optimizer.peak_lr=5e-3", "compute.pack=0",
            "evaluation.splits=()", "mesh.fsdp=1", "tracking=()", "save_checkpoints=False",
        ],
        student=str(model),
    )  # fmt: skip
    return run(config, folder / "base", quiet=True)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@SLOW
@pytest.mark.timeout(1800)
def test_fine_tuning_learns_the_texts_form(base):
    losses = [row["loss"] for row in metrics_of(base)]
    assert losses[0] == pytest.approx(math.log(640), rel=0.1)  # of a random model
    assert max(losses[-5:]) < 0.5 * losses[0]


@SLOW
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["base", *FIRST, *REST])
def test_every_arm_runs_two_steps_with_finite_metrics_and_its_diagnostics(base, name, tmp_path):
    """The solution shown is the reference: the small model has no correct sibling yet."""
    arms = {a.method: a for a in load_study_recipe("words_study", "full", student=str(base)).arms}
    config = arms[name].config
    short = Sampling(max_new_tokens=32)
    splits = tuple(
        replace(split, task=replace(split.task, count=2)) for split in config.evaluation.splits
    )
    config = replace(
        config,
        steps=min(config.steps, 2),
        experience=replace(
            config.experience, questions=2, rollouts=2, sampling=short, demonstration="reference"
        ),
        evaluation=replace(
            config.evaluation, splits=splits, sampling=short, samples=1, questions_per_batch=2
        ),
        compute=replace(config.compute, pack=0, chunk=32),
        mesh=MeshConfig(fsdp=1),
        export=False,
    )
    folder = run(config, tmp_path / "run", quiet=True)
    summary = json.loads(next((folder / "evals").glob("*/summary.json")).read_text())
    assert set(summary["data"]) == {"heldout", "ood", "train"}
    for found in summary["data"].values():
        assert found["measures"].keys() >= {"check_rate", "copy_fidelity", "tries", "slips"}
    rows = metrics_of(folder) if config.steps else []
    assert len(rows) == config.steps
    for row in rows:
        assert all(math.isfinite(x) for x in row.values() if isinstance(x, float)), row
        assert row["skipped"] == 0
        assert row["epistemic_mass_reference"] > 0
        if name != "grpo":
            assert 0 <= row["epistemic_mass_teacher"] <= 1
        if name in ("epi_gate", "mix_gate"):
            assert 0 < row["kept"] <= 1
