"""How many questions an evaluation samples at a time.

A stop loses the batch that is being sampled, and small batches leave slots idle while their longest
responses end.
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompt_widths import width_of

# Rows of a batch, as a multiple of the rows that are decoded at a time. With lengths spread evenly
# up to the limit, the slots of a batch of four times as many rows are idle for an eighth of it.
# Chosen by this estimate, not measured.
WAVES = 4


def questions_at_a_time(
    engine: Engine, lengths: Sequence[int], config: Evaluation, most: int
) -> int:
    """The questions of a batch: at most `most`, and about `WAVES` times what is decoded at a time.

    `lengths` are the tokens of all prompts.
    """
    width, new = width_of(max(lengths)), config.sampling.max_new_tokens
    questions = min(most, len(lengths))
    if "bytes_limit" not in (jax.local_devices()[0].memory_stats() or {}):  # a CPU
        fits = _fit_host(engine, width + new) // config.samples
        return min(max(fits, 1), questions)
    rows = questions * config.samples
    slots, _ = engine.fit_slots((questions, width), config.samples, config.sampling)
    if slots < rows:
        questions = max(WAVES * slots // config.samples, 1)
    return min(questions, most, len(lengths))


def _fit_host(engine: Engine, positions: int) -> int:
    """Rows whose KV caches of this many positions fit into a quarter of the host's memory.

    The sampler on a CPU, which reports no free memory, decodes all rows at once. A quarter leaves
    space for the copies of a step; chosen, not measured.
    """
    config, dtype = engine.policy.config, jnp.dtype(compute_dtype(engine.dtype))
    head = vector_bytes(config.head_dim, dtype, engine.cache_dtype)
    position = 2 * config.num_layers * config.num_kv_heads * head
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // 4 // (positions * position)
