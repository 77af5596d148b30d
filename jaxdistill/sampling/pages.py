"""Pages of the cache: how many there are, which row has which, and who waits if there are too few.

A row takes a page when it comes to its end and gives all back when it ends itself. A table says
who has what, and there is no other record: what no row has is free. Page 0 of a pool is nobody's;
slots without a row write there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, vector_bytes
from jaxdistill.sharding import num_parts, platform

# Pages further that all who run must be able to go when another begins. In a simulation of 512 rows
# with a mean of 6,000 tokens, 128 slots and 4,000 pages, 178 begin anew with 1, 16 with 4, and none
# with 8, which takes 8 % more steps.
RESERVE = 4


def assign(
    pages_BY: Int[Array, "B Y"], wanted_B: Int[Array, " B"], num_pages: int
) -> Int[Array, "B Y"]:
    """Rows keep the first `wanted` of their pages, give back others and take free ones; 0 is none.

    There must be enough: the sum of wanted_B is below num_pages.

    >>> assign(jnp.array([[2, 0], [1, 3]]), jnp.array([2, 0]), 4).tolist()
    [[2, 1], [0, 0]]
    """
    is_wanted_BY = jnp.arange(pages_BY.shape[1])[None, :] < wanted_B[:, None]
    kept_BY = jnp.where(is_wanted_BY, pages_BY, 0)
    is_taken_M = jnp.zeros(num_pages, bool).at[kept_BY.reshape(-1)].set(True).at[0].set(True)
    (free_M,) = jnp.nonzero(~is_taken_M, size=num_pages, fill_value=0)
    is_new_BY = is_wanted_BY & (kept_BY == 0)
    rank_BY = jnp.cumsum(is_new_BY.reshape(-1)).reshape(pages_BY.shape) - 1
    return jnp.where(is_new_BY, free_M[rank_BY], kept_BY).astype(pages_BY.dtype)


def rows_that_go_on(
    wanted_B: Int[Array, " B"], drawn_B: Int[Array, " B"], num_pages: int
) -> Bool[Array, " B"]:
    """The rows that may go on: those that have drawn most, as many as the pages suffice for.

    The first of them always may, if a longest row has room at all; so some row always ends.

    >>> rows_that_go_on(jnp.array([2, 1, 2]), jnp.array([5, 3, 9]), 5).tolist()
    [True, False, True]
    """
    order_B = jnp.argsort(-drawn_B)
    fits_B = jnp.cumsum(wanted_B[order_B]) < num_pages
    return jnp.zeros_like(fits_B).at[order_B].set(fits_B, unique_indices=True)


def pages_of_row(num_positions: int, page: int) -> int:
    """Pages that hold so many positions."""
    return -(-num_positions // page)


def fit_slots(
    config: ModelConfig,
    *,
    num_questions: int,
    num_rows: int,
    prompt: int,
    new: int,
    dtype: Any,
    cache_dtype: CacheDtype = "auto",
) -> tuple[int, int | None]:
    """Slots, and pages of `PAGE` positions that they share, for the devices' free memory.

    (num_rows, None), a slot and the longest cache for each row, where that fits; on a CPU, whose
    memory nobody counts; and with several hosts, who would have to agree. Else pages take all but
    the fifth of the free memory that vocabulary and prefill need, and there is a slot for each row
    that they would hold at a third of the tokens; or, where slots cannot share pages, as many as
    have room for the longest cache. What was chosen once is kept for the process: a
    little memory more or less must not ask for another program.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return _choose_slots(
        mesh,
        config,
        num_questions=num_questions,
        num_rows=num_rows,
        prompt=prompt,
        new=new,
        item_bytes=jnp.dtype(dtype).itemsize,
        head_bytes=vector_bytes(config.head_dim, dtype, cache_dtype),
        has_pages=shares_pages(cache_dtype),
    )


def shares_pages(cache_dtype: CacheDtype) -> bool:
    """Whether slots can share pages here.

    Not of an int8 cache on a TPU: its paged kernel reads bfloat16, and XLA would gather every row's
    pages in each layer at each token.
    """
    return cache_dtype == "auto" or platform() != "tpu"


@functools.cache
def _choose_slots(
    mesh: Any,
    config: ModelConfig,
    *,
    num_questions: int,
    num_rows: int,
    prompt: int,
    new: int,
    item_bytes: int,
    head_bytes: int,
    has_pages: bool,
) -> tuple[int, int | None]:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats or jax.process_count() > 1:
        return num_rows, None
    # Of one device, which has whole weights and prompts, less what tensor parallelism splits.
    heads = config.num_kv_heads // num_parts("K", config.num_kv_heads)
    position = 2 * config.num_layers * heads * head_bytes
    weights = config.num_parameters * item_bytes // num_parts("F", config.intermediate_size)
    # A fifth stays free for the prefill's activations and a step's logits. Chosen, not measured:
    # too much costs some slots, too little ends the run.
    free = 0.8 * (stats["bytes_limit"] - stats["bytes_in_use"])
    positions = max(int((free - weights) // position) - num_questions * prompt, 0)
    if positions * num_parts("B", num_rows) >= num_rows * (prompt + new):
        return num_rows, None
    parts = num_parts("B")  # each with its own rows and pages
    if not has_pages:
        # Few distinct numbers of slots (2 per power of two, 8 of pages), so that a little more or
        # less free memory asks for the same compiled program.
        slots = _round_down(max(positions // (prompt + new), 1), 2) * parts
        return min(slots, num_rows - num_rows % parts or num_rows), None
    pages = max(_round_down(positions // PAGE, 8), pages_of_row(prompt + new, PAGE))
    # Rows share the pages, so there is a slot for each that they would hold at a third of the
    # longest length: long-tailed lengths have their mean there. If too many grow longer, some are
    # preempted.
    slots = _round_down(max(pages // pages_of_row(prompt + new // 3, PAGE), 1), 2) * parts
    if slots > num_rows:  # as many for each part, if there are so many
        slots = num_rows - num_rows % parts or num_rows
    return slots, pages * num_parts("B", slots)


def _round_down(n: int, steps: int) -> int:
    """To one of `steps` numbers between two powers of two: of 2 to 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    unit = max(1 << (n.bit_length() - steps.bit_length()), 1) if n >= steps else 1
    return n // unit * unit
