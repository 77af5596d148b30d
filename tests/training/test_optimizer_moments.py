"""Adam's moments in bfloat16 and on the host: the same training, with less device memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_step import (
    ADAM,
    REFERENCE,
    STUDENT,
    alone,
    assert_close,
    difference,
    largest,
    make_batch,
    make_step,
    model,
    start,
)

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.objectives import CrossEntropy
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training import optimizer
from jaxdistill.training.batch import pad
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.teachers import Frozen

pytestmark = pytest.mark.long

ADAM = dataclasses.replace(ADAM, b1=0.9)  # a first moment that is more than the last gradient
BFLOAT16 = dataclasses.replace(ADAM, moments="bfloat16")
ON_HOST = dataclasses.replace(ADAM, moments_on="host")


def trained(optimizer, steps, state=None, first=0):
    step = make_step(CrossEntropy(), Frozen(), optimizer)
    state = start(Frozen(), optimizer) if state is None else state
    for seed in range(first, first + steps):
        batch = pad(alone(make_batch(seed)))
        state, _ = step(state, model(REFERENCE), jax.device_put(batch))
    return state


def adam_state(state) -> optax.ScaleByAdamState:
    return state.opt_state[1][0]


# ------------------------------------------------------------------------------------ bfloat16


def test_stochastic_rounding_is_unbiased_and_picks_an_adjacent_number():
    x = jnp.float32([1.0, 1.001, 0.0, 3.3e-9, 7e4])
    keys = jax.random.split(jax.random.key(0), 4000)
    rounded = jax.jit(jax.vmap(lambda key: optimizer.rounded_at_random(x, key)))(keys)
    rounded = np.float64(rounded)
    # Adjacent numbers differ by at most 2^-7, so a mean of 4000 is within 4 x 2^-8 / sqrt(4000).
    np.testing.assert_allclose(rounded.mean(axis=0), x, rtol=3e-4)
    assert (np.abs(rounded - np.float64(x)) <= np.float64(x) * 2.0**-7).all()
    assert len(np.unique(rounded[:, 1])) == 2
    assert (rounded[:, [0, 2]] == [1, 0]).all()  # a number that bfloat16 represents is unchanged


def test_elements_of_an_array_are_rounded_independently():
    x = jnp.full((64, 64), 1.0 + 2.0**-8)  # midway between two numbers
    up = np.float32(optimizer.rounded_at_random(x, jax.random.key(1))) > 1
    other = np.float32(optimizer.rounded_at_random(x, jax.random.key(2))) > 1
    for sample in (up, up ^ other, up[1:] ^ up[:-1], up[:, 1:] ^ up[:, :-1]):
        assert abs(sample.mean() - 0.5) < 4 * 0.5 / 63  # four standard errors


def test_the_second_moment_follows_shrinking_gradients_where_rounding_to_nearest_is_stuck():
    adam = optax.scale_by_adam(0.9, 0.999, 1e-8)
    params = {"w": jnp.ones(2000)}
    gradients = [jnp.full(2000, 1.0)] * 300 + [jnp.full(2000, 0.01)] * 700

    def nearest(state):
        narrow = lambda t: jax.tree.map(  # noqa: E731
            lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), t
        )
        return state._replace(mu=narrow(state.mu), nu=narrow(state.nu))

    def second_moment(transform, then):
        def body(state, gradient):
            return then(transform.update({"w": gradient}, state, params)[1]), ()

        state = jax.lax.scan(body, transform.init(params), jnp.stack(gradients))[0]
        return float(jnp.mean(state.nu["w"].astype(jnp.float32)))

    exact = second_moment(adam, lambda state: state)
    # 1 - 0.999^300 = 0.26, of which 0.999^700 = 0.50 is left.
    assert exact == pytest.approx(0.129, rel=0.01)
    stored = second_moment(optimizer.stored_in_bfloat16(adam), lambda state: state)
    assert stored == pytest.approx(exact, rel=0.01)
    assert second_moment(adam, nearest) > 1.5 * exact


def test_training_with_bfloat16_moments_stays_near_float32_in_half_the_memory():
    exact, rough = trained(ADAM, 6), trained(BFLOAT16, 6)
    adam = adam_state(rough)
    assert {x.dtype for x in jax.tree.leaves((adam.mu, adam.nu))} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(rough.params)} == {jnp.dtype(jnp.float32)}
    moved = difference(jax.device_get(exact.params), model(STUDENT))
    apart = difference(jax.device_get(rough.params), jax.device_get(exact.params))
    assert 0 < largest(apart) < 0.05 * largest(moved)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_padded_vocabulary_is_rounded_as_without_its_padding(axis):
    x = jax.random.uniform(jax.random.key(0), (30, 20))
    wide = jnp.pad(x, [(0, 482 if i == axis else 0) for i in range(2)])
    exact, padded = (
        np.float32(optimizer.rounded_at_random(y, jax.random.key(3))) for y in (x, wide)
    )
    np.testing.assert_array_equal(padded[:30, :20], exact)
    assert padded.sum() == exact.sum()  # zeros stay zeros


def test_eight_devices_round_like_one():
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    x = jax.random.uniform(jax.random.key(0), (4, 16, 8))
    split = jax.device_put(x, sharding.sharding_of(mesh, "LDN", x.shape))
    assert len(split.sharding.device_set) == 8
    rounded = jax.jit(optimizer.rounded_at_random)
    with sharding.use_mesh(mesh):
        there = rounded(split, jax.random.key(3))
    np.testing.assert_array_equal(np.float32(there), np.float32(rounded(x, jax.random.key(3))))


@pytest.mark.parametrize(
    "optimizer", [BFLOAT16, pytest.param(ON_HOST, marks=pytest.mark.slow)], ids=["bfloat16", "host"]
)
def test_a_checkpoint_carries_the_moments_exactly(optimizer, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    half = trained(optimizer, 2)
    checkpoints.save(2, half._asdict(), {})
    restored, _ = checkpoints.restore(2, start(Frozen(), optimizer)._asdict())
    checkpoints.close()
    resumed = TrainState(**restored)
    kinds = [x.sharding.memory_kind for x in jax.tree.leaves(resumed)]
    assert kinds == [x.sharding.memory_kind for x in jax.tree.leaves(start(Frozen(), optimizer))]
    through, resumed = trained(optimizer, 4), trained(optimizer, 2, resumed, first=2)
    assert_close(jax.device_get(resumed), jax.device_get(through), 0, 0)


# ------------------------------------------------------------------------------------- on host


def test_moments_on_the_host_take_the_same_steps_and_stay_there():
    expected, state = trained(ADAM, 3), trained(ON_HOST, 3)
    assert_close(jax.device_get(state), jax.device_get(expected), 1e-7)
    adam = adam_state(state)
    assert {x.sharding.memory_kind for x in jax.tree.leaves((adam.mu, adam.nu))} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.params)} == {"device"}


def test_a_backend_without_host_memory_is_refused_in_one_line(monkeypatch):
    class Device:
        device_kind = "abacus"

        def addressable_memories(self):
            return []

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(UserError, match="abacus does not offer"):
        init_state(model(STUDENT), ON_HOST, Frozen(), 10)
