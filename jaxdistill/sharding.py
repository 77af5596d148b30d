"""How arrays are sharded: one table from axis letters to mesh axes, for all kinds of arrays.

`"LDNH"` splits D over fsdp and heads over tensor. In `"BTD"` the batch takes (data, fsdp) first,
and a mesh axis can split only one dimension of an array, so D stays whole. The compiler inserts
the collectives.
"""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from jaxdistill.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Letters that are not listed are never split.
RULES: dict[str, tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "Q": ("data", "fsdp"),
    # Parts of the rows: of a KV cache, or of a sum, each over its own rows until all are added.
    "W": ("data", "fsdp"),
    # Rows that leave fsdp to D, as a lookup in a table with split D returns them.
    "E": ("data",),
    "D": ("fsdp",),
    "N": ("tensor",),
    # Positions of the residual stream between products (sequence parallelism).
    "Z": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
}

# Letters that are split whether the mesh divides them or not. Parameters are stored with rows or
# columns of zeros that make them divisible (`padded_shape`); within a program the compiler pads.
PADDED = ("V",)

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one of them may be -1, for all that are left."""

    data: int = 1  # devices that the rows are split over
    fsdp: int = -1  # devices that the rows and each weight are split over; by default all
    tensor: int = 1  # devices that heads and vocabulary are split over


def parse_mesh(text: str) -> MeshConfig:
    """The sizes in a text such as `data=2,tensor=4`; an axis that is not named has its default.

    Raises UserError for a text of another form; `make_mesh` checks the sizes themselves.

    >>> parse_mesh("tensor=2")
    MeshConfig(data=1, fsdp=-1, tensor=2)
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+)\s*", part)
        if found is None or found[1] not in MESH_AXES or found[1] in sizes:
            raise UserError(
                f"mesh {text!r}: expected devices along {', '.join(MESH_AXES)}, each named at most "
                f"once, as in data=1,fsdp=-1,tensor=2; got {part!r}"
            )
        sizes[found[1]] = int(found[2])
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig | str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor) over `devices`, by default all devices of all hosts.

    `config` may be a text for `parse_mesh`. On one host a smaller mesh uses the first devices.
    Raises UserError when the sizes do not fit.
    """
    config = parse_mesh(config) if isinstance(config, str) else config
    devices = list(jax.devices() if devices is None else devices)
    sizes = _resolve_sizes(config, len(devices))
    if jax.process_count() > 1 and math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]} uses {math.prod(sizes)} "
            f"of {len(devices)} devices; with several hosts every device must belong to the mesh"
        )
    try:
        # An axis of 8 on a slice of 4 x 4 chips takes one physical axis and half of the other;
        # `jax.make_mesh` allows that on v5e alone.
        placed = mesh_utils.create_device_mesh(
            sizes, devices[: math.prod(sizes)], allow_split_physical_axes=True
        )
    except (NotImplementedError, AssertionError) as error:  # the latter: they are no cuboid
        raise UserError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]} cannot be laid out on "
            f"{len(devices)} devices of {devices[0].device_kind}; take sizes that are powers of two"
        ) from error
    # Auto, because JAX's default, Explicit, refuses tensor-parallel contractions.
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def abstract_mesh(config: MeshConfig | str, num_devices: int) -> AbstractMesh:
    """`make_mesh` of devices that are not at hand: for shapes and shardings, not for programs."""
    config = parse_mesh(config) if isinstance(config, str) else config
    sizes = _resolve_sizes(config, num_devices)
    return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _resolve_sizes(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    sizes = [config.data, config.fsdp, config.tensor]
    for name, size in zip(MESH_AXES, sizes):
        if size < 1 and size != -1:
            raise UserError(f"mesh.{name}={size} must be a positive number of devices, or -1")
    if sizes.count(-1) > 1:
        raise UserError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}: at most one of mesh.data, "
            "mesh.fsdp and mesh.tensor may be -1, and mesh.fsdp is unless it is set, as to 1"
        )
    given = math.prod(size for size in sizes if size != -1)
    if given > num_devices or (-1 in sizes and num_devices % given):
        relation = "divide" if -1 in sizes else "not exceed"
        raise UserError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]} does not fit "
            f"{num_devices} device(s); the product must {relation} their number"
        )
    return tuple(num_devices // given if size == -1 else size for size in sizes)


def _spec(
    mesh: Any, axes: str, shape: Sequence[int] | None, *, in_program: bool = False
) -> PartitionSpec:
    """The mesh axes of each letter; each is used once, and only where it divides the dimension.

    Within a program the letters of PADDED need not be divisible: the compiler pads intermediate
    values and masks the padding in every reduction. Arguments and results must be divisible.
    """
    claimed: set[str] = set()
    spec: list[tuple[str, ...] | None] = []
    for i, letter in enumerate(axes):
        # An axis is claimed even if it does not divide: D must not inherit what B could not use.
        wanted = [axis for axis in RULES.get(letter, ()) if axis not in claimed]
        claimed.update(wanted)
        parts = 1
        chosen: list[str] = []
        is_any_size = shape is None or (in_program and letter in PADDED)
        for axis in wanted:
            size = mesh.shape.get(axis, 1)
            divides = shape is not None and shape[i] % (parts * size) == 0
            if size > 1 and (is_any_size or divides):
                parts *= size
                chosen.append(axis)
        spec.append(tuple(chosen) or None)
    return PartitionSpec(*spec)


def sharding_of(
    mesh: Mesh | AbstractMesh, axes: str, shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of an array whose dimensions have the letters `axes`, e.g. "LDNH".

    With `shape`, a dimension that its mesh axis does not divide is replicated instead.
    """
    return NamedSharding(mesh, _spec(mesh, axes, shape))


# Columns of a part of a padded vocabulary are a multiple of this, the width of a TPU's tiles. With
# other widths its compiler sums the head's gradient whole on every device instead of in parts.
TILE = 128


def padded_shape(
    mesh: Mesh | AbstractMesh | None, axes: str, shape: Sequence[int]
) -> tuple[int, ...]:
    """`shape` with the letters of PADDED rounded up to parts of whole tiles, if `mesh` needs it.

    A size that the mesh divides stays as it is. `mesh` None: nothing is split.
    """
    if mesh is None:
        return tuple(shape)

    def rounded(letter: str, size: int) -> int:
        parts = math.prod(mesh.shape.get(axis, 1) for axis in RULES[letter])
        return size if size % parts == 0 else -(-size // (TILE * parts)) * TILE * parts

    return tuple(rounded(x, n) if x in PADDED else n for x, n in zip(axes, shape, strict=True))


def parameter_sharding(mesh: Mesh | AbstractMesh, axes: str, shape: Sequence[int]) -> NamedSharding:
    """`sharding_of` an array of the training state: a parameter, or a moment of it.

    Where there are fewer key/value heads than tensor-parallel devices, each head's width is split
    instead: a device then stores a part of every head, and the fused weights, which repeat the
    heads (`models.placement`), are gathered from it.
    """
    spec = list(_spec(mesh, axes, shape))
    # Only of matrices: the heads' biases and norms are small, and stay whole.
    if set("DKH") <= set(axes) and spec[axes.index("K")] is None:
        (spec[axes.index("H")],) = _spec(mesh, "K", (shape[axes.index("H")],))
    return NamedSharding(mesh, PartitionSpec(*spec))


def grouped_sharding(mesh: Mesh, groups: str, axes: str, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array stored with merged dimensions, such as "NH D" for "DNH".

    Each group is split like its first letter. `axes` and `shape` are those of the unmerged array,
    so N decides whether N*H is split.
    """
    parts = dict(zip(axes, _spec(mesh, axes, shape)))
    assert not any(parts[letter] for group in groups.split() for letter in group[1:]), groups
    return NamedSharding(mesh, PartitionSpec(*(parts[group[0]] for group in groups.split())))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(mesh: Mesh | AbstractMesh, tree: Tree) -> Tree:
    """A tree of shardings for parameters, optimizer states or anything that holds them.

    A parameter's sharding follows the letters that it was declared with (`axes` metadata), which
    Optax carries over to its moments; every other leaf is replicated.
    """

    def place(leaf):
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        axes = leaf.get_metadata().get("axes")
        value = leaf.get_raw_value()
        sharding = replicated(mesh) if axes is None else parameter_sharding(mesh, axes, value.shape)
        # The Variable stays around the sharding, so that both trees have the same structure.
        return jax.tree.map(lambda _: sharding, leaf)

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def shard_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Split the first axis of every array over (data, fsdp); scalars are replicated.

    `batch` is the global batch and must be the same on every host; each host places only its own
    rows. An array whose number of rows is not divisible is replicated.
    """

    def place(x):
        # Convert to NumPy first, because the callback below slices on the host.
        x = np.asarray(x)
        sharding = sharding_of(mesh, "B" if x.ndim else "", x.shape)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, batch)


def local_devices() -> list[Any]:
    """This host's devices in the mesh in use; outside `use_mesh`, and for shapes alone, all."""
    mesh = jax.sharding.get_mesh()
    devices = [] if mesh.empty else list(mesh.devices.flat)
    found = [device for device in devices if device.process_index == jax.process_index()]
    return found or jax.local_devices()


def first_device(mesh: Mesh | None) -> Any:
    """The first device of a mesh; without one JAX's default."""
    return jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]


def on_device(device: Any) -> contextlib.AbstractContextManager:
    """A context for programs of one device, within that of a mesh of several."""
    return use_mesh(jax.make_mesh((1,) * 3, MESH_AXES, (AxisType.Auto,) * 3, devices=[device]))


def fetch(tree: Tree) -> Tree:
    """The whole arrays as NumPy arrays, on every host that has a part of them."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    if all(x.is_fully_addressable or x.is_fully_replicated for x in arrays):
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def spread(mesh: Mesh, tree: Tree) -> Tree:
    """Put leaves that each host has on a device of its own, as counters, on all devices of `mesh`.

    Every host must have the same values. With one host nothing changes.
    """
    if jax.process_count() == 1:
        return tree

    def place(x):
        if not isinstance(x, jax.Array) or not x.is_fully_addressable:
            return x
        value = np.asarray(x)
        return jax.make_array_from_callback(value.shape, replicated(mesh), lambda i: value[i])

    return jax.tree.map(place, tree)


def use_mesh(mesh: Mesh | AbstractMesh | None) -> contextlib.AbstractContextManager:
    """A context in which `constrain` and `on_shards` use the mesh; None means no mesh."""
    if isinstance(mesh, AbstractMesh):
        return jax.sharding.use_abstract_mesh(mesh)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain(x: Shaped[Array, "..."], axes: str) -> Shaped[Array, "..."]:
    """Tell the compiler how `x` is split, by its axis letters; a no-op outside `use_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:  # nothing to split
        return x
    assert x.ndim == len(axes), f"axes {axes} do not match shape {x.shape}"
    spec = _spec(mesh, axes, x.shape, in_program=True)
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_parameters(tree: Tree) -> Tree:
    """Split every parameter in the tree as `shardings_of` does; other leaves are unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree

    def place(leaf):
        if not isinstance(leaf, nnx.Variable) or leaf.get_metadata().get("axes") is None:
            return leaf
        spec = parameter_sharding(
            mesh, leaf.get_metadata()["axes"], leaf.get_raw_value().shape
        ).spec
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), leaf)

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def platform() -> str:
    """ "cpu", "gpu" or "tpu": the platform of the mesh in use, or else JAX's default.

    The two differ if a program is compiled for a TPU slice on a machine that has none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def num_devices() -> int:
    """The number of devices of the mesh in use; 1 outside `use_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def on_shards(
    function: Callable[..., Any], in_axes: Sequence[Any], out_axes: Any
) -> Callable[..., Any]:
    """Run `function` on every device's own part of the arrays; outside `use_mesh` on the whole.

    For kernels that the compiler cannot split. A dimension is split if the rules say so and its
    size is divisible; arrays that share a letter share its split, and `function` must not need any
    other part. The axes of an array are a string of letters, those of a tree a tree of strings.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def run(*arrays: Any) -> Any:
        named = zip(jax.tree.leaves(tuple(in_axes)), jax.tree.leaves(arrays), strict=True)
        sizes = {letter: n for axes, x in named for letter, n in zip(axes, x.shape)}

        def split(axes: str) -> PartitionSpec:
            return _spec(mesh, axes, [sizes[letter] for letter in axes])

        mapped = jax.shard_map(
            function,
            in_specs=jax.tree.map(split, tuple(in_axes)),
            out_specs=jax.tree.map(split, out_axes),
            check_vma=False,  # kernels do not declare what varies over the mesh
        )
        return mapped(*arrays)

    return run


# A TPU compiler (libtpu 0.0.42.1) sums an array of 622 MB by a reduce-scatter, and one of 2.5 GB by
# an all-reduce with a result of its size.
SCATTERED_BYTES = 512 * 2**20


def sum_of_parts(x_WDV: Shaped[Array, "W D V"]) -> Shaped[Array, "D V"]:
    """The sum over W, the partial sums of the devices, split like a parameter with the axes DV.

    Each device receives its share of the sum only (reduce-scatter), in blocks of columns: a block's
    whole sum never exists.
    """
    mesh = jax.sharding.get_abstract_mesh()
    num, D, _ = x_WDV.shape
    # Each device must hold one part, and have a share of D.
    is_split = not mesh.empty and num == mesh.shape["data"] * mesh.shape["fsdp"] > 1
    if not is_split or num_parts("D", D) != mesh.shape["fsdp"]:
        return constrain(x_WDV.sum(axis=0), "DV")

    def scattered(part_1DV: Array) -> Array:
        part_DV = part_1DV[0]
        columns = max(SCATTERED_BYTES // (D * part_DV.dtype.itemsize) // 128, 1) * 128
        blocks = [
            jax.lax.psum_scatter(part_DV[:, i : i + columns], "fsdp", tiled=True)
            for i in range(0, part_DV.shape[1], columns)
        ]
        share_DV = jnp.concatenate(blocks, axis=1)
        return jax.lax.psum(share_DV, "data") if mesh.shape["data"] > 1 else share_DV

    return on_shards(scattered, ["WDV"], "DV")(x_WDV)


def num_parts(letter: str, size: int | None = None) -> int:
    """The number of parts into which the mesh in use splits a dimension; 1 outside `use_mesh`.

    Without `size` the dimension is assumed to be divisible.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (axes,) = _spec(mesh, letter, None if size is None else (size,), in_program=True)
    # PartitionSpec turns a tuple of one axis into the axis itself.
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)
