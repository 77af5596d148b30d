"""`bench decode`: the sampler.

Bytes are those that a step cannot do without: every weight once for each part of the rows, and the
keys and values of the positions in use. Operations are those of the weights, and of the pairs that
attention must look at. The ceilings are the device's own copy and matrix product, measured in the
same run.
"""

import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.step import forward_flops, random_params
from jaxdistill.bench.work import Decode, described
from jaxdistill.errors import UserError
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Counts, question_hashes, row_keys
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.sampler import STRIDE
from jaxdistill.storage.loading import Policy


def bench_decode(work: Decode) -> dict[str, Any]:
    """Compile, warm up and time the sampler; the result goes into JSON as it is."""
    config, dtype = preset(work.model), compute_dtype(work.dtype)
    slots = min(work.slots or work.rows, work.rows)
    mesh = sharding.make_mesh(work.mesh)
    with sharding.use_mesh(mesh):
        params = random_params(config, dtype, mesh)
        engine = Engine(
            without_text(config, params),
            mesh=mesh,
            dtype=work.dtype,
            attention=work.attention,
            cache_dtype=work.cache_dtype,
        )
        sample: Any = engine.sampler(
            work.sampling, work.rollouts, slots=slots, pages=work.pages or None, counts=True
        )
        questions = work.rows // work.rollouts
        shape = questions, work.prompt
        ids_QP = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
        hashes_Q = question_hashes([str(i) for i in range(questions)])
        keys_B2 = row_keys(0, "bench", 0, hashes_Q, work.rollouts)
        arguments = params, *engine.place((ids_QP, np.ones_like(ids_QP), keys_B2))
        no_tokens_B = engine.place(np.zeros(work.rows, np.int32))
        began = time.perf_counter()
        compiled = sample.lower(*arguments, no_tokens_B).compile()
        compile_seconds = time.perf_counter() - began
        parts = sharding.num_parts("B", work.rows)

    def run(limit_B: np.ndarray) -> Any:
        return jax.block_until_ready(compiled(*arguments, engine.place(limit_B)))

    def seconds_of(limit_B: np.ndarray) -> tuple[dict[str, Any], Counts]:
        drawn: list[Any] = []
        seconds = []
        for _ in range(work.repeats):
            drawn.clear()  # else the device holds two results
            seconds.append(measure.timed(lambda: drawn.append(run(limit_B))))
        ((samples, counts),) = drawn
        assert int(samples.mask_BT.sum()) == limit_B.sum(), "every row draws as many as it may"
        return measure.median_and_spread(seconds), cast(Counts, jax.device_get(counts))

    run(np.ones(work.rows, np.int32))  # warms up, the loop too
    lengths_B = long_tailed(work.rows, work.new, work.mean)
    whole, counts = seconds_of(lengths_B)
    result = {
        "work": described(work),
        "tokens": int(lengths_B.sum()),
        **whole,
        "tokens_per_second": float(lengths_B.sum() / whole["seconds"]),
        "compile_seconds": compile_seconds,
        "slots": _slots_in_use(counts),
        "memory": measure.memory(compiled),
        **measure.surroundings(),
        **measure.profile(lambda: run(lengths_B), work.profile),
    }
    if work.busy:
        limits = _busy_limits(work, slots, result["slots"]["mean_positions"])
        (short, _), (long, most) = (seconds_of(limit_B) for limit_B in limits)
        rate = float((limits[1] - limits[0]).sum() / (long["seconds"] - short["seconds"]))
        result |= {
            "busy": _slots_in_use(most) | {"tokens_per_second": rate},
            "share_of_busy": result["tokens_per_second"] / rate,
        }
    # From which the steps can be told: where all rows run from the beginning to the end.
    if slots < work.rows or work.mean or work.new <= _FEW:
        return result
    # Prompts, and of the tokens next to nothing.
    few, few_counts = seconds_of(np.minimum(lengths_B, _FEW))
    if not (_ran_throughout(counts, work.new) and _ran_throughout(few_counts, _FEW)):
        return result
    # More than new - 16 where the loop ends only at a look.
    seconds = (whole["seconds"] - few["seconds"]) / float(counts.steps - few_counts.steps)
    return result | _per_step(work, config, dtype, seconds, parts=parts, devices=mesh.size)


_FEW = STRIDE  # tokens of the short run: it ends at the first look
_LOOK = (
    STRIDE  # steps, at most, until the sampler sees that a row may begin, or that all have ended
)


def _ran_throughout(counts: Counts, tokens: int) -> bool:
    """Whether every row, of so many tokens each, began at once and was never put off.

    A row that waits, or begins anew, ends at least one look after the others.
    """
    return float(counts.steps) < tokens + _LOOK


def _slots_in_use(counts: Counts) -> dict[str, float]:
    """Means over the loop's steps, and over the tokens that they drew."""
    return {
        "steps": float(counts.steps),
        "mean_occupied": float(counts.row_steps / counts.steps),
        "mean_positions": float(counts.positions / counts.row_steps),
        "preempted": float(counts.preempted),
        "redrawn_tokens": float(counts.redrawn),
    }


def _busy_limits(work: Decode, slots: int, mean_positions: float) -> tuple[np.ndarray, np.ndarray]:
    """Two runs of the same program, whose difference are steps of all slots at that mean context.

    One row a slot, all of one length, and of the others no token: what the longer run has more are
    steps before and after the context in question, as many, and no row begins or ends there.
    """
    drawn = round(mean_positions) - (work.prompt - 1)
    room = work.pages // slots * PAGE if work.pages else work.prompt + work.new
    # A quarter more, so that the two runs lie as far on either side of the context in question.
    longest = min(round(1.25 * drawn), work.new, room - work.prompt)
    shortest = 2 * drawn - longest
    if longest < 1.05 * drawn:  # too few steps to be seen beside the others
        raise UserError(
            f"--busy: {slots} slots have room for {room} positions each, and the rows had "
            f"{mean_positions:.0f} on average; use fewer --slots, more --pages or more --new"
        )
    is_busy_B = np.arange(work.rows) < slots
    short_B, long_B = (np.where(is_busy_B, n, 0).astype(np.int32) for n in (shortest, longest))
    return short_B, long_B


def _per_step(
    work: Decode,
    config: ModelConfig,
    dtype: Any,
    seconds: float,
    *,
    parts: int = 1,
    devices: int = 1,
) -> dict[str, Any]:
    """A step's time, bytes and operations without the prompts, beside the ceilings."""
    # Step t sees the prompt and t tokens, the last prompt token being fed once more.
    first, end = work.prompt - 1 + _FEW, work.prompt - 1 + work.new
    positions = work.rows * (first + 1 + end) / 2
    vectors = 2 * config.num_layers * config.num_kv_heads  # keys and values of a position
    moved = jnp.dtype(dtype).itemsize * parts * _weights_read(config)
    moved += positions * vectors * vector_bytes(config.head_dim, dtype, work.cache_dtype)
    flops = work.rows * forward_flops(config, first, end, end - first) / (end - first)
    return {
        "step_seconds": seconds,
        "step_tokens_per_second": work.rows / seconds,
        **measure.beside_copy(moved, seconds, devices),
        **measure.beside_matmul(flops, seconds, dtype, devices),
    }


def _weights_read(config: ModelConfig) -> int:
    """Parameters that a step reads: all, but of an embedding beside a head only a few rows."""
    unread = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    return config.num_parameters - unread


def without_text(config: ModelConfig, params: Any) -> Policy:
    """A policy for random prompts: no tokenizer, and no token ends a row before its limit."""
    return Policy(
        config=config, params=params, tokenizer=None, stop_ids=(), tokenizer_folder=Path()
    )


def long_tailed(rows: int, longest: int, mean: int) -> np.ndarray:
    """Lengths of about this mean, log-normal and cut at the longest; all longest without a mean."""
    if not mean:
        return np.full(rows, longest, np.int32)
    # The 95th percentile is then 3.7 times the median. Chosen, not fitted to a model's lengths.
    sigma = 0.8
    drawn = np.random.default_rng(1).lognormal(np.log(mean) - sigma**2 / 2, sigma, rows)
    return np.clip(drawn, 1, longest).astype(np.int32)
