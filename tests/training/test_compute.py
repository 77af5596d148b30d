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
