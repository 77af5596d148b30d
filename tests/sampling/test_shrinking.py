"""The numbers of slots, and what one slot state becomes with fewer slots."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models.caches import Cache
from jaxdistill.sampling import shrinking
from jaxdistill.sampling.slots import Counts, Slots, State

# Two parts of four slots each, eleven rows of two tokens; slot 6 is empty.
ROW_U = np.array([0, 4, 2, 8, 9, 5, 11, 3])
IS_RUNNING_U = np.array([False, True, False, True, True, False, False, True])


def state_of(pages_BY=None):
    caches = jnp.arange(8.0).reshape(2, 1, 4, 1, 1)  # as many as slots, in the slots' order
    tokens_U2 = jnp.asarray(ROW_U[:, None] * 10 + np.arange(2))
    numbers_U = jnp.arange(8)
    return State(
        slots=Slots(
            row=jnp.asarray(ROW_U),
            key=jnp.zeros((8, 2)),
            limit=numbers_U,
            running=jnp.asarray(IS_RUNNING_U),
            drawn=numbers_U,
            token=numbers_U,
            tokens=tokens_U2,
            logp=-tokens_U2.astype(jnp.float32),
            length=numbers_U,
        ),
        cache=Cache((caches,), (caches + 100,), numbers_U, pages_BY),
        is_waiting_B=jnp.zeros(11, bool),
        tokens_BT=jnp.full((11, 2), -1),
        logp_BT=jnp.zeros((11, 2)),
        counts=Counts(*[jnp.float32(0)] * 5),
    )


@pytest.mark.parametrize(
    "shrink", [lambda s: shrinking.shrink(s, 4, 2), lambda s: shrinking.shrink_between(s, 4)]
)
@pytest.mark.parametrize("has_pages", [True, False])
def test_running_rows_keep_their_caches_and_others_leave_their_tokens(shrink, has_pages):
    pages_UY = jnp.arange(8)[:, None] + 50 if has_pages else None
    after = shrink(state_of(pages_UY))
    kept_U = [1, 3, 4, 7]  # two of each part, in their order
    assert after.slots.row.tolist() == ROW_U[kept_U].tolist()
    assert after.slots.running.all()
    assert after.cache.length_B.tolist() == after.slots.length.tolist() == kept_U
    if has_pages:
        assert after.cache.pages_BY is not None
        assert after.cache.pages_BY[:, 0].tolist() == [50 + u for u in kept_U]
        assert after.cache.k[0].shape == (2, 1, 4, 1, 1), "the pages stay where they are"
    else:
        assert after.cache.k[0].reshape(-1).tolist() == kept_U
        assert after.cache.v[0].reshape(-1).tolist() == [100 + u for u in kept_U]
    for row in (0, 2, 5):  # ended, and without a slot from now on
        assert after.tokens_BT[row].tolist() == [row * 10, row * 10 + 1]
        assert after.logp_BT[row].tolist() == [-row * 10, -row * 10 - 1]


def test_a_row_that_does_not_fit_waits_again():
    """With pages a row may be preempted, and go to another part, after it was seen to fit."""
    after = shrinking.shrink(state_of(jnp.arange(8)[:, None]), 2, 2)  # one slot in each part
    assert after.slots.row.tolist() == ROW_U[[1, 4]].tolist()
    assert np.flatnonzero(after.is_waiting_B).tolist() == sorted(ROW_U[[3, 7]].tolist())
    assert (after.counts.preempted, after.counts.redrawn) == (2, 3 + 7)


def test_rows_fit_where_no_part_has_more_of_them_than_slots():
    state = state_of()
    assert [bool(shrinking.fits_in(state, n, 2)) for n in (4, 2)] == [True, False]
    assert bool(shrinking.fits_in(state, 4, 1))
    waiting = state._replace(is_waiting_B=state.is_waiting_B.at[10].set(True))
    assert not shrinking.fits_in(waiting, 4, 2)


def test_each_number_of_slots_is_half_of_the_one_before_and_whole_in_each_part():
    assert shrinking.slot_counts(48, most=4) == (48, 24, 12)
    assert shrinking.slot_counts(256, most=2) == (256, 128)
    assert shrinking.slot_counts(72, most=4, parts=4) == (72, 36)
