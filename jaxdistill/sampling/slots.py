"""Rows in flight: who holds a slot, who waits, who is preempted when pages run out."""

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

NONE = -1  # where no token was drawn


class Counts(NamedTuple):
    """What the loop did; means are ratios of these."""

    steps: Float[Array, ""]  # of the loop, each one token for all slots
    row_steps: Float[Array, ""]  # tokens drawn, again or for the first time
    positions: Float[Array, ""]  # in the cache before each of them, summed
    preempted: Float[Array, ""]  # rows that had to begin anew
    redrawn: Float[Array, ""]  # the tokens that they had drawn


class Slots(NamedTuple):
    """Rows in flight, the first axis (U) theirs; or one row about to enter, without that axis."""

    row: Array  # beyond the last row: nobody
    key: Array  # [U, 2]
    limit: Array  # tokens to draw at most
    running: Array
    drawn: Array  # tokens so far
    token: Array  # the last one, or the prompt's last: the next step feeds it
    tokens: Array  # [U, T], NONE where none was drawn
    logp: Array  # [U, T]
    length: Array  # of the cache, which has the tokens before the last


class Rows(NamedTuple):
    """All B = Q x R rows of a call, whether they wait, run or have ended."""

    prompt_ids_QP: Array
    prompts: decoder.Cache  # prefilled, a row for each question
    keys_B2: Array
    limit_B: Array  # tokens to draw at most
    draws_B: Array  # False for spares of the bucket, which draw nothing
    rollouts: int  # R, static
    num_tokens: int  # T, static

    def begin(self, index: Array) -> Slots:
        """Rows about to begin, by their indices, one or several."""
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
    """What the decode loop carries."""

    slots: Slots
    cache: decoder.Cache  # its length is the slots'
    is_waiting_B: Array  # for a slot
    tokens_BT: Array  # of the rows that left their slot
    logp_BT: Array
    counts: Counts


def first_state(rows: Rows, cache: decoder.Cache, num_slots: int, *, all_wait: bool) -> State:
    """The first rows in the slots; or, where they share pages, nobody: `admit` lets them in."""
    num_rows, first_U = len(rows.limit_B), jnp.arange(num_slots)
    first = rows.begin(first_U)
    if all_wait:  # in the order of their rows
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
    """Pages for all who run until the next look; who has drawn least waits again if too few."""
    slots, num_rows = state.slots, state.is_waiting_B.shape[0]
    W, _, M, page, _ = state.cache.k[0].shape
    wanted_U = _wanted_pages(slots, page, stride)
    go_on = jax.vmap(functools.partial(paging.rows_that_go_on, num_pages=M))
    goes_on_U = go_on(wanted_U.reshape(W, -1), slots.drawn.reshape(W, -1)).reshape(-1)
    is_preempted_U = slots.running & ~goes_on_U
    counts = state.counts._replace(
        preempted=state.counts.preempted + is_preempted_U.sum(),
        redrawn=state.counts.redrawn + jnp.where(is_preempted_U, slots.drawn, 0).sum(),
    )
    waits_U = jnp.where(is_preempted_U, slots.row, num_rows)
    slots = slots._replace(
        row=jnp.where(is_preempted_U, num_rows, slots.row),
        running=slots.running & goes_on_U,
        length=jnp.where(is_preempted_U, 0, slots.length),
    )
    return state._replace(
        slots=slots,
        cache=_with_pages(state.cache, slots, stride),
        is_waiting_B=state.is_waiting_B.at[waits_U].set(True, mode="drop"),
        counts=counts,
    )


def admit(state: State, rows: Rows, stride: int) -> State:
    """Rows that wait take the slots of rows that ended, while there are pages for them."""

    def may_enter_U(state: State) -> Array:
        """The slots that the first row that waits may have."""
        slots, pages_UY = state.slots, state.cache.pages_BY
        is_possible_U = ~slots.running & state.is_waiting_B.any()
        if pages_UY is None:
            return is_possible_U
        W, _, M, page, _ = state.cache.k[0].shape
        ahead = stride + paging.RESERVE * page  # all should be able to go on for a while
        wanted_WU = _wanted_pages(slots, page, ahead).reshape(W, -1)
        more = _wanted_pages(rows.begin(jnp.argmax(state.is_waiting_B)), page, ahead)
        has_room_W = wanted_WU.sum(axis=1) + more < M
        return is_possible_U & jnp.repeat(has_room_W, wanted_WU.shape[1])

    def enter(state: State) -> State:
        j, index = jnp.argmax(may_enter_U(state)), jnp.argmax(state.is_waiting_B)
        left, new = jax.tree.map(lambda x: x[j], state.slots), rows.begin(index)
        slots = jax.tree.map(lambda x, y: _put(x, y, j), state.slots, new)
        last = state.is_waiting_B.shape[0] - 1
        at, is_somebody = jnp.minimum(left.row, last), left.row <= last

        def save(x_BT: Array, new_T: Array) -> Array:
            return _put(x_BT, jnp.where(is_somebody, new_T, x_BT[at]), at)

        cache = _with_pages(state.cache, slots, stride)
        return state._replace(
            slots=slots,
            cache=_copy_prompt(cache, j, rows.prompts, index // rows.rollouts),
            is_waiting_B=state.is_waiting_B.at[index].set(False),
            tokens_BT=save(state.tokens_BT, left.tokens),
            logp_BT=save(state.logp_BT, left.logp),
        )

    return jax.lax.while_loop(lambda state: may_enter_U(state).any(), enter, state)


def _wanted_pages(slots: Slots, page: int, stride: int) -> Array:
    """Pages that a slot's row needs until the next look, 0 without one that runs."""
    end = slots.length - slots.drawn + slots.limit
    positions = jnp.minimum(slots.length + stride, end)
    return jnp.where(slots.running, -(-positions // page), 0)


def _with_pages(cache: decoder.Cache, slots: Slots, stride: int) -> decoder.Cache:
    """The cache with the slots' lengths, and pages for what they want until the next look."""
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
    """The question's prompt in the pages of slot j, page by page as far as it goes."""
    W, _, _, page, _ = cache.k[0].shape
    _, K, num_questions, P, _ = prompts.k[0].shape  # of a part
    slots_of_part = cache.length_B.shape[0] // W
    part, size = j // slots_of_part, min(page, P)

    def copy(i, kv):
        at = j % slots_of_part if cache.pages_BY is None else cache.pages_BY[j, i]
        begin = question // num_questions, 0, question % num_questions, i * size

        def put(x_WKMSH, prompts_WKMPH):
            width = x_WKMSH.shape[4:]  # none of scales
            first, sizes = (*begin, *(0,) * len(width)), (1, K, 1, size, *width)
            new = jax.lax.dynamic_slice(prompts_WKMPH, first, sizes)
            return jax.lax.dynamic_update_slice(x_WKMSH, new, (part, 0, at, *(0,) * (new.ndim - 3)))

        return jax.tree.map(put, kv, (prompts.k, prompts.v))

    num_pages = -(-prompts.length_B[question] // size)
    k, v = jax.lax.fori_loop(0, num_pages, copy, (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def count(counts: Counts, stride: int, before: Slots, after: Slots) -> Counts:
    drawn_U = after.drawn - before.drawn
    positions_U = drawn_U * before.length + drawn_U * (drawn_U - 1) // 2
    return counts._replace(
        steps=counts.steps + stride,
        row_steps=counts.row_steps + drawn_U.sum(),
        positions=counts.positions + positions_U.astype(jnp.float32).sum(),
    )


def write(slots: Slots, token_U: Array, logp_U: Array, stops_C: np.ndarray) -> Slots:
    """Record a token of every slot that runs, and who ends with it."""
    was_running_U = slots.running
    # A choice and no scatter, for which devices would exchange what all rows have drawn.
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
        # An idle slot writes and sees its first position alone, until a row enters.
        length=jnp.where(running_U, slots.length + 1, 0),
    )


def _put(x: Array, new: Array, at: Array) -> Array:
    """x with `new` in place of x[at]."""
    return jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), (at,) + (0,) * new.ndim)


def first_rows(prompts: decoder.Cache, rollouts: int, num_slots: int, size: int) -> decoder.Cache:
    """The first rows' caches of `size` positions: question q's prompt in rows q*R to q*R + R - 1.

    Whole tiles of positions: of a partial last one the TPU compiler copies the cache at each token,
    and its kernel wants pages.
    """
    # 16 positions elsewhere: the least side of a matrix unit's tile. Chosen, not measured.
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
    """No row's cache: for each part of the slots its share of the pages, and nobody's page."""
    parts, num_pages = num_parts("B", num_slots), paging.pages_of_row(size, page)
    if pages // parts < num_pages:
        raise UserError(
            f"pages={pages} are too few: the longest row, {size} positions, needs {num_pages} of "
            f"{page}, in each of {parts} part(s) of the rows; use {num_pages * parts} or more"
        )
    if num_pages > 8:  # the TPU's kernel fetches up to eight at a time
        num_pages = -(-num_pages // 8) * 8

    def empty(x_WKMPH):
        _, K, _, _, *width = x_WKMPH.shape
        x_WKMSH = jnp.zeros((parts, K, pages // parts + 1, page, *width), x_WKMPH.dtype)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    k, v = jax.tree.map(empty, (prompts.k, prompts.v))
    none_U, pages_UY = jnp.zeros(num_slots, jnp.int32), jnp.zeros((num_slots, num_pages), jnp.int32)
    return decoder.Cache(k, v, constrain(none_U, "B"), constrain(pages_UY, "BY"))
