"""Fewer slots once few rows are left: the decode loop's numbers of slots, and the step between two.

A row keeps its key and its cache, and so its tokens; which slot it is in does not matter.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill.sampling.slots import State
from jaxdistill.sharding import on_shards

# Fewer slots than this take no less time. Chosen, not measured.
_LEAST_SLOTS = 8


def slot_counts(num_slots: int, most: int, parts: int = 1) -> tuple[int, ...]:
    """The numbers of slots that a call decodes with as its rows end: each half of the one before.

    At most `most`, and each a multiple of `parts` of the rows.

    >>> slot_counts(256, most=4), slot_counts(12, most=4), slot_counts(256, most=1)
    ((256, 128, 64, 32), (12,), (256,))
    """
    counts = [num_slots]
    while len(counts) < most:
        half = counts[-1] // (2 * parts) * parts
        if half < _LEAST_SLOTS * parts:
            break
        counts.append(half)
    return tuple(counts)


def fits_in(state: State, num_slots: int, parts: int) -> Array:
    """Whether no row waits and `num_slots` slots could hold all running rows, in each part."""
    running_W = state.slots.running.reshape(parts, -1).sum(axis=1)
    return ~state.is_waiting_B.any() & (running_W <= num_slots // parts).all()


def shrink(state: State, num_slots: int, parts: int) -> State:
    """The state with `num_slots` slots, which hold the running rows that fit (`fits_in`).

    The tokens of rows whose slots are given up are kept. Without pages the caches of the others
    are copied: for a moment both are in memory. Rows that do not fit wait and restart, as if they
    were preempted: with pages, those that were since the state that fitted may have gone to another
    part.
    """
    running_WU = state.slots.running.reshape(parts, -1)
    # Stable, so that the rows keep their order.
    order_WU = jnp.argsort(~running_WU, axis=1, stable=True)[:, : num_slots // parts]
    kept_U = (order_WU + jnp.arange(parts)[:, None] * running_WU.shape[1]).reshape(-1)
    tokens_BT, logp_BT = drawn_of_all(state)
    is_left_U = state.slots.running.at[kept_U].set(False)
    left_U = jnp.where(is_left_U, state.slots.row, len(state.is_waiting_B))
    redrawn = jnp.where(is_left_U, state.slots.drawn, 0).sum()
    counts = state.counts._replace(
        preempted=state.counts.preempted + is_left_U.sum(),
        redrawn=state.counts.redrawn + redrawn,
    )
    cache = state.cache
    if cache.pages_BY is None:
        take = jax.vmap(lambda x_KMSH, order_U: x_KMSH[:, order_U])

        def kept(x_WKMSH: Array) -> Array:
            axes = "WKMSH"[: x_WKMSH.ndim]
            return on_shards(take, [axes, "WX"], axes)(x_WKMSH, order_WU)

        k, v = jax.tree.map(kept, (cache.k, cache.v))
        cache = cache._replace(k=k, v=v)
    else:
        own = lambda pages_UY: None if pages_UY is None else pages_UY[kept_U]  # noqa: E731
        cache = cache._replace(pages_BY=own(cache.pages_BY), ring_BY=own(cache.ring_BY))
    slots = jax.tree.map(lambda x: x[kept_U], state.slots)
    return state._replace(
        slots=slots,
        cache=cache._replace(length_B=slots.length),
        is_waiting_B=state.is_waiting_B.at[left_U].set(True, mode="drop"),
        counts=counts,
        tokens_BT=tokens_BT,
        logp_BT=logp_BT,
    )


def shrink_between(state: State, num_slots: int) -> State:
    """`shrink` as a program of its own. Shared pages, most of the memory, do not go through it:
    an argument that is also a result would be copied.
    """
    cache = state.cache
    parts = cache.k[0].shape[0]
    if cache.pages_BY is None:
        return _shrink(state, num_slots, parts)
    tables = state._replace(cache=cache._replace(k=(), v=()))
    state = _shrink(tables, num_slots, parts)
    return state._replace(cache=state.cache._replace(k=cache.k, v=cache.v))


_shrink = jax.jit(shrink, static_argnums=(1, 2))


def drawn_of_all(state: State) -> tuple[Array, Array]:
    """The tokens [B, T] of all rows, those in a slot included, and their log-probs."""
    now = state.slots  # an empty slot's row is out of range and dropped
    tokens_BT = state.tokens_BT.at[now.row].set(now.tokens, mode="drop")
    return tokens_BT, state.logp_BT.at[now.row].set(now.logp, mode="drop")
