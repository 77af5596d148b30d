"""Which tensor of a Hugging Face checkpoint is which part of a parameter, and the way over.

A checkpoint has one tensor a layer with flattened heads, [N*H, D]; a parameter stacks the layers
and keeps its axes apart, [L, D, N, H]. Rearranging is the device's work, one tensor at a time.
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
from jaxdistill.models.parameters import abstract_params
from jaxdistill.sharding import Mesh, grouped_sharding, sharding_of


class ParameterPart(NamedTuple):
    """What a tensor of a checkpoint is: a parameter, or one layer of one."""

    path: tuple[Any, ...]  # in the parameters' state
    axes: str  # of the whole parameter: "LDNH"
    layer: int | None
    groups: str  # the tensor's own axes: "NH D"

    @property
    def letters(self) -> str:
        return self.groups.replace(" ", "")


def parts_of(config: ModelConfig) -> dict[str, ParameterPart]:
    """Every tensor of a checkpoint of this config, by name."""
    parts = {}
    for path, leaf in nnx.to_flat_state(abstract_params(config)):
        tensor, axes = FAMILIES[config.family].TENSORS[path], leaf.get_metadata()["axes"]
        for layer in range(config.num_layers) if axes[0] == "L" else (None,):
            parts[tensor.name.format(layer)] = ParameterPart(path, axes, layer, tensor.axes)
    return parts


def tensor_shape(config: ModelConfig, part: ParameterPart) -> tuple[int, ...]:
    """The tensor's shape in a checkpoint: "NH D" -> (N*H, D)."""
    return tuple(math.prod(config.shape(group)) for group in part.groups.split())


def tensor_sharding(mesh: Mesh, config: ModelConfig, part: ParameterPart) -> Sharding:
    """How a tensor is split, so that every device gets what it holds of the parameter."""
    return grouped_sharding(mesh, part.groups, part.axes, config.shape(part.axes))


# ---------------------------------------------------------------------------- tensor -> parameter


def zeros(
    config: ModelConfig, axes: str, dtype: DTypeLike, mesh: Mesh | None
) -> Float[Array, "..."]:
    """A parameter to be filled, made where it will lie: never whole on one device."""
    sharding = None if mesh is None else sharding_of(mesh, axes, config.shape(axes))
    return jax.jit(lambda: jnp.zeros(config.shape(axes), dtype), out_shardings=sharding)()


def with_layer(
    value: Float[Array, "L ..."],
    tensor: Float[Array, "..."],
    config: ModelConfig,
    part: ParameterPart,
) -> Float[Array, "L ..."]:
    """The parameter with one layer replaced and cast, in place: `value` is donated."""
    order = tuple(part.letters.index(axis) for axis in part.axes[1:])
    shape = config.shape(part.letters)
    return _with_layer(value, tensor, part.layer, shape=shape, order=order, sharding=value.sharding)


# One compilation for each shape: the layer is traced.
@functools.partial(jax.jit, donate_argnames="value", static_argnames=("shape", "order", "sharding"))
def _with_layer(value, tensor, layer, shape, order, sharding):
    dtype = value.dtype
    tensor = _bits(tensor.astype(dtype)).reshape(shape).transpose(order)
    # Only the layer is held back: a barrier around the whole parameter would copy it.
    tensor = jax.lax.optimization_barrier(tensor)
    value = jax.lax.dynamic_update_index_in_dim(_bits(value), tensor, layer, 0)
    value = jax.lax.bitcast_convert_type(value, dtype)
    # A donated buffer serves only a result that lies where it lay.
    return jax.lax.with_sharding_constraint(value, sharding) if sharding.num_devices > 1 else value


def parameter_of(
    tensor: Float[Array, "..."], config: ModelConfig, part: ParameterPart, dtype: DTypeLike
) -> Float[Array, "..."]:
    """A parameter that is one tensor: the tensor itself, not a copy, where the two lie alike."""
    order = tuple(part.letters.index(axis) for axis in part.axes)
    if order == tuple(range(tensor.ndim)) and tensor.dtype == dtype:
        return tensor
    return _parameter_of(tensor, config.shape(part.letters), order, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _parameter_of(tensor, shape, order, dtype):
    tensor = _bits(tensor.astype(dtype)).reshape(shape).transpose(order)
    return _from_bits(tensor, dtype)


def _bits(x):
    """Unsigned integers in x's place: as numbers XLA may move bfloat16 by way of float32."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _from_bits(bits, dtype):
    """The numbers again, once they lie where they should.

    Without the barrier XLA may drop both conversions and move the numbers themselves, and on a
    processor without bfloat16 the payloads of NaNs then change.
    """
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), dtype)


# ---------------------------------------------------------------------------- parameter -> tensor


def tensor_of(
    value: Float[Array, "..."], config: ModelConfig, part: ParameterPart, dtype: DTypeLike
) -> Float[Array, "..."]:
    """The checkpoint's tensor, cut out of its parameter and cast; the parameter stays.

    Always a new array: JAX keeps what the host fetched for as long as the array lives.
    """
    order = tuple(part.axes.lstrip("L").index(letter) for letter in part.letters)
    return _tensor_of(value, part.layer, tensor_shape(config, part), order, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tensor_of(value, layer, shape, order, dtype):
    is_cast = value.dtype != dtype
    value = value if is_cast else _bits(value)
    if layer is not None:
        value = jax.lax.dynamic_index_in_dim(value, layer, 0, keepdims=False)
    value = _bits(value.astype(dtype)) if is_cast else value
    return _from_bits(value.transpose(order).reshape(shape), dtype)
