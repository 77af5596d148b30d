"""A layer over blocks of rows: the activations of all prompts may be more than their caches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.sharding import constrain, num_parts


def num_row_blocks(num_rows: int, positions: int, block: int) -> int:
    """The fewest blocks of equally many whole rows with at most `block` positions on a device.

    A row that is longer than a block is a block of its own.

    >>> [num_row_blocks(32, positions, 8192) for positions in (256, 2048, 3000, 20000)]
    [1, 8, 16, 32]
    """
    of_device = num_rows // num_parts("B", num_rows)
    least = -(-of_device * positions // block)
    return next((n for n in range(least, of_device) if of_device % n == 0), of_device)


def in_row_blocks(
    function: Callable[[Array, Array], tuple[Array, Any]], x_BSD: Float[Array, "B S D"], blocks: int
) -> tuple[Float[Array, "B S D"], Any]:
    """`function(x_BSD, rows_B)` in blocks of rows: (new x_BSD, a tree of arrays [W M ...]).

    `rows_B` are the indices of a block's rows. Every part W of the devices has the same number of
    rows in each block, M of them in all, so that no row is moved. The result takes the place of
    `x_BSD`. Not for training: the backward pass would keep every block.
    """
    B, S, D = x_BSD.shape
    W = num_parts("B", B)
    M = B // W // blocks
    rows_WM = jnp.arange(B).reshape(W, -1)

    def at(x: Array, i: Any) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, i * M, M, axis=1)

    def put(x: Array, new: Array, i: Any) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, i * M, axis=1)

    def of_block(x_WMSD: Array, i: Any) -> tuple[Array, Any]:
        x_BSD = constrain(at(x_WMSD, i).reshape(-1, S, D), "BZD")
        new_BSD, kept = function(x_BSD, at(rows_WM, i).reshape(-1))
        return constrain(new_BSD.reshape(W, M, S, D), "WMZD"), kept

    def one_block(i: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        x_WMSD, all_kept = carry
        new_WMSD, kept = of_block(x_WMSD, i)
        all_kept = jax.tree.map(lambda x, new: put(x, new, i), all_kept, kept)
        return put(x_WMSD, new_WMSD, i), all_kept

    x_WMSD = constrain(x_BSD.reshape(W, -1, S, D), "WMZD")
    _, kept = jax.eval_shape(of_block, x_WMSD, 0)

    def empty(shape: Any) -> Array:
        x = jnp.zeros((W, M * blocks, *shape.shape[2:]), shape.dtype)
        return constrain(x, "WMKSH"[: x.ndim])

    start = x_WMSD, jax.tree.map(empty, kept)
    x_WMSD, kept = jax.lax.fori_loop(0, blocks, one_block, start)
    return constrain(x_WMSD.reshape(B, S, D), "BZD"), kept
