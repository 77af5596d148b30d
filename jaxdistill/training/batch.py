"""One step's data: a batch of rows, and the same as the objective sees it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.objectives import (
    Rows,
    Sampled,
)


class Batch(NamedTuple):
    """One step's data. Prompts are left-padded, completions right-padded; B rows.

    `teacher_*` is None where the objective has no teacher. A row with `row_weight_B` 0 has nothing
    to learn from (no demonstration). `contrast_*` holds J further prompts a row, that a contrastive
    objective sets against the teacher's (wrong solutions, say); one with `contrast_weight_BJ` 0
    could not be made.
    """

    prompt_ids_BP: Int[AnyArray, "B P"]
    prompt_mask_BP: Int[AnyArray, "B P"]
    teacher_ids_BP: Int[AnyArray, "B P2"] | None
    teacher_mask_BP: Int[AnyArray, "B P2"] | None
    completion_ids_BT: Int[AnyArray, "B T"]
    completion_mask_BT: Int[AnyArray, "B T"]
    behaviour_logp_BT: Float[AnyArray, "B T"]
    advantage_B: Float[AnyArray, " B"]
    row_weight_B: Float[AnyArray, " B"]
    correct_B: Float[AnyArray, " B"] | None = None  # 1 where the grader accepted the completion
    contrast_ids_BJP: Int[AnyArray, "B J P3"] | None = None
    contrast_mask_BJP: Int[AnyArray, "B J P3"] | None = None
    contrast_weight_BJ: Float[AnyArray, "B J"] | None = None


def samples_of(batch: Batch, distill_weight_B: Array, step: Array) -> tuple[Sampled, Rows]:
    """The batch as the objective sees it."""
    mask_BT = jnp.asarray(batch.completion_mask_BT, jnp.int32)
    index_BT = jnp.broadcast_to(jnp.arange(mask_BT.shape[1]), mask_BT.shape)
    correct_B = batch.correct_B
    sampled = Sampled(
        tokens_BT=batch.completion_ids_BT,
        behaviour_logp_BT=batch.behaviour_logp_BT,
        index_BT=index_BT,
    )
    rows_B = Rows(
        advantage_BT=batch.advantage_B,
        correct_BT=jnp.zeros_like(distill_weight_B) if correct_B is None else correct_B,
        distill_weight_BT=distill_weight_B,
        length_BT=mask_BT.sum(axis=1),
        step_BT=jnp.broadcast_to(step, distill_weight_B.shape),
    )
    return sampled, spread(rows_B, mask_BT.shape)


def spread(rows_B: Rows, shape: tuple[int, ...]) -> Rows:
    """Each row's numbers at each of its positions."""
    return jax.tree.map(lambda x_B: jnp.broadcast_to(jnp.asarray(x_B)[:, None], shape), rows_B)


def bucket(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


def trim_or_pad(x_BT: np.ndarray, T: int) -> np.ndarray:
    """Trim or zero-pad the last axis to T."""
    return np.pad(x_BT[:, :T], ((0, 0), (0, max(T - x_BT.shape[1], 0))))
