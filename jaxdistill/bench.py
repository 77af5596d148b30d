"""Measured speed against what the device allows: what `jaxdistill bench` prints and writes.

Bytes are those that a step cannot do without: every weight once, and the keys and values of the
positions in use. The ceiling is a device's own copy, measured in the same run.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Sampling, make_sampler, question_hashes, row_keys


@dataclass(frozen=True)
class Decode:
    """What is decoded: rows = questions x rollouts, of random weights and random prompts.

    `mean` draws the rows' lengths from a long-tailed distribution of that mean, at most `new`
    tokens; 0: all are `new` tokens long. Raises UserError for sizes that cannot be.
    """

    model: str = "Qwen3-1.7B"
    rows: int = 64
    rollouts: int = 1
    slots: int = 0  # decoded at a time; 0: all rows
    prompt: int = 256
    new: int = 512
    mean: int = 0
    dtype: str = "auto"
    sampling: Sampling = Sampling()
    repeats: int = 5

    def __post_init__(self):
        for name in ("rows", "rollouts", "prompt", "new", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.rows % self.rollouts:
            raise UserError(f"--rows {self.rows} must be a multiple of --rollouts {self.rollouts}")
        if not 0 <= self.mean <= self.new:
            raise UserError(f"--mean {self.mean} must be 0 or at most --new {self.new}")


def bench_decode(work: Decode) -> dict[str, Any]:
    """Compile, warm up and time the sampler; the result is JSON."""
    config, dtype = preset(work.model), compute_dtype(work.dtype)
    params = jax.jit(decoder.init, static_argnums=(0, 2))(config, jax.random.key(0), dtype)
    sampling = Sampling(**asdict(work.sampling) | {"max_new_tokens": work.new})
    slots = min(work.slots or work.rows, work.rows)
    sample = make_sampler(
        config, sampling, (), 0, rollouts=work.rollouts, slots=slots, dtype=dtype
    )
    arguments = params, *_prompts(work, config)
    began = time.perf_counter()
    compiled = sample.lower(*arguments, np.zeros(work.rows, np.int32)).compile()
    compile_seconds = time.perf_counter() - began

    def seconds_of(lengths_B: np.ndarray) -> list[float]:
        run = lambda: jax.block_until_ready(compiled(*arguments, lengths_B))  # noqa: E731
        assert int(run().mask_BT.sum()) == lengths_B.sum(), "every row draws as many as it may"
        return [_timed(run) for _ in range(work.repeats)]

    lengths_B = _lengths(work)
    whole = seconds_of(lengths_B)
    short = seconds_of(np.minimum(lengths_B, _SHORT))  # prompts, and of the tokens next to nothing
    seconds = statistics.median(whole)
    result = {
        "work": asdict(work),
        "tokens": int(lengths_B.sum()),
        "seconds": seconds,
        "spread": [min(whole), max(whole)],
        "tokens_per_second": float(lengths_B.sum()) / seconds,
        "compile_seconds": compile_seconds,
        "memory": _memory(compiled),
    }
    if slots == work.rows and not work.mean:
        result |= _per_step(work, config, dtype, seconds - statistics.median(short))
    return result | _surroundings()


_SHORT = 16


def _per_step(work: Decode, config: ModelConfig, dtype: Any, seconds: float) -> dict[str, Any]:
    """Of the steps alone, without the prompts: time, bytes, and the share of the copy ceiling."""
    steps = work.new - _SHORT
    if steps < 1:
        return {}
    size = jnp.dtype(dtype).itemsize
    # Step t sees the prompt and t tokens, its own among them.
    positions = work.rows * (work.prompt + (_SHORT + work.new - 1) / 2)
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    step_bytes = size * (_weights_read(config) + positions * width)
    ceiling = copy_bytes_per_second()
    return {
        "step_seconds": seconds / steps,
        "step_tokens_per_second": work.rows * steps / seconds,
        "step_bytes": step_bytes,
        "bytes_per_second": step_bytes * steps / seconds,
        "copy_bytes_per_second": ceiling,
        "share_of_copy": step_bytes * steps / seconds / ceiling,
    }


def _weights_read(config: ModelConfig) -> int:
    """Parameters that a step reads: all, but of an embedding of its own only the rows' few."""
    unread = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    return config.num_parameters - unread


def _prompts(work: Decode, config: ModelConfig) -> tuple[np.ndarray, np.ndarray, Any]:
    questions = work.rows // work.rollouts
    shape = questions, work.prompt
    ids_QP = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
    hashes_Q = question_hashes([str(i) for i in range(questions)])
    return ids_QP, np.ones_like(ids_QP), row_keys(0, "bench", 0, hashes_Q, work.rollouts)


def _lengths(work: Decode) -> np.ndarray:
    """Log-normal with sigma 0.8, as reasoning models' answers look, cut at `new`."""
    if not work.mean:
        return np.full(work.rows, work.new, np.int32)
    sigma = 0.8
    drawn = np.random.default_rng(1).lognormal(np.log(work.mean) - sigma**2 / 2, sigma, work.rows)
    return np.clip(drawn, 1, work.new).astype(np.int32)


def copy_bytes_per_second() -> float:
    """Bytes read and written by a device's copy of an array that no cache holds."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**32
    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    run = lambda: copy(x).block_until_ready()  # noqa: E731
    run()
    return 2 * size / statistics.median(_timed(run) for _ in range(10))


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _memory(compiled: Any) -> dict[str, int]:
    """Bytes: the compiler's plan, and the device's peak so far where it keeps count."""
    plan = compiled.memory_analysis()
    found = {"arguments": plan.argument_size_in_bytes, "temporary": plan.temp_size_in_bytes}
    stats = jax.local_devices()[0].memory_stats() or {}
    return found | {name: stats[name] for name in ("peak_bytes_in_use",) if name in stats}


def _surroundings() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)
