"""The weights of rows and positions in a loss."""

import jax.numpy as jnp
import numpy as np

from jaxdistill.objectives import (
    PerTokens,
    loss_weights,
)

# ------------------------------------------------------------------------------ weights of rows


def test_loss_weights_of_two_rows_by_hand():
    mask_BT, row_weight_B = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]]), jnp.array([1.0, 0.0])
    # token: three tokens count, each a third.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, "token")
    assert weight_BT.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert denominator == 3
    # sequence: two rows, the second as a zero; each token of the first has weight 1/3 of a half.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, "sequence")
    np.testing.assert_allclose(weight_BT, [[1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0]], rtol=1e-6)
    assert denominator == 2
    # The objective itself zeroes the second row. A constant divides whatever the lengths are.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, PerTokens(10))
    assert weight_BT.tolist() == mask_BT.tolist()
    assert denominator == 20


def test_an_empty_completion_weighs_nothing_and_divides_by_nothing():
    weight_BT, _ = loss_weights(jnp.zeros((1, 3)), jnp.ones(1), "sequence")
    assert weight_BT.tolist() == [[0, 0, 0]]
