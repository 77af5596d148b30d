"""Which weights were evaluated: hashes of a model's files, and of parameters in memory."""

import functools
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdistill.storage import hf_files
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import (
    checkpoints_of,
    folder_of,
    is_run,
    model_folder,
    step_named,
)
from jaxdistill.storage.toy import toy_name

# Files are hashed outside Python's global lock; more threads than shards of most models. Chosen.
_THREADS = 8


def model_identity(name: str | Path) -> dict[str, Any]:
    """What tells a model from all others: its name, a hash, its commit on the hub, its step.

    The hash of a Hugging Face folder covers all bytes of config, tokenizer and weights; that of a
    run covers the listing of the checkpoint that its name means, which has the hash of every file.
    Raises UserError if there is no such model.
    """
    if toy_name(name) is None and is_run(run := folder_of(name)):
        return {"name": str(name), **_of_run(run, name), "commit": None}
    folder = model_folder(name)
    files = [folder / each for each in ("config.json", *hf_files.TOKENIZER_FILES)]
    files += sorted(folder.glob("*.safetensors"))
    commit = re.search(r"/snapshots/([0-9a-f]{40})$", folder.absolute().as_posix())
    return {
        "name": str(name),
        "revision": _hash_files([file for file in files if file.is_file()]),
        "step": None,
        "commit": commit and commit[1],
    }


def _of_run(run: Path, name: str | Path) -> dict[str, Any]:
    with Checkpoints(checkpoints_of(run)) as checkpoints:
        step = step_named(name, checkpoints)
        listed = checkpoints.read_listings(step)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in listed.items()}
    return {"revision": _hash_digests(digests), "step": step}


def _hash_files(files: list[Path]) -> str:
    """A hash of the names and contents of files, in 16 hexadecimal digits."""
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_hash_file, files))
    return _hash_digests({file.name: each for file, each in zip(files, digests, strict=True)})


def _hash_digests(digests: dict[str, str]) -> str:
    total = hashlib.sha256()
    for name, digest in digests.items():
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()[:16]  # 64 bits: two models do not collide by chance


def _hash_file(file: Path) -> str:
    # The hub's cache names a large file by its SHA-256.
    target = file.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    with target.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_params(params: Any) -> str:
    """A hash of parameters in memory, equal for equal bits on any mesh, in 16 digits."""
    parts = _hash_leaves(jax.tree.leaves(params))
    return "".join(f"{int(part):08x}" for part in jax.device_get(parts))


@functools.partial(jax.jit)
def _hash_leaves(leaves: list[jax.Array]) -> list[jax.Array]:
    """Two sums, modulo 2^32, of each element's bits mixed with its place.

    Sums of integers do not depend on their order, and so not on how arrays are sharded.
    """
    totals = [jnp.uint32(0), jnp.uint32(0)]
    for index, leaf in enumerate(leaves):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        place = jnp.full(leaf.shape, index + 1, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        for part, seed in enumerate((0x9E3779B1, 0x85EBCA77)):
            # The constants and shifts of MurmurHash3's finalizer.
            x = (bits ^ (place * jnp.uint32(seed))) * jnp.uint32(0x85EBCA6B)
            x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
            totals[part] = totals[part] + (x ^ (x >> 16)).sum(dtype=jnp.uint32)
    return totals
