"""Every loss against a float64 NumPy oracle, the spec's properties, and cases done by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdistill import losses

VOCAB = 8
DIVERGENCES = [
    pytest.param("forward", losses.forward_kl, id="forward_kl"),
    pytest.param("reverse", losses.reverse_kl, id="reverse_kl"),
    pytest.param(0.5, losses.jensen_shannon, id="jensen_shannon"),
    pytest.param(0.2, lambda s, t: losses.jensen_shannon(s, t, alpha=0.2), id="jensen_shannon_0.2"),
]
# Float32 sums of VOCAB terms of size up to ~10: 10 * 2^-24 * a few operations.
ATOL = 5e-6

logits_pairs = hnp.arrays(
    np.float32, (2, VOCAB), elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


# ------------------------------------------------------------------------- the independent oracle


def normalise(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def oracle(kind, student_logp, teacher_logp):
    S, T = np.exp(student_logp), np.exp(teacher_logp)
    if kind == "forward":
        return (T * (teacher_logp - student_logp)).sum(-1)
    if kind == "reverse":
        return (S * (student_logp - teacher_logp)).sum(-1)
    M = (1 - kind) * S + kind * T
    to_student = (S * (student_logp - np.log(M))).sum(-1)
    return (1 - kind) * to_student + kind * (T * (teacher_logp - np.log(M))).sum(-1)


def oracle_bins(student_logp, teacher_logp, c, always=()):
    """Top-C plus tail for one position, by sorting and summing in float64."""
    others = [v for v in np.argsort(-student_logp, kind="stable") if v not in always]
    kept = [*others[:c], *always]
    dropped = [v for v in range(len(student_logp)) if v not in kept]
    return tuple(
        np.append(logp[kept], np.log(np.exp(logp[dropped]).sum()))
        for logp in (student_logp, teacher_logp)
    )


def numeric_gradient(f, x, step=1e-5):
    """Central differences in float64; error about step^2 = 1e-10."""
    x = np.asarray(x, np.float64)
    moves = step * np.eye(x.size)
    return np.array([(f(x + move) - f(x - move)) / (2 * step) for move in moves])


def random_logits(seed, *shape):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype(np.float32)


def logp(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probabilities, np.float32)))


# ------------------------------------------------------------------------------------ divergences


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
def test_values_equal_the_float64_oracle(kind, divergence):
    student, teacher = random_logits(0, 2, 3, 5, VOCAB)
    value = divergence(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))
    expected = oracle(kind, normalise(student), normalise(teacher))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=ATOL)


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_gradients_equal_central_differences_in_float64(kind, divergence, side):
    student, teacher = random_logits(1, 2, VOCAB)

    def loss(x):
        pair = (x, teacher) if side == "student" else (student, x)
        return divergence(*(jax.nn.log_softmax(each) for each in pair))

    def expected(x):
        pair = (x, teacher) if side == "student" else (student, x)
        return oracle(kind, *(normalise(each) for each in pair))

    start = student if side == "student" else teacher
    gradient = jax.grad(loss)(jnp.asarray(start))
    np.testing.assert_allclose(gradient, numeric_gradient(expected, start), atol=ATOL)


def test_the_forward_gradient_in_the_logits_is_student_minus_teacher():
    student, teacher = random_logits(2, 2, VOCAB)
    gradient = jax.grad(lambda x: losses.forward_kl(jax.nn.log_softmax(x), normalise_f32(teacher)))(
        jnp.asarray(student)
    )
    expected = np.exp(normalise(student)) - np.exp(normalise(teacher))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def normalise_f32(logits):
    return jnp.asarray(normalise(logits), jnp.float32)


def test_three_words_by_hand():
    # S = (1/2, 1/4, 1/4), T = (1/4, 1/4, 1/2).
    S, T = logp([0.5, 0.25, 0.25]), logp([0.25, 0.25, 0.5])
    # KL(T||S) = 1/4 ln(1/2) + 0 + 1/2 ln 2 = 1/4 ln 2; the pair is a mirror image.
    np.testing.assert_allclose(losses.forward_kl(S, T), 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.reverse_kl(S, T), 0.25 * np.log(2), rtol=1e-6)
    # M = (3/8, 1/4, 3/8): KL(S||M) = 1/2 ln(4/3) + 1/4 ln(2/3), and KL(T||M) the same.
    by_hand = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3)
    np.testing.assert_allclose(losses.jensen_shannon(S, T), by_hand, rtol=1e-5)
    # Two of the three words in one tail: S = (1/2 | 1/2), T = (1/4 | 3/4).
    by_hand = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
    np.testing.assert_allclose(losses.forward_kl(*losses.top_c(S, T, 1)), by_hand, rtol=1e-5)


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_are_never_negative(kind, divergence, logits):
    assert divergence(*jax.nn.log_softmax(logits)) >= -1e-6  # rounding of terms that cancel


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_divergences_vanish_with_their_gradient_where_the_two_agree_and_only_there(
    kind, divergence, logits
):
    same, other = jax.nn.log_softmax(logits)
    value, gradient = jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), same))(same)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    if np.abs(np.exp(same) - np.exp(other)).max() > 0.05:
        assert divergence(same, other) > 1e-4  # Pinsker: at least 2 * 0.05^2 / 8


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@settings(max_examples=25, deadline=None)
@given(logits=logits_pairs, shift=st.floats(-50, 50, width=32))
def test_adding_a_constant_to_the_logits_changes_nothing(kind, divergence, logits, shift):
    before = divergence(*jax.nn.log_softmax(logits))
    after = divergence(*jax.nn.log_softmax(logits + np.float32(shift)))
    # Logits near 58 are known to 4e-6; a divergence of up to 16 nats inherits that.
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(logits=logits_pairs)
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(logits):
    first, second = jax.nn.log_softmax(logits)
    value = losses.jensen_shannon(first, second)
    np.testing.assert_allclose(value, losses.jensen_shannon(second, first), atol=1e-6)
    assert value <= np.log(2) + 1e-6


def test_the_ends_of_alpha_are_the_two_kl_and_not_the_limits():
    S, T = jax.nn.log_softmax(random_logits(3, 2, VOCAB))
    np.testing.assert_array_equal(losses.jensen_shannon(S, T, 0.0), losses.forward_kl(S, T))
    np.testing.assert_array_equal(losses.jensen_shannon(S, T, 1.0), losses.reverse_kl(S, T))
    assert losses.jensen_shannon(S, T, 1e-4) < 0.01 * losses.forward_kl(S, T)


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
def test_words_that_neither_can_say_change_neither_value_nor_gradient(kind, divergence):
    student, teacher = random_logits(4, 2, VOCAB)
    banned = np.full(2, -np.inf, np.float32)

    def loss(student, teacher):
        return divergence(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))

    padded = np.concatenate([student, banned]), np.concatenate([teacher, banned])
    value, gradient = jax.value_and_grad(loss)(*padded)
    expected_value, expected_gradient = jax.value_and_grad(loss)(student, teacher)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient[:-2], expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient[-2:], 0)


@pytest.mark.parametrize(
    ("divergence", "student", "teacher", "expected"),
    [
        (losses.forward_kl, [0.5, 0.5], [1.0, 0.0], np.log(2)),
        (losses.reverse_kl, [1.0, 0.0], [0.5, 0.5], np.log(2)),
        (losses.jensen_shannon, [1.0, 0.0], [0.0, 1.0], np.log(2)),
        (losses.reverse_kl, [0.5, 0.5], [1.0, 0.0], np.inf),
    ],
)
def test_zero_probabilities_are_exact(divergence, student, teacher, expected):
    np.testing.assert_allclose(divergence(logp(student), logp(teacher)), expected, rtol=1e-6)
    if np.isfinite(expected):
        for side in (0, 1):
            gradient = jax.grad(divergence, argnums=side)(logp(student), logp(teacher))
            assert np.isfinite(gradient).all()


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size():
    np.testing.assert_allclose(losses.entropy(logp([0.25] * 4 + [0.0])), np.log(4), rtol=1e-6)
    gradient = jax.grad(losses.entropy)(logp([0.25] * 4 + [0.0]))
    assert np.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------ top C


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@pytest.mark.parametrize("always", [(), (1, 6)])
def test_top_c_with_a_tail_equals_the_oracle_in_value_and_gradient(kind, divergence, always):
    student, teacher = random_logits(5, 2, VOCAB)

    def loss(x):
        pair = jax.nn.log_softmax(x), jax.nn.log_softmax(teacher)
        return divergence(*losses.top_c(*pair, 3, always_ids=always))

    def expected(x):
        return oracle(kind, *oracle_bins(normalise(x), normalise(teacher), 3, always))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
    np.testing.assert_allclose(value, expected(student), rtol=1e-5)
    np.testing.assert_allclose(gradient, numeric_gradient(expected, student), atol=ATOL)


@pytest.mark.parametrize("tail", [True, False])
def test_c_equal_to_the_vocabulary_is_the_full_divergence(tail):
    S, T = jax.nn.log_softmax(random_logits(6, 2, 3, VOCAB))
    for c in (VOCAB, VOCAB + 5):
        np.testing.assert_array_equal(
            losses.forward_kl(*losses.top_c(S, T, c, tail)), losses.forward_kl(S, T)
        )


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
@settings(max_examples=15, deadline=None)
@given(logits=logits_pairs)
def test_with_a_tail_the_divergence_rises_with_c_towards_the_full_one(kind, divergence, logits):
    S, T = jax.nn.log_softmax(logits)
    values = [float(divergence(*losses.top_c(S, T, c))) for c in range(1, VOCAB + 1)]
    assert all(lower <= upper + ATOL for lower, upper in itertools.pairwise(values))


def test_every_bin_holds_a_true_probability_and_none_is_counted_twice():
    S, T = jax.nn.log_softmax(random_logits(7, 2, 4, VOCAB))
    for bins in losses.top_c(S, T, 2, always_ids=(0, int(jnp.argmax(S[0])))):
        assert bins.shape == (4, 5)
        np.testing.assert_allclose(np.exp(bins).sum(-1), 1, atol=1e-6)


def test_banned_words_cannot_make_an_always_kept_id_appear_twice():
    # Only one word outside the always-kept ones has mass, but c asks for two.
    S = logp([0.4, 0.3, 0.3, 0.0, 0.0, 0.0])
    student, teacher = losses.top_c(S, logp([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]), 2, always_ids=(0, 1))
    np.testing.assert_allclose(np.exp(student).sum(), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(teacher).sum(), 1, atol=1e-6)


@pytest.mark.parametrize(("kind", "divergence"), DIVERGENCES)
def test_a_student_with_all_its_mass_in_the_kept_words_has_a_finite_loss_and_gradient(
    kind, divergence
):
    teacher = jax.nn.log_softmax(jnp.zeros(4))
    for student in (jnp.array([0.0, -1e4, -1e4, -1e4]), logp([1.0, 0.0, 0.0, 0.0])):
        value, gradient = jax.value_and_grad(
            lambda x: divergence(*losses.top_c(jax.nn.log_softmax(x), teacher, 1))
        )(student)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_tail_far_below_float32_resolution_keeps_its_value_and_gradient():
    # The kept mass rounds to 1: log(1 - kept) would be -inf or noise; the summed tail is exact.
    student = np.array([30.0, 1.0, 0.0, -1.0], np.float32)
    teacher = np.array([2.0, 1.0, 0.5, 0.0], np.float32)

    def loss(x):
        pair = jax.nn.log_softmax(x), jax.nn.log_softmax(teacher)
        return losses.forward_kl(*losses.top_c(*pair, 1))

    def expected(x):
        return oracle("forward", *oracle_bins(normalise(x), normalise(teacher), 1))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
    np.testing.assert_allclose(value, expected(student), rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric_gradient(expected, student), atol=1e-6)


def test_without_a_tail_the_kept_words_are_renormalised_and_a_change_of_mass_is_invisible():
    S, T = logp([0.45, 0.45, 0.05, 0.05]), logp([0.05, 0.05, 0.45, 0.45])
    np.testing.assert_allclose(losses.forward_kl(*losses.top_c(S, T, 2, tail=False)), 0, atol=1e-6)
    assert losses.forward_kl(*losses.top_c(S, T, 2)) > 1


# -------------------------------------------------------------------------------- epistemic masses


def test_log_mass_is_the_log_of_the_summed_probability():
    members = jnp.array([False, True, False, True])
    P = logp([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(losses.log_mass(P, members), np.log(0.6), rtol=1e-6)
    np.testing.assert_allclose(losses.epistemic_bins(P, members), np.log([0.6, 0.4]), rtol=1e-6)


def test_an_empty_or_massless_set_has_log_mass_minus_infinity_and_no_gradient():
    for members, P in [([False] * 3, [0.2, 0.3, 0.5]), ([True, False, False], [0.0, 0.5, 0.5])]:
        value, gradient = jax.value_and_grad(losses.log_mass)(logp(P), jnp.array(members))
        assert value == -np.inf
        np.testing.assert_array_equal(gradient, 0)


@settings(max_examples=30, deadline=None)
@given(logits=logits_pairs)
def test_the_chain_rule_splits_the_forward_kl_into_mass_and_two_shapes(logits):
    S, T = jax.nn.log_softmax(logits)
    E = jnp.arange(VOCAB) < 3
    bins_S, bins_T = losses.epistemic_bins(S, E), losses.epistemic_bins(T, E)
    inside = losses.forward_kl(S[:3] - bins_S[0], T[:3] - bins_T[0])
    outside = losses.forward_kl(S[3:] - bins_S[1], T[3:] - bins_T[1])
    total = losses.forward_kl(bins_S, bins_T) + jnp.exp(bins_T) @ jnp.stack([inside, outside])
    np.testing.assert_allclose(total, losses.forward_kl(S, T), rtol=1e-5, atol=ATOL)


# -------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("alpha", [1e-4, 1 - 1e-4])
def test_the_normalised_jensen_shannon_tends_to_the_kl_of_its_end(alpha):
    S, T = jax.nn.log_softmax(random_logits(20, 2, 4, VOCAB))
    end = losses.forward_kl if alpha < 0.5 else losses.reverse_kl
    value = losses.jensen_shannon(S, T, alpha, normalize=True)
    # The next term is alpha times a chi-square, of order 100 where log-ratios reach 5.
    np.testing.assert_allclose(value, end(S, T), rtol=2e-2)
    assert float(losses.jensen_shannon(S, T, alpha).max()) < 1e-2  # unnormalised it vanishes


def test_an_entry_clip_cuts_each_word_and_a_loose_one_none():
    S, T = jax.nn.log_softmax(random_logits(21, 2, 5, VOCAB))
    entries = np.exp(normalise(T)) * (normalise(T) - normalise(S))
    expected = np.minimum(entries, 0.05).sum(-1)
    np.testing.assert_allclose(losses.forward_kl(S, T, entry_clip=0.05), expected, atol=ATOL)
    np.testing.assert_array_equal(losses.forward_kl(S, T, 1e9), losses.forward_kl(S, T))
    np.testing.assert_array_equal(losses.reverse_kl(S, T, 1e9), losses.reverse_kl(S, T))
    loose = losses.jensen_shannon(S, T, entry_clip=1e9)
    np.testing.assert_array_equal(loose, losses.jensen_shannon(S, T))
    assert float(losses.forward_kl(S, T, entry_clip=0.01).min()) < 0  # as its docstring warns


def test_over_the_whole_vocabulary_the_score_function_has_the_gradient_of_the_reverse_kl():
    logits, T = random_logits(22, VOCAB), jax.nn.log_softmax(random_logits(23, VOCAB))

    def gradient(divergence):
        return jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), T))(logits)

    estimated, exact = gradient(losses.score_function_reverse_kl), gradient(losses.reverse_kl)
    np.testing.assert_allclose(estimated[0], exact[0], atol=ATOL)
    np.testing.assert_allclose(estimated[1], exact[1], atol=ATOL)


def test_over_a_truncated_support_differentiating_the_sum_adds_a_teacher_free_term():
    """sum over K of S_v grad s_v, which the score function leaves out (arXiv 2605.11182)."""
    logits, T = random_logits(24, VOCAB), jax.nn.log_softmax(random_logits(25, VOCAB))

    def gradient(divergence):
        return jax.grad(lambda x: divergence(jax.nn.log_softmax(x)[:3], T[:3]))(logits)

    extra = jax.grad(lambda x: jnp.exp(jax.nn.log_softmax(x)[:3]).sum())(logits)
    difference = gradient(losses.reverse_kl) - gradient(losses.score_function_reverse_kl)
    np.testing.assert_allclose(difference, extra, atol=ATOL)
    assert np.abs(extra).max() > 0.01


def test_the_sampled_estimators_have_the_expected_value_and_k1_the_expected_gradient():
    """By enumeration of the vocabulary, weighted with the student's own probabilities."""
    logits, T = random_logits(26, VOCAB), jax.nn.log_softmax(random_logits(27, VOCAB))
    S = jax.nn.log_softmax(logits)
    exact, exact_gradient = jax.value_and_grad(
        lambda x: losses.reverse_kl(jax.nn.log_softmax(x), T)
    )(logits)
    weights = jax.lax.stop_gradient(jnp.exp(S))

    def expectation(x):
        return jnp.sum(weights * losses.sampled_reverse_kl(jax.nn.log_softmax(x), T))

    value, gradient = jax.value_and_grad(expectation)(logits)
    np.testing.assert_allclose(value, exact, atol=ATOL)
    np.testing.assert_allclose(gradient, exact_gradient, atol=ATOL)
    k3 = losses.k3(S, T)
    np.testing.assert_allclose(jnp.sum(weights * k3), exact, atol=ATOL)
    assert float(k3.min()) >= 0
    np.testing.assert_array_equal(losses.k3(S, S), jnp.zeros(VOCAB))


def test_the_bernoulli_divergence_is_that_of_two_masses():
    S, T = jax.nn.log_softmax(random_logits(28, 2, VOCAB))
    E = jnp.arange(VOCAB) < 3
    m_S, m_T = (np.exp(normalise(x))[:3].sum() for x in (S, T))
    expected = m_T * np.log(m_T / m_S) + (1 - m_T) * np.log((1 - m_T) / (1 - m_S))
    bins = losses.epistemic_bins(T, E), losses.epistemic_bins(S, E)
    np.testing.assert_allclose(losses.bernoulli_kl(*bins), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [losses.smooth_clip_tanh, losses.smooth_clip_rational])
@given(loss=st.floats(0, 1e4, width=32, allow_subnormal=False), limit=st.sampled_from([0.1, 2.0]))
@settings(max_examples=30, deadline=None)
def test_smooth_clips_grow_never_pass_the_limit_and_start_with_slope_one(clip, loss, limit):
    assert float(clip(jnp.float32(loss), limit)) <= limit * (1 + 1e-6)
    slope = jax.grad(clip)
    assert float(slope(jnp.float32(loss), limit)) >= 0
    np.testing.assert_allclose(slope(jnp.float32(0), limit), 1, rtol=1e-6)


def test_a_clipped_position_has_no_gradient():
    slopes = jax.vmap(jax.grad(losses.clip_position), (0, None))(jnp.array([0.5, 3.0]), 1.0)
    np.testing.assert_array_equal(slopes, [1, 0])


@pytest.mark.parametrize("support", ["teacher", "union"])
def test_the_support_may_be_the_teachers_or_both(support):
    S, T = jax.nn.log_softmax(random_logits(29, 2, 30))
    c = 4
    pair = losses.top_c(S, T, c, support=support)
    first = [] if support == "teacher" else np.argsort(-normalise(S))[:c].tolist()
    kept = first + [v for v in np.argsort(-normalise(T)) if v not in first][:c]
    for logp, bins in zip((S, T), pair):
        assert bins.shape == (len(kept) + 1,)
        assert sorted(bins[:-1].tolist()) == sorted(np.asarray(logp)[kept].tolist())
        np.testing.assert_allclose(np.exp(bins).sum(), 1, atol=1e-6)
    assert losses.reverse_kl(*pair) <= losses.reverse_kl(S, T) + 1e-6


# -------------------------------------------------------------------------------- policy gradients


def grpo_oracle(ratio, advantage):
    """The branches of PPO written out: pessimistic clipping, and a floor for bad actions."""
    if advantage >= 0:
        return -advantage * min(ratio, 1.28)
    return -advantage * min(max(ratio, 0.8), 3.0)


@pytest.mark.parametrize("advantage", [1.5, 0.0, -0.7])
@pytest.mark.parametrize("ratio", [0.1, 0.79, 0.9, 1.0, 1.2, 1.4, 2.9, 5.0])
def test_the_grpo_surrogate_equals_its_branches_in_value_and_gradient(ratio, advantage):
    value, slope = jax.value_and_grad(losses.grpo_surrogate)(
        jnp.float32(ratio), jnp.float32(advantage), 0.2, 0.28, 3.0
    )
    expected = numeric_gradient(lambda x: grpo_oracle(x[0], advantage), np.array([ratio]))
    np.testing.assert_allclose(value, grpo_oracle(ratio, advantage), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, expected[0], rtol=1e-6, atol=1e-7)


def test_importance_weights_are_one_on_policy_and_truncated_above_only():
    behaviour = logp([0.5, 0.5, 0.1, 1e-30])
    token = logp([0.5, 0.05, 0.9, 1.0])
    np.testing.assert_allclose(
        losses.importance_weight(token, behaviour, 2.0), [1, 0.1, 2, 2], rtol=1e-6
    )
    assert np.isfinite(losses.importance_ratio(token, behaviour)).all()


def test_group_advantages_are_centred_and_divided_only_on_request():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    expected = np.asarray(rewards, np.float64)
    expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(losses.group_advantage(rewards), expected, atol=1e-7)
    deviation = np.asarray(rewards, np.float64).std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        losses.group_advantage(rewards, normalize_std=True),
        expected / (deviation + 1e-6),
        rtol=1e-5,
    )


def test_a_group_of_one_keeps_its_reward():
    np.testing.assert_array_equal(losses.group_advantage(jnp.ones((3, 1))), 1)
