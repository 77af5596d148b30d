"""Paged KV cache: the number of slots and pages, page assignment, and the choice of preemption.

A row receives another page when its last one is full, and frees all of its pages when it ends. The
page table is the only record: a page that is in no row's table is free. Page 0 of a pool belongs to
no row; slots without a row write there.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.models.cached_attention import PAGE, ring_positions
from jaxdistill.models.config import LayerKind, ModelConfig
from jaxdistill.models.placement import kv_heads_of_device
from jaxdistill.models.quantized import CacheDtype, vector_bytes
from jaxdistill.models.quantized_weights import WeightsDtype, decoding_bytes
from jaxdistill.sharding import local_devices, num_parts, platform

# A row is admitted only if every running row could still take this many more pages. In a simulation
# of 512 rows with a mean of 6,000 tokens, 128 slots and 4,000 pages, 178 rows are restarted with a
# reserve of 1, 16 with 4, and none with 8, which takes 8 % more steps.
RESERVE = 4


def assign(
    pages_BY: Int[Array, "B Y"], wanted_B: Int[Array, " B"], num_pages: int
) -> Int[Array, "B Y"]:
    """The new page table: each row keeps or receives its first `wanted` pages and frees the others.

    Entry 0 means no page. The caller ensures that there are enough: wanted_B.sum() < num_pages.

    >>> assign(jnp.array([[2, 0], [1, 3]]), jnp.array([2, 0]), 4).tolist()
    [[2, 1], [0, 0]]
    """
    is_wanted_BY = jnp.arange(pages_BY.shape[1])[None, :] < wanted_B[:, None]
    kept_BY = jnp.where(is_wanted_BY, pages_BY, 0)
    # Page 0 counts as taken, so it is never assigned.
    is_taken_M = jnp.zeros(num_pages, bool).at[kept_BY.reshape(-1)].set(True).at[0].set(True)
    (free_M,) = jnp.nonzero(~is_taken_M, size=num_pages, fill_value=0)
    is_new_BY = is_wanted_BY & (kept_BY == 0)
    # The n-th new entry of the table, in row order, receives the n-th free page.
    rank_BY = jnp.cumsum(is_new_BY.reshape(-1)).reshape(pages_BY.shape) - 1
    return jnp.where(is_new_BY, free_M[rank_BY], kept_BY).astype(pages_BY.dtype)


def rows_to_keep(
    wanted_B: Int[Array, " B"], drawn_B: Int[Array, " B"], num_pages: int
) -> Bool[Array, " B"]:
    """The rows that are not preempted: those with the most tokens, as many as the pages allow.

    The first of them is always kept if the pool can hold one row of full length, so that some row
    always ends and the loop terminates.

    >>> rows_to_keep(jnp.array([2, 1, 2]), jnp.array([5, 3, 9]), 5).tolist()
    [True, False, True]
    """
    order_B = jnp.argsort(-drawn_B)
    fits_B = jnp.cumsum(wanted_B[order_B]) < num_pages
    return jnp.zeros_like(fits_B).at[order_B].set(fits_B, unique_indices=True)


def pages_of_row(num_positions: int, page: int) -> int:
    """The number of pages that hold `num_positions`."""
    return -(-num_positions // page)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the slots' caches hold of a row in each layer, and in which pages."""

    pattern: tuple[LayerKind, ...]  # repeated over the layers
    size: int  # positions of the longest row
    ring: int | None  # positions that sliding layers keep of it; None: all
    page: int = 0  # positions per page that slots share; 0: each slot has its own cache
    parts: int = 1  # of the rows, each with its own pages
    # Per part, with page 0, which belongs to no row.
    num_pages: int = 0
    num_ring_pages: int = 0

    @property
    def has_pages(self) -> bool:
        return self.page > 0

    def has_ring(self, layer: int) -> bool:
        return self.ring is not None and self.pattern[layer % len(self.pattern)] == "sliding"

    def kept(self, layer: int) -> int:
        """Positions that a layer keeps of the longest row."""
        return self.ring if self.ring is not None and self.has_ring(layer) else self.size


def layout_of(
    config: ModelConfig, size: int, num_slots: int, pages: int | None, page: int
) -> Layout:
    """The layout for rows of `size` positions at most, in `pages` shared pages or caches of their
    own.

    Raises UserError if a part's pages cannot hold one row.
    """
    if pages is None:
        size = -(-size // tile()) * tile()
        ring = ring_positions(config.window, size, tile())
        return Layout(pattern=config.layer_pattern, size=size, ring=ring)
    parts, num_pages = num_parts("B", num_slots), pages_of_row(size, page)
    if pages // parts < num_pages:
        raise UserError(
            f"pages={pages} are too few: the longest row, {size} positions, needs {num_pages} "
            f"pages of {page} in each of {parts} part(s) of the rows; use {num_pages * parts} or "
            "more"
        )
    ring = ring_positions(config.window, size, page)
    return Layout(
        pattern=config.layer_pattern,
        size=size,
        ring=ring,
        page=page,
        parts=parts,
        num_pages=pages // parts + 1,
        num_ring_pages=num_ring_pages(pages // parts, num_slots // parts, ring or size, page) + 1,
    )


def tile() -> int:
    """A cache of a slot's own is whole tiles of this many positions.

    With a partial last tile, the TPU compiler copies the cache at each token, and the TPU kernel
    reads whole pages. Elsewhere 16 positions, the smallest side of a matrix unit's tile. Chosen,
    not measured.
    """
    return PAGE if platform() == "tpu" else 16


def kept_positions(config: ModelConfig, positions: float, ring: int | None) -> float:
    """The sum over layers of the positions that each keeps of a row.

    >>> from jaxdistill.models.presets import PRESETS
    >>> kept_positions(PRESETS["Olmo-3-7B"], 10_000, 4096)  # 24 of 32 layers have a window
    178304
    """
    pattern = config.layer_pattern
    sliding = pattern.count("sliding") * (config.num_layers // len(pattern))
    kept = positions if ring is None else min(positions, ring)
    return (config.num_layers - sliding) * positions + sliding * kept


def held_positions(config: ModelConfig, *, size: int, slots: int, pages: int | None) -> float:
    """The sum over layers of the positions that the caches of `slots` hold, or the `pages` of them.

    Both are those of a part of the rows; `size` is the longest row's.
    """
    if pages is None:
        return slots * kept_positions(config, size, ring_positions(config.window, size, tile()))
    ring, full = ring_positions(config.window, size, PAGE), int(kept_positions(config, 1, 0))
    of_rings = num_ring_pages(pages, slots, ring or size, PAGE)
    return PAGE * (full * pages + (config.num_layers - full) * of_rings)


def num_ring_pages(num_pages: int, num_slots: int, ring: int, page: int) -> int:
    """Pages of each sliding layer's pool, where full layers have `num_pages`.

    Either as many as all rings have, or as many as other layers: then a row never needs more pages
    here than there, so that the pages of full layers alone decide which rows run.
    """
    return min(num_pages, num_slots * pages_of_row(ring, page))


def fit_slots(
    config: ModelConfig,
    *,
    num_questions: int,
    num_rows: int,
    prompt: int,
    new: int,
    dtype: Any,
    cache_dtype: CacheDtype = "auto",
    weights_dtype: WeightsDtype = "auto",
) -> tuple[int, int | None]:
    """Choose (slots, pages) from the devices' free memory; slots share pages of `PAGE` positions.

    The result is (num_rows, None), one slot with a full-length cache per row, if that fits in
    memory, and on a CPU, which reports no memory. Several hosts agree on the least that one has.
    Otherwise pages take four fifths of the free memory, less weights and prompts, and there are as
    many slots as the pages hold rows at a third of `new` tokens. If slots cannot share pages, there
    are as many slots as full-length caches fit. `prompt` and `new` count positions per row. The
    choice is cached for the process, by devices: slightly different free memory must not compile
    another program.
    """
    # Meshes of one form may be on devices that hold different things, as sampler and trainer do.
    place = jax.sharding.get_abstract_mesh(), tuple(local_devices())
    return _choose_slots(
        place,
        config,
        num_questions=num_questions,
        num_rows=num_rows,
        prompt=prompt,
        new=new,
        item_bytes=jnp.dtype(dtype).itemsize,
        weight_bytes=decoding_bytes(config, dtype, weights_dtype, held=True),
        head_bytes=vector_bytes(config.head_dim, dtype, cache_dtype),
        has_pages=shares_pages(cache_dtype),
    )


def shares_pages(cache_dtype: CacheDtype) -> bool:
    """Whether slots can share pages on this platform with this cache dtype.

    An int8 cache on a TPU cannot: the paged kernel there reads bfloat16, and XLA would gather every
    row's pages in each layer at each token.
    """
    return cache_dtype == "auto" or platform() != "tpu"


@functools.cache
def _choose_slots(
    place: Any,
    config: ModelConfig,
    *,
    num_questions: int,
    num_rows: int,
    prompt: int,
    new: int,
    item_bytes: int,
    weight_bytes: int,
    head_bytes: int,
    has_pages: bool,
) -> tuple[int, int | None]:
    free = agreed_memory()
    if free is None:
        return num_rows, None
    return slots_in(
        free,
        config,
        num_questions=num_questions,
        num_rows=num_rows,
        prompt=prompt,
        new=new,
        item_bytes=item_bytes,
        weight_bytes=weight_bytes,
        head_bytes=head_bytes,
        has_pages=has_pages,
    )


def slots_in(
    free_bytes: float,
    config: ModelConfig,
    *,
    num_questions: int,
    num_rows: int,
    prompt: int,
    new: int,
    item_bytes: int,
    weight_bytes: int,
    head_bytes: int,
    has_pages: bool,
) -> tuple[int, int | None]:
    """`fit_slots` for devices that have this much free memory each, in the mesh in use.

    item_bytes, head_bytes: of a number of the embedding, and of one head's key or value in the
    cache. weight_bytes: of what `decoding_bytes` counts.
    """
    # All sizes are bytes per device. Weights are whole on each device, except for what tensor
    # parallelism splits and an embedding that is not the head too; prompts are split like the rows.
    # The decode loop has its own copy of the weights besides `params` (`sampling.weights`).
    heads = kv_heads_of_device(config)
    position = 2 * heads * head_bytes  # of one layer
    size = prompt + new
    ring = ring_positions(config.window, size, PAGE if has_pages else tile())
    row = position * kept_positions(config, size, ring)
    prompts = position * kept_positions(config, prompt, ring)
    prompts *= -(-num_questions // num_parts("Q", num_questions))
    embedding = 0 if config.tie_embeddings else math.prod(config.shape("VD"))
    weights = weight_bytes // num_parts("F", config.intermediate_size)
    split = num_parts("V", config.vocab_size) * num_parts("D", config.hidden_size)
    weights += embedding // split * item_bytes
    # A fifth stays free for the activations of prefill and the logits of a step. Chosen, not
    # measured: too large a reserve costs a few slots, too small a one ends the run.
    room = max(0.8 * free_bytes - weights - prompts, 0)
    if room * num_parts("B", num_rows) >= num_rows * row:
        return num_rows, None
    parts = num_parts("B")  # groups of devices, each with its own rows and pages
    if not has_pages:
        # Few distinct numbers (2 per power of two for slots, 8 for pages), so that slightly
        # different free memory leads to the same compiled program.
        slots = _round_down(max(int(room // row), 1), 2) * parts
        return min(slots, num_rows - num_rows % parts or num_rows), None
    # Rows share the pages, so there are more slots than full-length rows would fit: as many as fit
    # at a third of the maximum length, near the mean of long-tailed lengths. If too many rows grow
    # longer, some are preempted.
    mean = pages_of_row(prompt + new // 3, PAGE)
    full = kept_positions(config, 1, 0) * position * PAGE  # bytes of a page in the full layers
    sliding = config.num_layers * position * PAGE - full
    ring_pages = pages_of_row(ring or size, PAGE)

    def room_for(pages: float) -> int:
        return max(_round_down(max(int(pages), 0), 8), pages_of_row(size, PAGE))

    pages = room_for(room / (full + sliding * min(ring_pages / mean, 1)))
    slots = _round_down(max(pages // mean, 1), 2) * parts
    if slots > num_rows:
        # The same number in each part, unless there are fewer rows than parts.
        slots = num_rows - num_rows % parts or num_rows
    if ring is not None and full:
        # Rings of slots that rounding or the number of rows took away free memory for pages.
        rings = slots // num_parts("B", slots) * ring_pages * sliding
        pages = max(pages, room_for((room - rings) / full))
    return slots, pages * num_parts("B", slots)


def agreed_memory() -> int | None:
    """Free bytes of the device that has the least, of all hosts; None if one reports no memory."""
    stats = [device.memory_stats() or {} for device in local_devices()]
    has_limits = all("bytes_limit" in each for each in stats)
    free = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats) if has_limits else None
    found = hosts.all_gather(free, "free memory")
    return None if None in found else min(found)


def _round_down(n: int, steps: int) -> int:
    """Round down to one of `steps` numbers per power of two; with 2: 1, 2, 3, 4, 6, 8, 12, 16..."""
    unit = max(1 << (n.bit_length() - steps.bit_length()), 1) if n >= steps else 1
    return n // unit * unit
