"""Several updates per step: what is old, what is clipped, and what a step counts."""

import dataclasses
import functools

import float64_decoder as decoder
import float64_oracle as losses
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    ADAM,
    ANCHORED,
    REFERENCE,
    STUDENT,
    assert_close,
    assert_same_steps,
    completion_logp,
    make_batch,
    make_step,
    mask_of,
    model,
    on_mesh,
    run,
    start,
)
from tiny_decoder import init_params

from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.objectives import GRPO, Distill, RolloutCorrection, TopC
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.batch import Batch, pack, pad, texts_of_ids
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.step import make_train_step
from jaxdistill.training.teachers import EMA
from jaxdistill.training.updates import _unmoved, mini_batches

CORRECTED = GRPO(rollout_correction=RolloutCorrection())
FAST = dataclasses.replace(ADAM, peak_lr=0.3)  # moves ratios out of the clipping range at once


@functools.cache
def two_updates(objective=CORRECTED, optimizer=FAST):
    return make_step(objective, optimizer=optimizer, updates=2)


def halves(batch, layout=pad):
    return [layout(part) for part in mini_batches(batch, 2)]


# --------------------------------------------------------------------------------- mini-batches


def test_mini_batches_are_whole_questions_in_order():
    batch = make_batch(rows=12)  # three questions of four rollouts, say
    parts = mini_batches(batch, 3)
    for field, read in (("advantage_B", np.asarray), ("prompt", lambda text: text.ids_BP)):
        joined = np.concatenate([read(getattr(part, field)) for part in parts])
        np.testing.assert_array_equal(joined, read(getattr(batch, field)))
    assert [len(part.advantage_B) for part in parts] == [4, 4, 4]
    assert len(parts[0].contrasts) == len(batch.contrasts)
    # Equal shapes, so that all updates share a program.
    shapes = [jax.tree.map(np.shape, pad(part)) for part in parts]
    assert shapes[0] == shapes[1] == shapes[2]


def test_one_mini_batch_of_everything_is_the_ordinary_step():
    (whole,) = mini_batches(make_batch(), 1)
    assert_close(jax.tree.leaves(vars(whole)), jax.tree.leaves(vars(make_batch())), 0, 0)
    assert make_step(ANCHORED, updates=1) is make_step(ANCHORED)


def test_updates_that_cannot_have_whole_questions_are_refused():
    with pytest.raises(UserError, match="`updates=3` must divide the 8 `questions` of a step"):
        OnPolicy(task=ToyTask(), questions=8, updates=3)
    with pytest.raises(UserError, match="`updates` must be at least 1, got 0"):
        OnPolicy(task=ToyTask(), updates=0)


# ------------------------------------------------------------------------------- ratios and clips


@pytest.mark.long
def test_ratios_are_exactly_one_in_the_first_update_and_clipped_in_the_second():
    step = two_updates()
    first, second = map(jax.device_put, halves(make_batch()))
    state = start(optimizer=FAST)
    old_logp_IT = step.score(state.params, second)
    state, before = step.update(state, model(REFERENCE), first, _unmoved(first))
    _, after = step.update(state, model(REFERENCE), second, old_logp_IT)
    assert float(before["importance_ratio"].mean) == 1
    assert float(before["importance_ratio_squared"].mean) == 1
    assert float(before["clipped"].mean) == 0
    assert abs(float(after["importance_ratio_squared"].mean) - 1) > 0.1
    assert float(after["clipped"].mean) > 0.1


def test_the_old_log_probs_are_the_trainers_before_the_first_update():
    batch = make_batch()
    arrays = jax.device_put(pad(batch))
    scored_IT = two_updates().score(start(optimizer=FAST).params, arrays)
    expected_BT = np.asarray(completion_logp(model(STUDENT), batch)) * mask_of(batch.completion)
    np.testing.assert_allclose(scored_IT, expected_BT, rtol=1e-5, atol=1e-5)


def run_two(step, state, *steps):
    """(state, metrics) after steps of two mini-batches each."""
    for batches in steps:
        state, metrics = step(state, model(REFERENCE), *map(jax.device_put, batches))
    return jax.device_get(state), jax.device_get(metrics)


def test_the_old_log_probs_of_packed_rows_are_those_of_padded_ones():
    batch, found = make_batch(), []
    for arrays in (pad(batch), pack(batch, 32)[0]):
        scored_IT = two_updates().score(start(optimizer=FAST).params, jax.device_put(arrays))
        found.append(np.sort(np.asarray(scored_IT)[np.asarray(arrays.mask_IT) > 0]))
    assert len(found[0]) == batch.completion.length_B.sum()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # the test above, and that of packed rows in test_micro_batches.py
def test_packed_mini_batches_give_the_same_updates_as_padded_ones():
    batch = make_batch()
    padded = run_two(two_updates(), start(optimizer=FAST), halves(batch))
    packed = run_two(
        two_updates(), start(optimizer=FAST), halves(batch, lambda part: pack(part, 32)[0])
    )
    # Adam with this learning rate moves a parameter by up to 30 times its gradient's rounding.
    assert_close(packed[0].params, padded[0].params, 2e-5, 1e-4)
    assert_close(packed[1]["importance_ratio"], padded[1]["importance_ratio"], 1e-5, 1e-4)


@pytest.mark.slow
def test_eight_devices_take_the_same_two_updates_as_one():
    def update_twice(state, reference, arrays):
        return two_updates(CORRECTED, ADAM)(state, reference, arrays, arrays)

    one = run(update_twice, start(), pad(make_batch(0)), pad(make_batch(1)))
    assert_same_steps(on_mesh((2, 2, 2), update_twice, pad), one)


# ------------------------------------------------------------------------------ what a step counts


@pytest.mark.long
def test_teacher_and_step_move_once_and_adam_with_every_update():
    before = start(optimizer=FAST)
    own = jax.device_get(before.teacher)
    state, metrics = run_two(two_updates(), before, halves(make_batch()))
    assert state.step == 1
    assert state.opt_state[1][0].count == 2
    expected = jax.tree.map(lambda t, s: 0.75 * t + 0.25 * s, own, state.params)
    assert_close(state.teacher, expected, 1e-6)
    assert metrics["grad_norm"].weight == 2
    assert metrics["entropy_student"].weight == make_batch().completion.length_B.sum()


@pytest.mark.parametrize("broken", [(0,), (0, 1)], ids=["one", "both"])
def test_the_teacher_moves_unless_every_update_was_skipped(broken):
    minis = halves(make_batch())
    for index in broken:
        rows = minis[index].rows
        nan_BT = np.full_like(rows.behaviour_logp_BT, np.nan)
        minis[index] = minis[index]._replace(rows=rows._replace(behaviour_logp_BT=nan_BT))
    before = start(optimizer=FAST)
    own = jax.device_get(before.teacher)
    state, metrics = run_two(two_updates(), before, minis)
    assert metrics["skipped"].mean == len(broken) / 2
    assert state.step == 1
    assert state.opt_state[1][0].count == 2 - len(broken)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.teacher, own)
    assert (max(jax.tree.leaves(moved)) > 1e-3) == (len(broken) == 1)


def test_a_second_update_that_is_skipped_leaves_what_the_first_one_made():
    minis = [jax.device_put(mini) for mini in halves(make_batch())]
    nan_BT = jnp.full_like(minis[1].rows.behaviour_logp_BT, jnp.nan)
    minis[1] = minis[1]._replace(rows=minis[1].rows._replace(behaviour_logp_BT=nan_BT))
    step, reference = two_updates(), model(REFERENCE)
    first, _ = step.update(start(optimizer=FAST), reference, minis[0], _unmoved(minis[0]))
    state, metrics = step(start(optimizer=FAST), reference, *minis)
    assert metrics["skipped"].mean == 0.5
    for part in ("params", "opt_state"):
        assert_close(getattr(state, part), getattr(first, part), 0, 0)
    expected = jax.tree.map(lambda t, s: 0.75 * t + 0.25 * s, first.teacher, first.params)
    assert_close(state.teacher, expected, 1e-6)


def test_two_steps_of_two_updates_compile_once_and_donate_the_state(compilations):
    step, reference = two_updates(), model(REFERENCE)
    state, counts = start(optimizer=FAST), []
    for seed in (0, 1):
        before, minis = state, [jax.device_put(x) for x in halves(make_batch(seed))]
        with jax.transfer_guard("disallow"):
            state, _ = step(before, reference, *minis)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        counts.append(len(compilations))
    assert counts[0] == counts[1]


# ------------------------------------------------------------------- two updates, by hand in NumPy

TINY = ModelConfig(
    vocab_size=7, hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2,
    intermediate_size=3, rope=Rope(decoder.THETA), norm_eps=decoder.EPS,
)  # fmt: skip
# Step 1 of a warm-up of four: a quarter of the peak, for both updates.
SLOWLY = Optimizer(peak_lr=0.4, warmup_steps=4, b2=0.99, eps=1e-3, clip_norm=0.5, weight_decay=0.1)
CANDIDATES = 3


def small_texts():
    """Four rows (two questions of two), their teacher's prompts, and the sampler's log-probs."""
    rng = np.random.default_rng(0)

    def texts(longest):
        return [rng.integers(0, TINY.vocab_size, rng.integers(2, longest + 1)) for _ in range(4)]

    prompt, completion, teacher = texts(3), texts(4), texts(5)
    return prompt, completion, teacher, [rng.normal(0, 0.6, len(text)) for text in completion]


ADVANTAGE, DISTILLED = np.array([0.5, -0.5, -0.7, 0.7]), np.array([1.0, 1.0, 0.0, 1.0])


def numpy_params(params):
    """{name: float64 array} of a Decoder's parameters, without the axis of layers."""
    tree = parameters.decoder_of(TINY, jax.device_get(params))
    names = ("attention_norm", "q", "k", "v", "q_norm", "k_norm", "out", "mlp_norm", "gate", "up",
             "down")  # fmt: skip
    layers = {name: np.float64(getattr(tree.layers, name)[...])[0] for name in names}
    return layers | {n: np.float64(getattr(tree, n)[...]) for n in ("embed", "norm", "head")}


def real_min(a, b):
    return np.where(a.real < b.real, a, b)


def grpo_losses(logp_TV, row, tokens, old_T):
    ratio_T = np.exp(np.take_along_axis(logp_TV, tokens[:, None], 1)[:, 0] - old_T)
    A = ADVANTAGE[row]
    clipped_T = np.where(ratio_T.real < 0.8, 0.8, np.where(ratio_T.real > 1.28, 1.28, ratio_T))
    loss_T = -real_min(A * ratio_T, A * clipped_T)
    return real_min(loss_T, np.full(len(loss_T), -3 * A)) if A < 0 else loss_T


def sdpo_losses(logp_TV, row, tokens, old_T, teacher_TV):
    kept = losses.oracle_support(logp_TV.real, teacher_TV, CANDIDATES, (), "student")
    bins = (losses.oracle_bins(x, kept, tail=True) for x in (logp_TV, teacher_TV))
    now_T = np.take_along_axis(logp_TV.real, tokens[:, None], 1)[:, 0]
    return losses.oracle(*bins, 0.5) * np.minimum(np.exp(now_T - old_T), 2) * DISTILLED[row]


def numpy_updates(name, params, texts):
    """Parameters after two updates of AdamW, and the largest log-ratio that the second one saw."""
    prompt, completion, teacher, offset = texts

    def token_logp(p, row):
        logp_TV = decoder.completion_logp(p, prompt[row], completion[row])
        return np.take_along_axis(logp_TV, completion[row][:, None], 1)[:, 0]

    old = [token_logp(params, row) for row in range(4)]
    taught = [decoder.completion_logp(params, teacher[row], completion[row]) for row in range(4)]
    p, (m, v) = params, ({n: np.zeros(x.shape) for n, x in params.items()} for _ in range(2))
    for s, rows in enumerate(((0, 1), (2, 3)), start=1):
        far = max(np.abs(token_logp(p, row) - old[row]).max() for row in rows)

        def loss(p, rows=rows):
            total = 0.0
            for row in rows:
                logp_TV = decoder.completion_logp(p, prompt[row], completion[row])
                given = logp_TV, row, completion[row], old[row]
                loss_T = grpo_losses(*given) if name == "grpo" else sdpo_losses(*given, taught[row])
                # The sampler's log-probability is the old one less the offset.
                total += (loss_T * np.minimum(np.exp(offset[row]), 2)).mean()
            return total / len(rows)

        g = decoder.gradient(loss, p)
        size = np.sqrt(sum((x**2).sum() for x in g.values()))
        g = {n: x * min(1, SLOWLY.clip_norm / size) for n, x in g.items()}
        m = {n: SLOWLY.b1 * m[n] + (1 - SLOWLY.b1) * g[n] for n in p}
        v = {n: SLOWLY.b2 * v[n] + (1 - SLOWLY.b2) * g[n] ** 2 for n in p}
        unit = {
            n: m[n] / (1 - SLOWLY.b1**s) / (np.sqrt(v[n] / (1 - SLOWLY.b2**s)) + SLOWLY.eps)
            for n in p
        }
        p = {n: p[n] - 0.1 * (unit[n] + SLOWLY.weight_decay * p[n]) for n in p}
    return p, far


@pytest.mark.parametrize("name", [pytest.param("grpo", marks=pytest.mark.long), "sdpo"])
def test_two_updates_equal_a_float64_oracle(name):
    params = init_params(TINY, jax.random.key(0))
    start64, texts = numpy_params(params), small_texts()
    prompt, completion, teacher, offset = texts
    expected, far = numpy_updates(name, start64, texts)
    assert far > np.log(1.28)  # the clips act on the second mini-batch

    old_BT = np.zeros((4, max(map(len, completion))), np.float32)
    for row, text in enumerate(completion):
        logp_TV = decoder.completion_logp(start64, prompt[row], text)
        old = np.take_along_axis(logp_TV, text[:, None], 1)[:, 0]
        old_BT[row, : len(text)] = old - offset[row]
    batch = Batch(
        prompt=texts_of_ids([ids.tolist() for ids in prompt]),
        teacher=texts_of_ids([ids.tolist() for ids in teacher]),
        completion=texts_of_ids([ids.tolist() for ids in completion]),
        behaviour_logp_BT=old_BT,
        advantage_B=np.float32(ADVANTAGE),
        row_weight_B=np.float32(DISTILLED),
        correct_B=np.float32(ADVANTAGE > 0),
    )
    correction = RolloutCorrection()
    step = make_train_step(
        model=TINY,
        objective=GRPO(rollout_correction=correction)
        if name == "grpo"
        else Distill(support=TopC(CANDIDATES), rollout_correction=correction),
        epistemic_ids=(1,),
        optimizer=SLOWLY,
        teacher=EMA(0.25),
        compute=Compute(chunk=3),
        steps=10,
        temperature=1.0,
        track_reference=False,
        updates=2,
    )
    state = init_state(params, SLOWLY, EMA(0.25), 10)._replace(step=np.int32(1))
    state, _ = step(state, params, *halves(batch))
    for actual, target in ((state.params, expected), (state.teacher, None)):
        if target is None:
            target = {n: 0.75 * start64[n] + 0.25 * expected[n] for n in expected}
        for parameter, value in numpy_params(actual).items():
            # Adam divides by sqrt(v) + 1e-3: gradients rounded at 1e-7 move a parameter by 1e-5.
            np.testing.assert_allclose(value, target[parameter], atol=2e-5, err_msg=parameter)
