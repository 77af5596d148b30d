"""One step: the same update whatever the mesh, the micro-batches, the padding or the row order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import (
    GRPO,
    RLCSD,
    AnchorEpistemicMass,
    Contrasted,
    CrossEntropy,
    Distill,
    EntropyWeight,
    ForkingTokens,
    Mixed,
    PerTokens,
    RolloutCorrection,
    Routed,
    SuppressionGate,
    TopC,
    loss_weights,
)
from jaxdistill.training import step as train
from jaxdistill.training.batch import Batch
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer, make_optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen, Live, Snapshot, TrustRegion

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
)
EPISTEMIC = (3, 5, 7)
ROWS, PROMPT, TOKENS = 8, 10, 7

ANCHORED = Distill(support=TopC(8), target=AnchorEpistemicMass())
OBJECTIVES = {"sdpo_anchor": ANCHORED, "grpo": GRPO(), "cross_entropy": CrossEntropy()}
# Each looks at the whole batch before it weighs a position.
OF_THE_BATCH = {
    "forks": Distill(
        support=TopC(8), weights=(ForkingTokens(0.3), EntropyWeight()), normalizer="kept"
    ),
    "kept tokens": Distill(
        support=TopC(8), weights=(SuppressionGate(0.001),), normalizer="kept", reduction="token"
    ),
    "rlcsd": GRPO(credit=RLCSD(temperature=1.0), reduction="token"),
    "srpo": Routed(distill=Distill(support=TopC(8), weights=(EntropyWeight(),))),
    "sequences": Distill(
        support=TopC(8), rollout_correction=RolloutCorrection(2.0, "sequence", two_sided=True)
    ),
    "mixed": Mixed(Distill(support=TopC(8), reduction="token"), GRPO(reduction="token")),
}

# eps bounds how much a rounding error in a near-zero gradient can move a parameter (lr / eps).
ADAM = Optimizer(peak_lr=0.02, warmup_steps=0, eps=1e-2)
# AdamW so damped that it is plain gradient descent at rate 1: an update is the gradient itself.
DESCENT = Optimizer(
    peak_lr=1e4, warmup_steps=0, b1=0.0, b2=0.0, eps=1e4, weight_decay=0.0, clip_norm=1e9
)


@functools.cache
def model(seed):
    return jax.jit(parameters.init, static_argnums=0)(CONFIG, jax.random.key(seed))


STUDENT, REFERENCE = 1, 0  # seeds: a student that has already left the reference


def texts(rng, rows, width, *, left):
    """Random ids of random lengths, padded with zeros on one side."""
    lengths = rng.integers(2, width + 1, rows)
    columns = np.arange(width)[::-1] if left else np.arange(width)
    mask = (columns[None, :] < lengths[:, None]).astype(np.int32)
    return rng.integers(1, CONFIG.vocab_size, (rows, width)).astype(np.int32) * mask, mask


def make_batch(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    return Batch(
        *texts(rng, rows, PROMPT, left=True),
        *texts(rng, rows, PROMPT, left=True),
        *texts(rng, rows, TOKENS, left=False),
        -rng.uniform(2.5, 4.5, (rows, TOKENS)).astype(np.float32),
        rng.normal(size=rows).astype(np.float32),
        np.ones(rows, np.float32),
        rng.integers(0, 2, rows).astype(np.float32),
        *contrasts(rng, rows),
    )


def contrasts(rng, rows):
    """Two further prompts a row, the second missing in some."""
    some = [texts(rng, rows, PROMPT, left=True) for _ in range(2)]
    weight_BJ = np.stack([np.ones(rows), rng.integers(0, 2, rows)], axis=1).astype(np.float32)
    return (*(np.stack(x, axis=1) for x in zip(*some)), weight_BJ)


def make_step(objective, optimizer=DESCENT, teacher=Frozen(), **compute):  # noqa: B008
    return train.make_train_step(
        CONFIG, objective, EPISTEMIC, optimizer, teacher, Compute(**compute), 10, 1.0, True
    )


def start(optimizer=DESCENT, teacher=Frozen(), student=STUDENT):  # noqa: B008
    return init_state(model(student), optimizer, teacher, 10)


def run(step, state, *batches):
    for batch in batches:
        state, metrics = step(state, model(REFERENCE), jax.device_put(batch))
    return jax.device_get(state), jax.device_get(metrics)


def update(objective, batch, **compute):
    """(-gradient, metrics) of one batch."""
    state, metrics = run(make_step(objective, **compute), start(), batch)
    return difference(state.params, model(STUDENT)), metrics


def difference(new, old):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), new, old)


def assert_close(actual, expected, atol, rtol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol),
                 actual, expected)  # fmt: skip


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def assert_same_update(actual, expected):
    """Parameters are of order 1, so an update read off them is exact to about 1e-7."""
    assert largest(expected[0]) > 1e-2
    assert_close(actual[0], expected[0], 1e-6, 1e-4)
    assert_close(actual[1]["loss"].mean, expected[1]["loss"].mean, 1e-6)


# ---------------------------------------------------------------------------------- invariances


@functools.cache
def on_one_device(name):
    step = make_step({**OBJECTIVES, **OF_THE_BATCH}[name], ADAM, EMA(0.1), chunk=4)
    return run(step, start(ADAM, EMA(0.1)), make_batch(0), make_batch(1))


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


# ------------------------------------------------------------------------------ weights of rows


def test_loss_weights_of_two_rows_by_hand():
    mask_BT, row_weight_B = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]]), jnp.array([1.0, 0.0])
    # token: three tokens count, each a third.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, "token")
    assert weight_BT.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert denominator == 3
    # sequence: two rows, the second as a zero; each token of the first counts 1/3 of a half.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, "sequence")
    np.testing.assert_allclose(weight_BT, [[1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0]], rtol=1e-6)
    assert denominator == 2
    # The second row's zero is the objective's own affair. A constant divides whatever the lengths.
    weight_BT, denominator = loss_weights(mask_BT, row_weight_B, PerTokens(10))
    assert weight_BT.tolist() == mask_BT.tolist()
    assert denominator == 20


def test_an_empty_completion_weighs_nothing_and_divides_by_nothing():
    weight_BT, _ = loss_weights(jnp.zeros((1, 3)), jnp.ones(1), "sequence")
    assert weight_BT.tolist() == [[0, 0, 0]]


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


def completion_logp(params, batch):
    hidden_BTD = completions.completion_hidden(params, CONFIG, *batch[0:2], *batch[4:6])
    return completions.token_logp(
        hidden_BTD, parameters.head(params, CONFIG), batch.completion_ids_BT
    )


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


# ----------------------------------------------------------------------------- teacher and state


@functools.cache
def moving_step():
    return make_step(Distill(support=TopC(8)), ADAM, EMA(0.25))


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


# ------------------------------------------------------------------------------------ optimizer


def numpy_adamw(config, params, gradients, steps):
    """AdamW (arXiv 1711.05101) in float64, with the paper's warm-up: lr x min(1, s / warmup)."""
    params = {name: np.float64(value) for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for s, gradient in enumerate(gradients):
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        lr = config.peak_lr * min(1.0, s / config.warmup_steps)
        if config.schedule == "cosine" and s > config.warmup_steps:
            done = (s - config.warmup_steps) / (steps - config.warmup_steps)
            lr *= 0.5 * (1 + np.cos(np.pi * done))
        for name, p in params.items():
            g = np.float64(gradient[name]) * min(1.0, config.clip_norm / norm)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            m_hat = m[name] / (1 - config.b1 ** (s + 1))
            v_hat = v[name] / (1 - config.b2 ** (s + 1))
            p -= lr * (m_hat / (np.sqrt(v_hat) + config.eps) + config.weight_decay * p)
    return params


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_optimizer_is_adamw_with_warm_up_from_zero_and_clipping(schedule):
    config = Optimizer(
        peak_lr=0.1, warmup_steps=3, schedule=schedule, b2=0.99, weight_decay=0.1, clip_norm=1.0
    )
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    # Norms from well below the clip to well above it.
    gradients = [
        {name: np.float32(scale * rng.normal(size=p.shape)) for name, p in params.items()}
        for scale in (0.01, 0.5, 3.0, 0.1, 10.0, 0.02, 1.0, 0.3)
    ]
    transform = make_optimizer(config, 8)
    moving, state = jax.tree.map(jnp.asarray, params), transform.init(params)
    for s, gradient in enumerate(gradients):
        updates, state = transform.update(gradient, state, moving)
        moving = jax.tree.map(jnp.add, moving, updates)
        if s == 0:
            assert_close(moving, params, 0, 0)  # the first step has learning rate 0
        assert_close(moving, numpy_adamw(config, params, gradients[: s + 1], 8), 1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    transform = make_optimizer(Optimizer(peak_lr=0.5, warmup_steps=0, weight_decay=0.0), 4)
    params = {"a": jnp.ones(1)}
    updates, _ = transform.update({"a": jnp.full(1, 0.1)}, transform.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-5)  # Adam's first step is sign x lr


def test_a_snapshot_of_no_steps_is_refused_by_name():
    with pytest.raises(UserError, match="`every` must be at least 1"):
        Snapshot(0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_an_ema_rate_outside_its_range_is_refused_by_name(rate):
    with pytest.raises(UserError, match="`rate` must lie in"):
        EMA(rate)
