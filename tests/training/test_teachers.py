"""Who teaches: an average, a snapshot, the student itself, a trust region, the reference."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    ADAM,
    EPISTEMIC,
    REFERENCE,
    STUDENT,
    TOKEN,
    assert_close,
    assert_same_update,
    difference,
    gradient_of,
    largest,
    logits_by_masks,
    make_batch,
    make_step,
    mask_of,
    model,
    run,
    start,
    update,
)

from jaxdistill.errors import UserError
from jaxdistill.training.batch import pad
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import (
    EMA,
    Frozen,
    Live,
    Models,
    Snapshot,
    TrustRegion,
    check_teacher,
)


def test_an_ema_teacher_is_the_average_of_the_students_so_far():
    step, state = make_step(TOKEN), start()
    students = [model(STUDENT)]
    for seed in (0, 1):
        state, _ = step(state, model(REFERENCE), jax.device_put(pad(make_batch(seed))))
        students.append(jax.device_get(state.params))
    # T0 = S0; T1 = 3/4 S0 + 1/4 S1; T2 = 9/16 S0 + 3/16 S1 + 4/16 S2.
    expected = jax.tree.map(lambda a, b, c: (9 * a + 3 * b + 4 * c) / 16, *students)
    assert largest(difference(students[2], students[1])) > 1e-3
    assert_close(jax.device_get(state.teacher), jax.device_get(expected), 1e-6)


@pytest.mark.long
def test_a_reference_in_bfloat16_is_what_the_same_numbers_are_in_float32():
    """The base's own dtype loses nothing, and the student still learns in float32."""
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model(REFERENCE))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
    batch = jax.device_put(pad(make_batch()))
    step = make_step(TOKEN, Frozen())
    (first, a), (second, b) = (
        step(init_state(params, ADAM, Frozen(), 10), params, batch) for params in (stored, wide)
    )
    assert {x.dtype for x in jax.tree.leaves(first.params)} == {jnp.dtype(jnp.float32)}
    assert_close(first, second, 0, 0)
    assert_close(a, b, 0, 0)


def test_a_snapshot_is_held_until_the_next_is_due():
    teacher, own = Snapshot(2), {"w": np.zeros(2)}
    held = []
    for step in range(5):
        own = teacher.moved(own, {"w": np.full(2, step + 1)}, step)
        held.append(float(own["w"][0]))
    assert held == [0, 2, 2, 4, 4]
    assert_close(jax.device_get(start(teacher).teacher), jax.device_get(model(STUDENT)), 0, 0)


@pytest.mark.long
def test_a_live_teacher_scores_with_the_students_parameters_and_without_gradient():
    batch = make_batch()
    actual = update(TOKEN, batch, Live())
    # An average that has not moved yet holds those parameters as its own.
    assert_same_update(actual, update(TOKEN, batch))
    assert start(Live()).teacher is None


def mass_of_mixture(batch, weights):
    """The mean epistemic mass of softmax(sum of weight * logits), under the teacher's context."""
    logits = {
        seed: np.asarray(logits_by_masks(model(seed), batch.teacher, batch.completion))
        for seed in weights
    }
    mixed = jax.nn.log_softmax(sum(weight * logits[seed] for seed, weight in weights.items()))
    mass_BT = np.exp(mixed)[..., list(EPISTEMIC)].sum(-1)
    return np.average(mass_BT, weights=mask_of(batch.completion))


@pytest.mark.long
def test_a_trust_region_teacher_is_between_the_initial_model_and_the_student():
    """Under the teacher's context, its logits are the two models' mixture."""
    batch, teacher = make_batch(), TrustRegion(0.3)
    state, metrics = run(make_step(TOKEN, teacher), start(teacher), pad(batch))
    expected = mass_of_mixture(batch, {REFERENCE: 0.7, STUDENT: 0.3})
    np.testing.assert_allclose(metrics["epistemic_mass_teacher"].mean, expected, rtol=1e-5)
    assert state.teacher is None


# ------------------------------------------------------------------------------ a recipe's own


@dataclass(frozen=True)
class Approaching:
    """A mixture that moves from half the reference to its own average of students in `steps`."""

    steps: int

    def networks(self, models: Models):
        share = 0.5 + 0.5 * jnp.minimum(models.step / self.steps, 1.0)
        return (models.reference, 1 - share), (models.own, share)

    def moved(self, own, student, step):
        return jax.tree.map(lambda t, s: 0.5 * t + 0.5 * s, own, student)


@pytest.mark.long
def test_a_teacher_of_ones_own_scores_and_moves_as_its_class_says():
    batch, teacher = make_batch(), Approaching(steps=1)
    step, state = make_step(TOKEN, teacher), start(teacher)
    first, metrics = run(step, state, pad(batch))
    # Its own parameters start as the student's, and half of the logits are the reference's.
    expected = mass_of_mixture(batch, {REFERENCE: 0.5, STUDENT: 0.5})
    np.testing.assert_allclose(metrics["epistemic_mass_teacher"].mean, expected, rtol=1e-5)
    average = jax.tree.map(lambda a, b: (a + b) / 2, model(STUDENT), first.params)
    assert_close(first.teacher, jax.device_get(average), 1e-6)
    assert largest(difference(first.params, model(STUDENT))) > 1e-3
    # From the second step on only its own parameters count, in the same compiled program.
    start_again = start(teacher)._replace(step=jnp.int32(1))
    state, metrics = run(step, start_again, pad(batch))
    expected = mass_of_mixture(batch, {STUDENT: 1.0})
    np.testing.assert_allclose(metrics["epistemic_mass_teacher"].mean, expected, rtol=1e-5)
    assert largest(gradient_of(state)) > 1e-3


@dataclass(frozen=True)
class Returning:
    """Returns, by name, networks that are not valid."""

    how: str

    def networks(self, models: Models):
        return {
            "nothing": (),
            "parameters alone": models.reference,
            "others": ((jax.tree.map(lambda x: 2 * x, models.reference), 1.0),),
            "none": ((models.own, 1.0),),
            "an array": ((models.reference, jnp.ones(3)),),
            "nan": ((models.reference, float("nan")),),
        }[self.how]


HOWS = ["nothing", "parameters alone", "others", "none", "an array", "nan"]


@pytest.mark.parametrize("how", HOWS)
def test_invalid_networks_are_refused_in_one_line(how):
    teacher = Returning(how)
    with pytest.raises(UserError, match=r"^Returning.networks: expected \(\(parameters, weight\)"):
        make_step(TOKEN, teacher).trace(start(teacher), model(REFERENCE), pad(make_batch()))


@dataclass(frozen=True)
class Losing(Frozen):
    """Loses its own parameters."""

    def moved(self, own, student, step):
        return None


def test_parameters_that_change_their_shape_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"^Losing.moved: expected parameters with the structure"):
        make_step(TOKEN, Losing()).trace(start(Losing()), model(REFERENCE), pad(make_batch()))


# ---------------------------------------------------------------- checked before training starts

FEW = {"embed": np.ones((2, 3), np.float32), "norm": np.ones(4, jnp.bfloat16)}
OWN = r"\(\(parameters, weight\), \.\.\.\), with .*; got "


@dataclass(frozen=True)
class Half:
    """Its methods evaluate the given expressions."""

    networks_do: str = "models.own, 1.0"
    moved_does: str = "own"

    def networks(self, models: Models):
        names = {"models": models, "jnp": jnp, "copied": jax.tree.map(jnp.copy, models.student)}
        return (eval(self.networks_do, names),)

    def moved(self, own, student, step):
        names = {"jax": jax, "jnp": jnp, "own": own, "student": student, "step": step}
        return eval(self.moved_does, names)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (Returning("nothing"), rf"Returning.networks: expected {OWN}\(\)$"),
        (Returning("parameters alone"), "got models.reference$"),
        (Returning("none"), r"got \(\(None, 1.0\),\)$"),
        (Returning("nan"), r"got \(\(models.reference, nan\),\)$"),
        (Half("copied, 1.0"), r"got \(\(a dict, 1.0\),\)$"),
        (Half("models.own, jnp.ones(3)"), r"got \(\(models.own, an array of shape \(3,\)\),\)$"),
        (Half("models.techer, 1.0"), "Half.networks raised AttributeError: 'Models' object has no"),
        (Half("models.own, 1 if models.step > 2 else 0"), "raised TracerBoolConversionError: "),
        (
            Half("models.own, 1 / models.step"),
            "Half.networks returned weight inf for network 0 at step 0, expected",
        ),
        (
            Half("models.own, jnp.sqrt(8.5 - models.step)"),
            "returned weight nan for network 0 at step 9, expected",
        ),
        (Half(moved_does="None"), "Half.moved: expected parameters with .*, got None$"),
        (Half(moved_does="[own]"), r"Half.moved: expected parameters with .*, got \(a dict,\)$"),
        (Half(moved_does="own + student"), "Half.moved raised TypeError: unsupported operand"),
        (
            Half(moved_does="{**own, 'norm': own['norm'].sum()}"),
            r"of shape \(4,\) at \['norm'\], got an array of shape \(\)$",
        ),
        (
            Half(moved_does="{**own, 'norm': jnp.log(own['norm'] - 2)}"),
            r"Half.moved returned NaN or an infinity in \['norm'\] at step 0",
        ),
    ],
)
def test_a_teacher_that_fails_is_refused_before_training_starts(teacher, said):
    with pytest.raises(UserError) as error:
        check_teacher(teacher, FEW, 10)
    # `match` would also search the notes that JAX adds to an exception.
    assert re.search(f"^teacher: .*{said}", str(error.value)), error.value
    assert len(str(error.value)) < 200


def test_a_valid_teacher_is_accepted():
    average = "jax.tree.map(lambda t, s: 0.5 * t + 0.5 * s, own, student)"
    for teacher in (Half(moved_does=average), Approaching(4), Frozen()):
        check_teacher(teacher, FEW, 10)
    check_teacher(Half("models.own, 1 / (models.step - 3)"), FEW, 3)  # step 3 is never reached
    check_teacher(Approaching(4), FEW, 0)


# ------------------------------------------------------------------------------------ settings


def test_a_snapshot_of_no_steps_is_refused_by_name():
    with pytest.raises(UserError, match="`every` must be at least 1"):
        Snapshot(0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_an_ema_rate_outside_its_range_is_refused_by_name(rate):
    with pytest.raises(UserError, match="`rate` must lie in"):
        EMA(rate)
