"""Settings of runs as a page shows them."""

import json

from jaxdistill.report.load import load_runs
from jaxdistill.report.settings import expression, origin_of, settings_of


def make_run(folder, seed, objective):
    folder.mkdir()
    config = {"model": {"type": "ToyBase", "world": "main"}, "seed": seed, "objective": objective}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_shared_settings_stand_once_and_the_rest_beside_each_run(tmp_path):
    gate = {"type": "Distill", "clip": None, "weights": [{"type": "SuppressionGate"}]}
    runs = [make_run(tmp_path / "a", 0, {"type": "GRPO"}), make_run(tmp_path / "b", 0, gate)]
    found = settings_of(load_runs(runs))
    assert found.shared == [("model", "ToyBase(world='main')"), ("training seed", "0")]
    assert found.own == [
        ("a", [("objective", "GRPO()")]),
        ("b", [("objective", "Distill(weights=(SuppressionGate(),))")]),
    ]


def test_zero_is_a_value_and_none_is_not():
    assert expression({"type": "A", "x": 0, "y": None, "z": False}) == "A(x=0)"


def test_the_command_and_the_commit_are_shown_without_the_path_of_the_program(tmp_path):
    facts = {
        "command": ["/home/me/bin/jaxdistill", "train", "r", "--set", "objective.target=A()"],
        "git": {"commit": "0123456789abcdef", "dirty": True},
    }
    (tmp_path / "provenance.json").write_text(json.dumps(facts))
    assert origin_of(tmp_path) == [
        ("command", "jaxdistill train r --set 'objective.target=A()'"),
        ("commit", "0123456789, with uncommitted changes"),
    ]
