"""The map between a Hugging Face checkpoint's tensors and our parameters, and both conversions.

A checkpoint has one tensor per layer with flattened heads, [N*H, D]; a parameter stacks the layers
and keeps its axes apart, [L, D, N, H]. The device does the rearranging, one tensor at a time.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families import FAMILIES
from jaxdistill.models.parameters import abstract_params, stored_config
from jaxdistill.sharding import Mesh, grouped_sharding, parameter_sharding


class ParameterPart(NamedTuple):
    """The part of a parameter that a checkpoint's tensor holds: all of it, or one layer."""

    path: tuple[Any, ...]  # the parameter's path in the nnx.State
    axes: str  # the whole parameter's axes: "LDNH"
    layer: int | None  # None: the parameter is not stacked
    groups: str  # the tensor's axes, those that it flattens together in one group: "NH D"

    @property
    def letters(self) -> str:
        """The tensor's axes with its groups split: "NHD"."""
        return self.groups.replace(" ", "")


def parts_of(config: ModelConfig) -> dict[str, ParameterPart]:
    """Every tensor in a checkpoint of this config: {tensor's name: its part of a parameter}."""
    parts = {}
    for path, leaf in nnx.to_flat_state(abstract_params(config)):
        tensor, axes = FAMILIES[config.family].TENSORS[path], leaf.get_metadata()["axes"]
        for layer in range(config.num_layers) if axes[0] == "L" else (None,):
            parts[tensor.name.format(layer)] = ParameterPart(path, axes, layer, tensor.axes)
    return parts


def tensor_shape(config: ModelConfig, part: ParameterPart) -> tuple[int, ...]:
    """The tensor's shape in a checkpoint: "NH D" -> (N*H, D)."""
    return tuple(math.prod(config.shape(group)) for group in part.groups.split())


def stored_shape(mesh: Mesh | None, config: ModelConfig, part: ParameterPart) -> tuple[int, ...]:
    """The tensor's shape with the rows that the mesh adds to a vocabulary (`stored_config`)."""
    return tensor_shape(stored_config(config, mesh), part)


def tensor_sharding(mesh: Mesh, config: ModelConfig, part: ParameterPart) -> Sharding:
    """The sharding in which each device receives the values that it holds of the parameter."""
    config = stored_config(config, mesh)
    return grouped_sharding(mesh, part.groups, part.axes, config.shape(part.axes))


# ---------------------------------------------------------------------------- tensor -> parameter


def zeros(
    config: ModelConfig, axes: str, dtype: DTypeLike, mesh: Mesh | None
) -> Float[Array, "..."]:
    """A zero parameter to fill, allocated in its final sharding: never whole on one device."""
    sharding = None if mesh is None else parameter_sharding(mesh, axes, config.shape(axes))
    return jax.jit(lambda: jnp.zeros(config.shape(axes), dtype), out_shardings=sharding)()


def with_layer(
    value: Float[Array, "L ..."],
    tensor: Float[Array, "..."],
    config: ModelConfig,
    part: ParameterPart,
) -> Float[Array, "L ..."]:
    """The parameter with one layer replaced by `tensor`, cast to its dtype; donates `value`."""
    order = tuple(part.letters.index(axis) for axis in part.axes[1:])
    shape = config.shape(part.letters)
    return _with_layer(value, tensor, part.layer, shape=shape, order=order, sharding=value.sharding)


# `layer` is traced and not static, so that each shape compiles once and not once per layer.
@functools.partial(jax.jit, donate_argnames="value", static_argnames=("shape", "order", "sharding"))
def _with_layer(value, tensor, layer, shape, order, sharding):
    dtype = value.dtype
    tensor = _bits(tensor.astype(dtype)).reshape(shape).transpose(order)
    # As in `_from_bits`, but around the layer only: a barrier on the whole parameter would copy it.
    tensor = jax.lax.optimization_barrier(tensor)
    value = jax.lax.dynamic_update_index_in_dim(_bits(value), tensor, layer, 0)
    value = jax.lax.bitcast_convert_type(value, dtype)
    # XLA reuses a donated buffer only if the result has the same sharding.
    return jax.lax.with_sharding_constraint(value, sharding) if sharding.num_devices > 1 else value


def parameter_of(
    tensor: Float[Array, "..."], config: ModelConfig, part: ParameterPart, dtype: DTypeLike
) -> Float[Array, "..."]:
    """A parameter from its one tensor; not a copy where layout and dtype are the same already."""
    order = tuple(part.letters.index(axis) for axis in part.axes)
    if order == tuple(range(tensor.ndim)) and tensor.dtype == dtype:
        return tensor
    return _parameter_of(tensor, _with_rows_of(tensor, config, part), order, jnp.dtype(dtype))


def _with_rows_of(tensor: Array, config: ModelConfig, part: ParameterPart) -> tuple[int, ...]:
    """The sizes of a tensor's letters; of a vocabulary, with the rows that its mesh added."""
    # Every family's tensors of the vocabulary are [V, D].
    rows = {"V": tensor.shape[0]} if "V" in part.axes else {}
    return tuple((config.axes | rows)[letter] for letter in part.letters)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _parameter_of(tensor, shape, order, dtype):
    tensor = _bits(tensor.astype(dtype)).reshape(shape).transpose(order)
    return _from_bits(tensor, dtype)


def _bits(x):
    """The bits of x as unsigned integers: XLA may move bfloat16 numbers by way of float32."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _from_bits(bits, dtype):
    """The inverse of `_bits`, applied once the values are in their final layout.

    Without the barrier XLA may cancel both bitcasts and move the numbers themselves, which changes
    the payloads of NaNs on a processor without bfloat16.
    """
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), dtype)


# ---------------------------------------------------------------------------- parameter -> tensor


def tensor_of(
    value: Float[Array, "..."], config: ModelConfig, part: ParameterPart, dtype: DTypeLike
) -> Float[Array, "..."]:
    """The checkpoint's tensor, sliced from its parameter and cast; the parameter is unchanged.

    Of a vocabulary it has the rows that the mesh added too: each device slices what it holds.
    Always a new array: JAX keeps a fetched host copy as long as the array lives, so fetching the
    parameter itself would fill the host's memory.
    """
    order = tuple(part.axes.lstrip("L").index(letter) for letter in part.letters)
    shape = tensor_shape(config, part)
    if "V" in part.axes:
        shape = (value.shape[part.axes.index("V")], *shape[1:])
    return _tensor_of(value, part.layer, shape, order, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tensor_of(value, layer, shape, order, dtype):
    is_cast = value.dtype != dtype
    # A cast needs numbers, so the bits are taken after it; without one, before the slice.
    value = value if is_cast else _bits(value)
    if layer is not None:
        value = jax.lax.dynamic_index_in_dim(value, layer, 0, keepdims=False)
    value = _bits(value.astype(dtype)) if is_cast else value
    return _from_bits(value.transpose(order).reshape(shape), dtype)
