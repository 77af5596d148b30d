"""Edited targets: what each edit changes, what it must leave alone, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import PAIRS, WORDS, assert_close, derivative, normalise, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdistill import losses
from jaxdistill.losses import edits

VOCAB = 8
# float32 sums of VOCAB terms of size up to about 10: 10 * 2^-24 * a few operations.
ATOL = 5e-6
E = np.arange(VOCAB) < 3

logits_pairs = hnp.arrays(
    np.float32, (2, VOCAB), elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


def random_logits(seed, *shape):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype(np.float32)


def random_logp(seed, *shape):
    return jax.nn.log_softmax(random_logits(seed, *shape))


def logp(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probabilities, np.float32)))


def sums_to_one(target):
    np.testing.assert_allclose(np.exp(target).sum(-1), 1, atol=2e-6)
    return True


# --------------------------------------------------------------------- every edit, its formula
# In float64, on the probabilities of each position. Zeros are allowed; 0/0 has tests of its own.

DOUBT = np.isin(np.arange(WORDS), [2, 4, 9])


def shares(P):
    """P given E and P given not E, each [N, V]; NaN where that side has no mass."""
    with np.errstate(invalid="ignore"):
        return tuple(np.where(side, P, 0) / P[:, side].sum(-1)[:, None] for side in (DOUBT, ~DOUBT))


def anchored(T, R, mode, mix, shape):
    # Both masses are summed, because probabilities rounded to bfloat16 do not sum to one.
    m_T, m_R = (np.stack([P[:, side].sum(-1) for side in (DOUBT, ~DOUBT)]) for P in (T, R))
    floor = np.where(m_T[0] > m_R[0], m_T, m_R)
    wanted = {"ref": m_R, "floor": floor, "mix": (1 - mix) * m_T + mix * m_R}[mode][..., None]
    inside, outside = shares(R if shape == "reference" else T)[0], shares(T)[1]
    return wanted[0] * inside + wanted[1] * outside


def scaled(logits):
    with np.errstate(invalid="ignore"):
        P = np.exp(logits - logits.max(-1, keepdims=True))
        return P / P.sum(-1, keepdims=True)


def gain(T, C, bound):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.nan_to_num(np.log(T) - np.log(C), posinf=bound, neginf=-bound), -20, 20)


def log(P):
    with np.errstate(divide="ignore"):
        return np.log(P)


EDITS = {
    **{f"anchor {mode} {mix} {shape}": (
        lambda T, R, C, m=mode, k=mix, s=shape: edits.anchor_mass(T, R, DOUBT, m, k, s),
        lambda T, R, C, m=mode, k=mix, s=shape: anchored(T, R, m, k, s),
    ) for mode, mix in (("ref", 1.0), ("floor", 1.0), ("mix", 0.3), ("mix", 0.0))
      for shape in ("teacher", "reference")},
    "fixed mass": (
        lambda T, R, C: edits.restore_mass(T, DOUBT, jnp.full(len(T), jnp.log(0.1))),
        lambda T, R, C: 0.1 * shares(T)[0] + 0.9 * shares(T)[1],
    ),
    "without doubt": (
        lambda T, R, C: edits.without_epistemic(T, DOUBT), lambda T, R, C: shares(T)[1],
    ),
    "amplified": (
        lambda T, R, C: edits.amplify(T, DOUBT, jnp.full(len(T), 2.0)),
        lambda T, R, C: scaled(log(T) + 2.0 * DOUBT),
    ),
    "barycentre": (
        lambda T, R, C: edits.barycentre(T, R, 0.3), lambda T, R, C: scaled(log(T**0.3 * R**0.7)),
    ),
    "beyond the teacher": (
        lambda T, R, C: edits.barycentre(T, jnp.maximum(R, -60), 1.5),
        lambda T, R, C: scaled(1.5 * log(T) - 0.5 * np.maximum(log(R), -60)),
    ),
    "mixture": (
        lambda T, R, C: edits.mixture(T, R, jnp.full(len(T), jnp.log(3.0))),
        lambda T, R, C: 0.25 * T + 0.75 * R,
    ),
    "all base": (
        lambda T, R, C: edits.mixture(T, R, jnp.full(len(T), jnp.inf)), lambda T, R, C: R,
    ),
    "purified": (
        lambda T, R, C: edits.purified(R, T, C, 0.7),
        lambda T, R, C: scaled(log(R) + 0.7 * gain(T, C, 20)),
    ),
    "contrasted": (
        lambda T, R, C: edits.contrasted(T, C, 0.5),
        lambda T, R, C: scaled(1.5 * log(T) - 0.5 * np.maximum(log(C), -30)),
    ),
}  # fmt: skip


def networks(dtype):
    R, T = (jnp.asarray(side, dtype) for side in PAIRS)
    return T, R, jnp.roll(T, 1, axis=0)


@functools.cache
def edited(dtype):
    """{name: the target}, compiled together."""
    every = jax.jit(lambda *given: {name: edit(*given) for name, (edit, _) in EDITS.items()})
    return every(*networks(dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EDITS)
def test_every_edit_equals_its_formula_in_float64(name, dtype):
    T, R, C = networks(dtype)
    formula, target = EDITS[name][1], edited(dtype)[name]
    assert target.dtype == jnp.float32
    expected = formula(*(np.exp(np.asarray(side, np.float64)) for side in (T, R, C)))
    is_defined = ~np.isnan(expected).any(-1)
    assert is_defined.sum() > 20
    # Sums and differences of log-probabilities of up to 60 nats (some of them 1.5 times).
    assert_close(np.exp(target)[is_defined], expected[is_defined], 1e-7, name, rtol=100 * 2**-23)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_slices_gradient_equals_the_oracles_even_at_the_extremes(alpha):
    def off_doubt(x):
        kept = np.where(DOUBT, -np.inf, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            return kept - np.log(np.exp(kept).sum(-1, keepdims=True))

    def loss(x, T):
        pair = (edits.without_epistemic(side, DOUBT) for side in (x, T))
        return losses.jensen_shannon(*pair, alpha)

    def value_and_slope(s, t):
        value, pull = jax.vjp(loss, s, t)
        return value, pull(jnp.ones_like(value))[0]

    value, gradient = jax.jit(value_and_slope)(*PAIRS)
    S, T = (np.asarray(side, np.float64) for side in PAIRS)
    expected = oracle(off_doubt(S), off_doubt(T), alpha)
    rows = np.isfinite(expected)
    assert rows.sum() > 20
    # Renormalising subtracts log-probabilities of up to 60 nats.
    slack = 4 * 2**-24 * (1 + sum(np.where(np.isinf(x), 0, abs(x)).max(-1) for x in (S, T)))[rows]
    assert_close(value[rows], expected[rows], slack, "value")
    np.testing.assert_array_equal(gradient[:, DOUBT], 0)
    exact = derivative(lambda x: oracle(off_doubt(x), off_doubt(T), alpha), S)
    assert_close(gradient[rows], exact[rows], slack[:, None], "gradient")


@jax.jit
def gradient_towards(target, logits):
    return jax.grad(lambda x: losses.forward_kl(jax.nn.log_softmax(x), target).sum())(logits)


@pytest.mark.parametrize("name", EDITS)
def test_the_forward_gradient_towards_any_edit_is_student_minus_target(name):
    target = edited(jnp.float32)[name]
    size = target.shape
    logits = jnp.asarray(np.random.default_rng(1).normal(scale=3.0, size=size), jnp.float32)
    gradient = gradient_towards(target, logits)
    is_one = np.abs(np.exp(target).sum(-1) - 1) < 1e-5  # except where the edit is 0/0
    expected = np.exp(normalise(logits)) - np.exp(np.asarray(target, np.float64))
    # The target's log-probabilities have errors of up to 60 * 2^-24, and so has their sum.
    np.testing.assert_allclose(gradient[is_one], expected[is_one], atol=1e-5)
    assert is_one.sum() > 20


# --------------------------------------------------------------------------------- anchored mass


@settings(max_examples=30, deadline=None)
@given(logits=logits_pairs, mix=st.floats(0, 1), mode=st.sampled_from(["ref", "floor", "mix"]))
def test_an_anchored_teacher_has_the_mass_it_was_given_and_keeps_its_ratios(logits, mix, mode):
    T, R = jax.nn.log_softmax(logits)
    target = edits.anchor_mass(T, R, jnp.asarray(E), mode, mix)
    m_T, m_R = np.exp(T)[E].sum(), np.exp(R)[E].sum()
    expected = {"ref": m_R, "floor": max(m_T, m_R), "mix": (1 - mix) * m_T + mix * m_R}[mode]
    np.testing.assert_allclose(np.exp(target)[E].sum(), expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(target).sum(), 1, atol=1e-6)
    for side in (E, ~E):  # log-ratios of up to 16 nats
        np.testing.assert_allclose(np.diff(target[side]), np.diff(T[side]), atol=ATOL)


def test_an_anchored_teacher_by_hand():
    # m_R = 0.8 over the second and third word, to which the teacher gives 0.1 each.
    target = edits.anchor_mass(
        logp([0.8, 0.1, 0.1]), logp([0.2, 0.3, 0.5]), jnp.array([False, True, True])
    )
    np.testing.assert_allclose(np.exp(target), [0.2, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("mode", ["ref", "floor", "mix"])
def test_anchoring_to_oneself_or_to_an_empty_set_changes_nothing(mode):
    T, R = jax.nn.log_softmax(random_logits(8, 2, 3, VOCAB))

    @jax.jit
    def unmoved(T, R, nothing):
        anchor = edits.anchor_mass
        return anchor(T, T, E, mode), anchor(T, R, nothing, mode), anchor(T, R, E, "mix", 0.0)

    for target in unmoved(T, R, jnp.zeros_like(E)):
        np.testing.assert_allclose(target, T, atol=2e-6)


def test_a_teacher_that_never_doubts_takes_the_shape_of_the_references_doubt():
    target = edits.anchor_mass(
        logp([1.0, 0.0, 0.0]), logp([0.2, 0.3, 0.5]), jnp.array([False, True, True])
    )
    np.testing.assert_allclose(np.exp(target), [0.2, 0.3, 0.5], rtol=1e-6)


def test_the_shape_of_doubt_may_be_the_references():
    T, R = random_logp(1, 2, VOCAB)
    target = np.asarray(edits.anchor_mass(T, R, E, "ref", shape="reference"))
    np.testing.assert_allclose(target[E], R[E], atol=ATOL)
    np.testing.assert_allclose(np.diff(target[~E]), np.diff(T[~E]), atol=ATOL)
    assert sums_to_one(target)


def test_a_student_like_the_reference_with_the_teachers_content_has_nothing_to_learn():
    R = random_logp(2, VOCAB)
    # The same ratios outside E, different ratios and a different mass inside E.
    T = jax.nn.log_softmax(jnp.where(E, random_logits(3, VOCAB), R))
    target = edits.anchor_mass(T, R, E, "ref", shape="reference")
    gradient = jax.grad(lambda x: losses.forward_kl(jax.nn.log_softmax(x), target))(R)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


# ------------------------------------------------------------------------------------- other edits


def restored(T, log_mass):
    return edits.restore_mass(T, E, log_mass)


def amplified(T, strength):
    return edits.amplify(T, E, strength)


@settings(max_examples=30, deadline=None)
@given(logits=logits_pairs, mass=st.floats(0.01, 0.99))
def test_restored_logits_have_the_mass_that_was_asked_for_and_the_teachers_ratios(logits, mass):
    T = jax.nn.log_softmax(logits[0])
    target = jax.jit(restored)(T, jnp.log(jnp.float32(mass)))
    np.testing.assert_allclose(np.exp(target)[E].sum(), mass, atol=1e-6)
    assert sums_to_one(target)
    for side in (E, ~E):
        np.testing.assert_allclose(np.diff(target[side]), np.diff(T[side]), atol=ATOL)


def slice_loss(student_logits, T, members=E):
    S = jax.nn.log_softmax(student_logits)
    pair = (edits.without_epistemic(x, members) for x in (S, T))
    return losses.jensen_shannon(*pair)


def test_a_slice_has_no_gradient_on_epistemic_logits_and_its_sum_is_zero():
    logits, T = random_logits(4, VOCAB), random_logp(5, VOCAB)
    value, gradient = jax.jit(jax.value_and_grad(slice_loss))(logits, T)
    np.testing.assert_allclose(gradient[E], 0, atol=1e-7)  # the softmax's rounding
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)
    assert np.abs(gradient[~E]).max() > 1e-3
    # Neither the amount nor the distribution of the teacher's doubt matters.
    other = jax.nn.log_softmax(jnp.where(E, random_logits(6, VOCAB), T))
    np.testing.assert_allclose(jax.jit(slice_loss)(logits, other), value, atol=ATOL)


def test_a_slice_does_not_freeze_the_mass():
    """d m_S / d eta = m_S sum_v S_v g_v along the descent direction -g."""
    logits, T = random_logits(7, VOCAB), random_logp(8, VOCAB)
    gradient = jax.jit(jax.grad(slice_loss))(logits, T)
    S = np.exp(np.asarray(jax.nn.log_softmax(logits), np.float64))
    predicted = S[E].sum() * (S * np.asarray(gradient, np.float64)).sum()

    def mass(step):
        x = np.asarray(logits, np.float64) - step * np.asarray(gradient, np.float64)
        p = np.exp(x - x.max())
        return p[E].sum() / p.sum()

    measured = (mass(1e-4) - mass(-1e-4)) / 2e-4
    np.testing.assert_allclose(measured, predicted, rtol=1e-5)
    assert abs(predicted) > 1e-4


def test_a_slice_of_an_empty_set_changes_nothing_and_of_everything_is_finite_and_flat():
    logits, T = random_logits(9, VOCAB), random_logp(10, VOCAB)
    none, everything = np.zeros(VOCAB, bool), np.ones(VOCAB, bool)
    np.testing.assert_allclose(
        slice_loss(logits, T, none), losses.jensen_shannon(jax.nn.log_softmax(logits), T), atol=ATOL
    )
    value, gradient = jax.value_and_grad(slice_loss)(logits, T, everything)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@settings(max_examples=30, deadline=None)
@given(logits=logits_pairs, strength=st.floats(0, 5), more=st.floats(0.1, 3))
def test_amplification_raises_the_mass_and_zero_strength_changes_nothing(logits, strength, more):
    T = jax.nn.log_softmax(logits[0])
    unmoved, target, further = (
        np.asarray(jax.jit(amplified)(T, jnp.float32(x))) for x in (0.0, strength, strength + more)
    )
    masses = [np.exp(x)[E].sum() for x in (unmoved, target, further)]
    assert masses[0] <= masses[1] + 1e-6
    assert masses[1] <= masses[2] + 1e-6
    np.testing.assert_allclose(unmoved, T, atol=2e-6)
    assert sums_to_one(target)


def test_amplifying_an_empty_set_changes_nothing():
    T = random_logp(11, 3, VOCAB)
    none = np.zeros(VOCAB, bool)
    np.testing.assert_allclose(edits.amplify(T, none, jnp.full(3, 2.0)), T, atol=2e-6)


def test_the_barycentre_runs_from_the_base_to_the_teacher():
    T, B = random_logp(12, 2, VOCAB)
    np.testing.assert_allclose(edits.barycentre(T, B, 1.0), T, atol=2e-6)
    np.testing.assert_allclose(edits.barycentre(T, B, 0.0), B, atol=2e-6)
    half = np.exp(np.asarray(T, np.float64) / 2 + np.asarray(B, np.float64) / 2)
    np.testing.assert_allclose(np.exp(edits.barycentre(T, B, 0.5)), half / half.sum(), atol=1e-6)
    only_E = edits.barycentre(T, B, jnp.where(E, 0.0, 1.0))
    np.testing.assert_allclose(np.diff(only_E[~E]), np.diff(T[~E]), atol=ATOL)
    np.testing.assert_allclose(np.diff(only_E[E]), np.diff(B[E]), atol=ATOL)


def test_a_barycentre_with_impossible_words_is_finite_where_mathematics_is():
    T, B = logp([0.0, 0.5, 0.5]), logp([0.5, 0.5, 0.0])
    np.testing.assert_allclose(np.exp(edits.barycentre(T, B, 0.5)), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(np.exp(edits.barycentre(T, B, 0.0)), [0.5, 0.5, 0], atol=1e-6)


def test_a_purified_target_is_the_reference_moved_by_what_the_question_adds():
    R, T, C = random_logp(13, 3, VOCAB)
    np.testing.assert_allclose(edits.purified(R, T, T), R, atol=2e-6)
    np.testing.assert_allclose(edits.purified(R, T, C, 0.0), R, atol=2e-6)
    expected = np.exp(np.asarray(R + 0.7 * (T - C), np.float64))
    np.testing.assert_allclose(
        np.exp(edits.purified(R, T, C, 0.7)), expected / expected.sum(), atol=1e-6
    )


def test_edits_have_finite_values_and_gradients_at_the_edge_of_float32():
    """One-hot, uniform, and -inf-masked distributions."""
    edges = [[1.0, 0, 0, 0], [0.25] * 4, [0, 0.5, 0.5, 0], [0, 0, 0, 1.0]]
    members = np.array([True, True, False, False])

    @jax.jit
    def evaluate(T, R, S):
        targets = [
            edits.anchor_mass(T, R, members),
            edits.anchor_mass(T, R, members, "floor", shape="reference"),
            edits.without_epistemic(T, members),
            edits.amplify(T, members, jnp.float32(2.0)),
            edits.purified(R, T, R),
        ]
        loss = jax.value_and_grad(lambda x, t: losses.forward_kl(jax.nn.log_softmax(x), t))
        return [(target, *loss(S, target)) for target in targets]

    for T in map(logp, edges):
        for R in map(logp, edges):
            for target, value, gradient in evaluate(T, R, random_logits(14, 4)):
                assert not np.isnan(target).any()
                assert np.isfinite(value)
                assert np.isfinite(gradient).all()
