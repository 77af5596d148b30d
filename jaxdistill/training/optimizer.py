"""AdamW with warm-up and clipping; its moments in bfloat16, or in the host's memory."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32, UInt32

from jaxdistill.errors import UserError


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up from 0 and global-norm clipping.

    As in the paper's code the first of `warmup_steps` steps has learning rate 0, and decay acts on
    all parameters. Rate, warm-up, decay and clipping are the paper's (arXiv 2603.24472), the betas
    and eps Adam's usual ones.
    """

    peak_lr: float = 1e-5
    warmup_steps: int = 10
    schedule: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    moments: Literal["float32", "bfloat16"] = "float32"  # as stored; see `stored_in_bfloat16`
    moments_on: Literal["device", "host"] = "device"  # between steps

    def __post_init__(self):
        if self.warmup_steps < 0 or self.clip_norm <= 0:
            raise UserError(
                "`warmup_steps` must be >= 0 and `clip_norm` > 0, got "
                f"{self.warmup_steps} and {self.clip_norm}"
            )


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    warm = optax.linear_schedule(0.0, config.peak_lr, max(config.warmup_steps, 1))
    after = (
        optax.constant_schedule(config.peak_lr)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(config.peak_lr, max(steps - config.warmup_steps, 1))
    )
    schedule = optax.join_schedules([warm, after], [config.warmup_steps])
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    adamw = optax.chain(
        adam if config.moments == "float32" else stored_in_bfloat16(adam),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def stored_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.scale_by_adam(...)` with both moments of its state in bfloat16, computed in float32.

    Rounded to nearest the second moment would stand still: a step changes it by about (1 - b2) =
    0.1 % where bfloat16 numbers lie 0.4 % to 0.8 % apart. It is rounded up or down at random
    instead, right on average. The first moment moves by 10 % per step and is rounded to nearest.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        # Zeros that lie as the parameters do, and never in float32.
        mu, nu = (jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = state._replace(mu=_to(jnp.float32, state.mu), nu=_to(jnp.float32, state.nu))
        new: Any
        updates, new = adam.update(updates, wide, params)
        key = jax.random.fold_in(jax.random.key(_PURPOSE), state.count)
        nu, tree = jax.tree.flatten(new.nu)
        nu = [rounded_at_random(x, jax.random.fold_in(key, i)) for i, x in enumerate(nu)]
        return updates, new._replace(mu=_to(jnp.bfloat16, new.mu), nu=tree.unflatten(nu))

    return optax.GradientTransformation(init, update)


_PURPOSE = 0x0AD4


def _to(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def rounded_at_random(x: Float32[Array, "*shape"], key: Array) -> BFloat16[Array, "*shape"]:
    """The bfloat16 number above or below, by how near each is: the mean over keys is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32; a carry out of the lower half rounds away from zero.
    bits = (bits + (_hashes(x.shape, key) >> 16)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _hashes(shape: tuple[int, ...], key: Array) -> UInt32[Array, "..."]:
    """32 random bits an element, from the key and its index (lowbias32, Wellons 2018).

    A few operations within the update's own loop; on a GPU `jax.random.bits` is a kernel of its
    own, with several arrays of the parameters' size.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = index ^ jax.random.bits(key, dtype=jnp.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def on_host(opt_state: Any) -> Any:
    """Moments into the host's memory, also within `jit`; the counters stay on the device."""
    return _moved(opt_state, jax.memory.Space.Host)


def on_device(opt_state: Any) -> Any:
    return _moved(opt_state, jax.memory.Space.Device)


def _moved(opt_state: Any, space: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, opt_state)


def require_host_memory() -> None:
    """Raise UserError where the devices cannot work with memory of their host."""
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if "pinned_host" not in kinds:
        raise UserError(
            f"`optimizer.moments_on=host` needs pinned host memory, which {device.device_kind} "
            f"does not offer (it has {', '.join(kinds)}); use moments_on=device"
        )
