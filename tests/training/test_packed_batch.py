"""A packed batch makes the update of the padded one."""

import functools

import jax
import numpy as np
import pytest
from small_step import (
    ADAM,
    CONFIG,
    DESCENT,
    OBJECTIVES,
    OF_THE_BATCH,
    REFERENCE,
    STUDENT,
    assert_close,
    assert_same_update,
    difference,
    largest,
    make_batch,
    make_step,
    model,
    run,
    start,
)

from jaxdistill import sharding
from jaxdistill.objectives import (
    CrossEntropy,
    Distill,
    JensenShannon,
    PerTokens,
    PositionSlope,
    Purified,
    SkipFirst,
    TopC,
)
from jaxdistill.training import packing
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen, TrustRegion

PACK = 40


# ---------------------------------------------------------------------------------- the arrays


def test_a_packed_batch_holds_every_token_of_the_batch_it_was():
    batch = make_batch(rows=11)
    packed, padding = packing.pack(batch, PACK, parts=2)
    assert packed.plain.tokens.shape[::2] == (2, PACK)
    seen = {}
    for b, m in np.ndindex(packed.row.shape[:2]):
        starts = [0, 0, 0]
        for x, row in enumerate(packed.row[b, m]):
            views = [(packed.completion_ids, packed.completion_lengths), packed.plain,
                     packed.teacher]  # fmt: skip
            lengths = [int(length[b, m, x]) for _, length in views]
            if lengths[1]:
                seen[int(row)] = [
                    t[b, m, s : s + n].tolist() for (t, _), s, n in zip(views, starts, lengths)
                ]
            starts = [s + n for s, n in zip(starts, lengths)]
    real = lambda ids, mask, i: ids[i][mask[i] > 0].tolist()  # noqa: E731
    for i in range(11):
        completion, plain, teacher = (real(*batch[at : at + 2], i) for at in (4, 0, 2))
        assert seen[i] == [completion, plain + completion, teacher + completion]
    rooms = sum(view.tokens.shape[2] for view in (packed.plain, packed.teacher, *packed.contrasts))
    tokens = sum(view.lengths.sum() for view in (packed.plain, packed.teacher, *packed.contrasts))
    assert padding == pytest.approx(1 - tokens / (2 * int(packed.num_micro_batches) * rooms))


# ------------------------------------------------------------------------------------ the step

CASES = {
    "sdpo_anchor": (OBJECTIVES["sdpo_anchor"], EMA(0.1)),
    "grpo": (OBJECTIVES["grpo"], Frozen()),
    "srpo": (OF_THE_BATCH["srpo"], EMA(0.1)),
    "rlcsd": (OF_THE_BATCH["rlcsd"], Frozen()),
    "trust region": (Distill(JensenShannon(0.3), TopC(8), reduction="token"), TrustRegion(0.3)),
    "forks": (OF_THE_BATCH["forks"], Frozen()),
    "mixed": (OF_THE_BATCH["mixed"], Frozen()),
    "sequences": (OF_THE_BATCH["sequences"], Frozen()),
    "kept tokens": (OF_THE_BATCH["kept tokens"], Frozen()),
    "places": (
        Distill(
            support=TopC(8), target=Purified(), weights=(PositionSlope(), SkipFirst(2)),
            reduction=PerTokens(9),
        ),
        Frozen(),
    ),
}  # fmt: skip

FAST = ("sdpo_anchor", "grpo", "srpo", "rlcsd")


def some_untaught(seed=0, rows=13):
    batch = make_batch(seed, rows)
    batch.row_weight_B[[1, 4]] = 0
    return batch


def update(objective, teacher, batch, **compute):
    """(-gradient, metrics) of one batch."""
    step = make_step(objective, DESCENT, teacher, **compute)
    state, metrics = run(step, start(DESCENT, teacher), batch)
    return difference(state.params, model(STUDENT)), metrics


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_packed_rows_make_the_same_update_as_padded_ones(name):
    objective, teacher = CASES[name]
    batch = some_untaught()
    packed, _ = packing.pack(batch, PACK)
    assert packed.num_micro_batches > 2
    expected = update(objective, teacher, batch, chunk=4)
    actual = update(objective, teacher, packed, chunk=4, pack=PACK)
    assert_same_update(actual, expected)
    # Sums of some fifty positions in another order.
    assert_close(actual[1], expected[1], 2e-5, 1e-4)


def test_cross_entropy_without_a_teacher_is_packed_too():
    none = dict.fromkeys(
        ("teacher_ids_BP", "teacher_mask_BP", "contrast_ids_BJP", "contrast_mask_BJP",
         "contrast_weight_BJ", "correct_B")
    )  # fmt: skip
    batch = make_batch(rows=9)._replace(**none)
    expected = update(CrossEntropy(), Frozen(), batch)
    actual = update(CrossEntropy(), Frozen(), packing.pack(batch, PACK)[0], pack=PACK)
    assert_same_update(actual, expected)


def test_an_empty_completion_and_one_that_fills_its_row_are_packed_too():
    batch = make_batch(rows=6)
    batch.completion_mask_BT[2] = 0
    batch.completion_mask_BT[3] = batch.prompt_mask_BP[3] = 1
    longest = batch.prompt_ids_BP.shape[1] + batch.completion_ids_BT.shape[1]
    packed, _ = packing.pack(batch, longest)
    assert packed.plain.tokens.shape[2] == longest
    objective = OBJECTIVES["sdpo_anchor"]
    assert_same_update(
        update(objective, EMA(0.1), packed, chunk=4, pack=PACK),
        update(objective, EMA(0.1), batch, chunk=4),
    )


@functools.cache
def packed_step():
    return make_step(OBJECTIVES["sdpo_anchor"], ADAM, EMA(0.1), chunk=4, pack=PACK)


def of_any_lengths(seed):
    """Many rows; the teacher's context is as long as the student's prompt, and no contrasts."""
    batch = make_batch(seed, rows=96)
    none = dict.fromkeys(("contrast_ids_BJP", "contrast_mask_BJP", "contrast_weight_BJ"))
    ids_BP = batch.teacher_ids_BP[:, ::-1] * batch.prompt_mask_BP
    return batch._replace(teacher_ids_BP=ids_BP, teacher_mask_BP=batch.prompt_mask_BP, **none)


def test_batches_of_other_lengths_compile_once_and_donate_the_state(compilations):
    step, reference, state = packed_step(), model(REFERENCE), start(ADAM, EMA(0.1))
    numbers, seen = set(), set()
    for seed in range(8):
        packed, _ = packing.pack(of_any_lengths(seed), 48)
        numbers.add(int(packed.num_micro_batches))
        before, batch, count = state, jax.device_put(packed), len(compilations)
        with jax.transfer_guard("disallow"):
            state, _ = step(before, reference, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        # How many rows are in use is data; completions longer by a sixteenth are another size.
        sizes = tuple(leaf.shape for leaf in jax.tree.leaves(packed))
        if sizes in seen:
            assert len(compilations) == count
        seen.add(sizes)
    assert len(numbers) > 1
    assert len(seen) <= 2
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))


@pytest.mark.parametrize("sizes", [(1, 4, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["sdpo_anchor", pytest.param("srpo", marks=pytest.mark.slow)])
def test_eight_devices_take_the_same_packed_steps_as_one_takes_padded_ones(name, sizes):
    objective = CASES[name][0]
    batches = some_untaught(0), some_untaught(1)
    padded = make_step(objective, ADAM, EMA(0.1), chunk=4)
    expected_state, expected_metrics = run(padded, start(ADAM, EMA(0.1)), *batches)
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    step = make_step(objective, ADAM, EMA(0.1), chunk=4, pack=PACK)
    with sharding.use_mesh(mesh):
        params, reference = (
            jax.device_put(model(seed), sharding.shardings_of(mesh, model(seed)))
            for seed in (STUDENT, REFERENCE)
        )
        state = init_state(params, ADAM, EMA(0.1), 10)
        before = [(x.sharding, x.ndim) for x in jax.tree.leaves(state)]
        for batch in batches:
            packed, _ = packing.pack(batch, PACK, sharding.num_parts("B"))
            state, metrics = step(state, reference, sharding.shard_batch(mesh, packed))
    for (place, ndim), leaf in zip(before, jax.tree.leaves(state)):
        assert place.is_equivalent_to(leaf.sharding, ndim)
    assert largest(difference(expected_state.params, model(STUDENT))) > 1e-2
    # lr / eps = 2 times the rounding of gradients of order 0.1.
    assert_close(jax.device_get(state), expected_state, 2e-6, 1e-4)
    assert_close(jax.device_get(metrics), expected_metrics, 1e-4, 1e-4)


def test_no_array_of_a_packed_rows_positions_times_vocabulary_exists():
    packed, _ = packing.pack(some_untaught(), PACK)
    step = packed_step()
    text = str(jax.make_jaxpr(step)(start(ADAM, EMA(0.1)), model(REFERENCE), packed))
    T, V = packed.completion_ids.shape[2], CONFIG.vocab_size
    assert f"f32[1,4,{V}]" in text
    assert f"f32[1,{T},{V}]" not in text
