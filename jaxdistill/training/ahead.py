"""The batches of a run's steps: each drawn when it is needed, or one step ahead of its update.

One step ahead (`schedules.OneStepOff`), the sampler's devices have a copy of the weights, in the
dtype that they are sampled in. At the beginning of each update the current weights replace the
copy, and the rollouts of the next step are drawn from it, in a thread, because a sampler's caller
waits for its samples. So a batch is drawn by the policy before the one that it updates.

A checkpoint has the copy, and the position of the data before the batch that is being drawn: a
resumed run draws that batch again, from the same weights with the same keys.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill import sharding
from jaxdistill.errors import out_of_memory
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.training.batch import Batch
from jaxdistill.training.timing import Clock

Facts = dict[str, Any]
# The copy's name in a checkpoint's state, and its age in the host's part.
SAMPLER, DRAWN_AFTER = "sampler", "sampler_after"

# What to change where a device of either side is full.
COPY_ADVICE = (
    "shard the weights over more devices: of the update (mesh), or of the sampler "
    "(experience.schedule.sampler_tensor, with more sampler_devices)"
)


class Draws(NamedTuple):
    """The two halves of a step's batch: the rollouts, and what is learnt from them."""

    draw: Callable[[Engine, Any, int], Rollouts]  # (sampler, its weights, step)
    learn: Callable[[Rollouts], tuple[Batch, Facts]]
    samples_again: bool  # whether `learn` samples too, on the devices of the update


class InTurnBatches:
    """Each batch is drawn when its step begins (or read, where nothing is sampled)."""

    def __init__(self, source: Any) -> None:
        self._source = source
        # The fields of a checkpoint's state besides the `TrainState`'s.
        self.state: dict[str, Any] = {}

    @property
    def host(self) -> dict[str, Any]:
        """The fields of a checkpoint's host part that say where the batches continue."""
        return {"data": self._source.batches.get_state()}

    def resume(self, state: dict[str, Any], host: dict[str, Any]) -> None:
        """Continue after a checkpoint, whose whole state and host part these are."""
        self._source.batches.set_state(host["data"])

    def take(self, params: Any, step: int) -> tuple[Batch, Facts]:
        """The batch of a step that will update `params`, and facts to log."""
        return self._source.next_batch(params, step)

    def start_next(self, params: Any, step: int) -> None:
        """The update of `params` begins, in a step; it is the end of what `state` was."""

    def last_line(self) -> str | None:
        """What is said of the batches at the end of the run."""
        return None

    def close(self) -> None:
        pass


class Drawn(NamedTuple):
    """A batch's rollouts, and the batch itself unless it is still to be made from them."""

    rollouts: Rollouts
    batch: tuple[Batch, Facts] | None
    after: int  # the steps that its policy had learnt from
    began: float  # s, by the clock of the run, as `ended`
    ended: float


class BatchesAhead:
    """Each batch is drawn beside the update before it, from the weights before that update.

    Where sampler and update share their devices, it is drawn before that update: two programs of
    several devices that are started by two threads could wait for each other.
    """

    def __init__(
        self,
        source: Any,
        engine: Engine,
        params: Any,
        *,
        steps: int,
        is_shared: bool,
        clock: Clock,
    ) -> None:
        """`source` is a `Source` that draws, `engine` the sampler's; the run has `steps`.

        params: those of the run's first step; a resumed run has others (`resume`).
        """
        assert source.draws is not None, "this experience draws nothing"
        self._source, self._engine, self._steps, self._clock = source, engine, steps, clock
        self._draws: Draws = source.draws
        self._is_shared = is_shared
        self._weights, self._after = self._sent(params), 0
        self._pending: concurrent.futures.Future[Drawn] | None = None
        # Of the data: before the batch that is being drawn, and where a checkpoint continues.
        self._before = self._position = source.batches.get_state()
        self._free_since: float | None = None  # when the sampler had drawn the last batch
        self._idle = {"sampler": 0.0, "trainer": 0.0}  # seconds since this start of the run
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="sampler")

    @property
    def state(self) -> dict[str, Any]:
        return {SAMPLER: self._weights}

    @property
    def host(self) -> dict[str, Any]:
        return {"data": self._position, DRAWN_AFTER: self._after}

    def resume(self, state: dict[str, Any], host: dict[str, Any]) -> None:
        self._weights, self._after = state[SAMPLER], host[DRAWN_AFTER]
        self._position = host["data"]
        self._source.batches.set_state(self._position)

    def take(self, params: Any, step: int) -> tuple[Batch, Facts]:
        began = self._clock.now()
        with self._clock.part("sampling"):
            if self._pending is None:  # the first step of a run, or of a resumed one
                is_current = self._is_shared and self._after == step
                self._draw(params if is_current else self._weights, step, self._after)
            drawn = self._drawn()
            if self._is_shared and step + 1 < self._steps:
                concurrent.futures.wait([self._draw(params, step + 1, step)])
        idle = {
            "trainer": self._clock.now() - began,
            "sampler": 0.0 if self._free_since is None else drawn.began - self._free_since,
        }
        self._free_since = drawn.ended
        self._idle = {who: seconds + idle[who] for who, seconds in self._idle.items()}
        batch, facts = drawn.batch or self._draws.learn(drawn.rollouts)
        return batch, facts | {
            "policy_lag": step - drawn.after,
            "seconds_rollouts": drawn.ended - drawn.began,
            **{f"seconds_{who}_idle": seconds for who, seconds in idle.items()},
        }

    def start_next(self, params: Any, step: int) -> None:
        if self._after != step:
            # What is kept of the last step names this copy still: it would stay beside the next.
            jax.tree.map(lambda x: x.delete(), self._weights)
            self._weights, self._after = self._sent(params), step
        if not self._is_shared and step + 1 < self._steps:
            self._draw(self._weights, step + 1, step)
        self._position = self._source.batches.get_state() if self._pending is None else self._before

    def last_line(self) -> str:
        waited = f"the update waited {self._idle['trainer']:.1f} s for them"
        return (
            f"rollouts were drawn one step ahead: {waited}, and the sampler "
            f"{self._idle['sampler']:.1f} s for weights"
        )

    def close(self) -> None:
        """Wait for what is being drawn: a program on a device cannot be interrupted."""
        self._thread.shutdown(cancel_futures=True)

    def _draw(self, weights: Any, step: int, after: int) -> concurrent.futures.Future[Drawn]:
        """Begin to draw the batch of a step from weights of an earlier or the same one."""
        self._before = self._source.batches.get_state()
        self._pending = self._thread.submit(self._drawing, weights, step, after)
        return self._pending

    def _drawn(self) -> Drawn:
        """The batch that was being drawn; raises what its thread has met with."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()

    def _drawing(self, weights: Any, step: int, after: int) -> Drawn:
        began = self._clock.now()
        # The small programs of the host's work would wait for the update on its first device.
        first = jax.default_device(sharding.first_device(self._engine.mesh))
        with contextlib.nullcontext() if self._is_shared else first:
            rollouts = self._draws.draw(self._engine, weights, step)
            batch = None if self._draws.samples_again else self._draws.learn(rollouts)
        return Drawn(rollouts, batch, after, began, self._clock.now())

    def _sent(self, params: Any) -> Any:
        return sampled_weights(params, self._engine)


Batches = InTurnBatches | BatchesAhead


def sampled_weights(params: Any, engine: Engine) -> Any:
    """A copy of parameters on the sampler's mesh, in the dtype that its matrices are read in.

    Samples from the copy are those from `params`, to the bit: whatever the sampler rounds is
    rounded here, and scales and biases, which are small, keep their dtype. Raises UserError if a
    device is full.
    """
    config, mesh, dtype = engine.policy.config, engine.mesh, compute_dtype(engine.dtype)
    assert mesh is not None, "a run has a mesh"

    def send(leaf: nnx.Variable) -> nnx.Variable:
        axes, value = leaf.get_metadata()["axes"], leaf.get_raw_value()
        is_matrix = "D" in axes and len(axes.replace("L", "")) > 1
        if is_matrix and value.dtype != dtype:
            value = value.astype(dtype)
        else:  # the update donates `params`
            value = jnp.copy(value)
        if "V" in axes:  # the meshes may pad a vocabulary otherwise
            # Not `parameters.without_padding`: the mesh need not divide what is left here.
            value = jax.lax.slice_in_dim(value, 0, config.vocab_size, axis=axes.index("V"))
            shape = sharding.padded_shape(mesh, axes, value.shape)
            value = jnp.pad(value, [(0, n - m) for n, m in zip(shape, value.shape)])
        # One by one, so that the source of a copy is free again before the next is made.
        return leaf.replace(
            jax.device_put(value, sharding.parameter_sharding(mesh, axes, value.shape))
        )

    with out_of_memory("copying the weights to the sampler", COPY_ADVICE):
        return jax.tree.map(send, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
