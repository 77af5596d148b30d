"""How far parameters have moved: against NumPy in float64, and the groups of every model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import REFERENCE, STUDENT, model

from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.presets import PRESETS
from jaxdistill.training.drift import GROUPS, group_of, parameter_drift


def names_of(params):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]


def test_the_drift_of_each_group_is_the_relative_norm_in_float64():
    params, initial = model(STUDENT), model(REFERENCE)
    found = parameter_drift(params, initial)
    pairs = {
        name: [np.asarray(x, np.float64) for x in pair]
        for name, *pair in zip(names_of(params), *map(jax.tree.leaves, (params, initial)))
    }
    member = {
        "embedding": ("embed",), "mlp": ("gate", "up", "down"),
        "attention": ("'q'", "'k'", "'v'", "'out'"), "": ("",),
        "norms": ("norm",),
    }  # fmt: skip
    for group, parts in member.items():
        chosen = [pair for name, pair in pairs.items() if any(part in name for part in parts)]
        moved = sum(((new - old) ** 2).sum() for new, old in chosen)
        size = sum((old**2).sum() for _, old in chosen)
        name = f"param_drift_{group}" if group else "param_drift"
        np.testing.assert_allclose(found.pop(name), np.sqrt(moved / size), rtol=1e-5)
    assert set(found) <= {"param_drift_head"}


def test_a_student_that_begins_as_a_rounded_model_has_not_moved():
    initial = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model(REFERENCE))
    student = jax.tree.map(lambda x: x.astype(jnp.float32), initial)
    assert set(parameter_drift(student, initial).values()) == {0.0}
    doubled = jax.tree.map(lambda x: 2 * x, student)
    np.testing.assert_allclose(list(parameter_drift(doubled, initial).values()), 1.0, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_every_model_is_in_a_group(preset):
    abstract = parameters.abstract_params(PRESETS[preset])
    groups = {group_of(path) for path, _ in jax.tree.leaves_with_path(abstract)}
    assert groups >= set(GROUPS) - {"head"}


def test_a_group_that_began_as_zeros_has_no_relative_norm():
    zeros = {"embed": jnp.zeros(3), "q": jnp.ones(2)}
    found = parameter_drift({"embed": jnp.ones(3), "q": jnp.ones(2)}, zeros)
    assert np.isnan(found["param_drift_embedding"])
    np.testing.assert_allclose(found["param_drift"], np.sqrt(3 / 2), rtol=1e-6)


def test_trees_of_different_parameters_are_refused():
    with pytest.raises(UserError, match="the same parameters"):
        parameter_drift({"embed": jnp.ones(3)}, {"embed": jnp.ones(3), "q": jnp.ones(2)})
