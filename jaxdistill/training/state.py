"""The state that a training step updates: student, optimizer and teacher."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdistill.training.optimizer import Optimizer, make_optimizer, on_host, require_host_memory
from jaxdistill.training.teachers import MovingTeacher, Teacher


class TrainState(NamedTuple):
    """Everything that the step changes and a checkpoint holds; parameters are float32."""

    step: Int[Array, ""]  # rollout batches learnt from
    params: Any  # the student's
    opt_state: Any
    teacher: Any  # None for a teacher made of the reference's or the student's parameters


def init_state(params: Any, optimizer: Optimizer, teacher: Teacher, steps: int) -> TrainState:
    """The state before the first step, in float32 whatever the dtype of `params`.

    A teacher with its own parameters starts as a copy of the student. Raises UserError if the
    moments are to be kept in host memory and the devices cannot access it.
    """

    def master(x):
        # A copy even if x is float32 already: the step donates its state, and `params` is used
        # again as the reference.
        return jnp.copy(x.astype(jnp.float32))

    students = jax.tree.map(master, params)
    # Not under jit: eager zeros_like keeps the parameters' sharding, jit would replicate the zeros.
    opt_state = make_optimizer(optimizer, steps).init(students)
    if optimizer.moments_on == "host":
        require_host_memory()
        opt_state = on_host(opt_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=students,
        opt_state=opt_state,
        teacher=jax.tree.map(master, params) if isinstance(teacher, MovingTeacher) else None,
    )
