"""Conversion of a Hugging Face folder to a run folder and back."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, require_writable, sync, sync_tree, write_whole
from jaxdistill.models.config import ModelConfig
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, hf_files, hf_import, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.finite import require_finite
from jaxdistill.storage.toy import toy_name


@contextlib.contextmanager
def _temporary_folder(prefix: str, parent: Path) -> Iterator[str]:
    """A temporary folder that is removed in the end, even if writing a checkpoint in it failed.

    Parent folders that were created for it are removed too, unless they hold something else.
    """
    new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
            try:
                yield folder
            except BaseException:
                # Orbax's other threads may keep writing for a moment and recreate the folder, so
                # remove it twice. Half a second is chosen, not measured.
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.5)
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).mkdir(exist_ok=True)  # TemporaryDirectory expects to remove it
                raise
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: str | None = None,
    progress: bool = False,
    verify: bool = True,
) -> str:
    """Convert a model to a run folder with one Orbax checkpoint, or a run to a Hugging Face folder.

    What `source` is decides the direction. `dtype` None keeps the source's dtype; for a trained
    run, whose parameters are float32, it takes the base model's. Returns a line that says what was
    done. Unless `verify`, a run's checkpoint is read without comparing its hashes. Raises UserError
    if `source` is no model, damaged or not finite, `destination` exists or cannot be written, or
    the disk is too small; a partially written folder never has the name `destination`.
    """
    destination = local_path(destination)
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists; choose another name or remove it first")
    require_writable(destination, "the destination")
    if jax.process_count() > 1:
        raise UserError("convert runs on one host; start it without the others")
    # Shard over all devices, because a model may be too large for one of them.
    mesh = make_mesh(MeshConfig())
    if toy_name(source) is None and loading.is_run(loading.folder_of(source)):
        run = loading.folder_of(source)
        config, params, folder = loading.open_weights(source, mesh, verify=verify)
        has_tokenizer = check_tokenizer(folder, config)
        if dtype is None and not loading.conversion_notes(run):
            dtype = loading.export_dtype(folder)
        hf_export.export_folder(
            destination,
            params,
            config,
            tokenizer_from=folder if has_tokenizer else None,
            generation=hf_files.generation_config(folder),
            dtype=dtype,
            progress=progress,
        )
        return f"run {source} -> Hugging Face folder {destination}"
    prefix, folder = f".{destination.name}.", loading.model_folder(source)
    # Both before the long read.
    stored = hf_import.stored_dtype(folder)
    check_tokenizer(folder, hf_import.read_config(folder))
    with _temporary_folder(prefix, destination.parent) as temporary:
        part = Path(temporary) / "run"
        # The headers give the size, so a full disk is reported before the long read.
        hf_export.check_space(destination, hf_import.stored_bytes(folder, dtype))
        config, params = hf_import.import_folder(folder, mesh=mesh, dtype=dtype, progress=progress)
        require_finite(params, source)
        loading.write_description(part / "model", config, stored, folder)
        try:
            _save(part, params, source)
            sync_tree(part)
            part.rename(destination)
            sync(destination.absolute().parent)
        # Orbax reports a full disk as a ValueError that quotes the system's message.
        except (OSError, ValueError) as error:
            full = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
            for reason in full:
                if reason in str(error):
                    raise UserError(f"cannot write {destination}: {reason}") from error
            raise
    return f"Hugging Face folder {source} -> run {destination}"


def check_tokenizer(folder: Path, config: ModelConfig) -> bool:
    """Whether the folder holds a tokenizer, which must be the model's; weights alone have none."""
    if not hf_files.has_tokenizer(folder):
        return False
    tokenizer = tokenizers.load(folder)
    tokenizers.check_vocabulary(tokenizer, config.vocab_size)
    tokenizers.stop_ids(tokenizer, folder, config.vocab_size)
    return True


def _save(run: Path, params: Any, source: str | Path) -> None:
    """Write the parameters as a checkpoint, and the notes that `loading.conversion_notes` reads."""
    leaves = nnx.to_flat_state(params)
    dtypes = {".".join(map(str, path)): str(leaf.get_raw_value().dtype) for path, leaf in leaves}
    noted = {"converted_from": str(source), "dtypes": dtypes}
    with Checkpoints(run / "checkpoints", save_async=False) as checkpoints:
        checkpoints.save(0, {"params": params}, noted)
    write_whole(run / "config.json", json.dumps(noted))
