"""One step: its update does not depend on the mesh, micro-batches, padding or row order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    ADAM,
    ANCHORED,
    CONFIG,
    OBJECTIVES,
    OF_THE_BATCH,
    REFERENCE,
    ROWS,
    STUDENT,
    TOKEN,
    alone,
    assert_close,
    assert_same_steps,
    assert_same_update,
    completion_logp,
    difference,
    gradient_of,
    largest,
    make_batch,
    make_step,
    mask_of,
    model,
    on_mesh,
    on_one_device,
    rows_of,
    run,
    split,
    start,
    update,
    weighing,
)

from jaxdistill import sharding
from jaxdistill.objectives import GRPO, Contrasted, CrossEntropy, Distill, TopC
from jaxdistill.training import step as train
from jaxdistill.training.batch import Texts, pad
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("everything", (2, 2, 2)),
        pytest.param("cross_entropy", (4, 1, 2), marks=pytest.mark.long),
        # Parts of "everything", and other meshes: that of six rows is (1, 8, 1).
        pytest.param("grpo", (1, 8, 1), marks=pytest.mark.slow),
        pytest.param("sdpo_anchor", (1, 8, 1), marks=pytest.mark.slow),
        pytest.param("sdpo_anchor", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("sdpo_anchor", (4, 1, 2), marks=pytest.mark.slow),
        pytest.param("grpo", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("srpo", (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_take_the_same_steps_as_one(name, sizes):
    step = make_step({**OBJECTIVES, **OF_THE_BATCH}[name])
    assert_same_steps(on_mesh(sizes, step, pad), on_one_device(name))


@pytest.mark.long
def test_rows_that_do_not_split_over_the_devices_take_the_same_steps():
    """Six rows on eight devices: two have an empty one, which no sum counts.

    GRPO's mean over rows shows it, and compiles in half of the time of a step with a teacher.
    """
    step = make_step(OBJECTIVES["grpo"])
    six = lambda batch, parts: pad(rows_of(batch, slice(0, 6)), parts=parts)  # noqa: E731
    expected = run(step, start(), *(six(make_batch(seed), parts=1) for seed in (0, 1)))
    assert_same_steps(on_mesh((1, 8, 1), step, lambda batch: six(batch, parts=8)), expected)


def test_parameters_moments_and_teacher_are_split_before_the_first_step():
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    params = split(mesh, model(STUDENT))
    with sharding.use_mesh(mesh):
        state = init_state(params, ADAM, EMA(0.25), 10)
    leaves = jax.tree.leaves(state)
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    # All but norms and counters is sharded eightfold; unsharded moments alone would be half of it.
    assert local < sum(leaf.nbytes for leaf in leaves) / 5


@pytest.mark.long
def test_a_teacher_at_twice_the_temperature_is_one_with_half_the_head():
    state, batch = start(), pad(make_batch())
    halved = jax.tree.map_with_path(
        lambda path, x: x / 2 if "head" in jax.tree_util.keystr(path) else x, state.teacher
    )
    assert difference_is_only_in_the_head(halved, state.teacher)
    _, plain = run(make_step(TOKEN), state._replace(teacher=halved), batch)
    _, warm = run(make_step(TOKEN, teacher_temperature=2.0), start(), batch)
    for name in ("loss", "grad_norm", "epistemic_mass_teacher", "epistemic_mass_reference"):
        # Halving is exact, and so is every division by two.
        np.testing.assert_allclose(warm[name].mean, plain[name].mean, rtol=1e-6)
    _, cold = run(make_step(TOKEN), start(), batch)
    assert abs(cold["loss"].mean / warm["loss"].mean - 1) > 0.1


def difference_is_only_in_the_head(new, old):
    """Otherwise the comparison above would prove nothing."""
    changed = [largest(difference(a, b)) > 0 for a, b in zip(*map(jax.tree.leaves, (new, old)))]
    return sum(changed) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "everything",
        *(
            pytest.param(name, marks=pytest.mark.slow)  # each compiles for half a minute
            for name in OF_THE_BATCH
            if name != "everything"
        ),
    ],
)
def test_batch_wide_weights_do_not_depend_on_how_the_batch_is_split(name):
    objective = OF_THE_BATCH[name]
    batch = weighing([1, 0, 1, 1, 0, 1, 1, 1], make_batch())
    whole = update(objective, batch)
    # Another row order, other micro-batches and other chunks.
    order = np.random.default_rng(3).permutation(ROWS)
    split = update(objective, rows_of(batch, order), micro_batches=4, chunk=3)
    assert_same_update(split, whole)
    for metric in ("kept", "loss_share_epistemic"):
        np.testing.assert_allclose(split[1][metric].mean, whole[1][metric].mean, rtol=1e-4)


def widened(batch):
    """Wider arrays, as longer rows in the batch would make them."""

    def wide(x, extra):
        return np.pad(x, ((0, 0), (0, extra)))

    return dataclasses.replace(
        batch,
        prompt=Texts(wide(batch.prompt.ids_BP, 3), batch.prompt.length_B),
        teacher=Texts(wide(batch.teacher.ids_BP, 6), batch.teacher.length_B),
        completion=Texts(wide(batch.completion.ids_BP, 5), batch.completion.length_B),
        behaviour_logp_BT=wide(batch.behaviour_logp_BT, 5),
    )


@pytest.mark.long
@pytest.mark.parametrize(
    # "everything" of the test above is a mean of sequences, too.
    "objective",
    [pytest.param(ANCHORED, marks=pytest.mark.slow), TOKEN],
    ids=["sequence", "token"],
)
def test_micro_batches_row_order_and_padding_do_not_change_the_update(objective):
    batch = weighing([1, 0, 1, 1, 0, 0, 1, 1], make_batch())
    expected = update(objective, batch)
    order = np.random.default_rng(5).permutation(ROWS)
    other_order = update(objective, rows_of(batch, order))
    assert_same_update(other_order, expected)
    parts = update(objective, widened(batch), micro_batches=4)
    assert_same_update(parts, expected)
    for actual in (other_order, parts):
        assert_close(actual[1], expected[1], 1e-5)


def test_the_contents_of_padding_do_not_change_a_bit():
    arrays = pad(make_batch())

    def spoilt(x_BXS, lengths_BXA, garbage):
        is_real_BXS = np.arange(x_BXS.shape[-1]) < lengths_BXA.sum(axis=-1, keepdims=True)
        return np.where(is_real_BXS, x_BXS, np.asarray(garbage, x_BXS.dtype))

    def spoilt_sequences(sequences, garbage):
        tokens, lengths = sequences
        return sequences._replace(tokens_BS=spoilt(tokens, lengths, garbage))

    rows = arrays.rows
    other = rows._replace(
        plain=spoilt_sequences(rows.plain, -100),
        teacher=spoilt_sequences(rows.teacher, CONFIG.vocab_size),
        completions=spoilt_sequences(rows.completions, 11),
        behaviour_logp_BT=spoilt(rows.behaviour_logp_BT, rows.completions.lengths_BA, -50.0),
    )
    (state, metrics), (other_state, other_metrics) = (
        run(make_step(ANCHORED), start(), arrays._replace(rows=x)) for x in (rows, other)
    )
    assert_close(state, other_state, 0, 0)
    assert_close(metrics, other_metrics, 0, 0)


def test_a_micro_batch_of_undistilled_rows_counts_for_nothing_in_a_token_mean():
    # Rows 0 and 4 are the first of four micro-batches: its own denominator is zero.
    batch = weighing([0, 1, 1, 1, 0, 1, 1, 1], make_batch())
    assert_same_update(update(TOKEN, widened(batch), micro_batches=4), update(TOKEN, batch))


def test_undistilled_rows_do_not_change_a_token_mean():
    batch = weighing([1, 1, 1, 1, 0, 0, 0, 0], make_batch())
    length_B = batch.completion.length_B.copy()
    length_B[4:] = 0
    without = dataclasses.replace(batch, completion=Texts(batch.completion.ids_BP, length_B))
    assert_same_update(update(TOKEN, without), update(TOKEN, batch))


@pytest.mark.parametrize("objective", [ANCHORED, TOKEN], ids=["sequence", "token"])
def test_the_loss_is_the_mean_of_the_rows_means(objective):
    step, batch = make_step(objective), make_batch()
    num_tokens_B = batch.completion.length_B

    def loss(row_weight_B):
        metrics = run(step, start(), pad(weighing(row_weight_B, batch)))[1]
        return metrics["loss"].mean

    alone_B = np.array([loss(np.eye(ROWS)[row]) for row in range(ROWS)])
    means_B = alone_B if objective is TOKEN else alone_B * ROWS
    weight_B = np.array([1, 0, 0, 1, 1, 1, 0, 1])
    if objective is TOKEN:
        expected = np.average(means_B, weights=weight_B * num_tokens_B)
    else:
        expected = np.mean(means_B * weight_B)
    np.testing.assert_allclose(loss(weight_B), expected, rtol=1e-5)


def test_a_batch_with_nothing_to_distil_updates_nothing():
    gradient, metrics = update(TOKEN, weighing(np.zeros(ROWS), make_batch()))
    assert largest(gradient) == 0
    assert np.isnan(metrics["loss"].mean)
    assert metrics["skipped"].mean == 0


# ----------------------------------------------------------------------------------- algorithms


def test_a_teacher_that_sees_what_the_student_sees_teaches_nothing():
    batch = make_batch()
    same = dataclasses.replace(batch, teacher=batch.prompt)
    gradient, metrics = update(TOKEN, same)  # an average that starts as the student
    # Rounding of probabilities near 1/32 and of a tail that is one minus a sum.
    assert abs(metrics["loss"].mean) < 1e-6
    assert largest(gradient) < 1e-5
    # It does teach as soon as its context differs.
    assert update(TOKEN, batch)[1]["loss"].mean > 1e-3


def test_grpo_follows_the_policy_gradient_where_samples_are_fresh():
    """At ratio 1 the gradient is that of mean_B(A_B mean_T(log pi))."""
    batch = make_batch()
    logp_BT = np.asarray(completion_logp(model(STUDENT), batch))
    batch = dataclasses.replace(batch, behaviour_logp_BT=logp_BT)
    mask_BT = mask_of(batch.completion)

    @jax.jit
    @jax.grad
    def ascent(params):
        mean_B = (completion_logp(params, batch) * mask_BT).sum(axis=1) / mask_BT.sum(axis=1)
        return jnp.mean(batch.advantage_B * mean_B)

    gradient, metrics = update(GRPO(), batch)
    upwards = jax.tree.map(lambda g: -g, gradient)
    assert_close(upwards, jax.device_get(ascent(model(STUDENT))), 1e-6, 1e-4)
    assert metrics["clipped"].mean == 0
    np.testing.assert_allclose(metrics["importance_ratio"].mean, 1, rtol=1e-5)

    moved = jax.tree.map(lambda p, u: p + 0.05 * u, model(STUDENT), upwards)
    gain_B = ((completion_logp(moved, batch) - logp_BT) * mask_BT).sum(axis=1)
    assert float(jnp.sum(gain_B * batch.advantage_B)) > 0


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_tokens():
    batch = make_batch()
    _, metrics = update(CrossEntropy(), alone(batch))
    logp_BT = np.asarray(completion_logp(model(STUDENT), batch))
    expected = -np.average(logp_BT, weights=mask_of(batch.completion))
    np.testing.assert_allclose(metrics["loss"].mean, expected, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("gradients", ["compute", "float32"])
def test_bfloat16_matmuls_stay_near_float32(gradients):
    exact = update(TOKEN, make_batch())
    rough = update(TOKEN, make_batch(), dtype="bfloat16", gradients=gradients)
    # bfloat16 keeps 8 bits: an error of half a percent per product, and a few successive products.
    np.testing.assert_allclose(rough[1]["loss"].mean, exact[1]["loss"].mean, rtol=0.05)
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t[0])]) for t in (exact, rough))
    assert a.dtype == b.dtype == np.float32
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


# In float32 there is nothing to cast: both programs compute with the same weights.
@pytest.mark.long
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_weights_that_are_cast_in_each_pass_make_the_same_step(dtype, monkeypatch):
    """As on one GPU, bit for bit."""
    calls, batch = [], pad(make_batch())
    expected = run(make_step(ANCHORED, dtype=dtype), start(), batch)
    monkeypatch.setattr(train._Program, "_casts_in_passes", lambda *_: calls.append(1) or True)
    # The same temperature as without one, but not the same program to those that JAX keeps.
    in_passes = make_step(ANCHORED, teacher_temperature=1.0, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, run(in_passes, start(), batch), expected)
    assert calls


@pytest.mark.slow
def test_gradients_in_float32_on_eight_devices_are_near_those_of_one():
    """After one step: in bfloat16 a second one starts from parameters that differ by rounding."""
    step, batch = make_step(TOKEN, dtype="bfloat16", gradients="float32"), pad(make_batch(0))
    one, _ = run(step, start(), batch)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    student, reference = (split(mesh, model(seed)) for seed in (STUDENT, REFERENCE))
    with sharding.use_mesh(mesh):
        state = init_state(student, ADAM, EMA(0.25), 10)
        state, _ = step(state, reference, sharding.shard_batch(mesh, batch))
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient_of(s))])
        for s in (one, jax.device_get(state))
    )
    assert a.dtype == b.dtype == np.float32
    # Activations in bfloat16 are summed over devices in another order: 0.9993, and 0.6 %.
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.998
    assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(a), rel=0.02)


def forwards_of(objective, batch, teacher=Frozen()):  # noqa: B008
    """The number of the decoder's scans over layers in the program before compilation."""
    step = make_step(objective, teacher)
    text = str(jax.make_jaxpr(step)(start(teacher), model(REFERENCE), pad(batch)))
    return (
        text.count("_split_transpose=False") if "_split_transpose" in text else text.count("scan[")
    )


@pytest.mark.long
def test_teacher_and_reference_share_one_forward_pass_if_they_share_parameters():
    batch = make_batch()
    frozen, moving = (forwards_of(ANCHORED, batch, t) for t in (Frozen(), EMA(0.25)))
    assert moving == frozen + 1
    # A long context is scored separately: padding the reference to it costs more than it saves.
    wide_BP = np.pad(batch.teacher.ids_BP, ((0, 0), (0, 64)))
    long = dataclasses.replace(batch, teacher=Texts(wide_BP, batch.teacher.length_B))
    assert forwards_of(ANCHORED, long) == frozen + 1
    assert_same_update(*(update(ANCHORED, x, Frozen()) for x in (long, batch)))


def test_a_teacher_and_its_contrasts_share_one_forward_pass():
    batch = make_batch()
    contrasted = Distill(support=TopC(8), target=Contrasted())
    assert forwards_of(contrasted, batch) == forwards_of(TOKEN, batch)


def test_a_frozen_teacher_scores_as_the_reference_and_an_ema_as_the_average():
    """Under the student's own prompt its epistemic mass identifies the model that scores."""
    batch = dataclasses.replace(make_batch(), teacher=make_batch().prompt)
    masses = "epistemic_mass_teacher", "epistemic_mass_reference", "epistemic_mass_student"

    state, metrics = run(make_step(ANCHORED, Frozen()), start(Frozen()), *[pad(batch)] * 2)
    assert state.teacher is None
    teacher, reference, student = (metrics[name].mean for name in masses)
    np.testing.assert_allclose(teacher, reference, rtol=1e-6)
    assert abs(student - reference) > 1e-3

    _, metrics = run(make_step(ANCHORED), start(), pad(batch))
    teacher, reference, student = (metrics[name].mean for name in masses)
    np.testing.assert_allclose(teacher, student, rtol=1e-6)  # T0 = S0
    assert abs(teacher - reference) > 1e-3


def test_a_gradient_that_is_not_finite_skips_student_moments_and_teacher():
    step, good = make_step(ANCHORED), pad(make_batch())
    nan_BT = good.rows.behaviour_logp_BT * np.float32(np.nan)
    broken = good._replace(rows=good.rows._replace(behaviour_logp_BT=nan_BT))
    state, _ = step(start(), model(REFERENCE), jax.device_put(good))
    before = jax.device_get(state)
    state, metrics = step(state, model(REFERENCE), jax.device_put(broken))
    after = jax.device_get(state)
    assert float(metrics["skipped"].mean) == 1
    assert (before.step, after.step) == (1, 2)
    assert_close(after._replace(step=before.step), before, 0, 0)
    # The next step is an ordinary one.
    state, metrics = run(step, state, good)
    assert metrics["skipped"].mean == 0
    assert largest(difference(state.params, after.params)) > 1e-3


@dataclasses.dataclass(frozen=True)
class Infinite:
    """A term of the loss that is infinite at each first token; its gradient is 0 everywhere."""

    def penalty(self, positions, epistemic):
        return jnp.where(positions.sampled.index_BT == 0, jnp.inf, 0.0)


@pytest.mark.long
def test_a_loss_that_is_not_finite_skips_a_step_whose_gradient_is():
    step = make_step(dataclasses.replace(TOKEN, terms=(Infinite(),)))
    batch = pad(make_batch())
    before = jax.device_get(start())
    state, metrics = run(step, start(), batch)
    assert not np.isfinite(metrics["loss"].mean)
    assert np.isfinite(metrics["grad_norm"].mean)
    assert metrics["grad_norm"].mean > 0
    assert metrics["skipped"].mean == 1
    assert_close(state._replace(step=before.step), before, 0, 0)


def test_two_steps_compile_once_donate_the_state_and_move_nothing_else(compilations):
    step, reference, state = make_step(ANCHORED), model(REFERENCE), start()
    counts = []
    for seed in (0, 1):
        before, batch = state, jax.device_put(pad(make_batch(seed)))
        with jax.transfer_guard("disallow"):
            state, _ = step(before, reference, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        counts.append(len(compilations))
    assert counts[0] == counts[1]  # the second step compiles nothing new
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((reference, model(STUDENT))))


def test_equal_configs_share_a_compiled_step():
    assert make_step(ANCHORED) is make_step(ANCHORED)
    assert make_step(ANCHORED) is not make_step(ANCHORED, chunk=5)


def test_every_live_diagnostic_of_a_step_is_among_its_metrics():
    _, metrics = on_one_device("sdpo_anchor")
    masses = {f"epistemic_mass_{who}" for who in ("student", "teacher", "reference")}
    assert metrics.keys() >= masses | {
        "loss", "grad_norm", "skipped", "kl_teacher", "mass_kl", "entropy_student", "kept",
        "importance_ratio", "clipped",
    }  # fmt: skip
    assert all(np.isfinite(value.mean) for value in metrics.values())
    assert metrics["entropy_student"].weight == make_batch(1).completion.length_B.sum()
    assert 0 < metrics["entropy_student"].mean < np.log(CONFIG.vocab_size)
