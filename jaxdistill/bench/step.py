"""`bench step`: time the train step and compare it with the device's own matrix product and copy.

Operations are the least that a step needs. Per position and multiplied parameter these are 2
forward and 4 backward for the student, and 2 for each other network that the objective reads; the
(query, key) pairs of attention are added. Recomputation to save memory counts as time, not as work.
Bytes are those of the parameters, the gradients and the optimizer's state (`step_bytes`).
"""

import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.work import Placing, Step, Training, described, settings_of
from jaxdistill.errors import UserError
from jaxdistill.models import parameters, placement
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.flops import forward_flops
from jaxdistill.models.presets import preset
from jaxdistill.objectives import (
    PRESETS,
    Distill,
    FullVocabulary,
    Objective,
    needs_contrast,
    needs_reference,
    needs_teacher,
)
from jaxdistill.run.devices import start_line
from jaxdistill.training.batch import Batch, Texts, bucket, pad, texts_of
from jaxdistill.training.compute import Compute
from jaxdistill.training.memory import FirstThatFits
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.step import make_train_step
from jaxdistill.training.teachers import Frozen


def objective_of(name: str) -> Objective:
    """The preset of that name; a distillation over the full vocabulary, its most expensive form.

    Raises UserError for an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"--objective {name!r} is unknown; use one of {', '.join(PRESETS)}")
    objective = PRESETS[name]()
    is_distill = isinstance(objective, Distill)
    return replace(objective, support=FullVocabulary()) if is_distill else objective


class StateAndReference(NamedTuple):
    """What a step reads: the float32 state, which it updates, and the base in the compute dtype."""

    state: TrainState
    reference: Any


def open_mesh(work: Placing, model: ModelConfig, *rows: int) -> sharding.Mesh:
    """Make the mesh to measure on, and name it on stderr.

    `rows` are numbers of rows that are computed together; a step's, of which there is one number,
    also in micro-batches. Raises UserError if the mesh does not split them evenly: idle devices
    would be compared with the limits of busy ones.
    """
    mesh, compute, step_rows = sharding.make_mesh(work.mesh), settings_of(Compute, work), None
    if isinstance(work, Training):
        compute, step_rows = work.compute, rows[0]
        if not compute.pack:
            rows = (*rows, step_rows // compute.micro_batches)
    with sharding.use_mesh(mesh):
        parts = sharding.num_parts("B")
    for together in rows:
        if together % parts:
            raise UserError(
                f"{together} rows at a time do not split evenly over {parts} devices (data x fsdp "
                f"of --mesh {work.mesh}); give a multiple of {parts}, or --mesh fsdp=1"
            )
    said = placement.check_mesh(model, mesh)
    for line in (start_line(mesh, model, compute, rows=step_rows), *said):
        print(line, file=sys.stderr)
    return mesh


def start(
    config: ModelConfig, compute: Compute, optimizer: Optimizer, mesh: Any
) -> StateAndReference:
    """The state before the first step, from random weights."""
    reference = random_params(config, jnp.dtype(compute.dtype), mesh)
    return StateAndReference(init_state(reference, optimizer, Frozen(), _STEPS), reference)


def random_params(config: ModelConfig, dtype: Any, mesh: Any) -> Any:
    """Random parameters, created in their shardings so that no device holds a second copy."""
    shardings = sharding.shardings_of(mesh, parameters.abstract_params(config, dtype, mesh))
    make = jax.jit(parameters.init, static_argnums=(0, 2, 3), out_shardings=shardings)
    return make(config, jax.random.key(0), dtype, mesh)


# Length of the learning-rate schedule, far beyond the timed steps. Chosen, not measured.
_STEPS = 1000
_LEXICON = 42  # number of epistemic ids, as for Qwen's tokenizers


def train_step_of(
    config: ModelConfig, objective: Objective, compute: Compute, optimizer: Optimizer
) -> Any:
    lexicon = tuple(range(min(_LEXICON, config.vocab_size)))
    return make_train_step(
        model=config,
        objective=objective,
        epistemic_ids=lexicon,
        optimizer=optimizer,
        teacher=Frozen(),
        compute=compute,
        steps=_STEPS,
        temperature=1.0,
        track_reference=False,
    )


def compiled_step(step: Any, compute: Compute, arguments: Any) -> tuple[str, Any, float]:
    """(name of the rematerialisation, the compiled step, seconds of compilation)."""
    began = time.perf_counter()
    if isinstance(step, FirstThatFits):
        remat, compiled = step.compiled_for(*arguments)
    else:
        # Where memory has no known limit, as on a CPU, `auto` recomputes nothing.
        remat = "none" if compute.remat == "auto" else compute.remat
        compiled = step.lower(*arguments).compile()
    return remat, compiled, time.perf_counter() - began


def bench_step(work: Step) -> dict[str, Any]:
    """Compile, warm up and time the step; return a dict for JSON, in seconds and bytes."""
    config, compute, objective = preset(work.model), work.compute, objective_of(work.objective)
    work = with_rows(work)
    mesh = open_mesh(work, config, work.rows)
    with sharding.use_mesh(mesh):
        state, reference = start(config, compute, work.optimizer, mesh)
        batch = pad(random_batch(work, config), compute.micro_batches)
        batch = sharding.shard_batch(mesh, batch)
        step = train_step_of(config, objective, compute, work.optimizer)
        remat, compiled, compile_seconds = compiled_step(step, compute, (state, reference, batch))
        seconds, losses = [], []
        for _ in range(1 + work.repeats):  # the first warms up
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, reference, batch))
            seconds.append(time.perf_counter() - began)
            losses.append(checked_loss(metrics))
        # Last, because the call donates the state, which cannot be used afterwards.
        profile = measure.profile(
            lambda: jax.block_until_ready(compiled(state, reference, batch)), work.profile
        )
    found = measure.median_and_spread(seconds[1:])
    # Before the device's own rates are measured, whose arrays would raise the peak.
    memory = measure.memory(compiled)
    tokens = work.rows * work.tokens
    sizes = work.rows, work.prompt, work.tokens
    flops = step_flops(config, objective, *sizes, context=work.teacher_prompt)
    # Each data-parallel replica holds and moves its own copy of the state.
    moved = step_bytes(config, objective, compute, work.optimizer) * mesh.shape["data"]
    return {
        "work": described(work),
        "remat": remat,
        "tokens": tokens,
        **found,
        "tokens_per_second": tokens / found["seconds"],
        "compile_seconds": compile_seconds,
        **measure.compare_with_matmul(flops, found["seconds"], compute.dtype, mesh.size),
        **measure.compare_with_copy(moved, found["seconds"], mesh.size),
        "memory": memory,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "mesh": dict(mesh.shape),
        **measure.environment(),
        **profile,
    }


def with_rows(work: Step) -> Step:
    """The settings with a number of rows: as given, or at least 4 that split evenly."""
    with sharding.use_mesh(sharding.make_mesh(work.mesh)):
        together = sharding.num_parts("B") * work.micro_batches
    return work if work.rows else replace(work, rows=bucket(4, together))


def checked_loss(metrics: Any) -> float:
    """The step's loss; RuntimeError for a skipped step, whose time is not that of an update."""
    loss = float(metrics["loss"].mean)
    if not np.isfinite(loss) or float(metrics["skipped"].mean):
        raise RuntimeError(f"the step's loss is {loss} and its gradient norm is not finite")
    return loss


def random_batch(work: Step, config: ModelConfig) -> Batch:
    """Full rows of random tokens: there is no padding, so every position is work."""
    rng = np.random.default_rng(0)
    widths = work.prompt, work.teacher_prompt, work.tokens - work.prompt
    prompt_BP, teacher_prompt_BP, completion_BT = (
        rng.integers(0, config.vocab_size, (work.rows, width), np.int32) for width in widths
    )
    # The tokens are drawn uniformly, so this is their exact behaviour log-probability.
    logp_BT = np.full(completion_BT.shape, -np.log(config.vocab_size), np.float32)
    objective = objective_of(work.objective)
    return batch_of(objective, prompt_BP, teacher_prompt_BP, unpadded(completion_BT), logp_BT)


def unpadded(ids_BP: np.ndarray) -> Texts:
    return texts_of(ids_BP, np.ones_like(ids_BP))


def batch_of(
    objective: Objective,
    prompt_BP: np.ndarray,
    teacher_prompt_BP: np.ndarray,
    completion: Texts,
    logp_BT: np.ndarray,
) -> Batch:
    """A batch of correct answers, with teacher and contrast prompts if the objective reads them.

    prompt_BP, teacher_prompt_BP: token ids, [B, P] each with its own P; logp_BT: nats.
    """
    ones_B = np.ones(len(prompt_BP), np.float32)
    needs = needs_contrast(objective)
    return Batch(
        prompt=unpadded(prompt_BP),
        completion=completion,
        behaviour_logp_BT=logp_BT,
        advantage_B=ones_B,
        row_weight_B=ones_B,
        correct_B=ones_B,
        teacher=unpadded(teacher_prompt_BP) if needs_teacher(objective) else None,
        # Flipped: a contrast equal to the teacher would have no effect.
        contrasts=(unpadded(np.flip(teacher_prompt_BP, axis=1)),) if needs else (),
        contrast_weight_BJ=ones_B[:, None] if needs else None,
    )


def step_flops(
    config: ModelConfig,
    objective: Objective,
    rows: int,
    prompt: int,
    tokens: int,
    *,
    context: int | None = None,
) -> float:
    """Operations of a step on full rows.

    The student's forward and backward passes cost three forward passes. Each of teacher, reference
    and contrast that the objective reads costs one; the prompts of teacher and contrast have
    `context` tokens (None: `prompt`).
    """
    completion = tokens - prompt
    context = prompt if context is None else context
    plain = 3 + needs_reference(objective)
    informed = needs_teacher(objective) + needs_contrast(objective)
    each = plain * forward_flops(config, 0, tokens, completion)
    each += informed * forward_flops(config, 0, context + completion, completion)
    return float(rows * each)


def step_bytes(
    config: ModelConfig, objective: Objective, compute: Compute, optimizer: Optimizer
) -> int:
    """Bytes that a step moves for each copy of the state: parameters, gradients and both moments.

    Each is read once and written once. The base, which is both teacher and reference, is read once
    if the objective reads either. Activations are not counted.
    """
    float32 = 4
    moment, base = (jnp.dtype(name).itemsize for name in (optimizer.moments, compute.dtype))
    is_base_read = needs_teacher(objective) or needs_reference(objective)
    each = 2 * (2 * float32 + 2 * moment) + base * is_base_read
    return each * config.num_parameters
