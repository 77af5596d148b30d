"""Random positions and whole-objective losses for the tests of this folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import losses
from jaxdistill.objectives import Positions, Rows, Sampled
from jaxdistill.objectives.positions import epistemic_of

B, T, V = 2, 3, 12
IDS = (2, 5, 7)
MEMBER = np.isin(np.arange(V), IDS)
TOKENS = jnp.array([[2, 0, 1], [11, 7, 3]])


@functools.cache
def logits(seed, scale=1.5):
    return jnp.asarray(np.random.default_rng(seed).normal(scale=scale, size=(B, T, V)), jnp.float32)


@functools.cache
def logp_of(seed):
    return jax.nn.log_softmax(logits(seed))


def of_rows(numbers):
    """A number a row, at each of its positions."""
    return jnp.broadcast_to(jnp.array(numbers)[:, None], (B, T))


def positions(student=0, teacher=1, reference=2, contrast=3, **changes):
    """Seeds of the four networks; `changes` replace fields of Positions, Sampled or Rows.

    Those of Rows are given as one number a row.
    """
    student_logp, *others = (logp_of(seed) for seed in (student, teacher, reference, contrast))
    behaviour = losses.take_token(student_logp, TOKENS) - 0.1
    index_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    sampled = Sampled(TOKENS, behaviour, index_BT)
    rows = Rows(
        of_rows([0.5, -0.5]), of_rows([1.0, 0.0]), jnp.ones((B, T)), jnp.full((B, T), T),
        jnp.zeros((B, T), int),
    )  # fmt: skip
    inner = {name: value for name, value in changes.items() if name not in Positions._fields}
    sampled = sampled._replace(**{n: v for n, v in inner.items() if n in Sampled._fields})
    per_row = {n: of_rows(v) for n, v in inner.items() if n in Rows._fields}
    rows = rows._replace(**per_row)
    made = Positions(student_logp, *others, sampled, rows)
    return made._replace(**{n: v for n, v in changes.items() if n in Positions._fields})


def loss_of_logits(objective, given, ids=IDS):
    """The sum over positions as a function of the student's logits."""
    epistemic = epistemic_of(ids, given.student_logp_BTV.shape[-1])

    def total(student_logits):
        student_logp = jax.nn.log_softmax(student_logits)
        return jnp.sum(objective.part(given._replace(student_logp_BTV=student_logp), epistemic)[0])

    return total


def value_and_gradient(objective, given=None, ids=IDS):
    """(loss_BT, gradient of its sum in the student's logits); without the metrics, which cost most.

    test_compose.py shows that `make_objective` returns the same loss.
    """
    if given is None:
        return _at_made_positions(objective, ids)
    student_logp = given.student_logp_BTV  # log-probabilities are logits
    epistemic = epistemic_of(ids, student_logp.shape[-1])

    def loss(student_logp):
        return objective.part(given._replace(student_logp_BTV=student_logp), epistemic).loss_BT

    loss_BT, pull = jax.vjp(loss, student_logp)
    (gradient,) = pull(jnp.ones_like(loss_BT))
    return loss_BT, gradient - jnp.exp(student_logp) * gradient.sum(-1, keepdims=True)


@functools.cache
def _at_made_positions(objective, ids):
    # Many a test compares with the same base.
    return value_and_gradient(objective, positions(), ids)


def assert_same(first, second, given=None, ids=IDS, exact=False):
    """Two objectives with equal values and gradients."""
    for a, b in zip(value_and_gradient(first, given, ids), value_and_gradient(second, given, ids)):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


def mass(logp):
    return np.exp(np.asarray(logp, np.float64))[..., MEMBER].sum(-1)


def entropy(logp):
    P = np.exp(np.asarray(logp, np.float64))
    return -(P * np.log(np.where(P > 0, P, 1))).sum(-1)
