"""Recipes: found by name or path, written to JSON and read back as the same config."""

import dataclasses
import importlib
import json
import re

import pytest
from tiny_run import tiny, write_config

from jaxdistill import config as configs
from jaxdistill import overrides
from jaxdistill.config import RunConfig, load_recipe, load_study_recipe, recipe_names
from jaxdistill.epistemic import LexiconFile, Words
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, AnchorEpistemicMass, CrossEntropy, Mixed, epi_gate
from jaxdistill.training.teachers import EMA, Frozen

STUDY_NAMES = ("toy_study", "toy_presets", "coverage_math", "words_study")
STUDIES = {name: ("quick", "full") for name in STUDY_NAMES}
STUDIES |= {name: ("quick",) for name in ("toy_sparse", "toy_sparse_tune", "words_tune")}
STUDIES["toy_tune"] = ("quick",)  # tests/configs/test_toy_tune.py has each kind of run of the other
RUNS = [name for name in recipe_names() if name not in STUDIES]


def round_trip(config):
    """To JSON text and back, as for `config.json`."""
    text = json.dumps(overrides.to_json(config), allow_nan=False)
    return overrides.from_json(RunConfig, json.loads(text))


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_survives_its_config_json(name):
    config = load_recipe(name, [])
    assert config.name.partition("-")[0] == name  # what follows is the student
    assert round_trip(config) == config
    assert hash(config) == hash(round_trip(config))  # jitted steps are cached by parts of it


@pytest.mark.parametrize(("name", "profile"), [(n, p) for n, ps in STUDIES.items() for p in ps])
def test_every_arm_of_a_study_survives_its_config_json(name, profile):
    arms = load_study_recipe(name, profile).arms
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        assert round_trip(arm.config) == arm.config
        assert re.fullmatch(r"[\w.=-]+", arm.name)  # the name becomes a folder


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is_for(name):
    """Purpose, expected result, hardware and time, command."""
    text = importlib.import_module(configs.recipe_modules()[name]).__doc__ or ""
    command = f"Command: jaxdistill .*{name}"
    for heading in ("Purpose: ", "Expected", "Hardware and time: ", command):
        assert re.search(heading, text), heading


def test_a_runs_config_json_is_a_recipe(tmp_path):
    path = write_config(tmp_path / "config.json", tiny())
    assert load_recipe(str(path), []) == tiny()
    assert load_recipe(str(path), ["steps=9"]) == tiny(steps=9)


def test_a_file_of_several_recipes_is_named_with_one_of_its_functions(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from tiny_run import tiny\nmine = tiny\ndef longer(): return tiny(steps=7)\n")
    assert load_recipe(f"{path}:longer", []) == tiny(steps=7)
    assert load_recipe(f"{path}:mine", []) == load_recipe(str(path), []) == tiny()
    with pytest.raises(UserError, match=r"mine\.py: expected a function named 'other'"):
        load_recipe(f"{path}:other", [])


def test_a_recipe_is_found_by_name_by_path_and_where_it_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_recipe("toy_grpo", [])
    assert load_recipe("configs/toy_grpo.py", []) == by_name
    (tmp_path / "toy_grpo.py").write_text("from tiny_run import tiny\ntoy_grpo = tiny\n")
    assert load_recipe(str(tmp_path / "toy_grpo.py"), []) == tiny()
    assert load_recipe("toy_grpo", []) == by_name
    # A path elsewhere is the user's own file, whatever its name.
    assert load_recipe("configs/toy/toy_grpo.py", []) == by_name
    assert load_recipe("jaxdistill/configs/toy/toy_grpo.py", []) == by_name
    (tmp_path / "toy_grpo.py").unlink()
    for path in ("nowhere/toy_grpo.py", "toy_grpo.py", str(tmp_path / "toy_grpo.py"), "a/toy_grpo"):
        with pytest.raises(UserError, match=f"no recipe '{path}'; did you mean toy_"):
            load_recipe(path, [])


def test_overrides_reach_every_part():
    changes = ["teacher=EMA(rate=0.1)", "objective.target=AnchorEpistemicMass()",
               "experience.task.count=9", "mesh.fsdp=2", "optimizer.schedule=cosine"]  # fmt: skip
    config = load_recipe("toy_selfdistill", changes)
    assert config.teacher == EMA(0.1)
    assert config.objective.target == AnchorEpistemicMass()
    assert config.experience.task.count == 9
    assert (config.mesh.fsdp, config.optimizer.schedule) == (2, "cosine")
    assert round_trip(config) == config


def test_a_lexicon_is_words_or_a_file():
    assert tiny().lexicon == Words()
    for text, expected in (
        ("Words(words=(wait,hmm))", Words(("wait", "hmm"))),
        ("Words((core,), merged=true)", Words(("core",), merged=True)),
        ("LexiconFile('runs/a/lexicon.json')", LexiconFile("runs/a/lexicon.json")),
    ):
        config = load_recipe("toy_selfdistill", [f"lexicon={text}"])
        assert config.lexicon == expected
        assert round_trip(config) == config
    with pytest.raises(UserError, match="lexicon: `words` must not be blank"):
        load_recipe("toy_selfdistill", ["lexicon=Words(words=('',))"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": -1}, "`steps` must be at least 0, got -1"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"keep_checkpoints": 0}, "`keep_checkpoints` must be at least 1"),
        ({"checkpoint": 5}, "checkpoint: expected one of Steps, Minutes, or a frozen dataclass"),
        ({"grace_seconds": 0.0}, "`grace_seconds` must be above 0 and at most a day, 86400"),
        ({"objective": CrossEntropy()}, "`objective` CrossEntropy requires `experience` Super"),
    ],
)
def test_what_cannot_be_run_is_no_config(changes, said):
    with pytest.raises(UserError, match=said):
        tiny(**changes)


def test_micro_batches_divide_the_rows_of_a_step():
    compute = dataclasses.replace(tiny().compute, micro_batches=4)
    assert tiny(compute=compute).compute.micro_batches == 4  # 2 questions x 2 rollouts
    with pytest.raises(UserError, match="must divide the 4 rows"):
        tiny(compute=dataclasses.replace(compute, micro_batches=3))
    with pytest.raises(UserError, match="must divide the 2 rows per update"):
        tiny(compute=compute, experience=dataclasses.replace(tiny().experience, updates=2))


def test_a_config_json_of_another_version_names_the_setting(tmp_path):
    raw = overrides.to_json(tiny())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw | {"colour": "red"}))
    with pytest.raises(UserError, match="colour"):
        load_recipe(str(path), [])
    older = {name: value for name, value in raw.items() if name not in ("expected", "teacher")}
    path.write_text(json.dumps(older))
    assert load_recipe(str(path), []) == dataclasses.replace(tiny(), teacher=Frozen())
    del older["experience"]
    path.write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"missing setting .*experience"):
        load_recipe(str(path), [])
    for text in ("[]", "3", '"x"', "", "{", "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            load_recipe(str(path), [])


# ------------------------------------------------------------- the story that the recipes tell


def test_a_preset_is_chosen_by_name_and_may_then_be_changed():
    from jaxdistill.objectives import epi_anchor

    anchored = load_recipe("toy_selfdistill", ["objective=epi_anchor"])
    assert anchored.objective == epi_anchor()
    changed = load_recipe(
        "toy_selfdistill", ["objective=epi_anchor()", "objective.reduction=token", "seed=3"]
    )
    assert changed.objective == dataclasses.replace(epi_anchor(), reduction="token")
    assert changed.seed == 3
    assert isinstance(load_recipe("toy_selfdistill", ["objective=grpo"]).objective, GRPO)
    with pytest.raises(UserError, match=r"epi_anchr.*did you mean epi_anchor"):
        load_recipe("toy_selfdistill", ["objective=epi_anchr"])


def test_a_presets_name_is_one_only_where_an_objective_stands(tmp_path):
    """For other settings, and in quotes, a preset's name is text."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from tiny_run import tiny as mine\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    kind: str\n"
        "    def factor(self, positions, epistemic): ...\n"
    )

    def kind(text):
        texts = [f"objective{text}"]
        return load_recipe(str(tmp_path / "mine.py"), texts).objective.weights[0].kind  # pyright: ignore

    assert kind('.weights=(Mine(kind="grpo"),)') == "grpo"
    assert kind(".weights=(Mine(kind=grpo),)") == "grpo"
    assert kind('=Distill(weights=(Mine("say sdpo(), grpo"),))') == "say sdpo(), grpo"
    assert kind("=Distill(weights=(Mine(sdpo),))") == "sdpo"
    mixed = load_recipe("toy_selfdistill", ["objective=Mixed()", "objective.distill=epi_gate"])
    assert mixed.objective == Mixed(distill=epi_gate())
    with pytest.raises(UserError, match=r"grpo\(credit=RLSD\(\)\).*preset grpo takes no arguments"):
        load_recipe("toy_selfdistill", ["objective=Mixed(policy_gradient=grpo(credit=RLSD()))"])


def test_what_switches_the_evaluation_off_is_said():
    for text in ("evaluation=none", "evaluation = None"):
        with pytest.raises(UserError, match=r"write `evaluation.splits=\(\)`"):
            load_recipe("toy_grpo", [text])
    assert load_recipe("toy_grpo", ["evaluation.splits=()"]).evaluation.splits == ()


def test_presets_are_written_out_where_they_stand_and_so_the_last_override_wins():
    from jaxdistill.objectives import Mixed, epi_gate, grpo, sdpo

    def objective(*texts):
        return load_recipe("toy_selfdistill", [f"objective{text}" for text in texts]).objective

    assert objective("=Mixed()", "=epi_gate") == epi_gate()
    assert objective("=Distill(reduction=token)", "=sdpo") == sdpo()
    assert objective("=Mixed(distill=epi_gate(), policy_gradient=grpo)") == Mixed(
        epi_gate(), grpo()
    )
    assert objective("=sdpo", ".clip=SmoothClip(limit=0.5)").clip.limit == 0.5
    study = load_study_recipe("toy_study", "quick")
    from jaxdistill.run.study import with_overrides

    arms = with_overrides(study, ["objective=epi_gate"]).arms
    assert {arm.config.objective for arm in arms if arm.method != "base"} == {epi_gate()}


def test_the_full_profile_has_three_seeds_and_its_axes():
    arms = load_study_recipe("toy_study", "full").arms
    main = [arm for arm in arms if not arm.labels]
    for world in ("main", "control"):
        bases = [arm for arm in main if (arm.world, arm.method) == (world, "base")]
        assert [arm.config.steps for arm in bases] == [0]
        for method in ("sdpo", "epi_anchor", "grpo"):
            seeds = [arm.config.seed for arm in main if (arm.world, arm.method) == (world, method)]
            assert seeds == [0, 1, 2]
    axes = {arm.labels[0] for arm in arms if arm.labels}
    assert {value for name, value in axes if name == "coverage"} == {1, 8, 64, 512, "all"}
    assert len({value for name, value in axes if name == "context"}) == 5
    for arm in arms:
        assert arm.config.model.world == arm.world
        # Every arm answers the same held-out questions with the same random noise.
        shared = [s for s in arm.config.evaluation.splits if s.name != "train"]
        assert shared == [s for s in main[0].config.evaluation.splits if s.name != "train"]


def test_no_recipe_module_is_left_out():
    assert set(recipe_names()) == {*RUNS, *STUDIES}
    assert configs.RECIPES == "jaxdistill.configs"


OBJECTIVES = [
    "Distill(target=Barycentre(base=student, decay=0.3), reduction=PerTokens(tokens=100))",
    "Distill(weights=(SkipFirst(count=1), SuppressionGate(threshold=0.02, softness=0.1)))",
    "Distill(terms=(MassPenalty(strength=0.5), ReferenceKL()), clip=SmoothClip(form=rational))",
    "GRPO(credit=RLCSD(), rollout_correction=RolloutCorrection(level=sequence), dual_clip=None)",
    "Mixed(distill=Distill(divergence=SampledK3()), share=0.2, anneal_steps=7)",
    "Routed(distill=Distill(weights=(EntropyWeight(),), normalizer=kept))",
]


@pytest.mark.parametrize("text", OBJECTIVES)
def test_an_objective_of_any_parts_is_written_on_the_command_line_and_survives_json(text):
    config = load_recipe("toy_selfdistill", [f"objective={text}"])
    assert type(config.objective).__name__ == text.partition("(")[0]
    assert overrides.from_json(type(config), overrides.to_json(config)) == config
    again = load_recipe("toy_selfdistill", [f"objective={config.objective!r}"])
    assert again.objective == config.objective


def test_the_toy_recipes_log_the_initial_models_epistemic_mass():
    """As the README says."""
    for name in ("toy_selfdistill", "toy_grpo"):
        assert load_recipe(name, []).track_reference
    for name in ("toy_study", "toy_presets"):
        for profile in STUDIES[name]:
            arms = load_study_recipe(name, profile).arms
            assert all(arm.config.track_reference for arm in arms)


def test_a_studys_runs_start_where_its_base_is_measured_and_a_run_of_ones_own_does_so_itself():
    arms = load_study_recipe("toy_study", "quick").arms
    assert not any(arm.config.evaluation.at_start for arm in arms)
    assert {arm.world for arm in arms if arm.config.steps == 0} == {arm.world for arm in arms}
    assert load_recipe("toy_selfdistill", []).evaluation.at_start
