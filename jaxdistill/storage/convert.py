"""Models on disk: open what a path holds, and turn a Hugging Face folder into a run and back."""

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
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, hf_import, loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import Policy, Pretrained


@contextlib.contextmanager
def _folder_for_a_while(prefix: str, parent: Path) -> Iterator[str]:
    """A temporary folder that is gone in the end, also where a checkpoint in it failed.

    Folders above it that were made for it are gone too, where nothing else came into them.
    """
    new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
            try:
                yield folder
            except BaseException:
                # Orbax's other threads may go on writing for a moment and make the folder again.
                # Half a second is chosen, not measured.
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.5)
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).mkdir(exist_ok=True)  # for the way out, which expects it
                raise
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def convert(
    source: Path, destination: Path, dtype: str | None = None, progress: bool = False
) -> str:
    """A model -> run folder with one Orbax checkpoint, or a run -> Hugging Face folder.

    The direction follows from what `source` is. `dtype` None keeps the source's own; of a trained
    run, whose parameters are float32, its base's. Returns a line that says what was done. Raises
    UserError when `source` is no model, `destination` exists or the disk is too small; nothing
    half-written is left under its name.
    """
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists; choose another name or remove it first")
    if jax.process_count() > 1:
        raise UserError("convert runs on one host; start it without the others")
    # Split over all devices, for models that are too large for one.
    mesh = make_mesh(MeshConfig(fsdp=-1))
    if source.is_dir() and loading.is_run(source):
        policy = loading.open_model(source, mesh)
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
    with _folder_for_a_while(prefix, destination.parent) as folder:
        part = Path(folder) / "run"
        # Known from the headers, before the long read.
        hf_export.check_space(
            destination, hf_import.stored_bytes(loading.model_folder(source), dtype)
        )
        policy = loading.load(
            Pretrained(str(source)),
            seed=0,  # nothing is drawn: the weights are read
            model_dir=part / "model",
            mesh=mesh,
            dtype=dtype,
            progress=progress,
        )
        try:
            _save(part, policy, source)
            part.rename(destination)
        except (OSError, ValueError) as error:  # Orbax has the disk's own words in a ValueError
            full = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
            for reason in full:
                if reason in str(error):
                    raise UserError(f"cannot write {destination}: {reason}") from error
            raise
    return f"Hugging Face folder {source} -> run {destination}"


def _save(run: Path, policy: Policy, source: Path) -> None:
    """The parameters as a checkpoint, and what `loading.conversion_notes` reads."""
    leaves = nnx.to_flat_state(policy.params)
    dtypes = {".".join(map(str, path)): str(leaf.get_raw_value().dtype) for path, leaf in leaves}
    noted = {"converted_from": str(source), "dtypes": dtypes}
    with Checkpoints(run / "checkpoints", save_async=False) as checkpoints:
        checkpoints.save(0, {"params": policy.params}, noted)
    (run / "config.json").write_text(json.dumps(noted))
