"""Who teaches: an average, a snapshot, the student itself, a trust region, the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    ADAM,
    ANCHORED,
    CONFIG,
    DESCENT,
    EPISTEMIC,
    REFERENCE,
    STUDENT,
    assert_close,
    difference,
    largest,
    make_batch,
    make_step,
    model,
    moving_step,
    run,
    start,
)

from jaxdistill.errors import UserError
from jaxdistill.models import completions, parameters
from jaxdistill.objectives import (
    Distill,
    TopC,
)
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen, Live, Snapshot, TrustRegion


def test_an_ema_teacher_is_the_average_of_the_students_so_far():
    step, state = moving_step(), start(ADAM, EMA(0.25))
    students = [model(STUDENT)]
    for seed in (0, 1):
        state, _ = step(state, model(REFERENCE), jax.device_put(make_batch(seed)))
        students.append(jax.device_get(state.params))
    # T0 = S0; T1 = 3/4 S0 + 1/4 S1; T2 = 9/16 S0 + 3/16 S1 + 4/16 S2.
    expected = jax.tree.map(lambda a, b, c: (9 * a + 3 * b + 4 * c) / 16, *students)
    assert largest(difference(students[2], students[1])) > 1e-3
    assert_close(jax.device_get(state.teacher), jax.device_get(expected), 1e-6)


def test_a_reference_in_bfloat16_is_what_the_same_numbers_are_in_float32():
    """The base's own dtype loses nothing, and the student still learns in float32."""
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model(REFERENCE))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
    batch = jax.device_put(make_batch())
    step = make_step(ANCHORED, ADAM, chunk=4)
    (first, a), (second, b) = (
        step(init_state(params, ADAM, Frozen(), 10), params, batch) for params in (stored, wide)
    )
    assert {x.dtype for x in jax.tree.leaves(first.params)} == {jnp.dtype(jnp.float32)}
    assert_close(first, second, 0, 0)
    assert_close(a, b, 0, 0)


def test_a_snapshot_is_held_until_the_next_is_due():
    step, state = make_step(Distill(support=TopC(8)), ADAM, Snapshot(2)), start(ADAM, Snapshot(2))
    held = []
    for seed in range(4):
        state, _ = step(state, model(REFERENCE), jax.device_put(make_batch(seed)))
        held.append(jax.tree.map(np.array, (state.teacher, state.params)))
    assert largest(difference(held[0][0], model(STUDENT))) == 0
    for after, source in [(1, 1), (2, 1), (3, 3)]:  # the compiler rounds the update twice
        assert largest(difference(held[after][0], held[source][1])) < 1e-7
    assert largest(difference(held[3][0], held[1][0])) > 1e-3


def test_a_live_teacher_scores_with_the_students_parameters_and_without_gradient():
    objective, batch = Distill(support=TopC(8)), make_batch()
    state, metrics = run(make_step(objective, DESCENT, Live()), start(DESCENT, Live()), batch)
    assert state.teacher is None
    # The same step with a teacher that holds those parameters as its own.
    same, expected = run(make_step(objective, DESCENT, EMA(1.0)), start(DESCENT, EMA(1.0)), batch)
    assert_close(jax.device_get(state.params), jax.device_get(same.params), 1e-6)
    np.testing.assert_allclose(metrics["loss"].mean, expected["loss"].mean, rtol=1e-6)


def test_a_trust_region_teacher_is_between_the_initial_model_and_the_student():
    """Under the teacher's context, its logits are the two models' mixture."""
    batch, objective = make_batch(), Distill(support=TopC(8), reduction="token")
    step = make_step(objective, teacher=TrustRegion(0.3))
    state, metrics = run(step, start(teacher=TrustRegion(0.3)), batch)

    def logits(seed):
        hidden_BTD = completions.completion_hidden(model(seed), CONFIG, *batch[2:4], *batch[4:6])
        return hidden_BTD @ parameters.head(model(seed), CONFIG)

    mixed = jax.nn.log_softmax(0.7 * logits(REFERENCE) + 0.3 * logits(STUDENT))
    mass_BT = np.exp(mixed)[..., list(EPISTEMIC)].sum(-1)
    expected = np.average(mass_BT, weights=batch.completion_mask_BT)
    np.testing.assert_allclose(metrics["epistemic_mass_teacher"].mean, expected, rtol=1e-5)
    assert state.teacher is None


def test_a_snapshot_of_no_steps_is_refused_by_name():
    with pytest.raises(UserError, match="`every` must be at least 1"):
        Snapshot(0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_an_ema_rate_outside_its_range_is_refused_by_name(rate):
    with pytest.raises(UserError, match="`rate` must lie in"):
        EMA(rate)
