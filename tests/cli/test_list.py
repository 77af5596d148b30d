"""`list` reads source files; what it finds is what the library has."""

import inspect
import json

import pytest
from command_line import call

from jaxdistill import config
from jaxdistill.cli.list import listing
from jaxdistill.models.presets import PRESETS as MODELS
from jaxdistill.models.students import STUDENTS
from jaxdistill.objectives import PRESETS as OBJECTIVES


def test_recipes_and_studies_are_those_that_train_and_study_take():
    found = listing()
    assert sorted([*found["recipes"], *found["studies"]]) == config.recipe_names()
    for name in found["recipes"]:
        config.load_recipe(name, [])
    for name in found["studies"]:
        config.load_study_recipe(name, "quick")
    assert {"toy_selfdistill", "dapo_smoke"} <= set(found["recipes"])
    assert "toy_study" in found["studies"]
    assert list(found["students"]) == list(STUDENTS)


def test_objectives_and_models_are_the_presets_with_their_first_lines():
    found = listing()
    assert list(found["objectives"]) == list(OBJECTIVES)
    for name, preset in OBJECTIVES.items():
        assert found["objectives"][name] == inspect.getdoc(preset).splitlines()[0]
    assert list(found["models"]) == list(MODELS)
    for name, model in MODELS.items():
        sizes = f"{model.num_layers} layers of width {model.hidden_size:,}."
        assert found["models"][name].endswith(sizes)


@pytest.mark.parametrize("group", ["recipes", "studies", "students", "objectives", "models"])
def test_each_line_is_one_whole_sentence(group):
    for name, line in listing()[group].items():
        assert line[-1:] in (".", "?"), f"{name}: {line!r}"


def test_list_prints_every_name_with_its_line():
    code, out, err = call("list")
    assert (code, err) == (0, "")
    shown = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    found = listing()
    assert shown == [[name, line] for group in found.values() for name, line in group.items()]
    code, out, err = call("list", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == found
