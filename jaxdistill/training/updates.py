"""Several optimizer updates per rollout batch, one for each of its mini-batches.

A step is a rollout batch: the learning-rate schedule, the teacher, metrics, checkpoints and
evaluations count steps, as in the paper's code (verl), and only Adam counts updates.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill import sharding
from jaxdistill.objectives.importance import SAMPLER_GAP, UNMOVED, fork_rates, gap_quantiles
from jaxdistill.objectives.metrics import OF_FORKS
from jaxdistill.training.batch import Batch
from jaxdistill.training.chunked_objective import histogram_of
from jaxdistill.training.metrics import Sum
from jaxdistill.training.micro_batches import MicroBatches
from jaxdistill.training.state import TrainState
from jaxdistill.training.teachers import Teacher, moved_teacher


def mini_batches(batch: Batch, updates: int) -> list[Batch]:
    """Split a batch's rows, in order, into equal parts of the same array shapes.

    The rows of a question are adjacent, so that each part holds whole questions if `updates`
    divides their number.
    """
    size, rest = divmod(len(batch.advantage_B), updates)
    assert not rest, f"{updates} updates do not divide {len(batch.advantage_B)} rows"
    parts = [slice(start, start + size) for start in range(0, size * updates, size)]
    fields = vars(batch)
    return [
        dataclasses.replace(batch, **jax.tree.map(lambda x, rows=rows: x[rows], fields))
        for rows in parts
    ]


class SeveralUpdates(NamedTuple):
    """The step of several updates: (state, reference_params, *mini_batches) -> (state, metrics).

    `score(params, batch)` gives the log-probabilities of the sampled tokens [I, T] before the first
    update. `update(state, reference_params, batch, old_logp_IT)` is one update; the state is
    donated. `finish(step=..., student=..., own=..., metrics=...)` ends the step. All three are
    jitted, and each is one program for all mini-batches of the same shapes.
    """

    score: Callable[[Any, MicroBatches], Array]
    update: Callable[..., tuple[TrainState, dict[str, Sum]]]
    finish: Callable[..., tuple[Array, Any, dict[str, Sum]]]

    def __call__(
        self, state: TrainState, reference_params: Any, *mini_batches: MicroBatches
    ) -> tuple[TrainState, dict[str, Sum]]:
        first, *others = mini_batches
        # Before the first update, which donates the parameters. The first mini-batch need not be
        # scored: its update computes the same log-probabilities itself.
        old = [_unmoved(first), *(self.score(state.params, batch) for batch in others)]
        metrics = []
        for batch, old_logp_IT in zip(mini_batches, old, strict=True):
            state, sums = self.update(state, reference_params, batch, old_logp_IT)
            metrics.append(sums)
        step, own, total = self.finish(
            step=state.step, student=state.params, own=state.teacher, metrics=metrics
        )
        return state._replace(step=step, teacher=own), total


@jax.jit
def _unmoved(batch: MicroBatches) -> Array:
    return sharding.constrain(jnp.full(batch.mask_IT.shape, UNMOVED), "XX")


def finish(
    teacher: Teacher, *, step: Array, student: Any, own: Any, metrics: list[dict[str, Sum]]
) -> tuple[Array, Any, dict[str, Sum]]:
    """(steps taken, the teacher's own parameters, metrics) after the last update of a step.

    The teacher moves once, unless every update was skipped. Metrics are means over all updates:
    `skipped` is the fraction of them that was skipped.
    """
    total = {
        name: functools.reduce(Sum.add, [sums[name] for sums in metrics]) for name in metrics[0]
    }
    has_moved = total["skipped"].total < total["skipped"].weight
    moved = moved_teacher(teacher, own, student, step)
    moved = jax.tree.map(lambda new, old: jnp.where(has_moved, new, old), moved, own)
    return step + 1, sharding.constrain_parameters(moved), with_quantiles(total)


def with_quantiles(metrics: dict[str, Sum]) -> dict[str, Sum]:
    """The metrics of a whole step: what is read from histograms instead of these."""
    names = [histogram_of(name) for name in (SAMPLER_GAP, *OF_FORKS)]
    gap, student, reference = (metrics.get(name) for name in names)
    found = {name: value for name, value in metrics.items() if name not in names}
    if gap is not None:
        found |= _from_histogram(gap_quantiles(gap.total), gap)
    if student is not None and reference is not None:
        found |= _from_histogram(fork_rates(student.total, reference.total), student)
    return found


def _from_histogram(values: dict[str, Array], histogram: Sum) -> dict[str, Sum]:
    has_tokens = jnp.float32(histogram.weight > 0)  # without any, they are NaN as the mean is
    return {name: Sum(value, has_tokens) for name, value in values.items()}
