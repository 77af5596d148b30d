"""AdamW with warm-up and clipping; its moments can be kept in bfloat16 or in host memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32, UInt32

from jaxdistill.errors import FLOAT32_MAX, UserError, require_number


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up from 0 and clipping by the gradient's global norm.

    Steps are rollout batches, of which each may have several updates (`OnPolicy.updates`). As in
    the paper's code, the first of the `warmup_steps` steps has learning rate 0, and weight decay
    applies to all parameters. The defaults of learning rate, warm-up, decay and clipping are
    the paper's (arXiv 2603.24472); b1, b2 and eps are Adam's usual ones. Raises UserError for a
    value of another type or outside its range.
    """

    peak_lr: float = 1e-5  # learning rate after the warm-up
    warmup_steps: int = 10  # steps of linear increase
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    b1: float = 0.9  # decay rate per step of the first moment
    b2: float = 0.999  # decay rate per step of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.01  # fraction of a parameter, times the learning rate
    clip_norm: float = 1.0  # the largest global norm; a longer gradient is scaled down to it
    moments: Literal["float32", "bfloat16"] = "float32"  # storage; see `stored_in_bfloat16`
    moments_on: Literal["device", "host"] = "device"  # where they are kept between steps

    def __post_init__(self):
        _require("peak_lr", self.peak_lr, 0, expected=">= 0 and finite")
        _require("warmup_steps", self.warmup_steps, 0, whole=True, expected=">= 0, an int")
        _require("b1", self.b1, 0, 1, open_high=True, expected="in [0, 1)")
        _require("b2", self.b2, 0, 1, open_high=True, expected="in [0, 1)")
        # Smaller numbers are 0 in float32, which would divide a gradient of 0.
        _require("eps", self.eps, 1e-37, expected=">= 1e-37 and finite")
        _require("weight_decay", self.weight_decay, 0, expected=">= 0 and finite")
        # Adam squares what clipping leaves, in float32.
        _require("clip_norm", self.clip_norm, 0, 1e18, open_low=True, expected="in (0, 1e18]")
        for name in ("schedule", "moments", "moments_on"):
            value, known = getattr(self, name), get_args(get_type_hints(type(self))[name])
            if value not in known:
                raise UserError(f"optimizer.{name}={value!r:.80}: expected {' or '.join(known)}")


def _require(field: str, value: Any, low: float, high: float = FLOAT32_MAX, **how: Any) -> None:
    require_number(f"optimizer.{field}", value, low, high, **how)


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The Optax transformation; a cosine schedule ends at 0 after `steps` steps.

    The schedule counts its calls. `at_step` sets that count where a step has several updates.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    adamw = optax.chain(
        adam if config.moments == "float32" else stored_in_bfloat16(adam),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def learning_rate(config: Optimizer, steps: int) -> Callable[[Any], Any]:
    """The learning rate of the update after this many steps: a function of a number from 0."""
    warm = optax.linear_schedule(0.0, config.peak_lr, max(config.warmup_steps, 1))
    after = (
        optax.constant_schedule(config.peak_lr)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(config.peak_lr, max(steps - config.warmup_steps, 1))
    )
    return optax.join_schedules([warm, after], [config.warmup_steps])


def at_step(opt_state: Any, step: Any) -> Any:
    """The optimizer's state with its learning rate at `step`, whatever number of updates it made.

    As in the paper's code, the schedule counts rollout batches, of which each may have several
    updates, and skipped updates count too. Adam's own count, for its bias correction, is untouched.
    """

    def is_schedule(state: Any) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    def moved(state: Any) -> Any:
        return state._replace(count=step) if is_schedule(state) else state

    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)


def stored_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.scale_by_adam(...)` that stores both moments in bfloat16 and computes in float32.

    The second moment is rounded stochastically, which is exact in expectation. Rounding to nearest
    would leave it unchanged: a step changes it by about (1 - b2) = 0.1 %, and adjacent bfloat16
    numbers differ by 0.4 % to 0.8 %. The first moment changes by 10 % per step and is rounded to
    nearest.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        # zeros_like keeps the parameters' sharding. `adam.init` would allocate float32 zeros first.
        mu, nu = (jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = state._replace(mu=_to(jnp.float32, state.mu), nu=_to(jnp.float32, state.nu))
        new: Any
        updates, new = adam.update(updates, wide, params)
        # The key depends on the step and, below, on the parameter's number: a resumed run rounds as
        # the uninterrupted one does.
        key = jax.random.fold_in(jax.random.key(_PURPOSE), state.count)
        nu, tree = jax.tree.flatten(new.nu)
        nu = [rounded_at_random(x, jax.random.fold_in(key, i)) for i, x in enumerate(nu)]
        return updates, new._replace(mu=_to(jnp.bfloat16, new.mu), nu=tree.unflatten(nu))

    return optax.GradientTransformation(init, update)


_PURPOSE = 0x0AD4  # an arbitrary constant that separates these keys from other uses of randomness


def _to(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def rounded_at_random(x: Float32[Array, "*shape"], key: Array) -> BFloat16[Array, "*shape"]:
    """Stochastic rounding to one of the two adjacent bfloat16 numbers: the mean over keys is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32. Adding 16 random bits to the lower half carries into
    # the upper half, which rounds away from zero, with a probability equal to the remainder.
    bits = (bits + (_hashes(x.shape, key) >> 16)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _hashes(shape: tuple[int, ...], key: Array) -> UInt32[Array, "..."]:
    """32 random bits per element, hashed from the key and the index (lowbias32, Wellons 2018).

    These are a few elementwise operations, which XLA fuses into the update. On a GPU
    `jax.random.bits` is a separate kernel with several temporary arrays of the parameters' size. An
    element's bits do not depend on the shape, so that a vocabulary which a mesh pads is rounded as
    without its padding.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        # 2**32 over the golden ratio, odd: rows start far from each other.
        row = index * jnp.uint32(0x9E3779B1)
        index = row + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = index ^ jax.random.bits(key, dtype=jnp.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def on_host(opt_state: Any) -> Any:
    """Move the moments to host memory, also under `jit`; step counters stay on the device."""
    return _moved(opt_state, jax.memory.Space.Host)


def on_device(opt_state: Any) -> Any:
    """Move the moments back to device memory: the inverse of `on_host`."""
    return _moved(opt_state, jax.memory.Space.Device)


def _moved(opt_state: Any, space: Any) -> Any:
    # Scalars are the counters, which the schedule reads on the device.
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, opt_state)


def require_host_memory() -> None:
    """Raise UserError if the devices cannot access pinned memory of their host."""
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if "pinned_host" not in kinds:
        raise UserError(
            f"`optimizer.moments_on=host` needs pinned host memory, which {device.device_kind} "
            f"does not offer (it has {', '.join(kinds)}); use moments_on=device"
        )
