"""Keys and values of prompts and of running rows, one array per layer or stacked over layers.

The layout of a layer's pool, and what a ring is: `cached_attention`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdistill.models.cached_attention import Pool
from jaxdistill.models.quantized import CacheDtype, quantize
from jaxdistill.sharding import constrain, num_parts


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in pages (`cached_attention`); a pytree."""

    k: tuple[Pool, ...]  # one pool per layer
    v: tuple[Pool, ...]
    length_B: Int[Array, " B"]  # tokens so far, which is the next token's slot and RoPE position
    pages_BY: Int[Array, "B Y"] | None = None  # None: each row has one page, in the rows' order
    # Of the sliding layers, if they keep rings of fewer pages; None: `pages_BY` is theirs too.
    ring_BY: Int[Array, "B Y"] | None = None


class Prompts(NamedTuple):
    """Keys and values of prompts, stacked as prefill's loop over layers writes them; a pytree.

    Layer i is member i % n of the pattern of n layers, in its repetition i // n (R).
    """

    # Of each member of the pattern [R W M K S H]. M before K, as attention over whole rows leaves
    # them: otherwise the TPU compiler copies the caches of slots from one order to the other.
    k: tuple[Pool, ...]
    v: tuple[Pool, ...]
    length_B: Int[Array, " B"]

    @property
    def num_layers(self) -> int:
        return len(self.k) * self.k[0].shape[0]

    def at(self, layer: int) -> tuple[Any, int]:
        """The stacked (keys, values) that have this layer, and its index in them."""
        member = layer % len(self.k)
        return (self.k[member], self.v[member]), layer // len(self.k)

    def of_layer(self, layer: int) -> Any:
        """The (keys, values) of a layer."""
        stacked, index = self.at(layer)
        return jax.tree.map(lambda x_RWMKSH: x_RWMKSH[index].swapaxes(1, 2), stacked)

    def as_cache(self) -> Cache:
        """A cache of one page per row, for decode steps after the prompts."""
        k, v = zip(*[self.of_layer(i) for i in range(self.num_layers)])
        return Cache(k, v, self.length_B)


def pool_of(x_BPKH: Array, length_B: Int[Array, " B"], size: int, cache_dtype: CacheDtype) -> Pool:
    """Keys or values of prompts as one page of `size` positions per row, [W M K S H].

    A page shorter than P is a ring with the last positions of each prompt.
    """
    P = x_BPKH.shape[1]

    def buffer(x_BPKH: Array) -> Array:
        B, *rest = x_BPKH.shape[0], *x_BPKH.shape[2:]
        if size < P:
            # The last position that belongs in each slot; if the prompt has none, any one.
            back_BS = (length_B[:, None] - 1 - jnp.arange(size)[None, :]) % size
            last_BS = jnp.maximum(length_B[:, None] - 1 - back_BS, 0)
            index = last_BS.reshape(B, size, *(1,) * len(rest))
            x_BSKH = jnp.take_along_axis(x_BPKH, index, axis=1)
        else:
            x_BSKH = jnp.pad(x_BPKH, ((0, 0), (0, size - P), *((0, 0),) * len(rest)))
        # The mesh splits B into contiguous parts, so cutting B into W and M moves no data.
        x_WMSKH = x_BSKH.reshape(num_parts("B", B), -1, size, *rest)
        return constrain(x_WMSKH.swapaxes(2, 3), "WMKSH"[: x_WMSKH.ndim])

    return jax.tree.map(buffer, quantize(x_BPKH) if cache_dtype == "int8" else x_BPKH)
