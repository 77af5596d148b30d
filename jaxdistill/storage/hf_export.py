"""Export to Hugging Face folders: written beside the destination, read back, and renamed last.

Shards and their names are planned from the config. Each tensor is then sliced from its parameter on
the device, fetched to the host and written at its offset in the file.
"""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdistill.errors import UserError, out_of_memory
from jaxdistill.files import local_path, sync, sync_tree
from jaxdistill.models import families
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage import hub
from jaxdistill.storage.finite import count_non_finite
from jaxdistill.storage.hf_files import (
    INDEX,
    TOKENIZER_FILES,
    copy_tokenizer_files,
    generation_config,
    write_json,
)
from jaxdistill.storage.hf_layout import parts_of, tensor_of, tensor_shape
from jaxdistill.storage.safetensors_io import (
    DTYPES,
    Tensor,
    create,
    in_parallel,
    progress_bar,
    read_digest,
    read_header,
    write,
)

# The largest tensor is sliced on its device, which needs a copy of it there.
ADVICE = (
    "nothing is lost: the checkpoint holds the weights, and `jaxdistill convert RUN DST` exports "
    "them without the rest of a run's memory; or shard the model over more devices (mesh)"
)

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # {tensor: (dtype as safetensors names it, shape)}


def export_folder(
    folder: str | Path,
    params: nnx.State,
    config: ModelConfig,
    *,
    tokenizer_from: str | Path | None,
    generation: dict[str, Any] | None = None,
    dtype: str | None = None,
    # transformers 4 wrote shards of this size: an interrupted download repeats at most one.
    max_shard_bytes: float | int = 5e9,
    progress: bool = False,
) -> None:
    """Write a folder that transformers reads: config, safetensors, the tokenizer's files.

    `generation` becomes generation_config.json (None: a copy of the one in the tokenizer's folder);
    its special token ids go into config.json too. `dtype` None keeps the parameters' dtypes. Every
    tensor is read back and compared bit by bit. A host needs memory for one tensor. With several
    hosts, all of them must call this function, and the first one writes. Raises UserError, and
    leaves nothing behind, if `folder` exists, the tokenizer's folder is missing, the dtype cannot
    be exported, or the disk is too small or cannot be written, or a value is
    not finite in the exported dtype.
    """
    folder = local_path(folder)
    known = [str(kind) for kind in DTYPES.values()]
    if dtype is not None and dtype not in known:
        raise UserError(f"dtype {dtype!r} cannot be exported; use {' or '.join(known)}")
    shapes = _shapes(params, config, dtype)
    arrays = _arrays(params, config, shapes)
    error = None
    try:
        if jax.process_index() == 0:
            source = None if tokenizer_from is None else hub.find_folder(tokenizer_from)
            if source and not any((source / name).is_file() for name in TOKENIZER_FILES):
                raise UserError(f"{source} holds no tokenizer; name the folder with tokenizer.json")
            if generation is None:
                generation = {} if source is None else generation_config(source)
            _check_token_ids(generation, config, source)
            _write(
                folder,
                config,
                shapes,
                arrays,
                source=source,
                generation=generation,
                max_shard_bytes=max_shard_bytes,
                progress=progress,
            )
    except Exception as caught:  # raised later: the other hosts are waiting for this one
        error = caught
    _end_together(folder, arrays, error)


def _end_together(folder: Path, arrays: Iterator[Any], error: Exception | None) -> None:
    """Raise the writing host's error there, and on the other hosts a UserError that it failed."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # Gathering arrays that are sharded over hosts is a collective: every host must take part.
        for _ in arrays:
            pass
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if failed and error is None:
            raise UserError(f"{folder} could not be written; the first host says why")
    if error is not None:
        raise error


def _write(
    folder: Path,
    config: ModelConfig,
    shapes: Shapes,
    arrays: Iterator[tuple[str, jax.Array]],
    *,
    source: Path | None,
    generation: dict[str, Any],
    max_shard_bytes: float | int,
    progress: bool,
) -> None:
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; choose another name or remove it first")
    check_space(folder, sum(_num_bytes(*shape) for shape in shapes.values()))
    dtype = str(DTYPES[shapes[families.FAMILIES[config.family].TENSORS[("embed",)].name][0]])
    # transformers 5 reads `dtype`, older versions read `torch_dtype`.
    fields = families.to_fields(config) | {"dtype": dtype, "torch_dtype": dtype}
    fields |= {name: value for name, value in generation.items() if name.endswith("_token_id")}

    def write_files(temporary: Path) -> None:
        write_json(temporary / "config.json", fields)
        write_json(temporary / "generation_config.json", generation)
        if source is not None:
            copy_tokenizer_files(source, temporary)
        _write_weights(
            temporary,
            shapes,
            arrays,
            max_shard_bytes=max_shard_bytes,
            shown_name=folder.name,
            progress=progress,
        )

    try:
        _write_then_rename(folder, write_files)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise UserError if the disk that will hold `folder` has less than `num_bytes` free."""
    existing = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"{folder} needs {num_bytes / 1e9:.2f} GB, but {existing} has {free / 1e9:.2f} GB free"
        )


def _write_then_rename(folder: Path, write_files: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_files(temporary)
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        # Otherwise a loss of power could leave the name with a part of the files.
        sync_tree(temporary)
        os.rename(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---------------------------------------------------------------------------- from device to file


def _shapes(params: nnx.State, config: ModelConfig, dtype: str | None) -> Shapes:
    """The dtype and shape of every tensor to write, in the order of the layers."""
    names = {str(kind): name for name, kind in DTYPES.items()}
    values = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(params)}
    parts = parts_of(config)
    # Numbers are padded to six digits so that layer 2 sorts before layer 10.
    in_order = sorted(parts, key=lambda name: re.sub(r"\d+", lambda n: n[0].zfill(6), name))
    return {
        name: (
            names[dtype or str(values[parts[name].path].dtype)],
            tensor_shape(config, parts[name]),
        )
        for name in in_order
    }


def _arrays(
    params: nnx.State, config: ModelConfig, shapes: Shapes
) -> Iterator[tuple[str, jax.Array]]:
    """Yield each tensor on demand, still on its devices."""
    values = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(params)}
    parts = parts_of(config)
    for name, (dtype, _) in shapes.items():
        part = parts[name]
        with out_of_memory(f"exporting {name}", ADVICE):
            array = _gathered(tensor_of(values[part.path], config, part, DTYPES[dtype]))
        yield name, array


def _gathered(x: jax.Array) -> Any:
    """The array in a form that one process can fetch by itself."""
    if x.is_fully_addressable:
        return x
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def _write_weights(
    folder: Path,
    shapes: Shapes,
    arrays: Iterator[tuple[str, jax.Array]],
    *,
    max_shard_bytes: float | int,
    shown_name: str,
    progress: bool,
) -> None:
    places = create_shards(folder, shapes, max_shard_bytes)

    def fetch_and_write(item: tuple[str, jax.Array]) -> str:
        name, array = item
        with out_of_memory(f"exporting {name}", ADVICE):
            value = np.asarray(array)
        # The rows that a mesh adds to a vocabulary come last.
        value = value[: places[name].shape[0]]
        if num_bad := count_non_finite(value):
            raise UserError(_not_finite(name, num_bad, value, shown_name))
        return write(places[name], value)

    digests = {}
    largest = max(place.num_bytes for place in places.values())
    with progress_bar(places.values(), f"write {shown_name}", progress) as bar:
        sized = in_parallel(fetch_and_write, arrays, lambda x: places[x[0]].num_bytes, largest)
        for (name, _), digest in sized:
            digests[name] = digest
            bar.update(places[name].num_bytes)
    with progress_bar(places.values(), f"check {shown_name}", progress) as bar:
        _check_written(places, digests, bar)


def _not_finite(name: str, num_bad: int, value: np.ndarray, shown_name: str) -> str:
    reason = "NaN or infinite"
    if value.dtype == np.float16:
        reason += " in float16, whose largest number is 65504"
    return (
        f"{shown_name} is not written: {num_bad:,} of the {value.size:,} values of {name} are "
        f"{reason}; use an earlier checkpoint or another dtype"
    )


def create_shards(folder: Path, shapes: Shapes, max_shard_bytes: float | int) -> dict[str, Tensor]:
    """Create the files for these tensors, and return the place in them of each tensor.

    Shards are filled in order; a tensor larger than `max_shard_bytes` is a shard by itself. A
    single file is called `model.safetensors` and has no index.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    # The hub's own planner, so that shards have the names and sizes that transformers gives them.
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: _num_bytes(*shape),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_bytes),
    )
    places: dict[str, Tensor] = {}
    for file, names in split.filename_to_tensors.items():
        places |= create(folder / file, {name: shapes[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index)
    return places


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def _check_written(places: dict[str, Tensor], digests: dict[str, str], bar: Any) -> None:
    """Read the files back through the safetensors library and compare their digests."""
    for file in {place.file for place in places.values()}:
        found = read_header(file)
        assert found == {name: place for name, place in places.items() if place.file == file}
    largest = max(place.num_bytes for place in places.values())
    found = in_parallel(
        lambda name: read_digest(places[name].file, name),
        places,
        lambda name: places[name].num_bytes,
        largest,
    )
    for name, digest in found:
        if digest != digests[name]:
            # Not a UserError: the disk or this program is at fault.
            raise RuntimeError(
                f"{places[name].file}: tensor {name} read back differs from what was written"
            )
        bar.update(places[name].num_bytes)


def _check_token_ids(generation: dict[str, Any], config: ModelConfig, source: Path | None) -> None:
    """Refuse another model's tokenizer: transformers could not load the exported folder."""
    for name, value in generation.items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and any(
            isinstance(i, int) and i >= config.vocab_size for i in ids
        ):
            raise UserError(
                f"tokenizer folder {source}: {name}={value} is outside the model's "
                f"vocab_size={config.vocab_size}; is it this model's tokenizer?"
            )
