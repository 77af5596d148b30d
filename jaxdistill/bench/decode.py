"""`bench decode`: time the sampler.

The bytes of a decode step are the least that it must read: every weight once for each data-parallel
part of the rows, and the keys and values of the filled part of the KV cache. Its operations are
those of the weights and of the (query, key) pairs that attention needs. Both are compared with the
device's own copy and matrix product, measured in the same run.
"""

import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.in_steps import InSteps
from jaxdistill.bench.step import open_mesh, random_params
from jaxdistill.bench.work import Decode, described
from jaxdistill.errors import UserError
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.flops import forward_flops
from jaxdistill.models.presets import preset
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Counts, question_hashes, row_keys
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.pages import kept_positions
from jaxdistill.sampling.sampler import STRIDE
from jaxdistill.storage.loading import Policy


def bench_decode(work: Decode) -> dict[str, Any]:
    """Compile, warm up and time the sampler; return a dict for JSON, in seconds and bytes."""
    config, dtype = preset(work.model), compute_dtype(work.dtype)
    slots = min(work.slots or work.rows, work.rows)
    mesh = open_mesh(work, config, work.rows, slots)
    with sharding.use_mesh(mesh):
        params = random_params(config, dtype, mesh)
        engine = Engine(
            without_text(config, params),
            mesh=mesh,
            dtype=work.dtype,
            attention=work.attention,
            cache_dtype=work.cache_dtype,
            weights_dtype=work.weights_dtype,
        )
        how: Any = {"most_slot_counts": work.slot_counts, "in_steps": work.in_steps}
        sample: Any = engine.sampler(
            work.sampling, work.rollouts, slots=slots, pages=work.pages or None, counts=True, **how
        )
        questions = work.rows // work.rollouts
        shape = questions, work.prompt
        ids_QP = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
        hashes_Q = question_hashes([str(i) for i in range(questions)])
        keys_B2 = row_keys(0, "bench", 0, hashes_Q, work.rollouts)
        arguments = params, *engine.place((ids_QP, np.ones_like(ids_QP), keys_B2))
        no_tokens_B = engine.place(np.zeros(work.rows, np.int32))
        # The rows' limits are an argument, so that one compiled program serves all runs below.
        began = time.perf_counter()
        in_steps = InSteps(sample, arguments, no_tokens_B) if work.in_steps else None
        compiled = in_steps or sample.lower(*arguments, no_tokens_B).compile()
        compile_seconds = time.perf_counter() - began
        parts = sharding.num_parts("B", work.rows)

    def run(limit_B: np.ndarray) -> Any:
        return jax.block_until_ready(compiled(*arguments, engine.place(limit_B)))

    def seconds_of(limit_B: np.ndarray) -> tuple[dict[str, Any], Counts]:
        drawn: list[Any] = []
        seconds = []
        for _ in range(work.repeats):
            drawn.clear()  # otherwise the device would hold two results at once
            seconds.append(measure.timed(lambda: drawn.append(run(limit_B))))
        ((samples, counts),) = drawn
        assert int(samples.mask_BT.sum()) == limit_B.sum(), "every row must reach its own limit"
        return measure.median_and_spread(seconds), cast(Counts, jax.device_get(counts))

    run(np.ones(work.rows, np.int32))  # the warm-up, one token per row
    lengths_B = long_tailed(work.rows, work.new, work.mean)
    whole, counts = seconds_of(lengths_B)
    result = {
        "work": described(work),
        "tokens": int(lengths_B.sum()),
        **whole,
        "tokens_per_second": float(lengths_B.sum() / whole["seconds"]),
        "compile_seconds": compile_seconds,
        "slots": _slots_in_use(counts),
        **({} if in_steps is None else {"programs": in_steps.laps}),
        "memory": measure.memory(in_steps.advance if in_steps else compiled),
        "mesh": dict(mesh.shape),
        **measure.environment(),
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
    # A time per step can be derived only if every row runs from the first step to the last.
    if slots < work.rows or work.mean or work.new <= _FEW:
        return result
    # The same prompts with few tokens: the difference of the two runs is decode steps alone.
    few, few_counts = seconds_of(np.minimum(lengths_B, _FEW))
    if not (_ran_throughout(counts, work.new) and _ran_throughout(few_counts, _FEW)):
        return result
    # Counted steps, not new - _FEW: with pages or on a GPU the loop ends at a multiple of STRIDE.
    seconds = (whole["seconds"] - few["seconds"]) / float(counts.steps - few_counts.steps)
    return result | _per_step(work, config, dtype, seconds, parts=parts, devices=mesh.size)


# Tokens of the short run, which therefore ends at the sampler's first check.
_FEW = STRIDE
# Most steps until the sampler checks whether a row can start, or whether all have ended.
_CHECK_STEPS = STRIDE


def _ran_throughout(counts: Counts, tokens: int) -> bool:
    """Whether every row, of `tokens` tokens each, started at once and was never preempted.

    A row that waits or is restarted ends at least one check after the others.
    """
    return float(counts.steps) < tokens + _CHECK_STEPS


def _slots_in_use(counts: Counts) -> dict[str, float]:
    """Mean occupied slots per step, mean context per drawn token, and what preemption cost."""
    return {
        "steps": float(counts.steps),
        "mean_occupied": float(counts.row_steps / counts.steps),
        "mean_positions": float(counts.positions / counts.row_steps),
        "preempted": float(counts.preempted),
        "redrawn_tokens": float(counts.redrawn),
    }


def _busy_limits(work: Decode, slots: int, mean_positions: float) -> tuple[np.ndarray, np.ndarray]:
    """Row limits [B] of two runs that differ by steps with every slot busy at that mean context.

    Each slot has one row, all of the same length, and the remaining rows draw no token. The longer
    run's additional steps lie symmetrically around the mean context, and no row starts or ends
    within them. Raises UserError if the slots cannot hold the longer rows.
    """
    drawn = round(mean_positions) - (work.prompt - 1)
    capacity = work.pages // slots * PAGE if work.pages else work.prompt + work.new
    # The longer run ends a quarter above the mean context, the shorter one as far below it.
    # Chosen, not measured.
    longest = min(round(1.25 * drawn), work.new, capacity - work.prompt)
    shortest = 2 * drawn - longest
    # With fewer additional steps their time would be mostly the noise of the two runs. Chosen, not
    # measured.
    if longest < 1.05 * drawn:
        raise UserError(
            f"--busy: {slots} slots hold {capacity} positions each, and the rows had "
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
    """Time, bytes and operations of a decode step without prompts, and their shares of the limits.

    `parts`: data-parallel parts of the rows, each of which reads all weights.
    """
    # The first step feeds the last prompt token again, so step t attends to prompt - 1 + t
    # positions.
    first, end = work.prompt - 1 + _FEW, work.prompt - 1 + work.new
    # Of all layers, in which a window hides what is before it.
    seen = float(
        np.mean([kept_positions(config, n, config.window) for n in range(first + 1, end + 1)])
    )
    vectors = 2 * config.num_kv_heads  # keys and values of a position in a layer
    moved = parts * decoding_bytes(config, dtype, work.weights_dtype, held=False)
    moved += work.rows * seen * vectors * vector_bytes(config.head_dim, dtype, work.cache_dtype)
    flops = work.rows * forward_flops(config, first, end, end - first) / (end - first)
    return {
        "step_seconds": seconds,
        "step_tokens_per_second": work.rows / seconds,
        **measure.compare_with_copy(moved, seconds, devices),
        **measure.compare_with_matmul(flops, seconds, dtype, devices),
    }


def without_text(config: ModelConfig, params: Any) -> Policy:
    """A policy for random prompts: no tokenizer, and no stop token that ends a row early."""
    return Policy(
        config=config, params=params, tokenizer=None, stop_ids=(), tokenizer_folder=Path()
    )


# Of the logarithms of long-tailed lengths: the 95th percentile is then 3.7 times the median.
# Chosen, not fitted to a model's lengths.
SIGMA = 0.8


def long_tailed(rows: int, longest: int, mean: int) -> np.ndarray:
    """Log-normal lengths [rows] of about this mean, cut at `longest`; with mean 0 all `longest`."""
    if not mean:
        return np.full(rows, longest, np.int32)
    drawn = np.random.default_rng(1).lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, rows)
    return np.clip(drawn, 1, longest).astype(np.int32)
