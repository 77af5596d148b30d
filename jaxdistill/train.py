"""The train state and the one jitted step that every algorithm shares.

Self-distillation, GRPO and supervised training differ in the objective and in the batch alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdistill import scoring, sharding
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError
from jaxdistill.metrics import Sum
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import Objective, make_objective, needs_reference, needs_teacher

# ------------------------------------------------------------------------------------ configs


@dataclass(frozen=True)
class Frozen:
    """The teacher keeps the initial parameters (the paper's main setting)."""


@dataclass(frozen=True)
class EMA:
    """T <- (1 - rate) T + rate S after every step (arXiv 2603.24472, section 5.4)."""

    rate: float = 0.05

    def __post_init__(self):
        if not 0.0 < self.rate <= 1.0:
            raise UserError(f"`rate` must lie in (0, 1], got {self.rate}; use Frozen() for 0")


@dataclass(frozen=True)
class Snapshot:
    """The teacher is the student after every `every`-th step, and held until the next."""

    every: int = 50

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"`every` must be at least 1 step, got {self.every}")


@dataclass(frozen=True)
class Live:
    """The teacher is the student itself, as it is at each step; no gradient passes through it."""


Teacher = Frozen | EMA | Snapshot | Live


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up from 0 and global-norm clipping.

    As in the paper's code the first of `warmup_steps` steps has learning rate 0, and decay acts on
    all parameters.
    """

    peak_lr: float = 1e-5
    warmup_steps: int = 10
    schedule: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.warmup_steps < 0 or self.clip_norm <= 0:
            raise UserError(
                "`warmup_steps` must be >= 0 and `clip_norm` > 0, got "
                f"{self.warmup_steps} and {self.clip_norm}"
            )


@dataclass(frozen=True)
class Compute:
    """How a step is computed; none of it changes what is computed, beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul inputs; master is float32
    chunk: int = 512  # completion positions whose logits live at once
    micro_batches: int = 1
    remat: bool = False
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # see `causal_attention`

    def __post_init__(self):
        if self.chunk < 1:
            raise UserError(f"`chunk` must be at least 1, got {self.chunk}")


# -------------------------------------------------------------------------------------- state


class TrainState(NamedTuple):
    step: Int[Array, ""]
    params: Any
    opt_state: Any
    teacher: Any  # None where it has no parameters of its own: the reference's, the student's


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


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    warm = optax.linear_schedule(0.0, config.peak_lr, max(config.warmup_steps, 1))
    after = (
        optax.constant_schedule(config.peak_lr)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(config.peak_lr, max(steps - config.warmup_steps, 1))
    )
    schedule = optax.join_schedules([warm, after], [config.warmup_steps])
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay),
    )


def init_state(params: Any, optimizer: Optimizer, teacher: Teacher, steps: int) -> TrainState:
    """The state before the first step. A teacher of its own starts as a copy of the student."""
    moving = isinstance(teacher, EMA | Snapshot)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        # Copies: the step donates its state, and the reference must survive that.
        params=jax.tree.map(jnp.copy, params),
        # Not jitted: zeros made eagerly lie as their parameters do, jit would replicate them.
        opt_state=make_optimizer(optimizer, steps).init(params),
        teacher=jax.tree.map(jnp.copy, params) if moving else None,
    )


# --------------------------------------------------------------------------------------- step


def loss_weights(
    mask_BT: Int[AnyArray, "B T"], row_weight_B: Float[AnyArray, " B"], reduction: str
) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
    """Weights of positions, and the denominator that divides their sum once.

    `token`: the mean over the distilled tokens of the whole batch. `sequence`: the mean over ALL
    rows, undistilled ones as zeros, of each row's token mean (what the paper's code computes).
    """
    mask_BT = jnp.asarray(mask_BT, jnp.float32)
    if reduction == "token":
        weight_BT = mask_BT * row_weight_B[:, None]
        return weight_BT, weight_BT.sum()
    length_B = jnp.maximum(mask_BT.sum(axis=1), 1.0)
    return mask_BT * (row_weight_B / length_B)[:, None], jnp.float32(mask_BT.shape[0])


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
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Sum]]]:
    """Build jitted step(state, reference_params, batch) -> (state, metrics). The state is donated.

    Teacher (under its context) and reference (the initial model under the student's prompt) score
    the same completion tokens as the student; target, divergence and weight see aligned positions
    only. Gradients of the weighted SUM are accumulated over micro-batches and divided once.
    """
    objective_fn = make_objective(objective, epistemic_ids)
    has_teacher = needs_teacher(objective)
    has_reference = needs_reference(objective) or track_reference
    transform = make_optimizer(optimizer, steps)
    dtype = jnp.dtype(compute.dtype)

    def hidden(params, prompt_ids_BP, prompt_mask_BP, batch):
        return scoring.completion_hidden(
            params, model, prompt_ids_BP, prompt_mask_BP, batch.completion_ids_BT,
            batch.completion_mask_BT, dtype=dtype, remat=compute.remat,
            attention=compute.attention,
        )  # fmt: skip

    def total_loss(params, teacher_params, reference_params, batch, weight_BT):
        def scored(params, ids_BP, mask_BP):
            return hidden(params, ids_BP, mask_BP, batch), decoder.head(params, model)

        student = scored(params, batch.prompt_ids_BP, batch.prompt_mask_BP)
        teacher_ = reference = None
        if has_teacher:
            teacher_ = scored(teacher_params, batch.teacher_ids_BP, batch.teacher_mask_BP)
        if has_reference:
            reference = scored(reference_params, batch.prompt_ids_BP, batch.prompt_mask_BP)
        loss, metrics = scoring.chunked_objective(
            objective_fn, student, teacher_, reference, batch.completion_ids_BT,
            batch.behaviour_logp_BT, batch.advantage_B, batch.completion_mask_BT, weight_BT,
            chunk=compute.chunk, temperature=temperature,
        )  # fmt: skip
        return loss.total, metrics

    def gradient_sums(state, reference_params, batch, weight_BT):
        teacher_params = reference_params if state.teacher is None else state.teacher
        if isinstance(teacher, Live):
            teacher_params = state.params
        gradient = jax.value_and_grad(total_loss, has_aux=True)
        (total, metrics), grads = gradient(
            state.params, teacher_params, reference_params, batch, weight_BT
        )
        return total, metrics, grads

    def step(state: TrainState, reference_params: Any, batch: Batch):
        weight_BT, denominator = loss_weights(
            batch.completion_mask_BT, batch.row_weight_B, objective.reduction
        )
        sums = functools.partial(gradient_sums, state, reference_params)
        total, metrics, grads = _accumulate(sums, (batch, weight_BT), compute.micro_batches)
        scale = 1.0 / jnp.maximum(denominator, 1.0)
        grads = jax.tree.map(lambda g: g * scale, grads)
        norm = optax.global_norm(grads)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moving = _moved_teacher(teacher, state, params)
        moved = TrainState(state.step, params, opt_state, moving)
        # A non-finite gradient skips the update whole, the teacher's too, as in the paper's code.
        is_finite = jnp.isfinite(norm)
        moved = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, state)
        metrics = metrics | {
            "loss": Sum(total, denominator),
            "grad_norm": Sum(norm, jnp.float32(1)),
            "skipped": Sum(1.0 - is_finite, jnp.float32(1)),
        }
        # Else the compiler may choose other places, and the next step compiles and copies anew.
        moved = sharding.constrain_parameters(moved)
        return moved._replace(step=state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def _moved_teacher(teacher: Teacher, state: TrainState, params: Any) -> Any:
    """The teacher after a step that led the student to `params`."""
    match teacher:
        case EMA(rate):
            return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, state.teacher, params)
        case Snapshot(every):
            is_due = (state.step + 1) % every == 0
            return jax.tree.map(lambda t, s: jnp.where(is_due, s, t), state.teacher, params)
        case Frozen() | Live():
            return state.teacher


def _accumulate(sums: Callable, inputs: Any, parts: int) -> Any:
    """Add `sums` over micro-batches of the leading axis; one part is no loop."""
    if parts == 1:
        return sums(*inputs)

    def deal(x):
        # Part i takes rows i, i + parts, ...: every device then holds its share of every part.
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    split = jax.tree.map(deal, inputs)

    def body(carry, part):
        return jax.tree.map(jnp.add, carry, sums(*part)), None

    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(sums, *jax.tree.map(lambda x: x[0], split)),
    )
    return jax.lax.scan(body, zero, split)[0]
