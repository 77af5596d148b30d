"""The documentation's code runs as it stands."""

import re

from places import DOCS


def test_one_step_runs_from_top_to_bottom(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "one_step.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "one_step.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "epistemic_mass_teacher" in printed
    assert "Correct solution:" in printed


def test_the_code_about_objectives_runs(capsys):
    text = (DOCS / "add_an_objective.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "add_an_objective.md", "exec"), {})
    assert "mass_kl" in capsys.readouterr().out


def test_the_papers_page_names_only_what_exists():
    """Every `Class`, `preset` and module.function of the tables can be found."""
    from jaxdistill import losses, objectives
    from jaxdistill.losses import advantages as credit
    from jaxdistill.losses import edits as targets
    from jaxdistill.tasks import contexts
    from jaxdistill.training import step as train

    homes = {"losses": losses, "targets": targets, "credit": credit, "contexts": contexts}
    text = (DOCS / "papers.md").read_text()
    for module, name in re.findall(r"`(losses|targets|credit|contexts)\.(\w+)`", text):
        assert hasattr(homes[module], name), f"{module}.{name}"
    for name in re.findall(r"`(?:GRPO\(credit=|Distill\(\w+=)?([A-Z]\w+)\(?", text):
        places = (objectives, contexts, train)
        assert any(hasattr(place, name) for place in places) or name in {"Words"}, name
    for preset in objectives.PRESETS:
        assert f"`{preset}`" in text, preset
