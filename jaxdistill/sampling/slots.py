"""The decode loop's state: which rows hold a slot, which wait, and which are preempted.

Axis U counts slots, B all rows of the call; `row` maps a slot to its row. In a cache, W parts of
the rows each have their own pages (M per part) and their own share of the slots.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout as ArrayLayout
from jax.experimental.layout import with_layout_constraint
from jaxtyping import Array, Float

from jaxdistill.models.caches import Cache, Prompts
from jaxdistill.sampling import pages as paging
from jaxdistill.sampling.pages import Layout
from jaxdistill.sharding import constrain, num_parts, on_shards

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
    prompts: Prompts  # prefilled, one row per question
    keys_B2: Array
    limit_B: Array  # maximum number of tokens to draw
    draws_B: Array  # False for padding questions and a limit of 0: nothing is drawn
    rollouts: Any  # R, static; None between two programs
    num_tokens: Any  # T, static; None between two programs

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
    cache: Cache  # its length_B is slots.length
    is_waiting_B: Array  # rows that wait for a slot
    tokens_BT: Array  # tokens of the rows that have left their slot
    logp_BT: Array
    counts: Counts


def first_state(rows: Rows, cache: Cache, num_slots: int, *, all_wait: bool) -> State:
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


def preempt(state: State, stride: int, layout: Layout) -> State:
    """Assign the pages that running rows need for `stride` steps; preempt rows if too few are free.

    The rows with the fewest tokens are preempted: they wait for a slot again and restart, which
    discards the least work.
    """
    slots, num_rows = state.slots, state.is_waiting_B.shape[0]
    wanted_U = _wanted_pages(slots, layout.page, stride)
    rows_to_keep = jax.vmap(functools.partial(paging.rows_to_keep, num_pages=layout.num_pages))
    drawn_WU = slots.drawn.reshape(layout.parts, -1)
    is_kept_U = rows_to_keep(wanted_U.reshape(layout.parts, -1), drawn_WU).reshape(-1)
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
        cache=_with_pages(state.cache, slots, stride, layout),
        is_waiting_B=state.is_waiting_B.at[waits_U].set(True, mode="drop"),
        counts=counts,
    )


def admit(state: State, rows: Rows, stride: int, layout: Layout) -> State:
    """Move waiting rows into slots whose rows have ended, as long as there are pages for them."""

    def is_open_U(state: State) -> Array:
        """The slots that can take the first waiting row now."""
        slots = state.slots
        is_free_U = ~slots.running & state.is_waiting_B.any()
        if not layout.has_pages:
            return is_free_U
        # Counting a reserve for every row avoids preempting the new row soon after.
        ahead = stride + paging.RESERVE * layout.page
        wanted_WU = _wanted_pages(slots, layout.page, ahead).reshape(layout.parts, -1)
        more = _wanted_pages(rows.begin(jnp.argmax(state.is_waiting_B)), layout.page, ahead)
        has_pages_W = wanted_WU.sum(axis=1) + more < layout.num_pages
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

        cache = _with_pages(state.cache, slots, stride, layout)
        return state._replace(
            slots=slots,
            cache=_copy_prompt(cache, j, rows.prompts, index // rows.rollouts, layout),
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


def _with_pages(cache: Cache, slots: Slots, stride: int, layout: Layout) -> Cache:
    """The cache with the slots' lengths, and pages for the next `stride` positions of each."""
    if not layout.has_pages:
        return cache._replace(length_B=slots.length)
    wanted_U = _wanted_pages(slots, layout.page, stride)

    def assigned(pages_UY: Array, num_pages: int) -> Array:
        # A ring that has all of its pages needs no more.
        wanted_WU = jnp.minimum(wanted_U, pages_UY.shape[1]).reshape(layout.parts, -1)
        pages_WUY = pages_UY.reshape(layout.parts, -1, pages_UY.shape[1])
        assign = jax.vmap(functools.partial(paging.assign, num_pages=num_pages))
        return constrain(assign(pages_WUY, wanted_WU).reshape(pages_UY.shape), "BY")

    assert cache.pages_BY is not None
    cache = cache._replace(
        length_B=slots.length, pages_BY=assigned(cache.pages_BY, layout.num_pages)
    )
    if cache.ring_BY is None:
        return cache
    return cache._replace(ring_BY=assigned(cache.ring_BY, layout.num_ring_pages))


def _copy_prompt(
    cache: Cache, j: Array, prompts: Prompts, question: Array, layout: Layout
) -> Cache:
    """Copy the question's prompt into slot j, page by page up to the prompt's length.

    Each part of the devices holds the prompts of its own questions, and any slot may need any of
    them: the part that has a page sends it to all, and no part ever holds all prompts. Of a prompt
    longer than the window, layers with rings have fewer pages than the others.
    """
    k, v = list(cache.k), list(cache.v)
    for has_ring in (False, True):
        layers = [i for i in range(prompts.num_layers) if layout.has_ring(i) == has_ring]
        if not layers:
            continue
        pages_UY = cache.ring_BY if has_ring else cache.pages_BY
        width = prompts.at(layers[0])[0][0].shape[4]
        size = min(k[layers[0]].shape[3], width)

        def copy(n, kv, layers=layers, pages_UY=pages_UY, size=size):
            slots_of_part = cache.length_B.shape[0] // kv[0][0].shape[0]
            at = j % slots_of_part if pages_UY is None else pages_UY[j, n]
            put = functools.partial(
                _put_page, size=size, n=n, question=question, part=j // slots_of_part, at=at
            )
            both = []
            for layer, *own in zip(layers, *kv):
                stacked, index = prompts.at(layer)
                both.append(jax.tree.map(functools.partial(put, index=index), tuple(own), stacked))
            return tuple(map(list, zip(*both)))

        num_pages = -(-jnp.minimum(prompts.length_B[question], width) // size)
        kv = [k[i] for i in layers], [v[i] for i in layers]
        for i, new_k, new_v in zip(layers, *jax.lax.fori_loop(0, num_pages, copy, kv)):
            k[i], v[i] = new_k, new_v
    return cache._replace(k=tuple(k), v=tuple(v))


def _put_page(
    x_WKMSH: Array,
    prompts_RWMKPH: Array,
    *,
    index: int,
    question: Array,
    n: Array,
    size: int,
    part: Array,
    at: Array,
) -> Array:
    """x with page `at` of a part replaced by the n-th `size` positions of a question's prompt."""
    _, W, num_questions, K, _, *rest = prompts_RWMKPH.shape  # questions per part; scales have no H
    # One slice: that of a layer alone would be a copy of all of its prompts outside of the loop.
    start = (index, 0, question % num_questions, 0, n * size, *(0,) * len(rest))
    own = jax.lax.dynamic_slice(prompts_RWMKPH, start, (1, W, 1, K, size, *rest))
    own_WKXSH = own.reshape(W, K, 1, size, *rest)
    own_WKXSH = constrain(own_WKXSH, "WKXSH"[: own_WKXSH.ndim])
    is_its_W = jnp.arange(W) == question // num_questions
    is_its = is_its_W.reshape(-1, *(1,) * (own_WKXSH.ndim - 1))
    new = jnp.where(is_its, own_WKXSH, 0).sum(axis=0, keepdims=True, dtype=own_WKXSH.dtype)
    # Prompts have their heads after the questions, and slots before the pages. With one page the
    # orders are the same, but the TPU compiler would copy whole caches from one to the other.
    # Stated for each device's own heads: the compiler cannot split the statement, and would gather
    # the heads of all devices for it.
    axes = "XKXSH"[: new.ndim]
    order = ArrayLayout(tuple(range(new.ndim)))
    new = on_shards(lambda new: with_layout_constraint(new, order), [axes], axes)(new)
    return jax.lax.dynamic_update_slice(x_WKMSH, new, (part, 0, at, 0, *(0,) * len(rest)))


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


def first_rows(prompts: Prompts, rollouts: int, num_slots: int, layout: Layout) -> Cache:
    """The first rows' own caches: question q's prompt in rows q*R to q*R + R - 1."""
    parts = num_parts("B", num_slots)

    def repeat(x_Q, axis: int):
        first = jax.lax.slice_in_dim(x_Q, 0, -(-num_slots // rollouts), axis=axis)
        rows = jnp.repeat(first, rollouts, axis=axis)
        return jax.lax.slice_in_dim(rows, 0, num_slots, axis=axis)

    def grow(x_WKMPH, size: int):
        _, K, _, P, *width = x_WKMPH.shape  # scales have none
        x_KBPH = repeat(x_WKMPH.swapaxes(0, 1).reshape(K, -1, P, *width), axis=1)
        x_KBSH = jnp.pad(x_KBPH, ((0, 0), (0, 0), (0, size - P), *((0, 0),) * len(width)))
        x_WKMSH = x_KBSH.reshape(K, parts, -1, size, *width).swapaxes(0, 1)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    layers = [
        jax.tree.map(functools.partial(grow, size=layout.kept(i)), prompts.of_layer(i))
        for i in range(prompts.num_layers)
    ]
    k, v = zip(*layers)
    return Cache(k, v, constrain(repeat(prompts.length_B, axis=0), "B"))


def empty_pool(prompts: Prompts, num_slots: int, layout: Layout) -> Cache:
    """An empty paged cache: each part's share of the pages, and page 0, which belongs to no row."""

    def empty(x_RWMKPH, num_pages: int):
        K, *width = x_RWMKPH.shape[3], *x_RWMKPH.shape[5:]
        x_WKMSH = jnp.zeros((layout.parts, K, num_pages, layout.page, *width), x_RWMKPH.dtype)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    def table(num_positions: int) -> Array:
        num_pages = paging.pages_of_row(num_positions, layout.page)
        # The TPU kernel fetches up to eight pages at a time, so a longer table is a multiple of
        # eight; but a ring is as long as it is.
        if num_pages > 8 and num_positions == layout.size:
            num_pages = -(-num_pages // 8) * 8
        return constrain(jnp.zeros((num_slots, num_pages), jnp.int32), "BY")

    layers = []
    for i in range(prompts.num_layers):
        num_pages = layout.num_ring_pages if layout.has_ring(i) else layout.num_pages
        layers.append(jax.tree.map(functools.partial(empty, num_pages=num_pages), prompts.at(i)[0]))
    k, v = zip(*layers)
    none_U = constrain(jnp.zeros(num_slots, jnp.int32), "B")
    ring_UY = None if layout.ring is None else table(layout.ring)
    return Cache(k, v, none_U, table(layout.size), ring_UY)
