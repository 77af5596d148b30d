"""`bench step`: the train step beside the device's own matrix product and copy.

Operations are those that a step cannot do without: for each position 2 a multiplied parameter
forward and 4 backward for the student, 2 for each other network that the objective reads, and the
pairs of positions that attention must look at. What is computed a second time to save memory counts
as time, not as work. Bytes are those of the parameters and what goes with them (`step_bytes`).
"""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.work import Step, described
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
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
from jaxdistill.training.batch import Batch, Texts, pad, texts_of
from jaxdistill.training.compute import Compute
from jaxdistill.training.memory import FirstThatFits
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.step import make_train_step
from jaxdistill.training.teachers import Frozen


def objective_of(name: str) -> Objective:
    if name not in PRESETS:
        raise UserError(f"--objective {name!r} is unknown; use one of {', '.join(PRESETS)}")
    objective = PRESETS[name]()
    is_distill = isinstance(objective, Distill)
    return replace(objective, support=FullVocabulary()) if is_distill else objective


class Trained(NamedTuple):
    """What a step reads and moves: float32 state, and the base in the compute dtype."""

    state: TrainState
    reference: Any


def start(config: ModelConfig, compute: Compute, optimizer: Optimizer, mesh: Any) -> Trained:
    """Random weights where they belong on the mesh, and nothing beside them on the device."""
    reference = random_params(config, jnp.dtype(compute.dtype), mesh)
    return Trained(init_state(reference, optimizer, Frozen(), _STEPS), reference)


def random_params(config: ModelConfig, dtype: Any, mesh: Any) -> Any:
    shardings = sharding.shardings_of(mesh, parameters.abstract_params(config, dtype))
    make = jax.jit(parameters.init, static_argnums=(0, 2), out_shardings=shardings)
    return make(config, jax.random.key(0), dtype)


_STEPS = 1000  # of the schedule
_LEXICON = 42  # epistemic ids, as Qwen's tokenizers have


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
    """(what is rematerialised, the compiled step, the seconds that this took)."""
    began = time.perf_counter()
    if isinstance(step, FirstThatFits):
        remat, compiled = step.compiled_for(*arguments)
    else:
        remat = "none" if compute.remat == "auto" else compute.remat
        compiled = step.lower(*arguments).compile()
    return remat, compiled, time.perf_counter() - began


def bench_step(work: Step) -> dict[str, Any]:
    """Compile, warm up and time the step; the result goes into JSON as it is."""
    config, compute, objective = preset(work.model), work.compute, objective_of(work.objective)
    mesh = sharding.make_mesh(work.mesh)
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
        # The state is donated, and this is the last that is done with it.
        profile = measure.profile(
            lambda: jax.block_until_ready(compiled(state, reference, batch)), work.profile
        )
    found = measure.median_and_spread(seconds[1:])
    memory = measure.memory(compiled)  # before the ceilings ask for memory of their own
    tokens = work.rows * work.tokens
    flops = step_flops(config, objective, work.rows, work.prompt, work.tokens)
    moved = step_bytes(config, objective, compute, work.optimizer) * mesh.shape["data"]
    return {
        "work": described(work),
        "remat": remat,
        "tokens": tokens,
        **found,
        "tokens_per_second": tokens / found["seconds"],
        "compile_seconds": compile_seconds,
        **measure.beside_matmul(flops, found["seconds"], compute.dtype, mesh.size),
        **measure.beside_copy(moved, found["seconds"], mesh.size),
        "memory": memory,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        **measure.surroundings(),
        **profile,
    }


def checked_loss(metrics: Any) -> float:
    """The step's loss; a step that was skipped measures something else."""
    loss = float(metrics["loss"].mean)
    if not np.isfinite(loss) or float(metrics["skipped"].mean):
        raise RuntimeError(f"the step's loss is {loss}, its gradient's norm not finite")
    return loss


def random_batch(work: Step, config: ModelConfig) -> Batch:
    """Full rows: no padding, so that every position counts."""
    rng = np.random.default_rng(0)
    widths = work.prompt, work.prompt, work.tokens - work.prompt
    prompt_BP, shown_BP, completion_BT = (
        rng.integers(0, config.vocab_size, (work.rows, width), np.int32) for width in widths
    )
    logp_BT = np.full(completion_BT.shape, -np.log(config.vocab_size), np.float32)
    objective = objective_of(work.objective)
    return batch_of(objective, prompt_BP, shown_BP, whole(completion_BT), logp_BT)


def whole(ids_BP: np.ndarray) -> Texts:
    return texts_of(ids_BP, np.ones_like(ids_BP))


def batch_of(
    objective: Objective,
    prompt_BP: np.ndarray,
    shown_BP: np.ndarray,
    completion: Texts,
    logp_BT: np.ndarray,
) -> Batch:
    """Right answers all; with what is shown to the teacher and a contrast, where they are read."""
    ones_B = np.ones(len(prompt_BP), np.float32)
    needs = needs_contrast(objective)
    return Batch(
        prompt=whole(prompt_BP),
        completion=completion,
        behaviour_logp_BT=logp_BT,
        advantage_B=ones_B,
        row_weight_B=ones_B,
        correct_B=ones_B,
        teacher=whole(shown_BP) if needs_teacher(objective) else None,
        contrasts=(whole(np.flip(shown_BP, axis=1)),) if needs else (),
        contrast_weight_BJ=ones_B[:, None] if needs else None,
    )


def step_flops(
    config: ModelConfig, objective: Objective, rows: int, prompt: int, tokens: int
) -> float:
    """Operations on full rows: the student forward and backward, which is three times forward.

    And once forward for each of teacher, reference and contrast that the objective reads.
    """
    needs = needs_teacher, needs_reference, needs_contrast
    passes = 3 + sum(is_read(objective) for is_read in needs)
    return float(passes * rows * forward_flops(config, 0, tokens, tokens - prompt))


def step_bytes(
    config: ModelConfig, objective: Objective, compute: Compute, optimizer: Optimizer
) -> int:
    """Bytes of each copy of the state: parameters, gradients and both moments.

    Each is read once and written once. The base, which is teacher and reference, is read once where
    the objective reads one of them. Activations are not counted.
    """
    float32 = 4
    moment, base = (jnp.dtype(name).itemsize for name in (optimizer.moments, compute.dtype))
    is_base_read = needs_teacher(objective) or needs_reference(objective)
    each = 2 * (2 * float32 + 2 * moment) + base * is_base_read
    return each * config.num_parameters


def forward_flops(config: ModelConfig, start: int, stop: int, predicting: int) -> int:
    """Operations of a row's positions from start to stop, some of which go through the head.

    Attention is two products over the pairs of positions that see each other.
    """
    size = config.axes
    per_layer = 2 * size["D"] * size["H"] * (size["N"] + size["K"]) + 3 * size["D"] * size["F"]
    products = config.num_layers * per_layer * (stop - start) + size["D"] * size["V"] * predicting
    kinds = [config.layer_pattern[i % len(config.layer_pattern)] for i in range(config.num_layers)]
    windows = [config.window if kind == "sliding" else None for kind in kinds]
    pairs = sum(_pairs(stop, window) - _pairs(start, window) for window in windows)
    return 2 * products + 4 * pairs * size["N"] * size["H"]


def _pairs(tokens: int, window: int | None) -> int:
    """How many (query, key) a causal layer looks at."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
