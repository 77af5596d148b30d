"""One line that says what a command runs on: devices, dtype, attention, recomputation, memory.

It goes to stderr before the first compilation, so that a run on the wrong devices is seen at once.
"""

from collections.abc import Sequence
from typing import Any

import jax

from jaxdistill import compilation, sharding
from jaxdistill.config import RunConfig
from jaxdistill.models import attention as attentions
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.decode_kernel import has_kernel
from jaxdistill.models.quantized_weights import is_int8, obstacle
from jaxdistill.precision import compute_dtype
from jaxdistill.run.programs import meshes_of
from jaxdistill.training.compute import Compute
from jaxdistill.training.memory import memory_limit


def start_line(
    mesh: sharding.Mesh,
    model: ModelConfig,
    compute: Compute,
    *,
    rows: int | None = None,
    sampler: sharding.Mesh | None = None,
) -> str:
    """The line for a model on a mesh, with every "auto" replaced by its choice.

    Attention is that of rows as long as the model reads; short ones are computed by XLA. `rows` are
    those of an optimizer update; None: nothing is trained. sampler: the mesh that draws rollouts,
    which may be another. What decode steps read in 8 bits is said with who reads it. Raises
    UserError for an attention that cannot run here (`attention.choose`).
    """
    dtype = compute_dtype(compute.dtype)
    with sharding.use_mesh(mesh):
        parts = sharding.num_parts("B")
        is_packed = rows is not None and compute.packs_on(sharding.platform())
        chosen = attentions.choose(
            compute.attention,
            platform=sharding.platform(),
            dtype=dtype,
            sequence_length=model.max_positions,
            head_dim=model.head_dim,
            is_packed=is_packed,
        )
    with sharding.use_mesh(sampler or mesh):
        in_8_bits = _in_8_bits(model, compute, dtype)
    limit = memory_limit()
    said = [_of_meshes(mesh, sampler or mesh, dtype), f"attention {chosen}", *in_8_bits]
    if rows is not None:
        # As `make_train_step` chooses.
        least = "none" if limit is None else "auto (the least that fits)"
        said.append(f"rematerialisation {least if compute.remat == 'auto' else compute.remat}")
    said.append("memory of the host" if limit is None else f"{limit / 2**30:.0f} GiB per device")
    together = 0 if rows is None or is_packed else rows // compute.micro_batches
    if empty := -together % parts:
        said.append(f"{together} rows at a time over {parts} devices, with {empty} empty rows")
    if reason := compilation.not_kept():
        said.append(reason)
    return "; ".join(said)


def _in_8_bits(model: ModelConfig, compute: Compute, dtype: Any) -> list[str]:
    """What decode steps read in 8 bits, and by what: by XLA it may be slower than in bfloat16."""
    said = []
    if compute.weights_dtype != "auto":
        reason = "kernels need int8"
        if is_int8(compute.weights_dtype):
            reason = obstacle(model, dtype)
        reader = f"XLA ({reason})" if reason else "kernels"
        said.append(f"{compute.weights_dtype} weights in decode steps, read by {reader}")
    if compute.cache_dtype != "auto":
        has_one = compute.attention != "xla" and has_kernel(model.head_dim, compute.cache_dtype)
        said.append(f"{compute.cache_dtype} cache, read by {'a kernel' if has_one else 'XLA'}")
    return said


def study_line(configs: Sequence[RunConfig], workers: int, gpus: Sequence[str] = ()) -> str:
    """The line for a study's runs, in this many processes: each mesh and dtype that they have.

    gpus: those over which several processes are spread; each then makes its own mesh.
    """
    if workers > 1 and gpus:
        dtypes = {str(compute_dtype(config.compute.dtype)) for config in configs}
        kind = jax.devices()[0].device_kind
        return (
            f"{len(configs)} run(s) in {workers} processes on {len(gpus)} GPU(s) ({kind}); "
            f"{', '.join(sorted(dtypes))}"
        )
    places = dict.fromkeys(
        _of_meshes(*meshes_of(config), compute_dtype(config.compute.dtype)) for config in configs
    )
    runs = f"{len(configs)} run(s)"
    return "; ".join([f"{runs} in {workers} processes" if workers > 1 else runs, *places])


def _of_meshes(mesh: sharding.Mesh, sampler: sharding.Mesh, dtype: Any) -> str:
    kind = mesh.devices.flat[0].device_kind
    said = f"{mesh.size} of {jax.device_count()} devices ({kind}); mesh {_sizes_of(mesh)}; {dtype}"
    if sampler == mesh:
        return said
    who = "1 other draws" if sampler.size == 1 else f"{sampler.size} others draw"
    return f"{said}; {who} rollouts one step ahead, in mesh {_sizes_of(sampler)}"


def _sizes_of(mesh: sharding.Mesh) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
