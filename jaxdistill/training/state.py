"""What a training step changes: parameters, optimizer state, the teacher's parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdistill.training.optimizer import Optimizer, make_optimizer, on_host, require_host_memory
from jaxdistill.training.teachers import MovingTeacher, Teacher


class TrainState(NamedTuple):
    step: Int[Array, ""]
    params: Any
    opt_state: Any
    teacher: Any  # None where it has no parameters of its own: the reference's, the student's


def init_state(params: Any, optimizer: Optimizer, teacher: Teacher, steps: int) -> TrainState:
    """The state before the first step, in float32 whatever the parameters' dtype.

    A teacher of its own starts as a copy of the student.
    """

    def master(x):
        # A copy: the step donates its state, and the reference must survive that.
        return jnp.copy(x.astype(jnp.float32))

    students = jax.tree.map(master, params)
    # Not jitted: zeros made eagerly lie as their parameters do, jit would replicate them.
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
