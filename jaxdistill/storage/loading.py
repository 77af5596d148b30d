"""Loading a model from disk, from the hub or from random weights."""

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.files import in_bucket, local_path, place
from jaxdistill.models import families, parameters, placement
from jaxdistill.models.config import ModelConfig
from jaxdistill.sharding import Mesh, MeshConfig, make_mesh, shardings_of
from jaxdistill.storage import best, buckets, hf_files, hf_import, hub
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.finite import require_finite
from jaxdistill.storage.toy import toy_base_folder, toy_name, write_tokenizer


@dataclass(frozen=True)
class Pretrained:
    """A model by name: a Hugging Face folder, a run folder (its export), or a hub name."""

    path: str  # of the folder, gs://BUCKET/PATH, or OWNER/NAME on the hub


@dataclass(frozen=True)
class ToyBase:
    """A toy world's base model: `main` and `control` ship with the package.

    `sparse` is read from `runs/toy_sparse_base`, where `jaxdistill train toy_sparse_base --run-dir
    runs/toy_sparse_base` makes it.
    """

    world: str = "main"


@dataclass(frozen=True)
class Fresh:
    """Random weights. `tokenizer` names the model whose tokenizer is used, or "toy".

    `vocab_size=0` in the architecture means the tokenizer's size.
    """

    architecture: ModelConfig
    tokenizer: str = "toy"


ModelSource = Pretrained | ToyBase | Fresh


class Policy(NamedTuple):
    """A model's config, parameters and tokenizer."""

    config: ModelConfig
    params: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]  # the token ids that end a response
    tokenizer_folder: Path  # holds the tokenizer's files, which exports copy


def model_folder(name: str | Path) -> Path:
    """The Hugging Face folder that `name` refers to.

    `name` is a bundled base (`toy:main`), such a folder itself, a run folder (its export), or a hub
    name (`org/name`, downloaded if it is not cached). Raises UserError listing what was tried.
    """
    if (found := best.without_suffix(name))[1]:
        raise UserError(
            f"{name} is a checkpoint of run {found[0]}; `jaxdistill convert {name} FOLDER` makes a "
            "Hugging Face folder of it"
        )
    world = toy_name(name)
    if world is not None:
        return toy_base_folder(world)
    folder = hub.find_folder(name)
    if (folder / "export" / "config.json").exists():
        return folder / "export"
    if (folder / "provenance.json").exists():
        raise UserError(f"run folder {folder} holds no export")
    if is_run(folder) or (folder / hub.PLACES).is_file():
        raise UserError(f"run folder {folder} holds no export; `jaxdistill convert` makes one")
    return folder


def fingerprint(folder: Path) -> str:
    """A short hash of a folder's config and weights' names, sizes and headers.

    It tells one base model from another when a run is resumed, without reading gigabytes.
    """
    digest = hashlib.sha256(hf_import.config_file(folder).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as handle:
            # 1 MiB covers a large model's header: the names and offsets of every tensor.
            digest.update(handle.read(1 << 20))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _fresh_tokenizer(name: str) -> Iterator[Path]:
    if name != "toy":
        yield tokenizer_folder(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        yield Path(folder)


def resolve(source: ModelSource) -> Path | None:
    """The folder that a source reads its weights from; None for random weights."""
    match source:
        case Pretrained(path):
            return model_folder(path)
        case ToyBase(world):
            return toy_base_folder(world)
        case Fresh():
            return None


def load(
    source: ModelSource,
    seed: int,
    model_dir: Path,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = jnp.float32,
    progress: bool = False,
) -> Policy:
    """Load or create the policy, sharded over `mesh`, by default in float32 for training.

    `dtype` None keeps the folder's dtypes. config.json and the tokenizer's files are written to
    `model_dir` (the run's `model/` folder), so that a run and its checkpoints can be read without
    the original model folder. Raises UserError if the folder is missing or not a model.
    """
    folder = resolve(source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, Fresh):
            origin = stack.enter_context(_fresh_tokenizer(source.tokenizer))
            tokenizer = tokenizers.load(origin)
            num_ids = tokenizers.num_ids(tokenizer)
            config, params = _fresh(source.architecture, num_ids, seed, mesh)
            stored = "float32"
        else:
            assert folder is not None
            origin = folder
            stored = hf_import.stored_dtype(folder)
            _check_mesh(read_description(folder)[0], mesh)  # before the long read
            config, params = hf_import.import_folder(
                folder, mesh=mesh, dtype=dtype, progress=progress
            )
        write_description(model_dir, config, stored, origin)
    return with_tokenizer(config, params, model_dir)


def write_description(model_dir: Path, config: ModelConfig, stored: str, origin: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files, if `origin` has any."""
    model_dir.mkdir(parents=True, exist_ok=True)
    hf_files.copy_tokenizer_files(origin, model_dir)
    hf_files.write_json(model_dir / "generation_config.json", hf_files.generation_config(origin))
    # `export_dtype` reads this: exports have the base model's dtype, whatever training uses.
    fields = families.to_fields(config) | {"dtype": stored}
    hf_files.write_json(model_dir / "config.json", fields)


def export_dtype(model_dir: Path) -> str | None:
    """The dtype of a run's exports, which is its base model's; None if it was not recorded."""
    return hf_files.read_json(model_dir / "config.json").get("dtype")


def with_tokenizer(config: ModelConfig, params: Any, folder: Path) -> Policy:
    tokenizer = tokenizers.load(folder)
    return Policy(
        config=config,
        params=params,
        tokenizer=tokenizer,
        stop_ids=tokenizers.stop_ids(tokenizer, folder, config.vocab_size),
        tokenizer_folder=folder,
    )


def _fresh(
    config: ModelConfig, tokenizer_size: int, seed: int, mesh: Mesh | None
) -> tuple[ModelConfig, Any]:
    """Random parameters, created in their final sharding: never whole on one device."""
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=tokenizer_size)
    families.to_fields(config)  # raises UserError for settings that the family does not have
    if config.vocab_size < tokenizer_size:
        raise UserError(
            f"`model.architecture.vocab_size={config.vocab_size}` is smaller than the tokenizer's "
            f"{tokenizer_size} entries"
        )
    _check_mesh(config, mesh)
    return config, _creation(config, mesh)(jax.random.key(seed))


def _check_mesh(config: ModelConfig, mesh: Mesh | None) -> None:
    for line in () if mesh is None else placement.check_mesh(config, mesh):
        hosts.say(line)


# Cached because every run of a study creates the same model: it must compile once.
@functools.cache
def _creation(config: ModelConfig, mesh: Mesh | None) -> Callable[[jax.Array], Any]:
    create = functools.partial(parameters.init, config, mesh=mesh)
    if mesh is None:
        return jax.jit(create)
    born = parameters.abstract_params(config, mesh=mesh)
    return jax.jit(create, out_shardings=shardings_of(mesh, born))


def checkpoints_of(run: Path) -> Path | str:
    """Where the checkpoints of a run folder lie: in it, or in the place that it has noted."""
    return noted_checkpoints(run) or run / "checkpoints"


def noted_checkpoints(run: Path) -> Path | str | None:
    """What a run folder's `places.json` says of its checkpoints; None without that file."""
    file = run / hub.PLACES
    if not file.is_file():
        return None
    found = hf_files.read_json(file).get("checkpoints")
    if not isinstance(found, str):
        raise UserError(f"{file}: `checkpoints` must be a path or address, got {found!r:.80}")
    return place(found)


def is_run(path: Path) -> bool:
    """Whether the folder has checkpoints and the model's config beside them."""
    if not (path / "model" / "config.json").is_file():
        return False
    checkpoints = checkpoints_of(path)
    if isinstance(checkpoints, str):
        return bool(buckets.names(checkpoints))
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def folder_of(name: str | Path, *, rollouts: bool = False) -> Path:
    """The local folder that a path or an address in a bucket means, whether it is there or not.

    Of a run in a bucket, its saved `rollouts` are there only if asked for. `RUN:best` is in RUN.
    """
    name, _ = best.without_suffix(name)
    if in_bucket(name):
        return hub.bucket_folder(str(name), rollouts=rollouts)
    return local_path(name)


def open_model(
    name: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: DTypeLike | None = None,
    progress: bool = False,
    verify: bool = True,
) -> Policy:
    """Open the model that `name` refers to, with its tokenizer; every command uses this.

    A run folder is read from its newest checkpoint, `RUN:best` from that of the run's best
    evaluation (`keep_best`), and a run folder without a checkpoint from its export;
    `model_folder` finds any other name. `dtype` None keeps the stored dtypes. Unless `verify`,
    a checkpoint's files are not compared with their hashes. Raises UserError if there is no model
    or no tokenizer, a tokenizer with tokens that the model has no row for, a damaged checkpoint, or
    a weight that is not finite.
    """
    policy = with_tokenizer(
        *open_weights(name, mesh, dtype=dtype, progress=progress, verify=verify)
    )
    tokenizers.check_vocabulary(policy.tokenizer, policy.config.vocab_size)
    return policy


def read_description(name: str | Path) -> tuple[ModelConfig, Any]:
    """Config and tokenizer of the model that `name` means; its weights are left alone.

    Raises UserError if there is none, for a damaged header of weights that are at hand, and
    where the model has no row for a token of the tokenizer.
    """
    folder = tokenizer_folder(name)
    name, _ = best.without_suffix(name)
    if not (folder / "config.json").is_file():  # a hub's cache may hold the tokenizer alone
        folder = model_folder(name)
    config = hf_import.read_config(folder)
    if any(folder.glob("*.safetensors")):
        hf_import.stored_dtype(folder)
    tokenizer = tokenizers.load(folder)
    tokenizers.check_vocabulary(tokenizer, config.vocab_size)
    tokenizers.stop_ids(tokenizer, folder, config.vocab_size)
    return config, tokenizer


def open_weights(
    name: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: DTypeLike | None = None,
    progress: bool = False,
    verify: bool = True,
    step: int | None = None,
    part: str = "params",
) -> tuple[ModelConfig, Any, Path]:
    """`open_model` without its tokenizer: config, parameters, and the tokenizer's folder if any.

    Of a run's checkpoints, `step` chooses one (None: the newest), and `part` the field of the state
    to read: the student's `params`, or the `teacher`'s own.
    """
    if toy_name(name) is not None:
        path = model_folder(name)
    else:
        path = folder_of(name)
    if not is_run(path):
        if best.without_suffix(name)[1]:
            raise UserError(f"{name}: {path} is no run with checkpoints")
        is_exported = (path / "export" / "config.json").is_file()
        is_started = (path / "checkpoints").is_dir() or (path / hub.PLACES).is_file()
        if is_started and not is_exported:
            raise UserError(f"run folder {name} has no checkpoint yet")
        folder = model_folder(name)
        _check_mesh(hf_import.read_config(folder), mesh)
        config, params = hf_import.import_folder(folder, mesh=mesh, dtype=dtype, progress=progress)
        require_finite(params, folder)
        return config, params, folder
    config = hf_import.read_config(path / "model")
    _check_mesh(config, mesh)
    with Checkpoints(checkpoints_of(path), verify=verify) as checkpoints:
        step = step_named(name, checkpoints) if step is None else step
        # Without a mesh one device: those that the checkpoint was saved from may not be here.
        example = _example(path, config, mesh or make_mesh(MeshConfig(fsdp=1)))
        params, _ = checkpoints.restore(step, example, part=part, vocab_size=config.vocab_size)
    require_finite(params, path)
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return config, params, path / "model"


def step_named(name: str | Path, checkpoints: Checkpoints) -> int:
    """The step of a run that a name means: the newest, or the best of `RUN:best`.

    Raises UserError if there is none.
    """
    if best.without_suffix(name)[1]:
        found = checkpoints.best()
        if found is None:
            raise UserError(
                f"{name}: the run has no best checkpoint; `keep_best` keeps one of the evaluated "
                "steps"
            )
        return found.step
    step = checkpoints.latest_step()
    if step is None:
        raise UserError(f"run folder {name} has no checkpoint yet")
    return step


def _example(run: Path, config: ModelConfig, mesh: Mesh) -> nnx.State:
    """Shapes, dtypes and shardings of a run's parameters."""
    # Training keeps float32 master weights; a run made by `convert` has the dtypes of its source.
    dtypes = conversion_notes(run).get("dtypes", {})
    typed = []
    for path, leaf in nnx.to_flat_state(parameters.abstract_params(config, mesh=mesh)):
        dtype = dtypes.get(".".join(map(str, path)), "float32")
        shape = leaf.get_raw_value().shape
        typed.append((path, leaf.replace(jax.ShapeDtypeStruct(shape, dtype))))
    example = nnx.from_flat_state(typed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        example,
        shardings_of(mesh, example),
    )


def conversion_notes(run: Path) -> dict[str, Any]:
    """The notes that `convert` left in a run that it made; empty for a trained run."""
    file = run / "config.json"
    noted = hf_files.read_json(file) if file.exists() else {}
    return noted if "converted_from" in noted else {}


def tokenizer_folder(name: str | Path) -> Path:
    """The folder with the tokenizer of the model `name`; no weights are downloaded for it."""
    world = toy_name(name)
    if world is not None:
        return toy_base_folder(world)
    name, _ = best.without_suffix(name)
    folder = hub.find_folder(name, weights=False) if in_bucket(name) else local_path(name)
    for part in ("model", "export"):  # subfolders of a run folder
        if (folder / part / "tokenizer.json").is_file():
            return folder / part
    return hub.find_folder(name, weights=False)
