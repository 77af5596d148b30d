"""Models on disk: open what a path holds, and turn a Hugging Face folder into a run and back."""

import json
import os
import tempfile
from pathlib import Path

import jax

from jaxdistill import policy as policies
from jaxdistill.checkpoint import Checkpoints
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, hf
from jaxdistill.policy import Policy, Pretrained
from jaxdistill.sharding import Mesh, MeshConfig, make_mesh, shardings_of


def is_run(path: Path) -> bool:
    """A folder with checkpoints and the model's description beside them."""
    return (path / "checkpoints").is_dir() and (path / "model" / "config.json").is_file()


def open_model(path: str | Path, mesh: Mesh | None = None) -> Policy:
    """Load a Hugging Face folder, or the newest checkpoint of a run folder.

    A run that kept no checkpoint is read from its export. Raises UserError where there is no model.
    """
    path = Path(path)
    if is_run(path) and not any((path / "checkpoints").iterdir()):
        raise UserError(f"run folder {path} has no checkpoint yet")
    if not is_run(path):
        folder = policies.model_folder(path)
        return policies.with_tokenizer(*hf.import_folder(folder, mesh=mesh), folder)
    config = hf.read_config(path / "model")
    example = decoder.abstract_params(config)
    example = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        example,
        shardings_of(mesh or make_mesh(MeshConfig()), example),
    )
    with Checkpoints(path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"run folder {path} has no checkpoint yet")
        params, _ = checkpoints.restore(step, example, part="params")
    return policies.with_tokenizer(config, params, path / "model")


def open_named(name: str) -> Policy:
    """`open_model`, which also knows the bundled bases `toy:main` and `toy:control`."""
    kind, _, world = name.partition(":")
    return open_model(policies.toy_base_folder(world) if kind == "toy" else name)


def convert(source: Path, destination: Path, dtype: str = "float32") -> str:
    """Hugging Face folder -> run folder with one Orbax checkpoint, or a run -> Hugging Face folder.

    The direction follows from what `source` is; `dtype` is that of exported tensors (a run's are
    float32). Returns a line that says what was done. Raises UserError when `source` is no model
    or `destination` exists; nothing half-written is left under its name.
    """
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists; choose another name or remove it first")
    if source.is_dir() and is_run(source):
        policy = open_model(source)
        hf.export_folder(
            destination, policy.params, policy.config, tokenizer_from=policy.tokenizer_folder,
            dtype=dtype,
        )  # fmt: skip
        return f"run {source} -> Hugging Face folder {destination}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=destination.parent) as folder:
        part = Path(folder) / "run"
        policy = policies.load(Pretrained(str(source)), 0, part / "model")
        with Checkpoints(part / "checkpoints", save_async=False) as checkpoints:
            checkpoints.save(0, {"params": policy.params}, {"converted_from": str(source)})
        (part / "config.json").write_text(json.dumps({"converted_from": str(source)}))
        part.rename(destination)
    return f"Hugging Face folder {source} -> run {destination}"
