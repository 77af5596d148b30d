"""Hugging Face folders: read them into stacked parameters, write parameters as one.

Everything is checked from the files' headers before a tensor is read, and a folder is written
beside its destination and renamed last, so no mistake leaves half a model behind.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdistill.errors import UserError
from jaxdistill.models import qwen3
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.decoder import abstract_params
from jaxdistill.models.hf_files import (
    TOKENIZER_FILES,
    copy_tokenizer_files,
    generation_config,
    read_json,
    resolve_folder,
    write_json,
)
from jaxdistill.sharding import Mesh, sharding_of

# A family is a module with MODEL_TYPE, TENSORS, from_hf and to_hf.
FAMILIES = {qwen3.MODEL_TYPE: qwen3}

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F32", "BF16", "F16", "F64"}


# ---------------------------------------------------------------------------- folders


def read_config(folder: str | Path) -> ModelConfig:
    """The model's config from the folder's config.json.

    Raises UserError for a missing folder or file, a malformed field or an unknown `model_type`.
    """
    path = resolve_folder(folder) / "config.json"
    fields = read_json(path)
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{path}: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[family].from_hf(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------- import


def import_folder(
    folder: str | Path, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32
) -> tuple[ModelConfig, nnx.State]:
    """Read config and parameters, cast to `dtype`; with `mesh`, each parameter split by its axes.

    Host memory holds one stacked parameter at a time. Raises UserError, before anything is read,
    for a folder whose tensors are not exactly the config's.
    """
    folder = resolve_folder(folder)
    config = read_config(folder)
    with ExitStack() as stack:
        tensors = _open_tensors(folder, stack)
        _check_tensors(folder, config, tensors)

        def load(path: tuple, leaf: nnx.Variable) -> jax.Array:
            axes, abstract = leaf.get_metadata()["axes"], leaf.get_raw_value()
            value = _read_stacked(config, path, axes, tensors, abstract.dtype)
            if mesh is None:
                return jnp.array(value)
            sharding = sharding_of(mesh, axes, value.shape)
            return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

        return config, _map_params(load, abstract_params(config, dtype))


def _map_params(function, params: nnx.State) -> nnx.State:
    """Apply `function(path, variable) -> array`, keeping each variable's metadata."""
    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state([(path, leaf.replace(function(path, leaf))) for path, leaf in flat])


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open every weights file -> {tensor name: its open file}."""
    if (folder / WEIGHTS).is_file():
        handle = _open_file(folder / WEIGHTS, stack)
        return dict.fromkeys(handle.keys(), handle)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which can run code: convert it" if pickles else ""
        raise UserError(f"{folder} has no {WEIGHTS} and no {INDEX}{hint}")
    return _open_shards(folder, stack)


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    handles = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{index} names {file!r}; expected a .safetensors file beside it")
        if not (folder / file).is_file():
            raise UserError(f"{index} names {file}, which is missing; download it again")
        handles[file] = _open_file(folder / file, stack)
    found = {name: file for file, handle in handles.items() for name in handle.keys()}  # noqa: SIM118
    for name in sorted(weight_map.keys() | found.keys()):
        if weight_map.get(name) != found.get(name):
            raise UserError(
                f"{index} has tensor {name} in {weight_map.get(name, 'no file')}, "
                f"but it is in {found.get(name, 'no file')}"
            )
    return {name: handles[file] for name, file in found.items()}


def _open_file(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({error})") from error


def _expected(config: ModelConfig, path: tuple) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The checkpoint's (name, shape) of each layer's part of a parameter."""
    tensor = FAMILIES[config.family].TENSORS[path]
    shape = tuple(int(np.prod(config.shape(group))) for group in tensor.axes.split())
    for layer in range(config.num_layers if path[0] == "layers" else 1):
        yield tensor.name.format(layer), shape


def _check_tensors(folder: Path, config: ModelConfig, tensors: dict[str, Any]) -> None:
    """Names, shapes and dtypes must be the config's. Raises UserError for the first that is not."""
    paths = [path for path, _ in nnx.to_flat_state(abstract_params(config))]
    expected = dict(pair for path in paths for pair in _expected(config, path))
    _check_tied_head(folder, config, tensors)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{folder}: tensor {name} is missing; config.json asks for it")
        if name not in expected:
            raise UserError(f"{folder}: tensor {name} is none that config.json asks for")
        part = tensors[name].get_slice(name)
        if tuple(part.get_shape()) != expected[name]:
            raise UserError(
                f"{folder}: tensor {name} has shape {tuple(part.get_shape())}; "
                f"config.json asks for {expected[name]}"
            )
        if part.get_dtype() not in _FLOATS:
            raise UserError(
                f"{folder}: tensor {name} is {part.get_dtype()}; only unquantized floats are read"
            )


def _check_tied_head(folder: Path, config: ModelConfig, tensors: dict[str, Any]) -> None:
    """Drop a second copy of a tied embedding (Qwen3-0.6B's files have one) if it is one."""
    table = FAMILIES[config.family].TENSORS
    embed, head = table[("embed",)].name, table[("head",)].name
    if not config.tie_embeddings or head not in tensors or embed not in tensors:
        return
    values = [tensors[name].get_tensor(name) for name in (embed, head)]
    if not _same_bits(*values):
        raise UserError(
            f"{folder}: tie_word_embeddings is true but {head} differs from {embed}; "
            "set it to false in config.json if both are meant"
        )
    del tensors[head]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and every bit: NaN equals itself, 0 differs from -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a_bytes, b_bytes = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(a_bytes, b_bytes)


def _read_stacked(config, path: tuple, axes: str, tensors, dtype) -> np.ndarray:
    """One stacked parameter, filled layer by layer."""
    value = np.empty(config.shape(axes), dtype)
    parts = value if axes[0] == "L" else value[None]
    hf_axes = FAMILIES[config.family].TENSORS[path].axes
    for i, (name, _) in enumerate(_expected(config, path)):
        parts[i] = _from_hf(config, tensors[name].get_tensor(name), hf_axes, axes.lstrip("L"))
    return value


def _from_hf(config: ModelConfig, tensor: np.ndarray, hf_axes: str, axes: str) -> np.ndarray:
    """[N*H, D] ("NH D") -> [D, N, H] ("DNH"): split the groups, then reorder."""
    letters = hf_axes.replace(" ", "")
    return tensor.reshape(config.shape(letters)).transpose([letters.index(a) for a in axes])


def _to_hf(config: ModelConfig, value: np.ndarray, hf_axes: str, axes: str) -> np.ndarray:
    """The inverse of `_from_hf`."""
    letters = hf_axes.replace(" ", "")
    shape = [int(np.prod(config.shape(group))) for group in hf_axes.split()]
    return np.ascontiguousarray(value.transpose([axes.index(a) for a in letters]).reshape(shape))


# ---------------------------------------------------------------------------- export


def export_folder(
    folder: str | Path,
    params: nnx.State,
    config: ModelConfig,
    *,
    tokenizer_from: str | Path | None,
    dtype: str = "float32",
    max_shard_bytes: float | int = 5e9,
) -> None:
    """Write a folder that transformers reads: config, safetensors, the tokenizer's files.

    Written under a temporary name, read back, compared bit by bit, then renamed. With several
    hosts all must call it; the first one writes. Raises UserError when `folder` exists, the
    tokenizer's folder is missing, the dtype is neither float32 nor bfloat16, or the disk refuses.
    """
    folder = Path(folder)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype '{dtype}' cannot be exported; use float32 or bfloat16")
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; choose another name or remove it first")
    source = None if tokenizer_from is None else resolve_folder(tokenizer_from)
    if source is not None and not any((source / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{source} holds no tokenizer; name the folder with tokenizer.json")
    generation = {} if source is None else generation_config(source)
    _check_token_ids(generation, config, source)
    tensors = _tensors(params, config, dtype)
    if jax.process_index() != 0:
        for _ in tensors:  # every host takes part in gathering what is split over hosts
            pass
        return

    def write(temporary: Path) -> None:
        _write_weights(temporary, tensors, max_shard_bytes)
        ids = {name: value for name, value in generation.items() if name.endswith("_token_id")}
        # transformers 5 reads dtype, everything older torch_dtype.
        fields = FAMILIES[config.family].to_hf(config) | {"dtype": dtype, "torch_dtype": dtype}
        write_json(temporary / "config.json", fields | ids)
        write_json(temporary / "generation_config.json", generation)
        if source is not None:
            copy_tokenizer_files(source, temporary)

    try:
        _write_then_rename(folder, write)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def _write_then_rename(folder: Path, write: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)  # mkdtemp's own folders are private
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensors(params: nnx.State, config: ModelConfig, dtype: str):
    """Yield the checkpoint's (name, array), one stacked parameter on the host at a time."""
    for path, leaf in nnx.to_flat_state(params):
        axes = leaf.get_metadata()["axes"]
        value = _to_host(leaf.get_raw_value()).astype(jnp.dtype(dtype))
        parts = value if axes[0] == "L" else value[None]
        hf_axes = FAMILIES[config.family].TENSORS[path].axes
        for part, (name, shape) in zip(parts, _expected(config, path), strict=True):
            tensor = _to_hf(config, part, hf_axes, axes.lstrip("L"))
            assert tensor.shape == shape, f"{name}: {tensor.shape}, expected {shape}"
            yield name, tensor


def _to_host(x: jax.Array) -> np.ndarray:
    if jax.process_count() > 1 and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _write_weights(folder: Path, tensors, max_shard_bytes: float | int) -> None:
    """Fill shards in order; a single one takes the plain name and needs no index."""
    shards: list[list[str]] = []
    sizes: list[int] = []
    pending: dict[str, np.ndarray] = {}

    def flush():
        _write_shard(folder / f"{len(shards)}.safetensors", pending)
        shards.append(list(pending))
        sizes.append(sum(x.nbytes for x in pending.values()))
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(x.nbytes for x in pending.values()) + tensor.nbytes > max_shard_bytes:
            flush()
        pending[name] = tensor
    flush()
    _name_shards(folder, shards, sum(sizes))


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    # transformers refuses a file that does not say which framework's layout it has.
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes files that no other user may read
    with safe_open(path, framework="numpy") as handle:
        for name, tensor in tensors.items():
            if not _same_bits(handle.get_tensor(name), tensor):
                raise RuntimeError(f"{path}: tensor {name} read back differs from what was written")


def _name_shards(folder: Path, shards: list[list[str]], total_size: int) -> None:
    if len(shards) == 1:
        os.rename(folder / "0.safetensors", folder / WEIGHTS)
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"{i}.safetensors", folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _check_token_ids(generation: dict[str, Any], config: ModelConfig, source: Path | None) -> None:
    """A tokenizer that is not this model's would make a folder that transformers cannot load."""
    for name, value in generation.items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and any(
            isinstance(i, int) and i >= config.vocab_size for i in ids
        ):
            raise UserError(
                f"tokenizer folder {source}: {name}={value} lies beyond the model's "
                f"vocab_size={config.vocab_size}; is it this model's tokenizer?"
            )
