"""The one jitted step that every algorithm shares.

Self-distillation, GRPO and supervised training differ in the objective and in the batch alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

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
from jaxdistill.training import memory, packed_batch
from jaxdistill.training.batch import Batch, samples_of, spread
from jaxdistill.training.chunked_objective import (
    ChunkOptions,
    HiddenAndHead,
    OtherNetworks,
    chunked_objective,
    chunked_scores,
)
from jaxdistill.training.compute import Compute
from jaxdistill.training.metrics import Sum
from jaxdistill.training.networks import NeededNetworks, Networks, networks_of, score_batch
from jaxdistill.training.optimizer import Optimizer, make_optimizer, on_device, on_host
from jaxdistill.training.packed_batch import Packed
from jaxdistill.training.state import TrainState
from jaxdistill.training.teachers import Teacher, TrustRegion, moved_teacher

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
    program = _Program(
        model=model,
        objective=objective,
        epistemic_ids=epistemic_ids,
        optimizer=optimizer,
        teacher=teacher,
        compute=compute,
        steps=steps,
        temperature=temperature,
        track_reference=track_reference,
    )

    def build(remat: Remat) -> Any:
        chosen = replace(program, compute=replace(compute, remat=remat))
        return jax.jit(chosen.packed_step if compute.pack else chosen.step, donate_argnums=0)

    if compute.remat != "auto":
        return build(compute.remat)
    limit = memory.memory_limit()
    # None on a CPU, where memory is plenty and time is not.
    return build("none") if limit is None else memory.FirstThatFits(build, AUTO, limit)


@dataclass(frozen=True)
class _Program:
    """The settings of a step, static, and the programs that are traced with them."""

    model: ModelConfig
    objective: Objective
    epistemic_ids: tuple[int, ...]
    optimizer: Optimizer
    teacher: Teacher
    compute: Compute
    steps: int
    temperature: float
    track_reference: bool

    def step(
        self, state: TrainState, reference_params: Any, batch: Batch
    ) -> tuple[TrainState, dict[str, Sum]]:
        """The step of a batch whose rows are padded to the longest."""
        weight_BT, denominator, distill_weight_B = reduced(
            self.objective, batch.completion_mask_BT, batch.row_weight_B
        )
        sampled, rows = samples_of(batch, distill_weight_B, state.step)
        weights, networks = self._networks(state, reference_params)
        parts = self.compute.micro_batches
        if needs_whole_batch(self.objective):
            score = functools.partial(self._scores, weights, networks)
            scores = _map_parts(score, (batch, sampled, rows), parts)
            distill_BT, gradient_BT = factors(self.objective, scores, weight_BT, rows)
            sampled = sampled._replace(distill_factor_BT=distill_BT, gradient_factor_BT=gradient_BT)
        gradient = functools.partial(self._gradient, weights, networks)
        sums = _accumulate(gradient, (batch, weight_BT, sampled, rows), parts)
        return self._update(state, denominator, *sums)

    def packed_step(
        self, state: TrainState, reference_params: Any, batch: Packed
    ) -> tuple[TrainState, dict[str, Sum]]:
        """The step of a batch whose rows stand one after another in packed rows."""
        weights, networks = self._networks(state, reference_params)
        mask_IT = packed_batch.rows_mask(batch)
        weight_IT, denominator, distill_weight_I = reduced(
            self.objective, mask_IT, batch.row_weight_I
        )
        rows_I = Rows(
            advantage_BT=batch.advantage_I,
            correct_BT=batch.correct_I,
            distill_weight_BT=distill_weight_I,
            length_BT=batch.length_I,
            step_BT=jnp.broadcast_to(state.step, distill_weight_I.shape),
        )
        data = packed_batch.RowData(rows_I, batch.contrast_weight_IJ, weight_IT).on_every_device()
        if needs_whole_batch(self.objective):

            def scores(m):
                micro, _, sampled, rows = packed_batch.aligned(batch, data, m)
                return self._scores(weights, networks, micro, sampled, rows)

            rows_IT = spread(rows_I, mask_IT.shape)
            scores_IT = packed_batch.map_rows(scores, batch)
            distill_IT, gradient_IT = factors(self.objective, scores_IT, weight_IT, rows_IT)
            data = data._replace(distill_factor_IT=distill_IT, gradient_factor_IT=gradient_IT)
            data = data.on_every_device()

        def gradient(m):
            return self._gradient(weights, networks, *packed_batch.aligned(batch, data, m))

        return self._update(state, denominator, *packed_batch.fold(gradient, batch))

    def _networks(self, state: TrainState, reference_params: Any) -> tuple[Any, Networks]:
        """The student's weights, rounded once per step, and the other networks'.

        Those are rounded where they are read.
        """
        weights = parameters.stack(state.params, self.model, dtype=jnp.dtype(self.compute.dtype))
        student = state._replace(params=weights)
        return weights, networks_of(self.teacher, student, reference_params)

    def _score_batch(self, weights, networks, batch) -> tuple[HiddenAndHead, OtherNetworks]:
        needed = NeededNetworks(
            teacher=needs_teacher(self.objective),
            reference=needs_reference(self.objective) or self.track_reference,
            contrast=needs_contrast(self.objective),
        )
        return score_batch(self.model, self.compute, weights, networks, batch, needed=needed)

    def _chunks(self) -> ChunkOptions:
        mix = self.teacher.mix if isinstance(self.teacher, TrustRegion) else None
        return ChunkOptions(
            chunk=self.compute.chunk,
            temperature=self.temperature,
            teacher_mix=(1.0,) if mix is None else (1 - mix, mix),
        )

    def _scores(self, weights, networks, batch, sampled, rows) -> Any:
        """What weights of the whole batch need to know of each position, without a gradient."""
        student, others = self._score_batch(weights, networks, batch)
        score_fn = make_scores(self.objective, self.epistemic_ids)
        return chunked_scores(score_fn, student, others, sampled, rows=rows, options=self._chunks())

    def _gradient(self, weights, networks, batch, weight_BT, sampled, rows) -> Any:
        """((loss, metrics), gradients), summed over the positions of a micro-batch."""

        def total_loss(weights):
            student, others = self._score_batch(weights, networks, batch)
            return chunked_objective(
                objective_fn=make_objective(self.objective, self.epistemic_ids),
                student=student,
                others=others,
                sampled=sampled,
                rows=rows,
                mask_BT=batch.completion_mask_BT,
                loss_weight_BT=weight_BT,
                options=self._chunks(),
            )

        return jax.value_and_grad(total_loss, has_aux=True)(weights)

    def _update(
        self, state: TrainState, denominator: Array, sums: Any, grads: Any
    ) -> tuple[TrainState, dict[str, Sum]]:
        """Divide the sums once, and move student, optimizer and teacher."""
        total, metrics = sums
        with jax.named_scope("optimizer"):
            scale = 1.0 / jnp.maximum(denominator, 1.0)
            grads = parameters.unstack_gradients(grads, state.params, self.model)
            grads = jax.tree.map(lambda g: g * scale, grads)
            if self.optimizer.moments_on == "host":
                state = state._replace(opt_state=on_device(state.opt_state))
            norm = optax.global_norm(grads)
            transform = make_optimizer(self.optimizer, self.steps)
            updates, opt_state = transform.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            teacher_params = moved_teacher(self.teacher, state.teacher, params, state.step)
            moved = TrainState(
                step=state.step, params=params, opt_state=opt_state, teacher=teacher_params
            )
            # A non-finite gradient skips the update whole, the teacher's too, as in the paper's
            # code. Optax's `apply_if_finite` would skip the student's alone.
            is_finite = jnp.isfinite(norm)
            moved = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, state)
            # Else the compiler may choose other places, and the next step compiles and copies anew.
            moved = sharding.constrain_parameters(moved)._replace(step=state.step + 1)
        if self.optimizer.moments_on == "host":
            moved = moved._replace(opt_state=on_host(moved.opt_state))
        return moved, metrics | {
            "loss": Sum(total, denominator),
            "grad_norm": Sum(norm, jnp.float32(1)),
            "skipped": Sum(1.0 - jnp.isfinite(norm), jnp.float32(1)),
        }


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
