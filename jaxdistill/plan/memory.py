"""Memory of a run per device, by category, by arithmetic on its shapes.

State and reference are counted to the byte from their shardings. The rest follows the terms below.
Where a compiler's peak is known too (docs/tpu_plans.md), the sampler's decode loop is within 4 % of
it, and the step within 15 %, but as low as 70 % where all layers are recomputed on v5e.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxdistill import sharding
from jaxdistill.models.cached_attention import PAGE, ring_positions
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import BLOCK
from jaxdistill.models.parameters import stored_config
from jaxdistill.models.placement import as_computed, kv_heads_of_device
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.models.row_blocks import num_row_blocks
from jaxdistill.plan.programs import Run, batch_of, bytes_on_one_device, sampler_shapes, state_of
from jaxdistill.sampling.pages import held_positions, kept_positions

# Logits of a chunk in float32 that are in memory at once: the student's and their gradient, and the
# teacher's (a peak of 41.7 GiB on an H200, docs/log.md 2026-11-25).
LOGITS, LOGITS_OF_TEACHER = 2, 1
# Bytes per parameter that the update takes beside the state: gradients in float32, and a part of
# them copied. On a TPU 18.9 bytes in all with a reference in bfloat16 (libtpu 0.0.42.1 on
# v5p:2x2x1): parameters and moments are written where they were. The others are not measured.
OF_UPDATE = {"tpu": 5, "gpu": 8, "cpu": 16}
# Arrays of float32 with a number for each token of the batch (`RowData.replicated`).
PER_TOKEN_OF_ALL = 3
# Layers whose weights are gathered over fsdp at once: the one in use and the next. Chosen.
GATHERED_LAYERS = 2
# Arrays of D numbers per token of the prompts that prefill holds on every device of a tensor axis,
# besides one of F that the axis splits. With them the estimate of two layers is 4.6 GiB for 1.7B on
# v5e:2x4 (tensor=8) and 3.1 for 7B on v6e:4x4 (fsdp=4, tensor=4); libtpu 0.0.42.1 says 4.7 and 2.6.
STREAMS = 4


@dataclass(frozen=True, kw_only=True)
class Categories:
    """Bytes per device. `peak` is their sum, as far as they are held at the same time."""

    parameters: float = 0
    optimizer: float = 0
    teacher_and_reference: float = 0
    # In the compute dtype or gathered; and what the update holds beside the state.
    weights_and_gradients: float = 0
    activations: float = 0
    vocabulary: float = 0
    kv_pool: float = 0
    prompts: float = 0  # their KV caches; in a step the batch's arrays

    @property
    def resident(self) -> float:
        return self.parameters + self.optimizer + self.teacher_and_reference

    @property
    def peak(self) -> float:
        return float(sum(vars(self).values()))

    def as_dict(self) -> dict[str, float]:
        return {name: float(value) for name, value in vars(self).items()}


def resident(run: Run, mesh: Any) -> Categories:
    """What a run holds at all times."""
    state, reference = state_of(run, mesh)
    return Categories(
        parameters=bytes_on_one_device(state.params),
        optimizer=bytes_on_one_device(state.opt_state),
        teacher_and_reference=bytes_on_one_device((state.teacher, reference)),
    )


def step(run: Run, mesh: Any) -> Categories:
    """The step at its peak, which is either in a micro-batch's backward pass or in the update."""
    held, size, compute = resident(run, mesh), run.model.axes, run.config.compute
    batch, item = batch_of(run, mesh), jnp.dtype(compute.dtype).itemsize
    rows = batch.rows.plain.tokens_BS.shape[0] / _parts(mesh)
    tokens = rows * batch.rows.plain.tokens_BS.shape[-1]
    others = [x for x in (batch.rows.teacher, *batch.rows.contrasts) if x is not None]
    seen = max([tokens, *(rows * x.tokens_BS.shape[-1] for x in others)])
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    mine = held.parameters / 4  # parameters on this device
    layer = (run.model.num_parameters - size["V"] * size["D"]) / size["L"]
    accumulates = batch.num_in_use is not None or batch.rows.row_BA.shape[1] > 1
    informed = run.informed.axes
    its_layer = (run.informed.num_parameters - informed["V"] * informed["D"]) / informed["L"]
    wide = 4 if compute.gradients == "float32" else item
    # The cast weights, a micro-batch's gradients and their sum over micro-batches. One GPU with one
    # micro-batch does not hold the first (`step._Program._casts_in_passes`).
    casts_in_passes = run.platform == "gpu" and mesh.size == 1 and not accumulates and wide < 4
    is_cast = item < 4 and not casts_in_passes
    gradients = mine * (wide * is_cast + wide + 4 * accumulates)
    if fsdp > 1:
        gradients += GATHERED_LAYERS * max(layer, its_layer) * item / tensor
    model = as_computed(run.model, tensor)
    kept = kept_per_token(model, compute.remat) * tokens * size["L"] * item / tensor
    # A layer's backward pass holds what it recomputes and its cotangents; another network's
    # forward pass the queries, keys and values of a layer, and the widest arrays of a block.
    other = as_computed(run.informed, tensor)
    heads = 2 * (other.num_heads + other.num_kv_heads) * informed["H"]
    of_others = heads * seen + 3 * informed["F"] * min(seen, BLOCK)
    once = max(2 * kept_per_token(model, "elementwise") * tokens, of_others) * item / tensor
    # Weights, masks and log-probabilities of every row's tokens, which every device has whole.
    width = batch.rows.completions.tokens_BS.shape[-1]
    once += PER_TOKEN_OF_ALL * run.config.rows * width * 4
    vocabulary = _vocabulary(run, mesh, rows, item)
    in_loop = Categories(
        **_held(held),
        weights_and_gradients=gradients,
        activations=kept + once,
        vocabulary=vocabulary,
        prompts=bytes_on_one_device(batch),
    )
    in_update = Categories(
        **_held(held),
        weights_and_gradients=mine * OF_UPDATE[run.platform],
        prompts=bytes_on_one_device(batch),
    )
    return max(in_loop, in_update, key=lambda each: each.peak)


def scoring(run: Run, mesh: Any) -> Categories:
    """The student's forward pass over a mini-batch, beside the resident state."""
    held, size, compute = resident(run, mesh), run.model.axes, run.config.compute
    batch, item = batch_of(run, mesh), jnp.dtype(compute.dtype).itemsize
    rows = batch.rows.plain.tokens_BS.shape[0] / _parts(mesh)
    tokens = rows * batch.rows.plain.tokens_BS.shape[-1]
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    layer = (run.model.num_parameters - size["V"] * size["D"]) / size["L"]
    weights = held.parameters / 4 * item * (item < 4)
    if fsdp > 1:
        weights += GATHERED_LAYERS * layer * item / tensor
    # The widest arrays of a block, and the residual stream before and after a layer.
    widest = 3 * size["F"] * min(tokens, BLOCK) + 2 * size["D"] * tokens
    # Every row's scores are an array as wide as a packed row, which every device has whole.
    scores = run.config.rows * batch.rows.completions.tokens_BS.shape[-1] * 4
    return Categories(
        **_held(held),
        weights_and_gradients=weights,
        activations=widest * item / tensor + scores,
        vocabulary=_vocabulary(run, mesh, rows, item),
        prompts=bytes_on_one_device(batch),
    )


def _held(held: Categories) -> dict[str, float]:
    names = ("parameters", "optimizer", "teacher_and_reference")
    return {name: getattr(held, name) for name in names}


def _vocabulary(run: Run, mesh: Any, rows: float, item: int) -> float:
    """A chunk's logits, the head's gradient in float32, and the heads that are gathered."""
    size, compute = run.model.axes, run.config.compute
    columns = _columns(run, mesh)
    has_other = run.has_teacher or run.has_reference
    others = LOGITS_OF_TEACHER * (has_other + run.lengths.contrasts)
    logits = (LOGITS + others) * rows * compute.chunk * columns * 4
    gathered = size["D"] + has_other * run.informed.axes["D"] if mesh.shape["fsdp"] > 1 else 0
    return logits + columns * (4 * size["D"] + item * gathered)


def _columns(run: Run, mesh: Any) -> float:
    """Columns of the head, and of logits, on one device."""
    return stored_config(run.model, mesh).vocab_size / mesh.shape["tensor"]


def kept_per_token(model: ModelConfig, remat: str) -> int:
    """Numbers per token and layer that the forward pass keeps for the backward pass (`remat`)."""
    size = model.axes
    D, of_attention = size["D"], size["N"] * size["H"]
    kept = {
        "all": D,
        "projections": D + of_attention,
        "mlp": 2 * D + 2 * of_attention + 2 * size["K"] * size["H"] + D * model.post_norm,
    }
    kept["elementwise"] = kept["mlp"] + 2 * size["F"]
    # Much of what autodiff keeps is in float32. A multiple of elementwise; chosen, not measured.
    kept["none"] = 3 * kept["elementwise"]
    return kept[remat]


def sampling(run: Run, mesh: Any, slots: int, pages: int | None) -> Categories:
    """The sampler at its peak, in prefill or in its decode loop, beside the resident state."""
    both = prefill(run, mesh, pages), decode(run, mesh, slots, pages)
    return max(both, key=lambda each: each.peak)


def prefill(run: Run, mesh: Any, pages: int | None) -> Categories:
    """A block of a device's prompts in one layer, the stream of all, and their caches in all."""
    size, tensor = run.model.axes, mesh.shape["tensor"]
    item = jnp.dtype(run.config.compute.dtype).itemsize
    layer = (run.model.num_parameters - size["V"] * size["D"]) / size["L"]
    once = size["F"] / tensor + STREAMS * size["D"]
    questions, prompt = sampler_shapes(run, mesh)[0], run.lengths.prompt
    blocks = 1 if run.platform == "cpu" else num_row_blocks(questions, prompt, BLOCK)
    mine = _questions_of_device(run, mesh)
    stream = 0 if blocks == 1 else size["D"] * mine
    return Categories(
        **_held(resident(run, mesh)),
        weights_and_gradients=GATHERED_LAYERS * layer * item / tensor,
        activations=(once * mine / blocks + stream) * item * prompt,
        prompts=_prompts(run, mesh, pages),
    )


def decode(run: Run, mesh: Any, slots: int, pages: int | None) -> Categories:
    """What the decode loop cannot do without: weights, caches of slots and prompts, and logits."""
    size, tensor = run.model.axes, mesh.shape["tensor"]
    compute, rows = run.config.compute, sampler_shapes(run, mesh)[2]
    slots = min(slots, rows)
    num_parts = sharding.num_parts("B", slots)
    held = held_positions(
        run.model,
        size=run.lengths.prompt + run.lengths.new,
        slots=slots // num_parts,
        pages=None if pages is None else pages // num_parts,
    )
    columns = _columns(run, mesh)
    model = as_computed(run.model, tensor)
    weights = decoding_bytes(model, compute.dtype, compute.weights_dtype, held=True) / tensor
    if not model.tie_embeddings:
        # `decoding_weights` leaves the embedding split over fsdp.
        item = jnp.dtype(compute.dtype).itemsize
        weights += size["D"] * columns * item / mesh.shape["fsdp"]
    return Categories(
        **_held(resident(run, mesh)),
        weights_and_gradients=weights,
        vocabulary=-(-slots // num_parts) * columns * 4 * 2,
        kv_pool=held * position_bytes(run, mesh),
        prompts=_prompts(run, mesh, pages),
    )


def _questions_of_device(run: Run, mesh: Any) -> int:
    questions, _, _ = sampler_shapes(run, mesh)
    return questions // sharding.num_parts("Q", questions)


def _prompts(run: Run, mesh: Any, pages: int | None) -> float:
    """Bytes of the prompts' caches: split like their batch, in whole pages if there are any."""
    _, width, _ = sampler_shapes(run, mesh)
    width = -(-width // PAGE) * PAGE if pages is not None else width
    ring = ring_positions(run.model.window, run.lengths.prompt + run.lengths.new, PAGE)
    kept = kept_positions(run.model, width, ring)
    return _questions_of_device(run, mesh) * kept * position_bytes(run, mesh)


def position_bytes(run: Run, mesh: Any) -> float:
    """Bytes of the keys and values of one position, in one layer, on a device."""
    model, compute, tensor = run.model, run.config.compute, mesh.shape["tensor"]
    heads = kv_heads_of_device(model, tensor)
    return 2 * heads * vector_bytes(model.head_dim, compute.dtype, compute.cache_dtype)


def _parts(mesh: Any) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]
