"""The paper's recipes: every published figure, every student and scale, and what is refused."""

import importlib
import json
import re

import jax
import pytest
from command_line import assert_mistake, call
from places import ROOT

from jaxdistill import overrides
from jaxdistill.config import load_recipe, load_study_recipe, recipe_modules
from jaxdistill.models.students import STUDENTS
from jaxdistill.tasks.questions import Question

# Of arXiv 2603.24472 and its released code, by section; `type` is the class of a choice.
SECTION_5 = {
    "experience.questions": 256,
    "experience.rollouts": 8,
    "experience.updates": 2,  # of 1,024 rows each
    "experience.max_prompt_tokens": 2048,
    "experience.sampling.max_new_tokens": 20_480,
    "experience.sampling.temperature": 1.0,
    "experience.sampling.top_p": 1.0,
    "experience.sampling.top_k": 0,
    "experience.sampling.min_p": 0.0,
    "experience.context.type": "Solution",
    "experience.demonstration": "sibling",
    "experience.max_demonstration_tokens": 20_480,
    "experience.teacher_thinking": "as_student",
    "experience.template.turn": (
        "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    ),
    "experience.template.solution": "\nCorrect solution:\n\n{solution}",
    "objective.divergence.type": "JensenShannon",
    "objective.divergence.alpha": 0.5,
    "objective.support.type": "TopC",
    "objective.support.c": 100,
    "objective.support.support": "student",
    "objective.support.tail": True,
    "objective.importance_clip": 2.0,
    "objective.rollout_correction.level": "token",
    "objective.rollout_correction.clip": 2.0,
    "objective.rollout_correction.two_sided": False,
    "objective.reduction": "sequence",
    "objective.normalizer": "all",
    "teacher.type": "Frozen",
    "steps": 100,
    "optimizer.peak_lr": 1e-5,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 1.0,
    "optimizer.warmup_steps": 10,
    "optimizer.schedule": "constant",
    "evaluation.every": 10,
    "evaluation.samples": 1,
    "evaluation.sampling.temperature": 0.6,
    "evaluation.sampling.top_p": 0.95,
    "evaluation.sampling.top_k": 0,
    "evaluation.sampling.max_new_tokens": 20_480,
    "evaluation.splits.0.task.source": "tfds:aime24",
}
OF_SDPO = ("experience.context", "objective.")  # what other methods have otherwise
FIGURES = {
    "sdpo_math": SECTION_5,
    "sdpo_math_stripped_solution": SECTION_5
    | {"experience.context.type": "SolutionWithoutThinking"},
    "sdpo_math_ema": SECTION_5 | {"teacher.type": "EMA", "teacher.rate": 0.05},
    "grpo_math": {path: v for path, v in SECTION_5.items() if not path.startswith(OF_SDPO)}
    | {
        "experience.context.type": "NoContext",
        "optimizer.peak_lr": 1e-6,
        "objective.type": "GRPO",
        "objective.normalize_std": False,
        "objective.clip_low": 0.2,
        "objective.clip_high": 0.28,
        "objective.dual_clip": 3.0,
        "objective.terms": [],
        "objective.rollout_correction.level": "token",
        "objective.rollout_correction.clip": 2.0,
        "objective.reduction": "sequence",
    },
    "sft_unguided": {
        "optimizer.peak_lr": 5e-6,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 0,
        "experience.epochs": 15,
        "experience.batch_size": 8,
        "experience.correct": True,
        "evaluation.samples": 16,
        "evaluation.sampling.temperature": 0.6,
        "evaluation.sampling.top_p": 0.95,
        "evaluation.sampling.max_new_tokens": 38_912,
        "evaluation.splits.0.name": "aime24",
        "evaluation.splits.1.name": "aime25",
        "evaluation.splits.2.name": "amc23",
        "evaluation.splits.3.name": "math500",
    },
}
FIGURES["sft_guided"] = FIGURES["sft_unguided"]
TRAINING = [
    *FIGURES, "opsd_math", "opd_math",
    "epi_mask_math", "epi_gate_math", "epi_anchor_math", "epi_amplify_math",
]  # fmt: skip
SMALL = [name for name, student in STUDENTS.items() if student.billions <= 2]


def at(settings, path):
    for part in path.split("."):
        settings = settings[int(part) if isinstance(settings, list) else part]
    return settings


def described(recipe, student=None, scale=None):
    return overrides.to_json(load_recipe(recipe, [], student=student, scale=scale))


@pytest.mark.parametrize("recipe", FIGURES)
def test_a_recipe_has_every_published_figure(recipe):
    settings = described(recipe)
    found = {path: at(settings, path) for path in FIGURES[recipe]}
    assert found == FIGURES[recipe]


@pytest.mark.parametrize("recipe", [name for name in TRAINING if name.startswith(("epi", "sdpo"))])
def test_our_methods_differ_from_the_papers_in_their_objective_context_or_teacher_alone(recipe):
    parent, child = described("sdpo_math"), described(recipe)
    changed = {name for name in parent if parent[name] != child[name]} - {"name"}
    assert len(changed) == (recipe != "sdpo_math")
    assert changed <= {"objective", "experience", "teacher"}


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("recipe", TRAINING)
def test_every_student_resolves_at_the_scales_that_are_for_it(
    recipe, student, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # another worker's tests may write into the checkout meanwhile
    facts = STUDENTS[student]
    paper = described(recipe, student, "paper")
    assert paper["name"] == f"{recipe}-{student}"
    assert paper["model"] == {"type": "Pretrained", "path": facts.model}
    assert paper["experience"]["student_thinking"] == facts.thinking
    assert paper["evaluation"]["sampling"]["temperature"] == facts.temperature
    assert paper["expected"]["stop_ids"] == list(facts.expected.stop_ids)
    # A prompt and a response of the recipe fit the model.
    longest = load_recipe(recipe, [], student=student).longest
    assert longest + (recipe[:3] == "sft") * facts.prompt_tokens <= facts.expected.max_positions
    if student not in SMALL:
        expected = f"`--scale one_gpu` is for .* {re.escape(student)} has .*use --student"
        assert_mistake(
            ["train", recipe, "--student", student, "--scale", "one_gpu", "--show"], expected
        )
        return
    one = described(recipe, student, "one_gpu")
    assert one["name"] == f"{recipe}-{student}-one_gpu"
    if recipe[:3] != "sft" and recipe != "opsd_math":
        ratio = {"experience.questions": 8, "experience.sampling.max_new_tokens": 2,
                 "experience.max_prompt_tokens": 2, "experience.max_demonstration_tokens": 2,
                 "experience.rollouts": 1, "experience.updates": 1, "steps": 1}  # fmt: skip
        assert {path: at(paper, path) / at(one, path) for path in ratio} == ratio
    else:  # as their docstrings say
        assert {n for n in paper if paper[n] != one[n]} <= {"name", "evaluation"}


def test_show_prints_the_settings_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--student", "Qwen3-1.7B", "--scale", "one_gpu", "--show"]
    code, out, err = call("train", "grpo_math", *flags, "--set", "steps=7", "--mesh", "fsdp=4")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert (shown["steps"], shown["mesh"]["fsdp"]) == (7, 4)
    shown |= {"steps": 100, "mesh": described("grpo_math")["mesh"]}
    assert shown == described("grpo_math", "Qwen3-1.7B", "one_gpu")
    assert list(tmp_path.iterdir()) == []

    code, out, err = call("study", "coverage_math", "--profile", "full", *flags[:4], "--show")
    assert (code, err) == (0, "")
    assert len(json.loads(out)) == 11


def test_show_asks_for_no_device(monkeypatch):
    def refuse(*_):
        raise AssertionError("a device was asked for")

    monkeypatch.setattr("jax._src.xla_bridge.get_backend", refuse)
    with pytest.raises(AssertionError, match="a device"):
        jax.devices()
    assert call("train", "sdpo_math", "--show")[0] == 0


def test_the_study_has_the_papers_coverage_and_both_methods():
    arms = load_study_recipe("coverage_math", "full").arms
    base, *trained = arms
    assert (base.method, base.config.steps) == ("base", 0)
    found = [(arm.method, dict(arm.labels)["coverage"]) for arm in trained]
    assert found == [(m, n) for m in ("sdpo", "grpo") for n in (1, 8, 64, 128, 512)]
    rates = {"sdpo": 1e-5, "grpo": 1e-6}
    for arm in trained:
        experience, evaluation = arm.config.experience, arm.config.evaluation
        number = dict(arm.labels)["coverage"]
        assert experience.task.source == f"tfds:coverage/{number}"
        assert (experience.questions, experience.rollouts, arm.config.rows) == (64, 8, 256)
        assert (arm.config.updates, arm.config.steps) == (2, 100)
        assert arm.config.optimizer.peak_lr == rates[arm.method]
        assert [split.name for split in evaluation.splits] == [
            f"train_{number}",
            "aime24",
            "math500",
        ]
        assert (evaluation.every, evaluation.samples) == (10, 16)
        assert (evaluation.sampling.temperature, evaluation.sampling.top_p) == (0.7, 0.8)
        assert experience.student_thinking is False
        assert {split.name for split in evaluation.splits} <= {
            split.name for split in base.config.evaluation.splits
        }


# ------------------------------------------------------------------------------- what is refused

MISTAKES = {
    "train sdpo_math --student Qwen3-9B": "is neither a student.*did you mean Qwen3-8B or",
    "train sdpo_math --student nothing/like/it": "there is no folder nothing/like/it",
    "train sdpo_math --scale huge": "`--scale` must be paper or one_gpu, got 'huge'",
    "train toy_grpo --student Qwen3-8B": "recipe 'toy_grpo' takes no --student",
    "train toy_grpo --scale paper": "recipe 'toy_grpo' takes no --scale",
    "study toy_study --scale paper": "recipe 'toy_study' takes no --scale",
    "study coverage_math --scale one_gpu": "Qwen3-8B-think-off has 8.2",
    "train run.json --student Qwen3-8B": "run.json: --student belongs to a recipe",
    "train sdpo_math --set last_chars=100": "unknown setting 'last_chars'",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_mistake(command.split(), MISTAKES[command])


def test_a_recipe_of_ones_own_takes_a_student_and_a_scale_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from jaxdistill.configs.paper.sdpo_math import sdpo_math\n"
        "from jaxdistill.models.students import QWEN3_1_7B\n"
        "expected = dataclasses.replace(QWEN3_1_7B.expected, student='Mine')\n"
        "MINE = dataclasses.replace(QWEN3_1_7B, model='me/mine', expected=expected)\n"
        "def mine(student=MINE, scale='tiny'):\n"
        "    steps = {'tiny': 1, 'large': 9}[scale]\n"
        "    return dataclasses.replace(sdpo_math(student), steps=steps)\n"
    )
    path = str(tmp_path / "mine.py")
    assert load_recipe(path, []).name == "sdpo_math-Mine"
    large = load_recipe(path, [], student="Mine", scale="large")
    assert (large.steps, large.model.path) == (9, "me/mine")
    assert load_recipe(path, [], student="me/mine").name == "sdpo_math-Mine"
    assert load_recipe(path, [], student="Qwen3-8B").name == "sdpo_math-Qwen3-8B"
    assert_mistake(["train", path, "--student", "Mime", "--show"], "did you mean Mine")


# ------------------------------------------------------------------------------- what is promised


def test_the_hours_of_one_gpu_follow_from_the_measured_rates():
    text = importlib.import_module(recipe_modules()["sdpo_math"]).__doc__
    promised = re.search(
        r"about (\d+) hours on\s+an H200 \(estimate: (\d+) steps of (\d+) responses of\s+([\d,]+) "
        r"tokens on average, sampled at ([\d,]+) and trained at ([\d,]+) tokens/s",
        " ".join(text.split("\n")),
    )
    hours, steps, rows, length, sampled, trained = (
        int(n.replace(",", "")) for n in promised.groups()
    )
    config = load_recipe("sdpo_math", [], student="Qwen3-1.7B", scale="one_gpu")
    assert (steps, rows) == (config.steps, config.rows * config.updates)
    assert length <= config.experience.sampling.max_new_tokens
    seconds = steps * rows * length * (1 / sampled + 1 / trained)
    assert abs(seconds / 3600 - hours) < 0.5
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    assert f"| {sampled:,} |" in measured
    assert f"| {trained:,} |" in measured


def test_the_docstring_names_the_window_of_answers():
    """The paper's is a setting, and no window the default."""
    text = importlib.import_module(recipe_modules()["sdpo_math"]).__doc__
    assert "after the thinking, in the paper in the last 100 characters" in " ".join(text.split())
    far = Question("q", "", "5"), "So \\boxed{5}. " + "That is all. " * 30
    for override, is_right in (([], True), (["experience.task.last_chars=100"], False)):
        task = load_recipe("sdpo_math", override).experience.task
        assert task.grade(*far).correct == is_right
