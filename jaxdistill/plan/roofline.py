"""The least time of a run's programs: operations, bytes and traffic against published rates.

Operations and bytes follow from the config, since a compiler counts a loop's body once. They are
those of sequences of mean length without padding, recomputation included, so that a program takes
the roofline's time or longer.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxdistill import sharding
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.flops import forward_flops
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.plan.memory import position_bytes
from jaxdistill.plan.programs import Run, batch_of
from jaxdistill.sampling.pages import kept_positions
from jaxdistill.training.on_policy import OnPolicy

# Of a forward pass through the layers, what the backward pass recomputes: for Qwen3-1.7B 76 of 101
# MFLOP per token and layer, or 50 (`models.remat`); "all" repeats attention too.
RECOMPUTED = {"none": 0.0, "elementwise": 0.0, "mlp": 0.5, "projections": 0.75, "all": 1.0}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A call's operations (of all devices), and bytes per device to and from memory and others."""

    flops: float
    bytes: float
    received: float = 0.0

    def seconds(self, run: Run) -> tuple[float, str]:
        """(the least time of a call, what bounds it); 0 on CPUs, of which nothing is assumed."""
        device = run.topology.device
        if device is None:
            return 0.0, "nothing is assumed of CPUs"
        times = {
            "operations": self.flops / run.topology.num_devices / device.flops,
            "memory": self.bytes / device.bandwidth,
            "network": self.received / device.network,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


def forward(model: ModelConfig, prompt: float, tokens: float) -> int:
    """Operations of one row's forward pass over a prompt and the tokens after it."""
    return forward_flops(model, 0, round(prompt + tokens), round(tokens))


def step(run: Run, mesh: Any) -> Work:
    """An update on rows of mean length."""
    config, lengths = run.config, run.lengths
    student = forward(run.model, lengths.mean_prompt, lengths.mean_new)
    informed = forward(run.informed, lengths.mean_teacher - lengths.mean_new, lengths.mean_new)
    passes = 3 + RECOMPUTED[config.compute.remat] + run.has_reference
    others = (run.has_teacher + lengths.contrasts) * informed
    weights = _weight_bytes(run, mesh)
    # Forward, both products of the backward pass, what is recomputed, and the other networks.
    read = 3 + (RECOMPUTED[config.compute.remat] > 0) + run.has_reference
    moved = read * weights
    moved += (run.has_teacher + lengths.contrasts) * _weight_bytes(run, mesh, run.informed)
    batches = micro_batches(run, mesh)
    state = run.model.num_parameters / (mesh.shape["fsdp"] * mesh.shape["tensor"])
    # Parameters and both moments are read and written, the gradient as well.
    moments = 2 * jnp.dtype(config.optimizer.moments).itemsize
    received = 0.0
    if mesh.shape["fsdp"] > 1:
        # Each pass gathers the weights; a gradient is summed over the devices once per micro-batch.
        received = (moved + weights) * batches
    return Work(
        flops=float(config.rows * (passes * student + others)),
        bytes=moved * batches + 2 * (8 + moments) * state,
        received=received + _tensor_traffic(run, mesh, passes),
    )


def score(run: Run, mesh: Any) -> Work:
    """A forward pass of the student over a mini-batch."""
    lengths, weights = run.lengths, _weight_bytes(run, mesh)
    moved = weights * micro_batches(run, mesh)
    student = forward(run.model, lengths.mean_prompt, lengths.mean_new)
    received = (moved if mesh.shape["fsdp"] > 1 else 0.0) + _tensor_traffic(run, mesh, 1)
    return Work(flops=float(run.config.rows * student), bytes=moved, received=received)


def prefill(run: Run, mesh: Any) -> Work:
    experience, lengths = run.on_policy, run.lengths
    flops = experience.questions * forward_flops(run.model, 0, round(lengths.mean_prompt), 0)
    weights = _weight_bytes(run, mesh)
    return Work(
        flops=float(flops), bytes=weights, received=weights if mesh.shape["fsdp"] > 1 else 0.0
    )


def decode(run: Run, mesh: Any, slots: int) -> Work:
    """All tokens of a batch's responses, with every slot busy."""
    experience, lengths = run.on_policy, run.lengths
    rows = experience.questions * experience.rollouts
    each = forward(run.model, lengths.mean_prompt, lengths.mean_new)
    each -= forward_flops(run.model, 0, round(lengths.mean_prompt), 0)
    context = lengths.mean_prompt + lengths.mean_new / 2
    cache = min(slots, rows) / sharding.num_parts("B", min(slots, rows))
    seen = kept_positions(run.model, context, run.model.window)
    dtype, rounded = run.config.compute.dtype, run.config.compute.weights_dtype
    saved = decoding_bytes(run.model, dtype, "auto", held=False)
    saved -= decoding_bytes(run.model, dtype, rounded, held=False)
    read = _weight_bytes(run, mesh) - saved / mesh.shape["tensor"]
    read += cache * seen * position_bytes(run, mesh)
    steps = decode_steps(run, slots)
    # Two sums of a layer's output per token over the devices that share the heads.
    tensor = 0.0
    if mesh.shape["tensor"] > 1:
        size = run.model.axes
        tensor = steps * 4.0 * size["L"] * cache * size["D"] * _item(run)
    return Work(flops=float(rows * each), bytes=steps * read, received=tensor)


def decode_steps(run: Run, slots: int) -> float:
    """Steps of the decode loop if every slot is always busy; the last rows' tail is left out."""
    rows = run.on_policy.questions * run.on_policy.rollouts
    return rows * run.lengths.mean_new / min(slots, rows)


def micro_batches(run: Run, mesh: Any) -> float:
    """Micro-batches of an update that rows of mean length fill."""
    batch = batch_of(run, mesh)
    rows, number, capacity = batch.rows.plain.tokens_BS.shape
    if batch.num_in_use is None:
        return number
    filled = run.config.rows * run.lengths.mean_student / (rows * capacity)
    return max(filled, 1.0)


def tokens(run: Run) -> float:
    """Tokens of responses per iteration."""
    return run.config.rows * run.config.updates * run.lengths.mean_new


def is_sampled(run: Run) -> bool:
    return isinstance(run.config.experience, OnPolicy)


def _item(run: Run) -> int:
    return jnp.dtype(run.config.compute.dtype).itemsize


def _weight_bytes(run: Run, mesh: Any, model: ModelConfig | None = None) -> float:
    """Of all weights as a device reads them: whole over fsdp, split over tensor."""
    return (model or run.model).num_parameters * _item(run) / mesh.shape["tensor"]


def _tensor_traffic(run: Run, mesh: Any, passes: float) -> float:
    """What a device receives as heads and feed-forward are split: gathers and sums of activations.

    Four of a layer's pass: positions are gathered before attention and before the MLP, and summed
    after each.
    """
    if mesh.shape["tensor"] == 1:
        return 0.0
    size, parts = run.model.axes, mesh.shape["data"] * mesh.shape["fsdp"]
    positions = run.config.rows * (passes * run.lengths.mean_student)
    positions += run.config.rows * run.has_teacher * run.lengths.mean_teacher
    return 4.0 * size["L"] * positions / parts * size["D"] * _item(run)
