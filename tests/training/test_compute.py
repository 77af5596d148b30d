"""Settings of `Compute` that exclude each other."""

import pytest

from jaxdistill.errors import UserError
from jaxdistill.training.compute import Compute


def test_packing_and_micro_batches_exclude_each_other():
    with pytest.raises(UserError, match=r"`pack=40` determines the .* leave `micro_batches` at 1"):
        Compute(pack=40, micro_batches=2)
    with pytest.raises(UserError, match="`pack` must be at least 0"):
        Compute(pack=-1)


def test_automatic_packing_leaves_the_choice_of_micro_batches():
    assert Compute(micro_batches=2).pack == "auto"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("slot_counts", 2.5, "an int"),
        ("chunk", "512", "an int"),
        ("micro_batches", True, "an int"),
        ("pack", "automatic", "an int or 'auto'"),
        ("dtype", "int8", "'auto' or 'float32' or 'bfloat16'"),
        ("remat", "some", "'auto' or 'none' or .*"),
        ("attention", "flash", "'auto' or 'xla' or .*"),
        ("grade_while_decoding", "no", "True or False"),
    ],
)
def test_a_value_of_another_type_or_of_no_choice_is_one_line_and_not_taken_as_something_else(
    field, value, expected
):
    with pytest.raises(UserError, match=f"^`{field}={value!r}`: expected {expected}$"):
        Compute(**{field: value})
