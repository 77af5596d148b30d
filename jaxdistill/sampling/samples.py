"""What a sampler returns: the completions of all rows, at its end or on the way to it."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int32

from jaxdistill.sampling.slots import Counts, Rows, State


class Samples(NamedTuple):
    """Completions of B = Q*R rows; row q*R + r is the r-th rollout of question q."""

    tokens_BT: Int32[Array, "B T"]  # pad_id after the stop id
    mask_BT: Int32[Array, "B T"]  # 1 for every generated token, the stop id included
    logp_BT: Float[Array, "B T"]  # nats, temperature-scaled but untruncated; 0 after the end
    finished_B: Bool[Array, " B"]  # ended by a stop id, not by a limit


class Progress(NamedTuple):
    """What has been drawn so far, beside the state, which the next steps take over."""

    samples: Samples
    ended_B: Bool[Array, " B"]  # rows that neither run nor wait
    num_slots: Int32[Array, ""]  # the least of `Steps.slot_counts` that holds the running rows
    counts: Counts


class Steps(NamedTuple):
    """The sampler as two programs: the same tokens as in one, by the same steps.

    `start(params, prompt_ids_QP, prompt_mask_QP, keys_B2, limit_B=None)` gives (rows, state), and
    `advance(params, rows, state)` (state, Progress); it takes the arrays of the state over.
    `shrink(state, num_slots)` gives the state with the next of `slot_counts(B)`, each of which is a
    compilation of `advance`.
    """

    start: Callable[..., tuple[Rows, State]]
    advance: Callable[..., tuple[State, Progress]]
    shrink: Callable[[State, int], State]
    slot_counts: Callable[[int], tuple[int, ...]]  # of all B rows, descending
