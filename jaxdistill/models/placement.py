"""What a mesh does with a model's sizes: which it refuses, and key/value heads that it repeats.

Attention is split over `tensor` by key/value heads, each with its queries. A mesh with more
tensor-parallel devices than such heads has each of them several times, with a part of its queries:
Qwen3-8B's 8 heads of 4 queries are 16 of 2 queries where tensor=16. The weights are stored once.
"""

import dataclasses
import math
from typing import Any

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig

# A weight that a mesh leaves whole, though it was to be split, is named from this many bytes on, in
# float32 and of all layers. Chosen: 64 MiB is 0.4 % of a v5e chip, and more than every toy model.
LARGE = 64 * 2**20


def kv_heads(config: ModelConfig, tensor: int) -> int:
    """Key/value heads on `tensor` devices, repeated ones included; the model's if none are."""
    K, N = config.num_kv_heads, config.num_heads
    return tensor if tensor > K and tensor % K == 0 and N % tensor == 0 else K


def kv_repeats(config: ModelConfig) -> int:
    """How often the mesh in use has each key/value head."""
    return kv_heads(config, sharding.num_parts("K")) // config.num_kv_heads


def kv_heads_of_device(config: ModelConfig, tensor: int | None = None) -> int:
    """Key/value heads that one device computes and caches; `tensor` None: of the mesh in use."""
    tensor = sharding.num_parts("K") if tensor is None else tensor
    heads = kv_heads(config, tensor)
    return heads // tensor if heads % tensor == 0 else heads


def as_computed(config: ModelConfig, tensor: int) -> ModelConfig:
    """The config with the key/value heads that `tensor` devices compute: for counting memory."""
    return dataclasses.replace(config, num_kv_heads=kv_heads(config, tensor))


def splits_heads(config: ModelConfig, tensor: int) -> bool:
    """Whether attention is split evenly over this many devices."""
    return config.num_heads % tensor == 0 and kv_heads(config, tensor) % tensor == 0


def tensor_sizes(config: ModelConfig) -> list[int]:
    """The sizes of the mesh axis `tensor` that split attention evenly, ascending."""
    return [n for n in range(1, config.num_heads + 1) if splits_heads(config, n)]


def check_mesh(config: ModelConfig, mesh: Any) -> list[str]:
    """A line for each size that `mesh` stores or computes otherwise than the model has it.

    Namely a padded vocabulary, repeated key/value heads, and every large weight that stays whole on
    devices that were to share it. Such a weight only costs memory, so that a run which fits may go
    on. Raises UserError if the heads do not split evenly: every device would compute all of
    attention, and no other setting makes up for that.
    """
    tensor = mesh.shape["tensor"]
    if not splits_heads(config, tensor):
        allowed = ", ".join(map(str, tensor_sizes(config)))
        raise UserError(
            f"mesh tensor={tensor} does not split {config.num_heads} query heads and "
            f"{config.num_kv_heads} key/value heads evenly; take tensor from {allowed}, and more "
            "devices along fsdp"
        )
    found = []
    rows = sharding.padded_shape(mesh, "V", config.shape("V"))[0]
    if rows != config.vocab_size:
        found.append(
            f"mesh tensor={tensor} does not divide the vocabulary of {config.vocab_size:,}: it is "
            f"stored with {rows - config.vocab_size:,} rows of zeros, which nothing reads"
        )
    if (heads := kv_heads(config, tensor)) != config.num_kv_heads:
        found.append(
            f"mesh tensor={tensor} is more than the {config.num_kv_heads} key/value heads: each is "
            f"computed and cached on {heads // config.num_kv_heads} devices"
        )
    return found + _whole(config, mesh)


def _whole(config: ModelConfig, mesh: Any) -> list[str]:
    # The weights by their axes, with the letter that each mesh axis is to split. The vocabulary is
    # padded, and what a mesh does with heads is checked.
    weights = {
        "embedding and head": ("VD", {"fsdp": "D"}),
        "attention": ("LDNH", {"fsdp": "D"}),
        "feed-forward": ("LDF", {"fsdp": "D", "tensor": "F"}),
    }
    found = []
    for axis, meaning in (("fsdp", "D"), ("tensor", "F")):
        size, parts = config.axes[meaning], mesh.shape[axis]
        if size % parts == 0:
            continue
        named = {
            name: math.prod(config.shape(axes)) * 4
            for name, (axes, split) in weights.items()
            if axis in split
        }
        largest = max(named, key=lambda name: named[name])
        if named[largest] < LARGE:
            continue
        field = {"D": "hidden_size", "F": "intermediate_size"}[meaning]
        sizes = ", ".join(str(n) for n in range(1, parts + 1) if size % n == 0)
        found.append(
            f"mesh {axis}={parts} does not divide {field}={size:,}: every device holds whole "
            f"{' and '.join(named)} weights (those of {largest} alone are "
            f"{named[largest] / 2**30:.2f} GiB in float32); take {axis} from {sizes}"
        )
    return found
