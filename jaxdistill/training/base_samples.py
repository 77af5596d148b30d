"""The initial model's own samples, on which KL(R||S) is measured while the student moves away.

They are drawn once, before the first step, and kept in RUN/base_samples.json. A resumed run reads
them there; without the file it draws the same ones again, since randomness is addressed.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill import hosts, losses, sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.files import parse_json, write_whole
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import Positions
from jaxdistill.objectives.positions import Weighted, everywhere
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import questions_of
from jaxdistill.training.batch import Batch, pad, texts_of_ids
from jaxdistill.training.chunked_objective import ChunkOptions, chunked_objective
from jaxdistill.training.compute import Compute
from jaxdistill.training.metrics import Sum
from jaxdistill.training.micro_batches import MicroBatches, PerSequence, RowData, aligned, fold
from jaxdistill.training.networks import NeededNetworks, Networks, score_batch

FILE = "base_samples.json"

# Of a micro-batch, per device: with the default chunk their logits are those of `Compute.chunk`.
ROWS = 4


class BaseSample(NamedTuple):
    """Token ids of a prompt and of the initial model's completion."""

    prompt: list[int]
    completion: list[int]


def base_samples(
    engine: Engine, questions: Sequence[Question], config: Evaluation, run_dir: Path
) -> list[BaseSample]:
    """`config.samples` per question of the initial model; kept in the run folder.

    They are drawn from its untempered, untruncated distribution, so that the mean over their tokens
    estimates KL(R||S) per token without a bias. Raises UserError for a file that does not hold as
    many samples.
    """
    path, number = run_dir / FILE, len(questions) * config.samples
    found = read_samples(path, number) if hosts.is_first() else None
    # As lists: what is broadcast is JSON.
    found = hosts.broadcast(found and [list(sample) for sample in found], "base samples")
    if found is not None:
        return [BaseSample(*sample) for sample in found]
    sampling = Sampling(max_new_tokens=config.sampling.max_new_tokens)
    address = Address(seed=config.seed, purpose="base samples")
    drawn = engine.rollouts(engine.policy.params, questions, sampling, config.samples, address)
    rows = zip(
        drawn.prompt_ids_BP, drawn.prompt_mask_BP, drawn.tokens_BT, drawn.mask_BT, strict=True
    )
    samples = [
        BaseSample(ids[is_prompt > 0].tolist(), tokens[is_token > 0].tolist())
        for ids, is_prompt, tokens, is_token in rows
    ]
    if hosts.is_first():
        write_whole(path, json.dumps([sample._asdict() for sample in samples]))
    return samples


def read_samples(path: Path, number: int) -> list[BaseSample] | None:
    """The kept samples; None without a file. Raises UserError for a file that holds others."""
    if not path.exists():
        return None
    try:
        rows = parse_json(path.read_bytes())
        found = [BaseSample(*(list(map(int, row[k])) for k in BaseSample._fields)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no base samples ({error}); remove it") from None
    if len(found) != number:
        raise UserError(f"{path} holds {len(found)} samples, expected {number}; remove it")
    return found


def arrays_of(samples: Sequence[BaseSample], rows: int, parts: int) -> MicroBatches:
    """The samples as micro-batches of at most `rows` rows; surplus rows are empty completions."""
    micro_batches = -(-len(samples) // rows)
    fill = -len(samples) % micro_batches
    filled = [*samples, *[BaseSample(samples[0].prompt, [])] * fill]
    completion = texts_of_ids([sample.completion for sample in filled])
    zeros_B = np.zeros(len(filled), np.float32)
    batch = Batch(
        prompt=texts_of_ids([sample.prompt for sample in filled]),
        completion=completion,
        behaviour_logp_BT=np.zeros(completion.ids_BP.shape, np.float32),
        advantage_B=zeros_B,
        row_weight_B=zeros_B,
        correct_B=zeros_B,
    )
    return pad(batch, micro_batches, parts)


@functools.cache  # runs of one process with equal settings share a compilation
def make_base_kl(model: ModelConfig, compute: Compute) -> Callable[..., Sum]:
    """Build the jitted kl(params, reference_params, arrays): KL(R||S), summed over the tokens.

    As in a step, at most a chunk's logits are in memory. It takes two forward passes.
    """

    def of_positions(positions: Positions) -> tuple[Array, dict[str, Weighted]]:
        kl_BT = losses.forward_kl(positions.student_logp_BTV, positions.reference)
        return jnp.zeros_like(kl_BT), {"kl": everywhere(kl_BT)}

    @jax.jit
    def kl(params: Any, reference_params: Any, arrays: MicroBatches) -> Sum:
        weights = parameters.stack(params, model, dtype=compute_dtype(compute.dtype))
        networks = Networks(weights, teacher=(), reference=reference_params)
        zeros_I = jnp.zeros_like(arrays.row_weight_I)
        sequences = PerSequence(
            advantage_I=zeros_I,
            correct_I=zeros_I,
            distill_weight_I=zeros_I,
            length_I=arrays.length_I,
            step_I=zeros_I.astype(jnp.int32),
        )
        data = RowData(sequences, None, arrays.mask_IT.astype(jnp.float32)).replicated()
        needed = NeededNetworks(teacher=False, reference=True, contrast=False)

        def sums(m: Any) -> Sum:
            micro, at_positions = aligned(arrays, data, m)
            scored = score_batch(model, compute, networks, micro, needed=needed)
            options = ChunkOptions(chunk=compute.chunk, vocab_size=model.vocab_size)
            return chunked_objective(of_positions, *scored, at_positions, options)[1]["kl"]

        return fold(sums, arrays)

    return kl


class BaseKL:
    """Measures KL(R||S) on the kept samples; metric `kl_reference_student`, in nats per token."""

    def __init__(
        self, engine: Engine, compute: Compute, samples: Sequence[BaseSample], params: Any
    ) -> None:
        # There is no backward pass, for which anything would be recomputed.
        self._kl = make_base_kl(engine.policy.config, replace(compute, remat="none"))
        self._reference = engine.policy.params
        parts = sharding.num_parts("B")
        self._arrays = engine.place(arrays_of(samples, ROWS * parts, parts))
        # Compiled now, for the student's dtype: a stop after an update would wait for it.
        self(params)

    def __call__(self, params: Any) -> dict[str, float]:
        kl = jax.device_get(self._kl(params, self._reference, self._arrays))
        return {"kl_reference_student": float(kl.mean)}


def open_base_kl(
    engine: Engine, params: Any, evaluation: Evaluation, compute: Compute, run_dir: Path
) -> Callable[[Any], dict[str, float]]:
    """What measures KL(R||S) of a student with parameters like `params`, or nothing."""
    if not evaluation.base_questions:
        return lambda params: {}
    questions = questions_of(evaluation.splits[0].task)[: evaluation.base_questions]
    engine = evaluation.engine(engine)
    samples = base_samples(engine, questions, evaluation, run_dir)
    return BaseKL(engine, compute, samples, params)
