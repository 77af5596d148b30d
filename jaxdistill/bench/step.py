"""`bench step`: the train step, its operations set against the device's own matrix product.

Operations are those that a step cannot do without: for each position 2 a multiplied parameter
forward and 4 backward for the student, 2 for the teacher, and the pairs of positions that attention
must look at. What is computed a second time to save memory counts as time, not as work.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.errors import UserError
from jaxdistill.fitting import FirstThatFits
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.objectives import PRESETS, Distill, FullVocabulary, Objective
from jaxdistill.sharding import MeshConfig
from jaxdistill.train import (
    Batch,
    Compute,
    Frozen,
    Optimizer,
    TrainState,
    init_state,
    make_train_step,
)


@dataclass(frozen=True)
class Step:
    """What a step is given: full rows of random tokens, and random weights.

    Raises UserError for sizes that cannot be.
    """

    model: str = "Qwen3-1.7B"
    rows: int = 4
    tokens: int = 4096  # of a row: its prompt, the teacher's of the same length, and a completion
    prompt: int = 256
    objective: str = "sdpo"  # a preset's name; a distillation is over the full vocabulary
    compute: Compute = Compute(dtype="bfloat16", remat="auto")
    optimizer: Optimizer = Optimizer(warmup_steps=0)
    mesh: MeshConfig = MeshConfig()
    repeats: int = 5
    profile: int = 0  # kernels to list by the time they take

    def __post_init__(self):
        for name in ("rows", "prompt", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.tokens <= self.prompt:
            raise UserError(
                f"--tokens {self.tokens} must be more than the --prompt {self.prompt} that is "
                "part of them"
            )
        check_rows(self.rows, self.compute)
        objective_of(self.objective)


def check_rows(rows: int, compute: Compute) -> None:
    if compute.micro_batches < 1 or rows % compute.micro_batches:
        raise UserError(f"--micro-batches {compute.micro_batches} must divide the {rows} rows")


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
    dtype = jnp.dtype(compute.dtype)
    shardings = sharding.shardings_of(mesh, decoder.abstract_params(config, dtype))
    make = jax.jit(decoder.init, static_argnums=(0, 2), out_shardings=shardings)
    reference = make(config, jax.random.key(0), dtype)
    return Trained(init_state(reference, optimizer, Frozen(), _STEPS), reference)


_STEPS = 1000  # of the schedule
_LEXICON = 42  # epistemic ids, as Qwen's tokenizers have


def train_step_of(
    config: ModelConfig, objective: Objective, compute: Compute, optimizer: Optimizer
) -> Any:
    lexicon = tuple(range(min(_LEXICON, config.vocab_size)))
    return make_train_step(
        config, objective, lexicon, optimizer, Frozen(), compute, _STEPS, 1.0, False
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
    config, compute = preset(work.model), work.compute
    mesh = sharding.make_mesh(work.mesh)
    with sharding.use_mesh(mesh):
        state, reference = start(config, compute, work.optimizer, mesh)
        batch = sharding.shard_batch(mesh, _batch(work, config))
        step = train_step_of(config, objective_of(work.objective), compute, work.optimizer)
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
    memory = measure.memory(compiled)  # before the ceiling asks for memory of its own
    tokens = work.rows * work.tokens
    flops = step_flops(config, work.rows, work.prompt, work.tokens)
    ceiling = measure.matmul_flops_per_second(compute.dtype) * mesh.size
    rate = flops / found["seconds"]
    return {
        "work": asdict(work),
        "remat": remat,
        "tokens": tokens,
        **found,
        "tokens_per_second": tokens / found["seconds"],
        "compile_seconds": compile_seconds,
        "model_flops": flops,
        "model_flops_per_second": rate,
        "matmul_flops_per_second": ceiling,
        "share_of_matmul": rate / ceiling,
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


def _batch(work: Step, config: ModelConfig) -> Batch:
    """Full rows: no padding, so that every position counts."""
    rng = np.random.default_rng(0)
    lengths = work.prompt, work.prompt, work.tokens - work.prompt

    def text(width: int) -> tuple[np.ndarray, np.ndarray]:
        ids = rng.integers(0, config.vocab_size, (work.rows, width), np.int32)
        return ids, np.ones_like(ids)

    prompt, shown, completion = map(text, lengths)
    logp_BT = np.full(completion[0].shape, -np.log(config.vocab_size), np.float32)
    ones_B = np.ones(work.rows, np.float32)
    return Batch(*prompt, *shown, *completion, logp_BT, ones_B, ones_B, ones_B)


def step_flops(config: ModelConfig, rows: int, prompt: int, tokens: int) -> float:
    """Operations of student (forward and backward) and teacher (forward) on full rows.

    The head is multiplied at completion positions alone. Attention is two products over the pairs
    of positions that see each other.
    """
    size = config.axes
    per_layer = 2 * size["D"] * size["H"] * (size["N"] + size["K"]) + 3 * size["D"] * size["F"]
    head = size["D"] * size["V"] * (tokens - prompt)
    kinds = [config.layer_pattern[i % len(config.layer_pattern)] for i in range(config.num_layers)]
    pairs = sum(_pairs(tokens, config.window if kind == "sliding" else None) for kind in kinds)
    forward = 2 * (config.num_layers * per_layer * tokens + head)
    forward += 4 * pairs * size["N"] * size["H"]
    return 4.0 * rows * forward


def _pairs(tokens: int, window: int | None) -> int:
    """How many (query, key) a causal layer looks at."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
