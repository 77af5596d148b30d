"""Import of Hugging Face folders: the files' headers are checked before any tensor is read.

Each tensor then goes straight from its file to its final place: every process reads the slices that
its own devices hold, and the device writes them into the stacked parameter in place.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxdistill.errors import UserError
from jaxdistill.models import families
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.parameters import abstract_params
from jaxdistill.sharding import Mesh
from jaxdistill.storage import foreign, hub
from jaxdistill.storage.hf_files import INDEX, WEIGHTS, read_json
from jaxdistill.storage.hf_layout import (
    ParameterPart,
    parameter_of,
    parts_of,
    stored_shape,
    tensor_shape,
    tensor_sharding,
    with_layer,
    zeros,
)
from jaxdistill.storage.safetensors_io import (
    DTYPES,
    Tensor,
    in_parallel,
    progress_bar,
    read_header,
    read_slice,
)

ParameterPath = tuple[Any, ...]  # a parameter's path in the nnx.State


def read_config(folder: str | Path) -> ModelConfig:
    """The model's config from the folder's config.json.

    Raises UserError for a missing folder or file, a malformed field or an unknown `model_type`.
    """
    path = config_file(hub.find_folder(folder))
    fields = read_json(path)
    try:
        return families.from_fields(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_file(folder: Path) -> Path:
    """A model folder's config.json. Raises UserError that says what the folder is without one."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; is it a model folder?{foreign.hint(folder)}")
    return path


def import_folder(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    progress: bool = False,
) -> tuple[ModelConfig, nnx.State]:
    """Read a folder's config and parameters; with `mesh`, shard each parameter by its axes.

    A vocabulary has the rows that the mesh stores (`parameters.stored_config`). `dtype` None keeps
    the files' dtypes. Besides its share of the parameters, a host needs memory for tensors being
    read, at most the largest one's size together, and a device needs memory for that tensor and a
    rearranged copy of it. Raises UserError, before any tensor is read, if the
    folder's tensors are not exactly those that the config implies.
    """
    folder = hub.find_folder(folder)
    config = read_config(folder)
    parts = parts_of(config)
    tensors = _checked(folder, config, parts, _open_tensors(folder))
    dtypes = _dtypes(folder, parts, tensors, dtype)
    with progress_bar(tensors.values(), f"read {folder.name}", progress) as bar:
        values = _load(config, parts, tensors, dtypes=dtypes, mesh=mesh, bar=bar)
    leaves = nnx.to_flat_state(abstract_params(config, mesh=mesh))
    return config, nnx.from_flat_state(
        [(path, leaf.replace(values[path])) for path, leaf in leaves]
    )


def stored_dtype(folder: str | Path) -> str:
    """The dtype of the folder's embedding, such as "bfloat16", taken as the whole model's dtype.

    Raises UserError as `import_folder` does.
    """
    folder = hub.find_folder(folder)
    config = read_config(folder)
    name = families.FAMILIES[config.family].TENSORS[("embed",)].name
    tensors = _open_tensors(folder)
    if name not in tensors:
        raise UserError(
            f"{folder}: tensor {name} is missing; config.json requires it"
            f"{foreign.hint_of_names(tensors, parts_of(config))}"
        )
    _check_dtype(folder, name, tensors[name])
    return str(DTYPES[tensors[name].dtype])


def stored_bytes(folder: str | Path, dtype: DTypeLike | None = None) -> int:
    """The size of a folder's tensors in bytes, in `dtype` or in their own; read from the headers.

    Raises UserError as `import_folder` does, but does not check each tensor.
    """
    folder = hub.find_folder(folder)
    read_config(folder)
    tensors = _open_tensors(folder).values()
    if dtype is None:
        return sum(tensor.num_bytes for tensor in tensors)
    return sum(math.prod(tensor.shape) for tensor in tensors) * jnp.dtype(dtype).itemsize


# ---------------------------------------------------------------------------- from file to device


def _load(
    config: ModelConfig,
    parts: dict[str, ParameterPart],
    tensors: dict[str, Tensor],
    *,
    dtypes: dict[ParameterPath, np.dtype],
    mesh: Mesh | None,
    bar: Any,
) -> dict[ParameterPath, jax.Array]:
    """Load every parameter; the stacked ones are allocated first and filled layer by layer."""
    stacked = {part.path: part.axes for part in parts.values() if part.layer is not None}
    values = {path: zeros(config, axes, dtypes[path], mesh) for path, axes in stacked.items()}
    for name, array in _stream(config, parts, tensors, mesh):
        part = parts[name]
        if dtypes[part.path] == np.float16:
            refuse_overflow(name, array)
        if part.layer is None:
            values[part.path] = parameter_of(array, config, part, dtypes[part.path])
        else:
            values[part.path] = with_layer(values[part.path], array, config, part)
        # Dispatch is asynchronous: without waiting, many tensors would be on the device at once.
        values[part.path].block_until_ready()
        bar.update(tensors[name].num_bytes)
    return values


def refuse_overflow(name: str, array: jax.Array | np.ndarray) -> None:
    """Raise UserError if a finite value of a tensor would be infinite in float16."""
    num_lost = int((np.isfinite(array) & ~np.isfinite(jnp.asarray(array).astype(np.float16))).sum())
    if num_lost:
        raise UserError(
            f"tensor {name} has {num_lost} value(s) beyond the largest of float16, 65,504, which "
            "would become infinite; use bfloat16 or float32"
        )


def _stream(
    config: ModelConfig,
    parts: dict[str, ParameterPart],
    tensors: dict[str, Tensor],
    mesh: Mesh | None,
) -> Iterator[tuple[str, jax.Array]]:
    """Yield every tensor on its devices, in file order; threads read a few tensors ahead."""
    # JAX's default device is a per-thread setting, so the reader threads must be told the caller's.
    device = next(iter(jnp.zeros(()).devices()))

    def read(name: str) -> jax.Array:
        tensor = tensors[name]
        if mesh is None:
            with jax.default_device(device):
                return jnp.asarray(read_slice(tensor)).block_until_ready()
        sharding = tensor_sharding(mesh, config, parts[name])
        shape = stored_shape(mesh, config, parts[name])
        return _read_sharded(tensor, sharding, shape).block_until_ready()

    names = sorted(tensors, key=lambda name: (tensors[name].file, tensors[name].offset))
    largest = max(tensor.num_bytes for tensor in tensors.values())
    return in_parallel(read, names, lambda name: tensors[name].num_bytes, largest)


def _read_sharded(
    tensor: Tensor, sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> jax.Array:
    """Read each slice that this process's devices hold once, even if several devices hold it.

    What `shape` has beyond the tensor's own is zero.
    """
    slices: dict[str, np.ndarray] = {}

    def read(index) -> np.ndarray:
        if str(index) not in slices:  # slices have no hash before Python 3.12
            found = read_slice(tensor, index)
            wanted = [len(range(*part.indices(size))) for part, size in zip(index, shape)]
            added = [(0, want - have) for want, have in zip(wanted, found.shape)]
            slices[str(index)] = np.pad(found, added) if any(n for _, n in added) else found
        return slices[str(index)]

    return jax.make_array_from_callback(shape, sharding, read)


# ---------------------------------------------------------------------------- checks


def _open_tensors(folder: Path) -> dict[str, Tensor]:
    """The place of every tensor in the folder's weights, from the files' headers."""
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which can run code: convert it" if pickles else ""
        hint = foreign.hint(folder) or hint
        raise UserError(f"{folder} has no {WEIGHTS} and no {INDEX}{hint}")
    return _open_shards(folder)


def _open_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    found: dict[str, Tensor] = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        # Only plain file names: an index must not make us read outside its folder.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{index} names {file!r}; expected a .safetensors file beside it")
        if not (folder / file).is_file():
            raise UserError(f"{index} names {file}, which is missing; download it again")
        for name, tensor in read_header(folder / file).items():
            if name in found:
                raise UserError(
                    f"{folder}: tensor {name} is in {found[name].file.name} and again in {file}"
                )
            found[name] = tensor
    for name in sorted(weight_map.keys() | found.keys()):
        named, actual = weight_map.get(name), found[name].file.name if name in found else None
        if named != actual:
            raise UserError(
                f"{index} places tensor {name} in {named or 'no file'}, but it is in "
                f"{actual or 'no file'}"
            )
    return found


def _checked(
    folder: Path, config: ModelConfig, parts: dict[str, ParameterPart], tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of `parts`. Raises UserError unless the folder has these and no others.

    One exception: the files of a model with tied embeddings may also hold the output projection, as
    Qwen3-0.6B's do, provided that it is a copy of the embedding.
    """
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name in parts or not foreign.is_buffer(name)
    }
    table = families.FAMILIES[config.family].TENSORS
    embed, head = table[("embed",)].name, table[("head",)].name
    has_copy = config.tie_embeddings and head in tensors
    _check_tensors(folder, config, parts | ({head: parts[embed]} if has_copy else {}), tensors)
    if has_copy and not _hold_same_bits(tensors[embed], tensors[head]):
        raise UserError(
            f"{folder}: tie_word_embeddings is true but {head} differs from {embed}; "
            "set it to false in config.json if both are meant"
        )
    return {name: tensors[name] for name in parts}


def _check_tensors(
    folder: Path, config: ModelConfig, parts: dict[str, ParameterPart], tensors: dict[str, Tensor]
) -> None:
    """Compare names, shapes and dtypes with the config. Raises UserError at the first mismatch."""
    for name in sorted(parts.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(
                f"{folder}: tensor {name} is missing; config.json requires it"
                f"{foreign.hint_of_names(tensors, parts)}"
            )
        if name not in parts:
            raise UserError(
                f"{folder}: unexpected tensor {name}; config.json has no place for it"
                f"{foreign.hint_of_names(tensors, parts)}"
            )
        expected = tensor_shape(config, parts[name])
        if tensors[name].shape != expected:
            raise UserError(
                f"{folder}: tensor {name} has shape {tensors[name].shape}; "
                f"config.json requires {expected}"
            )
        _check_dtype(folder, name, tensors[name])


def _check_dtype(folder: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise UserError(f"{folder}: tensor {name} is {tensor.dtype}; only {known} are supported")


def _dtypes(
    folder: Path,
    parts: dict[str, ParameterPart],
    tensors: dict[str, Tensor],
    dtype: DTypeLike | None,
) -> dict[ParameterPath, np.dtype]:
    """Each parameter's dtype: the requested one, or the one that all of its layers share."""
    if dtype is not None:
        return {part.path: jnp.dtype(dtype) for part in parts.values()}
    first: dict[ParameterPath, str] = {}
    for name, tensor in tensors.items():
        other = first.setdefault(parts[name].path, name)
        if tensors[other].dtype != tensor.dtype:
            raise UserError(
                f"{folder}: tensor {name} is {tensor.dtype} but {other} is {tensors[other].dtype}; "
                "name a dtype to cast both to"
            )
    return {path: DTYPES[tensors[name].dtype] for path, name in first.items()}


def _hold_same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether dtype and every bit are equal; compares in blocks to bound the host's memory."""
    rows = max(1, 2**24 * a.shape[0] // a.num_bytes)  # 16 MiB, as in `safetensors_io`
    # As bytes, because NaN differs from itself as a number.
    return a.dtype == b.dtype and all(
        read_slice(a, slice(start, start + rows)).tobytes()
        == read_slice(b, slice(start, start + rows)).tobytes()
        for start in range(0, a.shape[0], rows)
    )
