"""What the tests of this folder share."""

import jax
import pytest
from tiny_decoder import CONFIG, init_params


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))
