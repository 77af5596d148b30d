"""Annotations are law under pytest: a wrong axis, dtype or field does not pass."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from places import PACKAGE
from shape_checker import ROOMS_WITH_ARRAYS

from jaxdistill import losses
from jaxdistill.errors import UserError
from jaxdistill.models.rope import apply_rope
from jaxdistill.objectives import EntropyGate
from jaxdistill.sharding import MeshConfig


def test_a_wrong_shape_is_refused_and_the_axis_is_named():
    with pytest.raises(TypeCheckError, match=r"teacher_logp(.|\n)*V=3"):
        losses.forward_kl(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_a_wrong_dtype_is_refused():
    with pytest.raises(TypeCheckError, match="student_logp"):
        losses.forward_kl(jnp.zeros((2, 3), int), jnp.zeros((2, 3)))


def test_an_axis_holds_for_all_arguments_of_a_call():
    half = jnp.zeros((2, 5, 4))
    with pytest.raises(TypeCheckError, match=r"sin_BTh(.|\n)*T=5"):
        apply_rope(np.zeros((2, 5, 3, 8), np.float32), half, half[:, :4])


def test_a_field_of_another_type_is_refused():
    with pytest.raises(TypeCheckError, match="fsdp"):
        MeshConfig(fsdp="8")


def test_a_setting_that_looks_at_itself_tells_the_user_itself():
    with pytest.raises(UserError, match=r"EntropyGate\.of"):
        EntropyGate(of="nobody")


def test_every_module_with_shapes_is_checked():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        is_checked = any(name == room or name.startswith(f"{room}.") for room in ROOMS_WITH_ARRAYS)
        has_shapes = re.search(r"\b(Float|Int|Bool|Shaped|Key|UInt)\w*\[", path.read_text())
        assert is_checked or not has_shapes, name
