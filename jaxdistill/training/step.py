"""The train state and the one jitted step that every algorithm shares.

Self-distillation, GRPO and supervised training differ in the objective and in the batch alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.remat import Remat, RematChoice
from jaxdistill.objectives import (
    Objective,
    Rows,
    Sampled,
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
from jaxdistill.training import moments
from jaxdistill.training import packed_batch as packs
from jaxdistill.training.metrics import Sum
from jaxdistill.training.packed_batch import MicroBatch, Packed, Sequences

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


@dataclass(frozen=True)
class TrustRegion:
    """Logits (1 - mix) T + mix S: the initial model's, moved towards the student's as it is, both
    under the teacher's context (verl's `trust-region`; `dp_actor.py:51`). Two forwards.
    """

    mix: float = 0.05

    def __post_init__(self):
        if not 0.0 < self.mix < 1.0:
            raise UserError(
                f"`mix` must lie between 0 and 1, got {self.mix}; use Frozen() for 0, Live() for 1"
            )


Teacher = Frozen | EMA | Snapshot | Live | TrustRegion


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
    moments: Literal["float32", "bfloat16"] = "float32"  # as stored; see `moments.py`
    moments_on: Literal["device", "host"] = "device"  # between steps

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
    # Positions of a packed row of the student's; 0: a row each, padded to the longest (`packing`).
    pack: int = 0
    remat: RematChoice = "auto"  # what a layer's backward pass computes again
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # see `causal_attention`
    # Keys and values of samples; "int8" has half of bfloat16's bytes, and makes samples slightly
    # off-policy (`make_sampler`).
    cache_dtype: CacheDtype = "auto"

    def __post_init__(self):
        check_cache_dtype(self.cache_dtype)
        if self.chunk < 1:
            raise UserError(f"`chunk` must be at least 1, got {self.chunk}")
        if self.pack < 0:
            raise UserError(f"`pack` must be at least 0 (rows are padded), got {self.pack}")
        if self.pack and self.micro_batches != 1:
            raise UserError(
                f"`pack={self.pack}` makes as many micro-batches as the rows fill; leave "
                f"`micro_batches` at 1, got {self.micro_batches}"
            )


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
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    adamw = optax.chain(
        adam if config.moments == "float32" else moments.stored_in_bfloat16(adam),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def init_state(params: Any, optimizer: Optimizer, teacher: Teacher, steps: int) -> TrainState:
    """The state before the first step, in float32 whatever the parameters' dtype.

    A teacher of its own starts as a copy of the student.
    """
    moving = isinstance(teacher, EMA | Snapshot)

    def master(x):
        # A copy: the step donates its state, and the reference must survive that.
        return jnp.copy(x.astype(jnp.float32))

    students = jax.tree.map(master, params)
    # Not jitted: zeros made eagerly lie as their parameters do, jit would replicate them.
    opt_state = make_optimizer(optimizer, steps).init(students)
    if optimizer.moments_on == "host":
        moments.require_host_memory()
        opt_state = moments.on_host(opt_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=students,
        opt_state=opt_state,
        teacher=jax.tree.map(master, params) if moving else None,
    )


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
    plan = scoring.Plan(compute.chunk, temperature, mix)
    score = functools.partial(
        score_batch, model, compute, asks=Asked(
            needs_teacher(objective), needs_reference(objective) or track_reference,
            needs_contrast(objective),
        )
    )  # fmt: skip

    def total_loss(weights, networks, batch, weight_BT, sampled, rows):
        student, others = score(weights, networks, batch)
        return scoring.chunked_objective(
            objective_fn, student, others, sampled, rows, batch.completion_mask_BT, weight_BT, plan
        )

    def batch_scores(weights, networks, batch, sampled, rows):
        student, others = score(weights, networks, batch)
        score_fn = make_scores(objective, epistemic_ids)
        return scoring.chunked_scores(score_fn, student, others, sampled, rows, plan)

    gradient = jax.value_and_grad(total_loss, has_aux=True)

    def prepared(state: TrainState, reference_params: Any):
        # The student's, once a step; other networks are rounded where they are read.
        weights = decoder.stack(state.params, model, dtype=jnp.dtype(compute.dtype))
        return weights, networks_of(teacher, state._replace(params=weights), reference_params)

    def packed_step(state: TrainState, reference_params: Any, batch: Packed):
        weights, networks = prepared(state, reference_params)
        mask_IT = packs.rows_mask(batch)
        weight_IT, denominator, taught_I = reduced(objective, mask_IT, batch.row_weight_I)
        rows_I = Rows(
            batch.advantage_I, batch.correct_I, taught_I, batch.length_I,
            jnp.broadcast_to(state.step, taught_I.shape),
        )  # fmt: skip
        of_rows = packs.OfRows(rows_I, batch.contrast_weight_IJ, weight_IT).on_every_device()
        if needs_whole_batch(objective):

            def scores(m):
                micro, _, sampled, rows = packs.aligned(batch, of_rows, m)
                return batch_scores(weights, networks, micro, sampled, rows)

            rows_IT = spread(rows_I, mask_IT.shape)
            both = factors(objective, packs.map_rows(scores, batch), weight_IT, rows_IT)
            of_rows = packs.OfRows(*of_rows[:3], *both).on_every_device()

        def sums(m):
            return gradient(weights, networks, *packs.aligned(batch, of_rows, m))

        return updated(state, denominator, *packs.fold(sums, batch))

    def step(state: TrainState, reference_params: Any, batch: Batch):
        weight_BT, denominator, taught_B = reduced(
            objective, batch.completion_mask_BT, batch.row_weight_B
        )
        sampled, rows = samples_of(batch, taught_B, state.step)
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
        grads = decoder.unstack_gradients(grads, state.params, model)
        grads = jax.tree.map(lambda g: g * scale, grads)
        if optimizer.moments_on == "host":
            state = state._replace(opt_state=moments.on_device(state.opt_state))
        moved, norm = _updated(transform, teacher, state, grads)
        if optimizer.moments_on == "host":
            moved = moved._replace(opt_state=moments.on_host(moved.opt_state))
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
    moved = TrainState(state.step, params, opt_state, _moved_teacher(teacher, state, params))
    # A non-finite gradient skips the update whole, the teacher's too, as in the paper's code.
    is_finite = jnp.isfinite(norm)
    moved = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, state)
    # Else the compiler may choose other places, and the next step compiles and copies anew.
    moved = sharding.constrain_parameters(moved)
    return moved._replace(step=state.step + 1), norm


class Asked(NamedTuple):
    """Which networks score the samples beside the student."""

    teacher: bool
    reference: bool
    contrast: bool


class Networks(NamedTuple):
    """Parameters beside the student's; a teacher that is None has the reference's."""

    teacher: tuple[Any, ...]
    reference: Any


def networks_of(teacher: Teacher, state: TrainState, reference_params: Any) -> Networks:
    match teacher:
        case EMA() | Snapshot():
            return Networks((state.teacher,), reference_params)
        case Live():
            return Networks((state.params,), reference_params)
        case TrustRegion():
            return Networks((None, state.params), reference_params)
        case Frozen():
            return Networks((None,), reference_params)


class Prompt(NamedTuple):
    ids_BP: Int[AnyArray, "B P"]
    mask_BP: Int[AnyArray, "B P"]


def score_batch(
    model: ModelConfig,
    compute: Compute,
    params: Any,
    networks: Networks,
    batch: Batch | MicroBatch,
    *,
    asks: Asked,
) -> tuple[scoring.Scored, scoring.Others]:
    """Student and the others on the same completion tokens, each under its own prompt.

    Prompts that one network scores (a frozen teacher's and the reference's, a teacher's and its
    contrasts') go through it in one forward, as rows of one batch; packed rows one by one.
    """

    def scored(params, prompts: list) -> list[scoring.Scored]:
        head_DV = decoder.head(params, model)
        hiddens = hidden_of(
            params, model, prompts, batch,
            dtype=jnp.dtype(compute.dtype), remat=compute.remat, attention=compute.attention,
        )  # fmt: skip
        return [scoring.Scored(hidden_BTD, head_DV) for hidden_BTD in hiddens]

    plain = plain_prompt(batch)
    (student,) = scored(params, [plain])
    informed = informed_prompts(batch, asks)
    # The reference's network scores the plain prompt too where asked, in the same forward.
    of_reference = [*(informed if None in networks.teacher else []), *[plain] * asks.reference]
    said_by_reference = scored(networks.reference, of_reference)
    reference = said_by_reference.pop() if asks.reference else None
    by_network = [
        said_by_reference if teacher_params is None else scored(teacher_params, informed)
        for teacher_params in networks.teacher
    ]
    by_prompt = list(zip(*by_network, strict=True))
    return student, scoring.Others(
        teacher=by_prompt[0] if asks.teacher else (),
        reference=reference,
        contrasts=tuple(by_prompt[1:]),
        contrast_weight_BTJ=contrast_weights(batch) if asks.contrast else None,
    )


def hidden_of(
    params: Any, model: ModelConfig, prompts: list, batch: Batch | MicroBatch, **how: Any
) -> list[Float[Array, "B T D"]]:
    """The hidden states that predict the completions, under each of the prompts."""
    if isinstance(batch, Batch):
        return scoring.hidden_of_prompts(
            params, model, prompts, batch.completion_ids_BT, batch.completion_mask_BT, **how
        )
    num_positions = batch.completion_mask_BT.shape[1]
    return [
        scoring.packed_completion_hidden(
            params, model, tokens, lengths, batch.completion_lengths_BX, num_positions, **how
        )
        for tokens, lengths in prompts
    ]


def plain_prompt(batch: Batch | MicroBatch) -> Prompt | Sequences:
    """What the student sees, and the reference."""
    if isinstance(batch, MicroBatch):
        return batch.plain
    return Prompt(batch.prompt_ids_BP, batch.prompt_mask_BP)


def contrast_weights(batch: Batch | MicroBatch) -> Float[Array, "B T J"] | None:
    if isinstance(batch, MicroBatch):
        return batch.contrast_weight_BTJ
    assert batch.contrast_weight_BJ is not None
    (B, J), T = batch.contrast_weight_BJ.shape, batch.completion_ids_BT.shape[1]
    return jnp.broadcast_to(batch.contrast_weight_BJ[:, None, :], (B, T, J))


def informed_prompts(batch: Batch | MicroBatch, asks: Asked) -> list:
    """What the teacher sees: its own context first, then the J contrasts."""
    if not asks.teacher:
        return []
    if isinstance(batch, MicroBatch):
        assert batch.teacher is not None
        return [batch.teacher, *(batch.contrasts if asks.contrast else ())]
    assert batch.teacher_ids_BP is not None
    assert batch.teacher_mask_BP is not None
    prompts = [Prompt(batch.teacher_ids_BP, batch.teacher_mask_BP)]
    if asks.contrast:
        assert batch.contrast_ids_BJP is not None
        assert batch.contrast_mask_BJP is not None
        contrasts = batch.contrast_ids_BJP, batch.contrast_mask_BJP
        num = batch.contrast_ids_BJP.shape[1]
        prompts += [Prompt(*(x[:, j] for x in contrasts)) for j in range(num)]
    return prompts


def samples_of(batch: Batch, taught_B: Array, step: Array) -> tuple[Sampled, Rows]:
    """The batch as the objective sees it."""
    mask_BT = jnp.asarray(batch.completion_mask_BT, jnp.int32)
    index_BT = jnp.broadcast_to(jnp.arange(mask_BT.shape[1]), mask_BT.shape)
    correct_B = batch.correct_B
    sampled = Sampled(batch.completion_ids_BT, batch.behaviour_logp_BT, index_BT)
    rows_B = Rows(
        batch.advantage_B,
        jnp.zeros_like(taught_B) if correct_B is None else correct_B,
        taught_B,
        mask_BT.sum(axis=1),
        jnp.broadcast_to(step, taught_B.shape),
    )
    return sampled, spread(rows_B, mask_BT.shape)


def spread(rows_B: Rows, shape: tuple[int, ...]) -> Rows:
    """Each row's numbers at each of its positions."""
    return jax.tree.map(lambda x_B: jnp.broadcast_to(jnp.asarray(x_B)[:, None], shape), rows_B)


def _moved_teacher(teacher: Teacher, state: TrainState, params: Any) -> Any:
    """The teacher after a step that led the student to `params`."""
    match teacher:
        case EMA(rate):
            return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, state.teacher, params)
        case Snapshot(every):
            is_due = (state.step + 1) % every == 0
            return jax.tree.map(lambda t, s: jnp.where(is_due, s, t), state.teacher, params)
        case Frozen() | Live() | TrustRegion():
            return state.teacher


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
