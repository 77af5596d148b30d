"""The input of an objective."""

import pytest
from made_positions import V, positions

from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    Distill,
    make_objective,
)


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(UserError, match=f"151000.*vocabulary of {V}"):
        make_objective(Distill(), (2, 151000))(positions())
