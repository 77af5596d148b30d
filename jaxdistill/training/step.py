"""The one jitted train step that every algorithm shares.

Self-distillation, GRPO and supervised training differ only in the objective and in the batch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    FullVocabulary,
    Objective,
    distill_of,
    factors,
    make_objective,
    make_scores,
    needs_contrast,
    needs_reference,
    needs_teacher,
    needs_whole_batch,
    reduced,
)
from jaxdistill.objectives.importance import SAMPLER_GAP
from jaxdistill.objectives.metrics import OF_FORKS
from jaxdistill.precision import compute_dtype
from jaxdistill.training import memory
from jaxdistill.training.chunked_objective import (
    ChunkOptions,
    HiddenAndHead,
    OtherNetworks,
    PositionData,
    chunked_objective,
    chunked_scores,
)
from jaxdistill.training.compute import Compute
from jaxdistill.training.metrics import Sum
from jaxdistill.training.micro_batches import (
    MicroBatch,
    MicroBatches,
    PerSequence,
    RowData,
    aligned,
    fold,
    map_rows,
)
from jaxdistill.training.networks import NeededNetworks, Networks, score_batch
from jaxdistill.training.optimizer import Optimizer, at_step, make_optimizer, on_device, on_host
from jaxdistill.training.state import TrainState
from jaxdistill.training.teachers import (
    Models,
    Teacher,
    moved_teacher,
    networks_of,
    untrained_of,
)
from jaxdistill.training.tpu_options import JittedForPlatform
from jaxdistill.training.updates import SeveralUpdates, finish, with_quantiles

# The rematerialisation policies that "auto" tries, in this order. "none" is not among them:
# "elementwise" already recomputes no matrix multiplication, and "none" needs far more memory.
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
    teacher_temperature: float | None = None,
    updates: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, Sum]]]:
    """Build the jitted step(state, reference_params, batch) -> (state, metrics); state is donated.

    With a teacher that is another model, `reference_params` are an `Untrained` that holds both.

    The batch is a `MicroBatches` from `batch.pad` or `batch.pack`; one program serves both layouts.
    With several `updates` the step takes that many mini-batches instead, and updates the student
    once for each (`SeveralUpdates`).

    The teacher (under its context) and the reference (the initial model under the student's prompt)
    score the same completion tokens as the student; target, divergence and weights see only aligned
    positions. Gradients of the weighted sum are accumulated over micro-batches and divided once.

    `temperature` divides the logits of every network, and `teacher_temperature`, if given, those of
    the teacher and its contrasts instead.

    The step raises UserError while it is traced: for an epistemic id outside the vocabulary, and
    for a recipe's own teacher or choice that returns something unusable.
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
        teacher_temperature=teacher_temperature,
        updates=updates,
    )

    def with_remat(remat: Remat) -> _Program:
        return replace(program, compute=replace(compute, remat=remat))

    def build(remat: Remat) -> Any:
        return JittedForPlatform(with_remat(remat).step, donate_argnums=0)

    if compute.remat != "auto":
        update = build(compute.remat)
    elif (limit := memory.memory_limit()) is None:
        # CPUs report no limit. Their memory is plentiful and their time is not: recompute nothing.
        update = build("none")
    else:
        update = memory.FirstThatFits(build, AUTO, limit)
    if updates == 1:
        return update
    return SeveralUpdates(
        # Without a backward pass there is nothing to recompute.
        score=JittedForPlatform(with_remat("none").token_logp),
        update=update,
        finish=jax.jit(functools.partial(finish, teacher), donate_argnames="own"),
    )


@dataclass(frozen=True)
class _Program:
    """The static settings of a step, and the program that is traced with them."""

    model: ModelConfig
    objective: Objective
    epistemic_ids: tuple[int, ...]
    optimizer: Optimizer
    teacher: Teacher
    compute: Compute
    steps: int
    temperature: float
    track_reference: bool
    teacher_temperature: float | None
    updates: int

    def step(
        self,
        state: TrainState,
        reference_params: Any,
        batch: MicroBatches,
        old_logp_IT: Float[Array, "I T"] | None = None,
    ) -> tuple[TrainState, dict[str, Sum]]:
        """One update. With several per step it is not the end of one: see `SeveralUpdates`."""
        networks = self._networks(state, reference_params, batch)
        mask_IT = batch.mask_IT
        data, denominator = self._row_data(batch, state.step)
        data = data._replace(old_logp_IT=old_logp_IT).replicated()
        sequences, weight_IT = data.sequences, data.weight_IT
        if needs_whole_batch(self.objective):
            # A forward pass over every micro-batch before the first gradient: these weights depend
            # on the scores of all positions, so a micro-batch cannot compute its own.
            scores_IT = map_rows(lambda m: self._scores(networks, *aligned(batch, data, m)), batch)
            rows_IT = sequences.spread(lambda x_I: jnp.broadcast_to(x_I[:, None], mask_IT.shape))
            found = factors(self.objective, scores_IT, weight_IT, rows_IT)
            data = data.with_factors(found).replicated()
        sums = fold(lambda m: self._gradient(networks, *aligned(batch, data, m)), batch)
        return self._update(state, denominator, *sums)

    def token_logp(self, params: Any, batch: MicroBatches) -> Float[Array, "I T"]:
        """The student's log-probability of every sampled token, in nats; 0 at padding."""
        weights = parameters.stack(params, self.model, dtype=compute_dtype(self.compute.dtype))
        networks = Networks(weights, teacher=(), reference=None)
        alone = NeededNetworks(teacher=False, reference=False, contrast=False)
        # The scores read none of the rows' data, whose step may therefore be any.
        data = self._row_data(batch, jnp.zeros((), jnp.int32))[0].replicated()

        def scores(m: Any) -> Any:
            micro, at_positions = aligned(batch, data, m)
            scored = score_batch(
                self.model, self.compute, networks, micro, needed=alone, has_gradient=False
            )
            return chunked_scores(
                lambda positions: positions.of_token(positions.student_logp_BTV),
                *scored,
                at_positions,
                self._chunks(),
            )

        return sharding.constrain(map_rows(scores, batch), "XX")

    def _row_data(self, batch: MicroBatches, step: Array) -> tuple[RowData, Float[Array, ""]]:
        """The data of a batch's sequences, and the divisor of the sum of their losses."""
        weight_IT, denominator, distill_weight_I = reduced(
            self.objective, batch.mask_IT, batch.row_weight_I
        )
        sequences = PerSequence(
            advantage_I=batch.advantage_I,
            correct_I=batch.correct_I,
            distill_weight_I=distill_weight_I,
            length_I=batch.length_I,
            step_I=jnp.broadcast_to(step, distill_weight_I.shape),
        )
        return RowData(sequences, batch.contrast_weight_IJ, weight_IT), denominator

    def _networks(self, state: TrainState, reference_params: Any, batch: MicroBatches) -> Networks:
        """All parameters of the step; the student's are cast to the compute dtype here.

        The cast is done once per step because every micro-batch reads them. The other networks are
        cast where they are read, and so is the student for gradients in float32.
        """
        is_wide = self.compute.gradients == "float32"
        dtype = jnp.float32 if is_wide else compute_dtype(self.compute.dtype)
        weights = parameters.stack(
            state.params,
            self.model,
            dtype=dtype,
            fuse_in_passes=not is_wide and self._casts_in_passes(batch),
        )
        reference, external = untrained_of(reference_params)
        models = Models(weights, reference, state.teacher, state.step, external)
        return Networks(weights, networks_of(self.teacher, models), reference)

    def _casts_in_passes(self, batch: MicroBatches) -> bool:
        """Whether every pass casts a layer's weights when it reaches the layer.

        On one GPU its passes copy a layer's weights in any case, so that with one micro-batch this
        is less traffic, and 2 bytes per parameter are not held (docs/log.md, 2026-12-01).
        """
        is_one_gpu = sharding.platform() == "gpu" and sharding.num_devices() == 1
        return is_one_gpu and batch.is_single

    @property
    def reads_reference(self) -> bool:
        return needs_reference(self.objective) or self.track_reference

    def _score_batch(
        self, networks: Networks, micro: MicroBatch, *, has_gradient: bool
    ) -> tuple[HiddenAndHead, OtherNetworks]:
        needed = NeededNetworks(
            teacher=needs_teacher(self.objective),
            reference=self.reads_reference,
            contrast=needs_contrast(self.objective),
        )
        return score_batch(
            self.model, self.compute, networks, micro, needed=needed, has_gradient=has_gradient
        )

    def _scores(self, networks: Networks, micro: MicroBatch, data: PositionData) -> Any:
        """The scores that batch-wide weights need of each position, without a gradient."""
        score_fn = make_scores(self.objective, self.epistemic_ids)
        scored = self._score_batch(networks, micro, has_gradient=False)
        return chunked_scores(score_fn, *scored, data, self._chunks())

    def _gradient(self, networks: Networks, micro: MicroBatch, data: PositionData) -> Any:
        """((loss, metrics), gradients), summed over the positions of a micro-batch."""
        objective_fn = make_objective(self.objective, self.epistemic_ids)

        # With respect to the cast, stacked weights. `_update` takes the gradients back to the
        # float32 parameters' layout once, after all micro-batches.
        def total_loss(weights):
            weights = weights._replace(unfused=networks.student.unfused)
            scored = self._score_batch(networks._replace(student=weights), micro, has_gradient=True)
            with jax.named_scope("step/loss"):
                return chunked_objective(objective_fn, *scored, data, self._chunks())

        of = networks.student._replace(unfused=None)
        return jax.value_and_grad(total_loss, has_aux=True)(of)

    def _chunks(self) -> ChunkOptions:
        return ChunkOptions(
            chunk=self.compute.chunk,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
            histograms=(SAMPLER_GAP, *(OF_FORKS if self.reads_reference else ())),
            vocab_size=self.model.vocab_size,
            separate_passes=self._separates_passes,
        )

    @property
    def _separates_passes(self) -> bool:
        """Whether loss and derivatives over the vocabulary are computed in separate passes.

        Where they are elementwise it takes less memory and traffic: with the same day's other
        changes a step of 4 x 4,096 tokens takes 2.9 % less time on an H200 and 3.2 GiB less memory
        (docs/log.md, 2026-12-01). Other supports would choose their tokens again in each pass.
        """
        distill = distill_of(self.objective)
        is_elementwise = distill is not None and isinstance(distill.support, FullVocabulary)
        return is_elementwise and sharding.platform() == "gpu"

    def _update(
        self, state: TrainState, denominator: Array, sums: Any, grads: Any
    ) -> tuple[TrainState, dict[str, Sum]]:
        """Divide the sums once, then update student, optimizer state and teacher."""
        total, metrics = sums
        with jax.named_scope("step/update"):
            # The floor keeps 0/0 away in a batch with no distilled row, whose sums are 0 too.
            scale = 1.0 / jnp.maximum(denominator, 1.0)
            grads = parameters.unstack_gradients(grads, state.params, self.model)
            grads = jax.tree.map(lambda g: g * scale, grads)
            if self.optimizer.moments_on == "host":
                state = state._replace(opt_state=on_device(state.opt_state))
            norm = optax.global_norm(grads)
            transform = make_optimizer(self.optimizer, self.steps)
            opt_state = at_step(state.opt_state, state.step)
            changes, opt_state = transform.update(grads, opt_state, state.params)
            params = optax.apply_updates(state.params, changes)
            moved = TrainState(state.step, params, opt_state, state.teacher)
            is_whole_step = self.updates == 1
            if is_whole_step:
                own = moved_teacher(self.teacher, state.teacher, params, state.step)
                moved = moved._replace(teacher=own)
            # A non-finite loss or gradient skips the whole update, the teacher's included, as in
            # the paper's code. Optax's `apply_if_finite` would skip only the student's.
            is_finite = jnp.isfinite(norm) & jnp.isfinite(total)
            moved = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, state)
            # Without the constraint the compiler may choose another sharding for the new state, and
            # the next step would be compiled and copied again.
            moved = sharding.constrain_parameters(moved)._replace(
                step=state.step + int(is_whole_step)
            )
        if self.optimizer.moments_on == "host":
            moved = moved._replace(opt_state=on_host(moved.opt_state))
        metrics = metrics | {
            "loss": Sum(total, denominator),
            "grad_norm": Sum(norm, jnp.float32(1)),
            "skipped": Sum(1.0 - is_finite, jnp.float32(1)),
        }
        return moved, with_quantiles(metrics) if is_whole_step else metrics
