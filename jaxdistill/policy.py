"""Where a model comes from: a Hugging Face folder, a bundled toy base, or random weights."""

import dataclasses
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdistill import tokenizer as tokenizers
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, hf
from jaxdistill.models.config import ModelConfig
from jaxdistill.sharding import Mesh, shardings_of
from jaxdistill.toy.tokenizer import write_tokenizer


@dataclass(frozen=True)
class Pretrained:
    """A Hugging Face folder, or a run folder (its export)."""

    path: str


@dataclass(frozen=True)
class ToyBase:
    """A base model that ships with the package: world `main` or `control`."""

    world: str = "main"


@dataclass(frozen=True)
class Fresh:
    """Random weights. `tokenizer` is a folder, or "toy" for the toy world's own.

    `vocab_size=0` in the architecture takes the tokenizer's size.
    """

    architecture: ModelConfig
    tokenizer: str = "toy"


ModelSource = Pretrained | ToyBase | Fresh


class Policy(NamedTuple):
    config: ModelConfig
    params: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    tokenizer_folder: Path  # where the tokenizer files lie, to be copied into exports


def toy_base_folder(world: str) -> Path:
    folder = Path(str(resources.files("jaxdistill") / "toy" / "bases" / world))
    if not (folder / "config.json").exists():
        raise UserError(f"toy base {world!r} is not in the package; expected 'main' or 'control'")
    return folder


def model_folder(path: str | Path) -> Path:
    """The Hugging Face folder that `path` means: itself, or the export of a run folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"model folder {str(path)!r} does not exist; give a Hugging Face or run folder"
        )
    if (folder / "export" / "config.json").exists():
        return folder / "export"
    return folder


def fingerprint(folder: Path) -> str:
    """A short hash of a folder's config and weights' names, sizes and headers.

    It tells one base model from another when a run is resumed, without reading gigabytes.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 20))
    return digest.hexdigest()[:16]


@contextmanager
def _tokenizer_folder(name: str) -> Iterator[Path]:
    if name != "toy":
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        yield Path(folder)


def resolve(source: ModelSource) -> Path | None:
    """The folder a source reads its weights from; None for random weights."""
    match source:
        case Pretrained(path):
            return model_folder(path)
        case ToyBase(world):
            return toy_base_folder(world)
        case Fresh():
            return None


def load(
    source: ModelSource, seed: int, keep_tokenizer_in: Path, mesh: Mesh | None = None
) -> Policy:
    """Load or create the policy in float32, sharded over `mesh`, and copy its tokenizer files.

    `keep_tokenizer_in` (the run's `model/` folder) makes a run independent of where its model came
    from. Raises UserError when the folder is missing or not a model.
    """
    folder = resolve(source)
    if folder is not None:
        config, params = hf.import_folder(folder, mesh=mesh)
        copy_tokenizer(folder, keep_tokenizer_in)
    else:
        assert isinstance(source, Fresh)
        with _tokenizer_folder(source.tokenizer) as origin:
            copy_tokenizer(origin, keep_tokenizer_in)
        config = source.architecture
    tokenizer = tokenizers.load(keep_tokenizer_in)
    if folder is None:
        config, params = _fresh(config, len(tokenizer), seed, mesh)
    stop_ids = tokenizers.stop_ids(tokenizer, keep_tokenizer_in)
    return Policy(config, params, tokenizer, stop_ids, keep_tokenizer_in)


def copy_tokenizer(origin: Path, destination: Path) -> None:
    """Copy the tokenizer's files and the generation config, whatever of them there is."""
    if not origin.is_dir():
        raise UserError(f"tokenizer folder {str(origin)!r} does not exist")
    destination.mkdir(parents=True, exist_ok=True)
    for name in (*hf.TOKENIZER_FILES, "generation_config.json"):
        if (origin / name).exists():
            shutil.copyfile(origin / name, destination / name)


def _fresh(
    config: ModelConfig, tokenizer_size: int, seed: int, mesh: Mesh | None
) -> tuple[ModelConfig, Any]:
    """Random parameters, created in their sharding: never whole on one device."""
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=tokenizer_size)
    if config.vocab_size < tokenizer_size:
        raise UserError(
            f"`model.architecture.vocab_size={config.vocab_size}` is smaller than the tokenizer's "
            f"{tokenizer_size} entries"
        )
    create = functools.partial(decoder.init, config)
    key = jax.random.key(seed)
    if mesh is None:
        return config, jax.jit(create)(key)
    shardings = shardings_of(mesh, decoder.abstract_params(config))
    return config, jax.jit(create, out_shardings=shardings)(key)
