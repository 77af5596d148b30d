"""The documentation's code runs as it stands."""

import contextlib
import dataclasses
import importlib.util
import re

import numpy as np
import pytest
from places import DOCS

from jaxdistill import overrides
from jaxdistill.config import load_recipe, with_presets
from jaxdistill.errors import UserError
from jaxdistill.sharding import MeshConfig
from jaxdistill.tasks.contexts import Attempt
from jaxdistill.training.teachers import Models


@pytest.mark.long
def test_one_step_runs_from_top_to_bottom_and_prints_what_the_page_shows(capsys):
    """Cell by cell; under a cell that prints stands its output, line by line with its labels."""
    cell = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
    cells = cell.findall((DOCS / "one_step.md").read_text())
    assert len(cells) == 14
    environment, printed = {}, ""
    for number, (code, expected) in enumerate(cells):
        assert code.count("\n") <= 15, f"cell {number} is long"
        exec(compile(code, f"one_step.md, cell {number}", "exec"), environment)
        found = capsys.readouterr().out
        assert label_of_each_line(found) == label_of_each_line(expected), f"cell {number}"
        printed += found
    assert "epistemic_mass_teacher" in printed
    assert "Correct solution:" in printed


def label_of_each_line(text):
    """The first word and how many lines: numbers may differ in another version's last digit."""
    return [re.sub(r"\d+", "0", line.split()[0]) for line in text.splitlines()]


def test_the_code_about_objectives_runs(capsys):
    text = (DOCS / "add_an_objective.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    recipe = {"__name__": "my_recipe"}
    exec(compile("\n".join(blocks), "add_an_objective.md", "exec"), recipe)
    params = {"weight": np.ones(2)}
    models = Models(student=params, reference=params, own=None, step=np.int32(25))
    assert [float(weight) for _, weight in recipe["Handover"]().networks(models)] == [0.75, 0.25]
    question = recipe["ShortAnswers"]().questions()[0]
    verdict = recipe["ShortAnswers"](most_words=1).grade(question, question.solution)
    assert (verdict.correct, verdict.reason) == (False, "too long")
    attempt = Attempt(question, "?", verdict, question.solution, None)
    assert recipe["SolutionFirst"]().compose(attempt).solution == question.solution
    assert recipe["SolutionFirst"]().compose(attempt._replace(solution=None)) is None
    assert capsys.readouterr().out == shown


def test_the_settings_for_those_who_come_from_elsewhere_exist():
    """Each dotted path is a setting of a recipe, and each `path=value` is accepted by one."""
    recipes = [load_recipe(name, []) for name in ("sdpo_math", "grpo_math", "sdpo_math_ema")]
    recipes.append(load_recipe("sdpo_math", ["objective.rollout_correction=RolloutCorrection()"]))
    known = {path for config in recipes for path in paths_of(overrides.to_json(config))}
    text = (DOCS / "coming_from.md").read_text()
    rows = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    fields = "experience|optimizer|objective|evaluation|compute|teacher|model|steps|checkpoint"
    named = [span for span in spans if re.match(rf"({fields})\b", span)]
    assert len(named) > 90
    for span in named:
        path, _, value = span.partition("=")
        assert path.strip() in known, span
        assert not value or accepted(recipes, path, value.strip().strip("'")), span


def accepted(recipes, path, value):
    for config in recipes:
        with contextlib.suppress(UserError):
            overrides.apply_overrides(config, with_presets([f"{path}={value}"]))
            return True
    return False


def paths_of(settings, prefix=""):
    for name, value in settings.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from paths_of(value, f"{prefix}{name}.")


def test_the_papers_page_names_only_what_exists():
    """Every `Class`, `preset` and module.function of the tables can be found."""
    from jaxdistill import losses, objectives
    from jaxdistill.losses import advantages, edits
    from jaxdistill.tasks import contexts
    from jaxdistill.training import experience, optimizer, step, teachers

    homes = {"losses": losses, "edits": edits, "advantages": advantages, "contexts": contexts}
    homes |= {"step": step, "optimizer": optimizer, "experience": experience}
    text = (DOCS / "papers.md").read_text()
    for module, name in re.findall(rf"`({'|'.join(homes)})\.(\w+)`", text):
        assert hasattr(homes[module], name), f"{module}.{name}"
    for name in re.findall(r"`(?:GRPO\(credit=|Distill\(\w+=)?([A-Z]\w+)\(?", text):
        places = (objectives, contexts, optimizer, teachers)
        assert any(hasattr(place, name) for place in places) or name in {"Words"}, name
    for preset in objectives.PRESETS:
        assert f"`{preset}`" in text, preset


def test_every_setting_that_the_papers_page_spells_is_accepted():
    recipes = [load_recipe(name, []) for name in ("sdpo_math", "opd_math")]
    text = (DOCS / "papers.md").read_text()
    known = "experience|objective|teacher|model|lexicon|optimizer"
    spelled = re.findall(rf"`(?:--set )?'?(({known})[\w.]*)=([^`]+)`", text)
    assert len(spelled) > 15
    for path, _, value in spelled:
        assert accepted(recipes, path, value.strip("'")), f"{path}={value}"


# --------------------------------------------------------------------------------- settings.md


@pytest.fixture(scope="module")
def settings():
    """The module docs/update_settings.py, which writes the page of settings."""
    path = DOCS / "update_settings.py"
    spec = importlib.util.spec_from_file_location("update_settings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_what_its_command_writes(settings):
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert settings.page() == written, "run: python docs/update_settings.py"


def test_the_page_has_each_setting_with_its_default_and_each_choice(settings):
    """Written by hand, for a few of each kind; a cell holds the default alone."""
    page = settings.page()
    for setting, default in (
        ("questions", "32"), ("peak_lr", "1e-05"), ("remat", "'auto'"), ("teacher", "Frozen()"),
    ):  # fmt: skip
        assert re.search(rf"^\| `{setting}` \| [^|]* \| `{re.escape(default)}` \|", page, re.M)
    assert re.search(r"^\| `clip_norm` .* global norm", page, re.M)
    assert "- `EMA(rate=0.05)`: T <- (1 - rate) T + rate S after every step" in page


@dataclasses.dataclass(frozen=True)
class Described:
    """Two settings.

    first: explained here,
    over two lines. Raises nothing.
    """

    first: int = 1
    # Explained above.
    second: int = 2  # and behind


def test_a_settings_text_is_its_docstring_entry_or_its_comments(settings):
    assert settings.texts_of(Described) == {
        "first": "explained here, over two lines. Raises nothing.",
        "second": "Explained above. and behind",
    }


@dataclasses.dataclass(frozen=True)
class Silent:
    """A setting that nobody explains."""

    rate: float = 1.0


def test_a_setting_without_a_text_or_advice_is_refused(settings, monkeypatch):
    with pytest.raises(UserError, match=r"Silent\.rate has no comment or entry in the docstring"):
        list(settings.rows(Silent, ["rate"]))
    with pytest.raises(UserError, match=r"Silent\.rate is explained nowhere"):
        settings.item(Silent)
    with pytest.raises(UserError, match=r"Described\.first has no advice"):
        list(settings.rows(Described, ["first"]))
    monkeypatch.setitem(settings.WHEN[MeshConfig], "rows", "never")
    with pytest.raises(UserError, match="MeshConfig has no setting 'rows'"):
        settings.page()
