"""The train state and the one jitted step that every algorithm shares.

Self-distillation, GRPO and supervised training differ in the objective and in the batch alone.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdistill import sharding
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.remat import Remat
from jaxdistill.objectives import (
    Objective,
    Rows,
    factors,
    make_objective,
    make_scores,
    needs_contrast,
    needs_reference,
    needs_teacher,
    needs_whole_batch,
    reduced,
)
from jaxdistill.training import chunked_objective as scoring
from jaxdistill.training import memory as fitting
from jaxdistill.training import packed_batch as packs
from jaxdistill.training.batch import Batch, samples_of, spread
from jaxdistill.training.compute import Compute
from jaxdistill.training.metrics import Sum
from jaxdistill.training.networks import NeededNetworks, networks_of, score_batch
from jaxdistill.training.optimizer import Optimizer, make_optimizer, on_device, on_host
from jaxdistill.training.packed_batch import Packed
from jaxdistill.training.state import TrainState
from jaxdistill.training.teachers import Teacher, TrustRegion, moved_teacher

# ------------------------------------------------------------------------------------ configs


# -------------------------------------------------------------------------------------- state


# --------------------------------------------------------------------------------------- step


# What "auto" tries, in this order. Not "none": what it keeps beyond these is much memory, and no
# product of matrices is computed again without it.
AUTO: tuple[Remat, ...] = ("elementwise", "mlp", "projections", "all")


@functools.lru_cache(maxsize=64)  # runs of one process with equal configs share a compilation
def make_train_step(
    model: ModelConfig,
    objective: Objective,
    epistemic_ids: tuple[int, ...],
    optimizer: Optimizer,
    teacher: Teacher,
    compute: Compute,
    steps: int,
    temperature: float,
    track_reference: bool,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, Sum]]]:
    """Build jitted step(state, reference_params, batch) -> (state, metrics). The state is donated.

    The batch is a `Batch`, or with `compute.pack` a `Packed`, of any number of micro-batches.

    Teacher (under its context) and reference (the initial model under the student's prompt) score
    the same completion tokens as the student; target, divergence and weight see aligned positions
    only. Gradients of the weighted SUM are accumulated over micro-batches and divided once.
    """
    if compute.remat == "auto":
        build = lambda remat: make_train_step(  # noqa: E731
            model, objective, epistemic_ids, optimizer, teacher, replace(compute, remat=remat),
            steps, temperature, track_reference,
        )  # fmt: skip
        limit = fitting.memory_limit()
        # None on a CPU, where memory is plenty and time is not.
        return build("none") if limit is None else fitting.FirstThatFits(build, AUTO, limit)
    objective_fn = make_objective(objective, epistemic_ids)
    transform = make_optimizer(optimizer, steps)
    mix = (1 - teacher.mix, teacher.mix) if isinstance(teacher, TrustRegion) else (1.0,)
    options = scoring.ChunkOptions(compute.chunk, temperature, mix)
    score = functools.partial(
        score_batch, model, compute, needed=NeededNetworks(
            needs_teacher(objective), needs_reference(objective) or track_reference,
            needs_contrast(objective),
        )
    )  # fmt: skip

    def total_loss(weights, networks, batch, weight_BT, sampled, rows):
        student, others = score(weights, networks, batch)
        return scoring.chunked_objective(
            objective_fn,
            student,
            others,
            sampled,
            rows,
            batch.completion_mask_BT,
            weight_BT,
            options,
        )

    def batch_scores(weights, networks, batch, sampled, rows):
        student, others = score(weights, networks, batch)
        score_fn = make_scores(objective, epistemic_ids)
        return scoring.chunked_scores(score_fn, student, others, sampled, rows, options)

    gradient = jax.value_and_grad(total_loss, has_aux=True)

    def prepared(state: TrainState, reference_params: Any):
        # The student's, once a step; other networks are rounded where they are read.
        weights = parameters.stack(state.params, model, dtype=jnp.dtype(compute.dtype))
        return weights, networks_of(teacher, state._replace(params=weights), reference_params)

    def packed_step(state: TrainState, reference_params: Any, batch: Packed):
        weights, networks = prepared(state, reference_params)
        mask_IT = packs.rows_mask(batch)
        weight_IT, denominator, distill_weight_I = reduced(objective, mask_IT, batch.row_weight_I)
        rows_I = Rows(
            batch.advantage_I, batch.correct_I, distill_weight_I, batch.length_I,
            jnp.broadcast_to(state.step, distill_weight_I.shape),
        )  # fmt: skip
        of_rows = packs.RowData(rows_I, batch.contrast_weight_IJ, weight_IT).on_every_device()
        if needs_whole_batch(objective):

            def scores(m):
                micro, _, sampled, rows = packs.aligned(batch, of_rows, m)
                return batch_scores(weights, networks, micro, sampled, rows)

            rows_IT = spread(rows_I, mask_IT.shape)
            both = factors(objective, packs.map_rows(scores, batch), weight_IT, rows_IT)
            of_rows = packs.RowData(*of_rows[:3], *both).on_every_device()

        def sums(m):
            return gradient(weights, networks, *packs.aligned(batch, of_rows, m))

        return updated(state, denominator, *packs.fold(sums, batch))

    def step(state: TrainState, reference_params: Any, batch: Batch):
        weight_BT, denominator, distill_weight_B = reduced(
            objective, batch.completion_mask_BT, batch.row_weight_B
        )
        sampled, rows = samples_of(batch, distill_weight_B, state.step)
        weights, networks = prepared(state, reference_params)
        if needs_whole_batch(objective):
            scores = functools.partial(batch_scores, weights, networks)
            scores = _map_parts(scores, (batch, sampled, rows), compute.micro_batches)
            distill_BT, gradient_BT = factors(objective, scores, weight_BT, rows)
            sampled = sampled._replace(distill_factor_BT=distill_BT, gradient_factor_BT=gradient_BT)
        parts = batch, weight_BT, sampled, rows
        sums = functools.partial(gradient, weights, networks)
        return updated(state, denominator, *_accumulate(sums, parts, compute.micro_batches))

    def updated(state: TrainState, denominator, sums, grads):
        total, metrics = sums
        scale = 1.0 / jnp.maximum(denominator, 1.0)
        grads = parameters.unstack_gradients(grads, state.params, model)
        grads = jax.tree.map(lambda g: g * scale, grads)
        if optimizer.moments_on == "host":
            state = state._replace(opt_state=on_device(state.opt_state))
        moved, norm = _updated(transform, teacher, state, grads)
        if optimizer.moments_on == "host":
            moved = moved._replace(opt_state=on_host(moved.opt_state))
        metrics = metrics | {
            "loss": Sum(total, denominator),
            "grad_norm": Sum(norm, jnp.float32(1)),
            "skipped": Sum(1.0 - jnp.isfinite(norm), jnp.float32(1)),
        }
        return moved, metrics

    return jax.jit(packed_step if compute.pack else step, donate_argnums=0)


def _updated(
    transform: optax.GradientTransformation, teacher: Teacher, state: TrainState, grads: Any
) -> tuple[TrainState, Float[Array, ""]]:
    """The state after a step, and the gradient's norm."""
    norm = optax.global_norm(grads)
    updates, opt_state = transform.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    moved = TrainState(
        state.step, params, opt_state, moved_teacher(teacher, state.teacher, params, state.step)
    )
    # A non-finite gradient skips the update whole, the teacher's too, as in the paper's code.
    is_finite = jnp.isfinite(norm)
    moved = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, state)
    # Else the compiler may choose other places, and the next step compiles and copies anew.
    moved = sharding.constrain_parameters(moved)
    return moved._replace(step=state.step + 1), norm


def _deal(inputs: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]: part i takes rows i, i + parts, and so on.

    Every device then holds its share of every part.
    """

    def deal(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(deal, inputs)


def _map_parts(function: Callable, inputs: Any, parts: int) -> Any:
    """`function` over micro-batches of the leading axis, its rows back in their places."""
    if parts == 1:
        return function(*inputs)
    outputs = jax.lax.map(lambda part: function(*part), _deal(inputs, parts))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), outputs)


def _accumulate(sums: Callable, inputs: Any, parts: int) -> Any:
    """Add `sums` over micro-batches of the leading axis, in float32; one part is no loop."""
    if parts == 1:
        return sums(*inputs)
    split = _deal(inputs, parts)

    def body(carry, part):
        return jax.tree.map(jnp.add, carry, sums(*part)), None

    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(sums, *jax.tree.map(lambda x: x[0], split)),
    )
    return jax.lax.scan(body, zero, split)[0]
