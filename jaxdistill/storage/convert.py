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

import jax
from flax import nnx

from jaxdistill.errors import UserError
from jaxdistill.files import require_writable, sync, sync_tree, write_whole
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, hf_import, loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.finite import require_finite
from jaxdistill.storage.loading import Policy, Pretrained


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
    source: Path,
    destination: Path,
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
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists; choose another name or remove it first")
    require_writable(destination, "the destination")
    if jax.process_count() > 1:
        raise UserError("convert runs on one host; start it without the others")
    # Shard over all devices, because a model may be too large for one of them.
    mesh = make_mesh(MeshConfig())
    if source.is_dir() and loading.is_run(source):
        policy = loading.open_model(source, mesh, verify=verify)
        if dtype is None and not loading.conversion_notes(source):
            dtype = loading.export_dtype(policy.tokenizer_folder)
        hf_export.export_folder(
            destination,
            policy.params,
            policy.config,
            tokenizer_from=policy.tokenizer_folder,
            dtype=dtype,
            progress=progress,
        )
        return f"run {source} -> Hugging Face folder {destination}"
    prefix = f".{destination.name}."
    with _temporary_folder(prefix, destination.parent) as folder:
        part = Path(folder) / "run"
        # The headers give the size, so a full disk is reported before the long read.
        hf_export.check_space(
            destination, hf_import.stored_bytes(loading.model_folder(source), dtype)
        )
        policy = loading.load(
            Pretrained(str(source)),
            seed=0,  # unused: the weights are read, not drawn
            model_dir=part / "model",
            mesh=mesh,
            dtype=dtype,
            progress=progress,
        )
        require_finite(policy.params, source)
        try:
            _save(part, policy, source)
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


def _save(run: Path, policy: Policy, source: Path) -> None:
    """Write the parameters as a checkpoint, and the notes that `loading.conversion_notes` reads."""
    leaves = nnx.to_flat_state(policy.params)
    dtypes = {".".join(map(str, path)): str(leaf.get_raw_value().dtype) for path, leaf in leaves}
    noted = {"converted_from": str(source), "dtypes": dtypes}
    with Checkpoints(run / "checkpoints", save_async=False) as checkpoints:
        checkpoints.save(0, {"params": policy.params}, noted)
    write_whole(run / "config.json", json.dumps(noted))
