"""The decode loop's state: which rows hold a slot, which wait, and which are preempted.

Axis U counts slots, B all rows of the call; `row` maps a slot to its row. In a cache, W parts of
the rows each have their own pages (M per part) and their own share of the slots.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import UserError
from jaxdistill.models import decoder
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.sampling import pages as paging
from jaxdistill.sharding import constrain, num_parts, platform

NONE = -1  # in place of a token where none was drawn


class Counts(NamedTuple):
    """Totals over the decode loop; means are ratios of these."""

    steps: Float[Array, ""]  # steps of the loop; each feeds one token per slot
    row_steps: Float[Array, ""]  # tokens drawn, including those drawn again after a preemption
    positions: Float[Array, ""]  # sum over these tokens of the cache's filled length before each
    preempted: Float[Array, ""]  # number of preemptions
    redrawn: Float[Array, ""]  # tokens discarded by preemptions


class Slots(NamedTuple):
    """The rows in the slots, along a leading axis U; or one row to admit, without that axis."""

    row: Array  # index of the row; the number of rows for an empty slot
    key: Array  # [U, 2]
    limit: Array  # maximum number of tokens to draw
    running: Array
    drawn: Array  # tokens drawn so far
    token: Array  # the last token drawn, or the prompt's last: the input of the next step
    tokens: Array  # [U, T], NONE where no token was drawn
    logp: Array  # [U, T], nats
    length: Array  # filled length of the cache: prompt and tokens without the last


class Rows(NamedTuple):
    """All B = Q x R rows of a call, whether they wait, run or have ended."""

    prompt_ids_QP: Array
    prompts: decoder.Cache  # prefilled, one row per question
    keys_B2: Array
    limit_B: Array  # maximum number of tokens to draw
    draws_B: Array  # False for padding questions and a limit of 0: nothing is drawn
    rollouts: int  # R, static
    num_tokens: int  # T, static

    def begin(self, index: Array) -> Slots:
        """The initial slot state of the row, or rows, with this index."""
        limit, question = self.limit_B[index], index // self.rollouts
        return Slots(
            row=index,
            key=self.keys_B2[index],
            limit=limit,
            running=self.draws_B[index],
            drawn=jnp.zeros_like(limit),
            token=self.prompt_ids_QP[question, -1],
            tokens=jnp.full((*limit.shape, self.num_tokens), NONE, jnp.int32),
            logp=jnp.zeros((*limit.shape, self.num_tokens), jnp.float32),
            length=self.prompts.length_B[question],
        )


class State(NamedTuple):
    """The carry of the decode loop."""

    slots: Slots
    cache: decoder.Cache  # its length_B is slots.length
    is_waiting_B: Array  # rows that wait for a slot
    tokens_BT: Array  # tokens of the rows that have left their slot
    logp_BT: Array
    counts: Counts


def first_state(rows: Rows, cache: decoder.Cache, num_slots: int, *, all_wait: bool) -> State:
    """The first rows in the slots; with `all_wait` (shared pages), empty slots for `admit`."""
    num_rows, first_U = len(rows.limit_B), jnp.arange(num_slots)
    first = rows.begin(first_U)
    if all_wait:
        first = first._replace(
            row=jnp.full_like(first_U, num_rows),
            running=jnp.zeros_like(first.running),
            length=jnp.zeros_like(first.length),
        )
    return State(
        slots=first,
        cache=cache._replace(length_B=first.length),
        is_waiting_B=rows.draws_B & (jnp.arange(num_rows) >= (0 if all_wait else num_slots)),
        tokens_BT=jnp.full((num_rows, rows.num_tokens), NONE, jnp.int32),
        logp_BT=jnp.zeros((num_rows, rows.num_tokens), jnp.float32),
        counts=Counts(*[jnp.float32(0)] * len(Counts._fields)),
    )


def preempt(state: State, stride: int) -> State:
    """Assign the pages that running rows need for `stride` steps; preempt rows if too few are free.

    The rows with the fewest tokens are preempted: they wait for a slot again and restart, which
    discards the least work.
    """
    slots, num_rows = state.slots, state.is_waiting_B.shape[0]
    W, _, M, page, _ = state.cache.k[0].shape
    wanted_U = _wanted_pages(slots, page, stride)
    rows_to_keep = jax.vmap(functools.partial(paging.rows_to_keep, num_pages=M))
    is_kept_U = rows_to_keep(wanted_U.reshape(W, -1), slots.drawn.reshape(W, -1)).reshape(-1)
    is_preempted_U = slots.running & ~is_kept_U
    counts = state.counts._replace(
        preempted=state.counts.preempted + is_preempted_U.sum(),
        redrawn=state.counts.redrawn + jnp.where(is_preempted_U, slots.drawn, 0).sum(),
    )
    # The index num_rows is out of range, so mode="drop" below ignores rows that are kept.
    waits_U = jnp.where(is_preempted_U, slots.row, num_rows)
    slots = slots._replace(
        row=jnp.where(is_preempted_U, num_rows, slots.row),
        running=slots.running & is_kept_U,
        length=jnp.where(is_preempted_U, 0, slots.length),
    )
    return state._replace(
        slots=slots,
        cache=_with_pages(state.cache, slots, stride),
        is_waiting_B=state.is_waiting_B.at[waits_U].set(True, mode="drop"),
        counts=counts,
    )


def admit(state: State, rows: Rows, stride: int) -> State:
    """Move waiting rows into slots whose rows have ended, as long as there are pages for them."""

    def is_open_U(state: State) -> Array:
        """The slots that can take the first waiting row now."""
        slots, pages_UY = state.slots, state.cache.pages_BY
        is_free_U = ~slots.running & state.is_waiting_B.any()
        if pages_UY is None:
            return is_free_U
        W, _, M, page, _ = state.cache.k[0].shape
        # Counting a reserve for every row avoids preempting the new row soon after.
        ahead = stride + paging.RESERVE * page
        wanted_WU = _wanted_pages(slots, page, ahead).reshape(W, -1)
        more = _wanted_pages(rows.begin(jnp.argmax(state.is_waiting_B)), page, ahead)
        has_pages_W = wanted_WU.sum(axis=1) + more < M
        return is_free_U & jnp.repeat(has_pages_W, wanted_WU.shape[1])

    def enter(state: State) -> State:
        j, index = jnp.argmax(is_open_U(state)), jnp.argmax(state.is_waiting_B)
        left, new = jax.tree.map(lambda x: x[j], state.slots), rows.begin(index)
        slots = jax.tree.map(lambda x, y: _put(x, y, j), state.slots, new)
        last = state.is_waiting_B.shape[0] - 1
        at, was_occupied = jnp.minimum(left.row, last), left.row <= last

        # The slot's previous row has ended: keep its tokens before the new row overwrites them.
        def save(x_BT: Array, new_T: Array) -> Array:
            return _put(x_BT, jnp.where(was_occupied, new_T, x_BT[at]), at)

        cache = _with_pages(state.cache, slots, stride)
        return state._replace(
            slots=slots,
            cache=_copy_prompt(cache, j, rows.prompts, index // rows.rollouts),
            is_waiting_B=state.is_waiting_B.at[index].set(False),
            tokens_BT=save(state.tokens_BT, left.tokens),
            logp_BT=save(state.logp_BT, left.logp),
        )

    return jax.lax.while_loop(lambda state: is_open_U(state).any(), enter, state)


def _wanted_pages(slots: Slots, page: int, stride: int) -> Array:
    """The pages that each slot's row needs for `stride` more positions; 0 if no row runs there."""
    # No row needs positions beyond its own limit.
    end = slots.length - slots.drawn + slots.limit
    positions = jnp.minimum(slots.length + stride, end)
    return jnp.where(slots.running, -(-positions // page), 0)


def _with_pages(cache: decoder.Cache, slots: Slots, stride: int) -> decoder.Cache:
    """The cache with the slots' lengths, and pages for the next `stride` positions of each."""
    if cache.pages_BY is None:
        return cache._replace(length_B=slots.length)
    W, _, M, page, _ = cache.k[0].shape
    wanted_WU = _wanted_pages(slots, page, stride).reshape(W, -1)
    pages_WUY = cache.pages_BY.reshape(W, -1, cache.pages_BY.shape[1])
    pages_WUY = jax.vmap(functools.partial(paging.assign, num_pages=M))(pages_WUY, wanted_WU)
    pages_UY = constrain(pages_WUY.reshape(cache.pages_BY.shape), "BY")
    return cache._replace(length_B=slots.length, pages_BY=pages_UY)


def _copy_prompt(
    cache: decoder.Cache, j: Array, prompts: decoder.Cache, question: Array
) -> decoder.Cache:
    """Copy the question's prompt into slot j, page by page up to the prompt's length.

    Each part of the devices holds the prompts of its own questions, and any slot may need any of
    them: the part that has a page sends it to all, and no part ever holds all prompts.
    """
    W, _, _, page, _ = cache.k[0].shape
    parts, _, num_questions, P, _ = prompts.k[0].shape  # questions per part
    slots_of_part = cache.length_B.shape[0] // W
    part, size = j // slots_of_part, min(page, P)
    is_its_W = jnp.arange(parts) == question // num_questions

    def copy(i, kv):
        at = j % slots_of_part if cache.pages_BY is None else cache.pages_BY[j, i]

        def put(x_WKMSH, prompts_WKMPH):
            own = jax.lax.dynamic_slice_in_dim(prompts_WKMPH, question % num_questions, 1, axis=2)
            own = jax.lax.dynamic_slice_in_dim(own, i * size, size, axis=3)
            # Scales of an int8 cache have no width H.
            own = constrain(own, "WKXSH"[: own.ndim])
            is_its = is_its_W.reshape(-1, *(1,) * (own.ndim - 1))
            new = jnp.where(is_its, own, 0).sum(axis=0, keepdims=True, dtype=own.dtype)
            new = constrain(new, "XKXSH"[: new.ndim])
            return jax.lax.dynamic_update_slice(x_WKMSH, new, (part, 0, at, *(0,) * (new.ndim - 3)))

        return jax.tree.map(put, kv, (prompts.k, prompts.v))

    num_pages = -(-prompts.length_B[question] // size)
    k, v = jax.lax.fori_loop(0, num_pages, copy, (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def count(counts: Counts, stride: int, before: Slots, after: Slots) -> Counts:
    """Add what the loop did in `stride` steps, from the slots before and after them."""
    drawn_U = after.drawn - before.drawn
    # d tokens from filled length n on: n + (n + 1) + ... + (n + d - 1).
    positions_U = drawn_U * before.length + drawn_U * (drawn_U - 1) // 2
    return counts._replace(
        steps=counts.steps + stride,
        row_steps=counts.row_steps + drawn_U.sum(),
        positions=counts.positions + positions_U.astype(jnp.float32).sum(),
    )


def write(slots: Slots, token_U: Array, logp_U: Array, stops_C: np.ndarray) -> Slots:
    """Record the token of every running slot, and end the rows at a stop id or their limit."""
    was_running_U = slots.running
    # A select, not a scatter: for a scatter, devices would exchange the tokens of all rows.
    is_here_UT = jnp.arange(slots.tokens.shape[1])[None, :] == slots.drawn[:, None]
    is_here_UT &= was_running_U[:, None]
    drawn_U = slots.drawn + was_running_U
    is_stop_U = (token_U[:, None] == stops_C[None, :]).any(axis=1)
    running_U = was_running_U & ~is_stop_U & (drawn_U < slots.limit)
    return slots._replace(
        running=running_U,
        drawn=drawn_U,
        token=jnp.where(was_running_U, token_U, slots.token),
        tokens=jnp.where(is_here_UT, token_U[:, None], slots.tokens),
        logp=jnp.where(is_here_UT, logp_U[:, None], slots.logp),
        # An idle slot still takes part in each step: at length 0 it reads and writes only its first
        # position, until a row enters.
        length=jnp.where(running_U, slots.length + 1, 0),
    )


def _put(x: Array, new: Array, at: Array) -> Array:
    """x with x[at] replaced by `new`."""
    return jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), (at,) + (0,) * new.ndim)


def first_rows(prompts: decoder.Cache, rollouts: int, num_slots: int, size: int) -> decoder.Cache:
    """The first rows' caches of `size` positions: question q's prompt in rows q*R to q*R + R - 1.

    `size` is rounded up to whole tiles: with a partial last tile, the TPU compiler copies the cache
    at each token, and the TPU kernel reads whole pages.
    """
    # Elsewhere 16 positions, the smallest side of a matrix unit's tile. Chosen, not measured.
    tile = PAGE if platform() == "tpu" else 16
    size, parts = -(-size // tile) * tile, num_parts("B", num_slots)

    def repeat(x_Q, axis: int):
        first = jax.lax.slice_in_dim(x_Q, 0, -(-num_slots // rollouts), axis=axis)
        rows = jnp.repeat(first, rollouts, axis=axis)
        return jax.lax.slice_in_dim(rows, 0, num_slots, axis=axis)

    def grow(x_WKMPH):
        _, K, _, P, *width = x_WKMPH.shape  # scales have none
        x_KBPH = repeat(x_WKMPH.swapaxes(0, 1).reshape(K, -1, P, *width), axis=1)
        x_KBSH = jnp.pad(x_KBPH, ((0, 0), (0, 0), (0, size - P), *((0, 0),) * len(width)))
        x_WKMSH = x_KBSH.reshape(K, parts, -1, size, *width).swapaxes(0, 1)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    k, v = jax.tree.map(grow, (prompts.k, prompts.v))
    return decoder.Cache(k, v, constrain(repeat(prompts.length_B, axis=0), "B"))


def empty_pool(
    prompts: decoder.Cache, num_slots: int, size: int, pages: int, page: int
) -> decoder.Cache:
    """An empty paged cache: each part's share of the pages, and page 0, which belongs to no row.

    Raises UserError if a part's pages cannot hold one row of `size` positions.
    """
    parts, num_pages = num_parts("B", num_slots), paging.pages_of_row(size, page)
    if pages // parts < num_pages:
        raise UserError(
            f"pages={pages} are too few: the longest row, {size} positions, needs {num_pages} "
            f"pages of {page} in each of {parts} part(s) of the rows; use {num_pages * parts} or "
            "more"
        )
    # The TPU kernel fetches up to eight pages at a time, so a longer table is a multiple of eight.
    if num_pages > 8:
        num_pages = -(-num_pages // 8) * 8

    def empty(x_WKMPH):
        _, K, _, _, *width = x_WKMPH.shape
        x_WKMSH = jnp.zeros((parts, K, pages // parts + 1, page, *width), x_WKMPH.dtype)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    k, v = jax.tree.map(empty, (prompts.k, prompts.v))
    none_U, pages_UY = jnp.zeros(num_slots, jnp.int32), jnp.zeros((num_slots, num_pages), jnp.int32)
    return decoder.Cache(k, v, constrain(none_U, "B"), constrain(pages_UY, "BY"))
