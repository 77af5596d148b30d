"""A packed batch gives the same update as a padded one."""

import dataclasses
import functools

import jax
import pytest
from small_step import (
    ANCHORED,
    CONFIG,
    OBJECTIVES,
    OF_THE_BATCH,
    PROMPT,
    REFERENCE,
    ROWS,
    TOKENS,
    alone,
    assert_close,
    assert_same_steps,
    assert_same_update,
    gradient_of,
    make_batch,
    make_step,
    model,
    on_mesh,
    on_one_device,
    run,
    start,
    update,
    weighing,
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
from jaxdistill.training.batch import Texts, pack, pad
from jaxdistill.training.packing import KeptPacking
from jaxdistill.training.teachers import EMA, Frozen, TrustRegion

PACK = 32  # eight sequences of up to 17 tokens fill three or four packed rows

CASES = {name: (objective, EMA(0.25)) for name, objective in OF_THE_BATCH.items()} | {
    "sdpo_anchor": (ANCHORED, EMA(0.25)),
    "grpo": (OBJECTIVES["grpo"], Frozen()),
    "cross_entropy": (OBJECTIVES["cross_entropy"], EMA(0.25)),
    "trust region": (Distill(JensenShannon(0.3), TopC(8), reduction="token"), TrustRegion(0.3)),
    "places": (
        Distill(
            support=TopC(8), target=Purified(), weights=(PositionSlope(), SkipFirst(2)),
            reduction=PerTokens(9),
        ),
        Frozen(),
    ),
}  # fmt: skip

# The others are parts of "everything", or do not depend on the layout.
FAST = ("everything",)


def packed_update(objective, batch, teacher=EMA(0.25)):  # noqa: B008
    """(gradient, metrics) of one batch, packed."""
    packed, _ = pack(batch, PACK)
    assert packed.num_in_use > 2
    state, metrics = run(make_step(objective, teacher), start(teacher), packed)
    return gradient_of(state), metrics


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_packed_rows_make_the_same_update_as_padded_ones(name):
    objective, teacher = CASES[name]
    batch = weighing([1, 0, 1, 1, 0, 1, 1, 1], make_batch())
    expected = update(objective, batch, teacher)
    actual = packed_update(objective, batch, teacher)
    assert_same_update(actual, expected)
    # Sums of about fifty positions in another order.
    assert_close(actual[1], expected[1], 2e-5, 1e-4)


@pytest.mark.long
def test_an_empty_completion_and_one_that_fills_its_row_are_packed_too():
    batch = make_batch()
    prompt, completion = batch.prompt.length_B.copy(), batch.completion.length_B.copy()
    completion[2] = 0
    completion[3], prompt[3] = (x.ids_BP.shape[1] for x in (batch.completion, batch.prompt))
    batch = dataclasses.replace(
        batch,
        prompt=Texts(batch.prompt.ids_BP, prompt),
        completion=Texts(batch.completion.ids_BP, completion),
    )
    longest = int(completion[3] + prompt[3])
    packed, _ = pack(batch, longest)
    assert packed.rows.plain.tokens_BS.shape[2] == longest
    state, metrics = run(make_step(ANCHORED), start(), packed)
    assert_same_update((gradient_of(state), metrics), update(ANCHORED, batch))


@functools.cache
def cross_entropy_step():
    """The cheapest step to compile; its tests do not depend on the objective."""
    return make_step(CrossEntropy())


def of_any_lengths(seed):
    return alone(make_batch(seed, rows=96))


@pytest.mark.long
def test_batches_of_other_lengths_compile_once_and_donate_the_state(compilations):
    step, reference, state = cross_entropy_step(), model(REFERENCE), start()
    numbers, seen, kept = set(), set(), KeptPacking()
    for seed in range(8):
        packed, _ = pack(of_any_lengths(seed), 48, kept=kept)
        numbers.add(int(packed.num_in_use))
        before, batch, count = state, jax.device_put(packed), len(compilations)
        with jax.transfer_guard("disallow"):
            state, _ = step(before, reference, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        # The number of rows in use is data; a larger completion capacity is another shape.
        sizes = tuple(leaf.shape for leaf in jax.tree.leaves(packed))
        if sizes in seen:
            assert len(compilations) == count
        seen.add(sizes)
    assert len(numbers) > 1
    assert len(seen) <= 2
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))


@pytest.mark.long
def test_cross_entropy_without_a_teacher_is_packed_too():
    batch = of_any_lengths(0)
    state, metrics = run(cross_entropy_step(), start(), pack(batch, 48)[0])
    assert_same_update((gradient_of(state), metrics), update(CrossEntropy(), batch))


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(1, 4, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    # How packed rows are split does not depend on the objective; this is the cheapest to compile.
    "name",
    ["cross_entropy", *(pytest.param(x, marks=pytest.mark.slow) for x in ("sdpo_anchor", "srpo"))],
)
def test_eight_devices_take_the_same_packed_steps_as_one_takes_padded_ones(name, sizes):
    def packed(batch):
        return pack(batch, PACK, sharding.num_parts("B"))[0]

    actual = on_mesh(sizes, make_step(CASES[name][0]), packed)
    assert_same_steps(actual, on_one_device(name))


@pytest.mark.long
def test_no_array_of_a_packed_rows_positions_times_vocabulary_exists():
    packed, _ = pack(make_batch(), PACK)
    step = make_step(ANCHORED)
    text = str(jax.make_jaxpr(step)(start(), model(REFERENCE), packed))
    T, V = packed.rows.completions.tokens_BS.shape[2], CONFIG.vocab_size
    assert f"f32[1,4,{V}]" in text
    assert f"f32[1,{T},{V}]" not in text


def test_packed_rows_keep_sequences_apart_and_padded_ones_need_no_segments():
    """The shapes alone decide whether attention receives segments."""
    batch = make_batch()
    texts = [
        str(jax.make_jaxpr(make_step(ANCHORED))(start(), model(REFERENCE), arrays))
        for arrays in (pad(batch), pack(batch, PACK)[0])
    ]
    S = pack(batch, PACK)[0].rows.plain.tokens_BS.shape[2]
    # The comparison of the segments of two positions.
    assert f"bool[1,{S},{S}]" in texts[1]
    assert f"bool[{ROWS},{PROMPT + TOKENS},{PROMPT + TOKENS}]" not in texts[0]
