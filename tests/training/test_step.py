"""One step: the same update whatever the mesh, the micro-batches, the padding or the row order."""

import functools

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
    assert_close,
    assert_same_update,
    completion_logp,
    difference,
    largest,
    make_batch,
    make_step,
    model,
    moving_step,
    on_one_device,
    run,
    start,
    update,
)

from jaxdistill import sharding
from jaxdistill.objectives import (
    GRPO,
    Contrasted,
    CrossEntropy,
    Distill,
    TopC,
)
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen


@pytest.mark.parametrize(
    ("name", "sizes"),
    [*((name, sizes) for name in OBJECTIVES for sizes in [(1, 8, 1), (2, 2, 2)]),
     ("sdpo_anchor", (4, 1, 2)), ("srpo", (2, 2, 2))],
)  # fmt: skip
def test_eight_devices_take_the_same_steps_as_one(name, sizes):
    expected_state, expected_metrics = on_one_device(name)
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    step = make_step({**OBJECTIVES, **OF_THE_BATCH}[name], ADAM, EMA(0.1), chunk=4)
    with sharding.use_mesh(mesh):
        place = functools.partial(sharding.shard_batch, mesh)
        params, reference = (
            jax.device_put(model(seed), sharding.shardings_of(mesh, model(seed)))
            for seed in (STUDENT, REFERENCE)
        )
        state = init_state(params, ADAM, EMA(0.1), 10)
        before = shardings(state)
        for seed in (0, 1):
            state, metrics = step(state, reference, place(make_batch(seed)))
        after = shardings(state)
    # Every leaf ends where it began: else the second step compiles anew, and nothing is donated.
    for (a, ndim), (b, _) in zip(before, after):
        assert a.is_equivalent_to(b, ndim)
    # lr / eps = 2 times the rounding of gradients of order 0.1.
    assert largest(difference(expected_state.params, model(STUDENT))) > 1e-2
    assert_close(jax.device_get(state), expected_state, 2e-6, 1e-4)
    assert_close(jax.device_get(metrics), expected_metrics, 1e-4, 1e-4)


def shardings(tree):
    return [(leaf.sharding, leaf.ndim) for leaf in jax.tree.leaves(tree)]


def test_parameters_moments_and_teacher_are_split_before_the_first_step():
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    with sharding.use_mesh(mesh):
        params = jax.device_put(model(STUDENT), sharding.shardings_of(mesh, model(STUDENT)))
        state = init_state(params, ADAM, EMA(0.1), 10)
    leaves = jax.tree.leaves(state)
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    # All but norms and counters is split eightfold; whole moments alone would be half of it.
    assert local < sum(leaf.nbytes for leaf in leaves) / 5


@pytest.mark.parametrize(
    "name",
    [
        "forks", "srpo",
        *(pytest.param(name, marks=pytest.mark.slow)  # half a minute of compilation each
          for name in OF_THE_BATCH if name not in ("forks", "srpo")),
    ],
)  # fmt: skip
def test_what_looks_at_the_whole_batch_does_not_see_how_it_was_split(name):
    objective = OF_THE_BATCH[name]
    batch = make_batch()
    batch.row_weight_B[[1, 4]] = 0
    whole = update(objective, batch)
    # Other rows, other parts, other chunks.
    order = np.random.default_rng(3).permutation(ROWS)
    mixed = jax.tree.map(lambda x: x[order], batch)
    split = update(objective, mixed, micro_batches=4, chunk=3)
    assert_same_update(split, whole)
    for metric in ("kept", "loss_share_epistemic"):
        np.testing.assert_allclose(split[1][metric].mean, whole[1][metric].mean, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_four_micro_batches_make_the_same_update_as_one(reduction):
    objective = Distill(support=TopC(8), reduction=reduction)
    batch = make_batch()._replace(row_weight_B=np.float32([1, 0, 1, 1, 0, 0, 1, 1]))
    whole, parts = update(objective, batch), update(objective, batch, micro_batches=4)
    assert_same_update(parts, whole)
    assert_close(parts[1], whole[1], 1e-5)


def test_a_micro_batch_of_undistilled_rows_counts_for_nothing_in_a_token_mean():
    # Rows 0 and 4 are the first of four micro-batches: its own denominator is zero.
    objective = Distill(support=TopC(8), reduction="token")
    batch = make_batch()._replace(row_weight_B=np.float32([0, 1, 1, 1, 0, 1, 1, 1]))
    assert_same_update(update(objective, batch, micro_batches=4), update(objective, batch))


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_row_order_and_padding_do_not_change_the_update(reduction):
    objective = Distill(support=TopC(8), reduction=reduction)
    batch = make_batch()._replace(row_weight_B=np.float32([1, 0, 1, 1, 1, 0, 1, 1]))
    expected = update(objective, batch)

    order = np.random.default_rng(5).permutation(ROWS)
    assert_same_update(update(objective, jax.tree.map(lambda x: x[order], batch)), expected)

    padded = update(objective, widened(batch))
    assert_same_update(padded, expected)
    assert_close(padded[1], expected[1], 1e-5)


def widened(batch):
    """More padding on every side, and garbage in it."""

    def left(ids_BP, mask_BP, extra):
        widths = ((0, 0), (extra, 0))
        return np.pad(ids_BP, widths, constant_values=9), np.pad(mask_BP, widths)

    right = ((0, 0), (0, 5))
    return batch._replace(
        **dict(zip(("prompt_ids_BP", "prompt_mask_BP"), left(*batch[0:2], 3))),
        **dict(zip(("teacher_ids_BP", "teacher_mask_BP"), left(*batch[2:4], 6))),
        completion_ids_BT=np.pad(batch.completion_ids_BT, right, constant_values=11),
        completion_mask_BT=np.pad(batch.completion_mask_BT, right),
        behaviour_logp_BT=np.pad(batch.behaviour_logp_BT, right, constant_values=-50.0),
    )


def test_extra_undistilled_rows_leave_a_token_mean_alone():
    batch, extra = make_batch(), make_batch(seed=9)
    more = jax.tree.map(lambda x, y: np.concatenate([x, y[:4]]), batch, extra)
    more.row_weight_B[ROWS:] = 0
    objective = Distill(support=TopC(8), reduction="token")
    assert_same_update(update(objective, more), update(objective, batch))


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_the_loss_is_made_of_the_rows_own_means(reduction):
    objective = Distill(support=TopC(8), reduction=reduction)
    step, batch = make_step(objective), make_batch()
    num_tokens_B = batch.completion_mask_BT.sum(axis=1)

    def loss(row_weight_B):
        weights = np.float32(row_weight_B)
        metrics = run(step, start(), batch._replace(row_weight_B=weights))[1]
        return metrics["loss"].mean

    alone = np.array([loss(np.eye(ROWS)[row]) for row in range(ROWS)])
    means_B = alone if reduction == "token" else alone * ROWS
    weight_B = np.array([1, 0, 0, 1, 1, 1, 0, 1])
    if reduction == "token":
        expected = np.average(means_B, weights=weight_B * num_tokens_B)
    else:
        expected = np.mean(means_B * weight_B)
    np.testing.assert_allclose(loss(weight_B), expected, rtol=1e-5)


def test_a_batch_with_nothing_to_distil_moves_nothing():
    batch = make_batch()._replace(row_weight_B=np.zeros(ROWS, np.float32))
    change, metrics = update(Distill(support=TopC(8), reduction="token"), batch)
    assert largest(change) == 0
    assert np.isnan(metrics["loss"].mean)
    assert metrics["skipped"].mean == 0


# ----------------------------------------------------------------------------------- algorithms


def test_a_teacher_that_sees_what_the_student_sees_teaches_nothing():
    batch = make_batch()
    batch = batch._replace(teacher_ids_BP=batch.prompt_ids_BP, teacher_mask_BP=batch.prompt_mask_BP)
    step = make_step(Distill(support=TopC(8), reduction="token"))
    state, metrics = run(step, start(student=REFERENCE), batch)
    # Rounding of probabilities near 1/32 and of a tail that is one minus a sum.
    assert abs(metrics["loss"].mean) < 1e-6
    assert largest(difference(state.params, model(REFERENCE))) < 1e-5
    # And it does teach as soon as it sees something else.
    state, metrics = run(step, start(student=REFERENCE), make_batch())
    assert metrics["loss"].mean > 1e-3


def test_grpo_follows_the_policy_gradient_where_samples_are_fresh():
    """At ratio 1 it is grad of mean_B(A_B mean_T(log pi)): good answers up, bad ones down."""
    batch = jax.tree.map(jnp.asarray, make_batch())
    logp = jax.jit(completion_logp)
    batch = batch._replace(behaviour_logp_BT=logp(model(STUDENT), batch))
    mask_BT = batch.completion_mask_BT

    @jax.grad
    def ascent(params):
        mean_B = (completion_logp(params, batch) * mask_BT).sum(axis=1) / mask_BT.sum(axis=1)
        return jnp.mean(batch.advantage_B * mean_B)

    change, metrics = update(GRPO(), batch)
    assert_close(change, jax.device_get(ascent(model(STUDENT))), 1e-6, 1e-4)
    assert metrics["clipped"].mean == 0
    np.testing.assert_allclose(metrics["importance_ratio"].mean, 1, rtol=1e-5)

    moved = jax.tree.map(lambda p, c: p + 0.05 * c, model(STUDENT), change)
    gain_B = ((logp(moved, batch) - batch.behaviour_logp_BT) * mask_BT).sum(axis=1)
    assert float(jnp.sum(gain_B * batch.advantage_B)) > 0


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_tokens():
    batch = make_batch()._replace(teacher_ids_BP=None, teacher_mask_BP=None)
    _, metrics = update(CrossEntropy(), batch)
    logp_BT = np.asarray(completion_logp(model(STUDENT), batch))
    expected = -np.average(logp_BT, weights=batch.completion_mask_BT)
    np.testing.assert_allclose(metrics["loss"].mean, expected, rtol=1e-5)


def test_bfloat16_matmuls_stay_near_float32():
    objective, batch = Distill(support=TopC(8), reduction="token"), make_batch()
    exact, rough = update(objective, batch), update(objective, batch, dtype="bfloat16")
    # bfloat16 keeps 8 bits: half a per cent a product, a few of them in a row.
    np.testing.assert_allclose(rough[1]["loss"].mean, exact[1]["loss"].mean, rtol=0.05)
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t[0])]) for t in (exact, rough))
    assert a.dtype == b.dtype == np.float32
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def forwards_of(objective, batch, teacher=Frozen()):  # noqa: B008
    """How many of the decoder's scans over layers the compiled-from program has."""
    step = make_step(objective, teacher=teacher)
    text = str(jax.make_jaxpr(step)(start(teacher=teacher), model(REFERENCE), batch))
    return (
        text.count("_split_transpose=False") if "_split_transpose" in text else text.count("scan[")
    )


def test_teacher_and_reference_share_one_forward_where_they_share_parameters():
    batch = jax.device_put(make_batch())
    frozen, moving = (forwards_of(ANCHORED, batch, t) for t in (Frozen(), EMA(0.1)))
    assert moving == frozen + 1
    # A long context is scored apart: padding the reference to it would cost more than it saves.
    wide = ((0, 0), (64, 0))
    long = batch._replace(
        teacher_ids_BP=np.pad(batch.teacher_ids_BP, wide),
        teacher_mask_BP=np.pad(batch.teacher_mask_BP, wide),
    )
    assert forwards_of(ANCHORED, long) == frozen + 1
    assert_same_update(update(ANCHORED, long), update(ANCHORED, batch))


def test_a_teacher_and_its_contrasts_share_one_forward():
    batch = jax.device_put(make_batch())
    contrasted = Distill(support=TopC(8), target=Contrasted())
    assert forwards_of(contrasted, batch) == forwards_of(Distill(support=TopC(8)), batch)


def test_the_teacher_that_scores_is_the_reference_when_frozen_and_the_average_when_not():
    """Under the student's own prompt its epistemic mass is that of the model it is said to be."""
    batch = make_batch()
    batch = batch._replace(teacher_ids_BP=batch.prompt_ids_BP, teacher_mask_BP=batch.prompt_mask_BP)
    masses = "epistemic_mass_teacher", "epistemic_mass_reference", "epistemic_mass_student"

    state, metrics = run(make_step(Distill(support=TopC(8))), start(), batch, batch)
    assert state.teacher is None
    teacher, reference, student = (metrics[name].mean for name in masses)
    np.testing.assert_allclose(teacher, reference, rtol=1e-6)
    assert abs(student - reference) > 1e-3

    _, metrics = run(moving_step(), start(ADAM, EMA(0.25)), batch)
    teacher, reference, student = (metrics[name].mean for name in masses)
    np.testing.assert_allclose(teacher, student, rtol=1e-6)  # T0 = S0
    assert abs(teacher - reference) > 1e-3


def test_a_gradient_that_is_not_finite_skips_student_moments_and_teacher():
    step, good = moving_step(), make_batch()
    broken = good._replace(behaviour_logp_BT=good.behaviour_logp_BT * np.float32(np.nan))
    state, _ = step(start(ADAM, EMA(0.25)), model(REFERENCE), jax.device_put(good))
    before = jax.device_get(state)
    state, metrics = step(state, model(REFERENCE), jax.device_put(broken))
    after = jax.device_get(state)
    assert float(metrics["skipped"].mean) == 1
    assert (before.step, after.step) == (1, 2)
    assert_close(after._replace(step=before.step), before, 0, 0)
    # The step after it is a usual one.
    state, metrics = run(step, state, good)
    assert metrics["skipped"].mean == 0
    assert largest(difference(state.params, after.params)) > 1e-3


def test_two_steps_compile_once_donate_the_state_and_move_nothing_else(compilations):
    step, reference, state = moving_step(), model(REFERENCE), start(ADAM, EMA(0.25))
    counts = []
    for seed in (0, 1):
        before, batch = state, jax.device_put(make_batch(seed))
        with jax.transfer_guard("disallow"):
            state, _ = step(before, reference, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        counts.append(len(compilations))
    assert counts[0] == counts[1]  # the second finds what the first, or a test before it, left
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((reference, model(STUDENT))))


def test_equal_configs_share_a_compiled_step():
    assert make_step(ANCHORED, chunk=4) is make_step(ANCHORED, chunk=4)
    assert make_step(ANCHORED, chunk=4) is not make_step(ANCHORED, chunk=5)


def test_every_live_diagnostic_of_a_step_is_among_its_metrics():
    _, metrics = on_one_device("sdpo_anchor")
    masses = {f"epistemic_mass_{who}" for who in ("student", "teacher", "reference")}
    assert metrics.keys() >= masses | {
        "loss", "grad_norm", "skipped", "kl_teacher", "mass_kl", "entropy_student", "kept",
        "importance_ratio", "clipped",
    }  # fmt: skip
    assert all(np.isfinite(value.mean) for value in metrics.values())
    assert metrics["entropy_student"].weight == make_batch(1).completion_mask_BT.sum()
    assert 0 < metrics["entropy_student"].mean < np.log(CONFIG.vocab_size)
