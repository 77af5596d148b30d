"""Checks that weights are finite: on the devices for a model in memory, on the host for an export.

A NaN or an infinity in one weight makes every response of a model garbage, and every loss NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import hosts, sharding
from jaxdistill.errors import UserError

# Elements per block of the host's check, 16 MiB of float32: the masks need little memory beside
# the tensor. Chosen, not measured.
_BLOCK = 2**22


def non_finite(params: Any) -> list[str]:
    """The names of the leaves with a NaN or an infinity: dotted paths, in the tree's order.

    One program reads every leaf once, where it is; only a bool per leaf is fetched. Of several
    hosts each reads its own parts, and all get the same answer: this is called in threads, where
    the hosts' programs for all devices might begin in another order.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    floats = [(path, leaf) for path, leaf in named if jnp.issubdtype(leaf.dtype, jnp.floating)]
    leaves = [leaf for _, leaf in floats]
    if all(leaf.is_fully_addressable for leaf in leaves):
        finite = jax.device_get(_are_finite(leaves))
    else:
        parts = [leaf.addressable_shards for leaf in leaves]
        found = []
        for shards in zip(*parts):
            with sharding.on_device(shards[0].device):
                found.append(_are_finite([shard.data for shard in shards]))
        finite_here = np.all(jax.device_get(found), axis=0).tolist()
        finite = np.all(hosts.all_gather(finite_here, "finite"), axis=0)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in floats]
    return [name.removesuffix(".value") for name, fine in zip(names, finite) if not fine]


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def require_finite(params: Any, source: Any) -> None:
    """Raise UserError, naming the first leaf, if any has a NaN or an infinity."""
    if names := non_finite(params):
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        raise UserError(
            f"{source}: the weights are not finite: {names[0]}{more} hold NaN or infinity; "
            "use an earlier checkpoint or another copy"
        )


def count_non_finite(value: np.ndarray) -> int:
    """The number of NaN and infinite elements of a float32, bfloat16 or float16 array.

    >>> count_non_finite(np.array([1.0, np.nan, np.inf], np.float32))
    2
    """
    # By the bits of the exponent, all 1: NumPy tests bfloat16 element by element otherwise.
    bits, exponent = {
        "float32": (np.uint32, 0x7F800000),
        "bfloat16": (np.uint16, 0x7F80),
        "float16": (np.uint16, 0x7C00),
    }[str(value.dtype)]
    flat = np.ascontiguousarray(value).reshape(-1).view(bits)
    mask = bits(exponent)
    return sum(
        int(np.count_nonzero((flat[start : start + _BLOCK] & mask) == mask))
        for start in range(0, flat.size, _BLOCK)
    )
