"""The choice of a program for limited memory: invented limits, but real compiler plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import ADAM, CONFIG, EPISTEMIC, REFERENCE, alone, make_batch, model, start

from jaxdistill.models.remat import REMATS
from jaxdistill.objectives import CrossEntropy
from jaxdistill.training import memory
from jaxdistill.training import step as train
from jaxdistill.training.batch import pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.teachers import Frozen


def sums(repeats):
    """Programs that need more memory for smaller `repeats`."""
    return jax.jit(lambda x: jnp.linalg.inv(jnp.outer(x[::repeats], x[::repeats])).sum())


def test_the_first_choice_that_fits_is_taken_for_each_set_of_shapes():
    large, small = jnp.ones(256), jnp.ones(32)
    needs = {n: memory.planned_bytes(sums(n).lower(large).compile()) for n in (1, 2, 4)}
    assert needs[1] > needs[2] > needs[4]
    limit = int(needs[2] / memory.MAX_PLANNED) + 1
    function = memory.FirstThatFits(sums, (1, 2, 4), limit)
    assert function.compiled_for(large)[0] == 2
    assert function.compiled_for(small)[0] == 1
    np.testing.assert_array_equal(function(large), sums(2)(large))
    # The last is taken even if it does not fit, because a plan is an estimate.
    assert memory.FirstThatFits(sums, (1, 2, 4), 10).compiled_for(large)[0] == 4


def test_the_next_choice_is_compiled_if_the_compiler_itself_runs_out_of_memory():
    class Full:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")

    function = memory.FirstThatFits(lambda n: Full() if n == 1 else sums(n), (1, 2), 2**40)
    assert function.compiled_for(jnp.ones(32))[0] == 2


def auto_step():
    return train.make_train_step(
        CONFIG, CrossEntropy(), EPISTEMIC, ADAM, Frozen(), Compute(remat="auto"), 10, 1.0, False
    )


def test_on_a_cpu_auto_is_the_step_that_keeps_everything(monkeypatch):
    assert memory.memory_limit() is None
    train.make_train_step.cache_clear()
    plain = train.make_train_step(
        CONFIG, CrossEntropy(), EPISTEMIC, ADAM, Frozen(), Compute(), 10, 1.0, False
    )
    assert auto_step() is plain


@pytest.mark.long
@pytest.mark.parametrize(("limit", "chosen"), [(2**40, "elementwise"), (1, "all")])
def test_auto_rematerialises_as_little_as_the_memory_allows(monkeypatch, limit, chosen):
    assert REMATS[1:] == train.AUTO
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    train.make_train_step.cache_clear()
    step, batch = auto_step(), jax.device_put(pad(alone(make_batch())))
    train.make_train_step.cache_clear()  # it was compiled under this test's limit
    state = start(Frozen())
    assert step.compiled_for(state, model(REFERENCE), batch)[0] == chosen
    moved, metrics = step(state, model(REFERENCE), batch)
    assert np.isfinite(metrics["loss"].mean)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # donated, as without a limit
    step(moved, model(REFERENCE), batch)
