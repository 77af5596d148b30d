"""Models on disk: open what a path holds, and turn a Hugging Face folder into a run and back."""

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxdistill.errors import UserError
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.sharding import Mesh, MeshConfig, make_mesh, shardings_of
from jaxdistill.storage import hf, hf_files
from jaxdistill.storage import loading as policies
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import Policy, Pretrained


def is_run(path: Path) -> bool:
    """A folder with checkpoints and the model's description beside them."""
    checkpoints = path / "checkpoints"
    has_any = checkpoints.is_dir() and any(checkpoints.iterdir())
    return has_any and (path / "model" / "config.json").is_file()


def open_model(path: str | Path, mesh: Mesh | None = None, progress: bool = False) -> Policy:
    """Load a Hugging Face folder, or the newest checkpoint of a run folder, in its own dtype.

    A run that kept no checkpoint is read from its export. Raises UserError where there is no model.
    """
    path = Path(path)
    is_exported = (path / "export" / "config.json").is_file()
    if (path / "checkpoints").is_dir() and not is_run(path) and not is_exported:
        raise UserError(f"run folder {path} has no checkpoint yet")
    if not is_run(path):
        folder = policies.model_folder(path)
        config, params = hf.import_folder(folder, mesh=mesh, progress=progress)
        return policies.with_tokenizer(config, params, folder)
    config = hf.read_config(path / "model")
    with Checkpoints(path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"run folder {path} has no checkpoint yet")
        example = _example(path, config, mesh or make_mesh(MeshConfig()))
        params, _ = checkpoints.restore(step, example, part="params")
    return policies.with_tokenizer(config, params, path / "model")


def _example(run: Path, config: ModelConfig, mesh: Mesh) -> nnx.State:
    """Shapes, dtypes and shardings of a run's parameters."""
    dtypes = _converted(run).get("dtypes", {})
    flat = nnx.to_flat_state(decoder.abstract_params(config))
    typed = [
        (path, _abstract(leaf, dtypes.get(".".join(map(str, path)), "float32")))
        for path, leaf in flat
    ]
    example = nnx.from_flat_state(typed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        example,
        shardings_of(mesh, example),
    )


def _abstract(leaf: nnx.Variable, dtype: str) -> nnx.Variable:
    return leaf.replace(jax.ShapeDtypeStruct(leaf.get_raw_value().shape, dtype))


def _converted(run: Path) -> dict[str, Any]:
    """What `convert` noted in a run that it made; nothing for a run that was trained."""
    file = run / "config.json"
    noted = hf_files.read_json(file) if file.exists() else {}
    return noted if "converted_from" in noted else {}


def open_named(name: str, progress: bool = False) -> Policy:
    """`open_model`, which also knows the bundled bases `toy:main` and `toy:control`."""
    kind, _, world = name.partition(":")
    path = policies.toy_base_folder(world) if kind == "toy" else name
    return open_model(path, progress=progress)


def convert(
    source: Path, destination: Path, dtype: str | None = None, progress: bool = False
) -> str:
    """Hugging Face folder -> run folder with one Orbax checkpoint, or a run -> Hugging Face folder.

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
    if source.is_dir() and is_run(source):
        policy = open_model(source, mesh)
        if dtype is None and not _converted(source):
            dtype = policies.export_dtype(policy.tokenizer_folder)
        hf.export_folder(
            destination, policy.params, policy.config, tokenizer_from=policy.tokenizer_folder,
            dtype=dtype, progress=progress,
        )  # fmt: skip
        return f"run {source} -> Hugging Face folder {destination}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=destination.parent) as folder:
        part = Path(folder) / "run"
        # Known from the headers, before the long read.
        hf.check_space(destination, hf.stored_bytes(policies.model_folder(source), dtype))
        policy = policies.load(
            Pretrained(str(source)), 0, part / "model", mesh, dtype=dtype, progress=progress
        )
        try:
            _save(part, policy, source)
            part.rename(destination)
        except (OSError, ValueError) as error:  # Orbax has the disk's own words in a ValueError
            if reason := _refusal(error):
                raise UserError(f"cannot write {destination}: {reason}") from error
            raise
    return f"Hugging Face folder {source} -> run {destination}"


def _refusal(error: Exception) -> str | None:
    """Why the disk took no more, if that is what the error says."""
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((reason for reason in reasons if reason in str(error)), None)


def _save(run: Path, policy: Policy, source: Path) -> None:
    """The parameters as a checkpoint, and what `_converted` reads."""
    leaves = nnx.to_flat_state(policy.params)
    dtypes = {".".join(map(str, path)): str(leaf.get_raw_value().dtype) for path, leaf in leaves}
    noted = {"converted_from": str(source), "dtypes": dtypes}
    with Checkpoints(run / "checkpoints", save_async=False) as checkpoints:
        checkpoints.save(0, {"params": policy.params}, noted)
    (run / "config.json").write_text(json.dumps(noted))
