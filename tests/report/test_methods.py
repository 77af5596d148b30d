"""What a run is called: by its own config, and not by its folder."""

from jaxdistill.objectives import PRESETS
from jaxdistill.overrides import to_json
from jaxdistill.report.methods import CLASSES, SAME, is_method, method_of
from jaxdistill.report.words import METHOD_LABELS


def test_every_preset_is_recognised_and_no_other_method_has_its_name():
    for name, preset in PRESETS.items():
        objective = {"type": type(preset()).__name__} | to_json(preset())
        config = {"objective": objective, "teacher": {"type": "EMA"}}
        assert method_of(config) == SAME.get(name, name)
        assert is_method(name, config), name
        called = {SAME.get(other, other) for other in CLASSES if is_method(other, config)}
        assert called == {SAME.get(name, name)}


def test_every_label_is_of_a_method_that_can_be_recognised():
    assert set(METHOD_LABELS) - {"base"} == set(CLASSES)
