"""Per-token credit: against NumPy, and at its limits."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_positions import (
    IDS,
    B,
    T,
    V,
    assert_same,
    logp_of,
    positions,
)

from jaxdistill.losses import advantages
from jaxdistill.objectives import GRPO, RLCSD, RLSD, AntiSD
from jaxdistill.objectives.credit import separate_means
from jaxdistill.objectives.positions import epistemic_of

TOKENS = np.array([[2, 0, 1], [11, 7, 3]])
EPISTEMIC = epistemic_of(IDS, V)
ADVANTAGE = np.array([[0.5] * T, [-0.5] * T])
numbers = st.floats(-6, 6, width=32)


def token(seed):
    return np.take_along_axis(np.asarray(logp_of(seed), np.float64), TOKENS[..., None], -1)[..., 0]


@settings(max_examples=60, deadline=None)
@drawn(
    A=st.floats(-2, 2, width=32, allow_subnormal=False),
    s=numbers,
    q=numbers,
    strength=st.floats(0, 1, allow_subnormal=False),
)
def test_rlsd_scales_the_advantage_and_keeps_its_sign(A, s, q, strength):
    shaped = float(advantages.rlsd(*map(jnp.float32, (A, s, q)), strength, 0.2))
    weight = np.clip(np.exp(np.sign(A) * (float(q) - float(s))), 0.8, 1.2)
    # Below 1.2e-38 a float32 is subnormal and may be flushed to zero.
    expected = A * ((1 - strength) + strength * weight)
    np.testing.assert_allclose(shaped, expected, rtol=1e-5, atol=1.2e-38)
    assert np.sign(shaped) == np.sign(np.float32(A)) or abs(A) < 1e-37


def test_rlsd_with_a_teacher_that_is_the_student_is_grpo():
    assert_same(GRPO(credit=RLSD()), GRPO(), positions(teacher=0))


def test_protected_doubt_keeps_the_verifiers_credit():
    given = positions()
    plain = RLSD().advantage(given, EPISTEMIC)
    protected = RLSD(protect_epistemic=True).advantage(given, EPISTEMIC)
    is_epistemic = np.isin(TOKENS, IDS)
    np.testing.assert_allclose(protected, np.where(is_epistemic, ADVANTAGE, plain), rtol=1e-6)
    assert not np.allclose(plain[is_epistemic], ADVANTAGE[is_epistemic])


def test_a_row_whose_teacher_saw_nothing_follows_plain_grpo():
    given = positions(distill_weight_BT=jnp.array([1.0, 0.0]))
    for choice in (RLSD(), AntiSD(entropy_threshold=None), RLCSD()):
        shaped = choice.advantage(given, EPISTEMIC)
        np.testing.assert_array_equal(shaped[1], ADVANTAGE[1])
        assert not np.allclose(shaped[0], ADVANTAGE[0])


def test_rlcsd_is_its_formula():
    choice = RLCSD(temperature=2.0, strength=0.8, limit=0.6, select=0.3)
    e = token(1) - token(3)
    residual = np.clip(0.8 * np.tanh(e / 2.0), -0.6, 0.6)
    selected = np.abs(residual) > 0.3
    assert 0 < selected.sum() < selected.size
    added = ADVANTAGE + residual
    shaped = np.where(np.sign(added) == np.sign(ADVANTAGE), added, 0)
    expected = np.where(selected, shaped, ADVANTAGE)
    np.testing.assert_allclose(choice.advantage(positions(), EPISTEMIC), expected, rtol=1e-5)


def test_rlcsd_without_a_difference_of_contexts_or_an_advantage_is_grpo_bit_for_bit():
    same = positions(teacher=1, contrast=1)
    assert_same(GRPO(credit=RLCSD()), GRPO(), same, exact=True)
    grpo = GRPO(credit=RLCSD())
    factor = grpo.batch_factor(grpo.batch_scores(same, EPISTEMIC), jnp.full((B, T), 1 / 7))
    np.testing.assert_array_equal(factor, 1)
    undecided = positions(advantage_BT=jnp.zeros(B))
    np.testing.assert_array_equal(RLCSD().advantage(undecided, EPISTEMIC), 0)


@settings(max_examples=60, deadline=None)
@drawn(A=st.floats(-2, 2, width=32), residual=st.floats(-2, 2, width=32))
def test_the_residual_never_changes_the_advantages_sign(A, residual):
    shaped = float(advantages.keep_sign(jnp.float32(A + residual), jnp.float32(A)))
    assert shaped == 0 or np.sign(shaped) == np.sign(A)


def test_selected_and_other_tokens_have_separate_means():
    rng = np.random.default_rng(0)
    weight, loss = rng.uniform(size=(2, 4, 5))
    selected = rng.uniform(size=(4, 5)) < 0.3
    factor = separate_means(jnp.asarray(selected), jnp.asarray(weight), 0.7)
    mean = (loss * weight * factor).sum() / weight.sum()
    expected = np.average(loss[~selected], weights=weight[~selected])
    expected += 0.7 * np.average(loss[selected], weights=weight[selected])
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
