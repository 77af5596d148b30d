"""A training step of a model with two layers: its batch, its networks, what an update changed."""

import functools

import jax
import numpy as np

from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import (
    GRPO,
    RLCSD,
    AnchorEpistemicMass,
    CrossEntropy,
    Distill,
    EntropyWeight,
    ForkingTokens,
    Mixed,
    RolloutCorrection,
    Routed,
    SuppressionGate,
    TopC,
)
from jaxdistill.training import step as train
from jaxdistill.training.batch import Batch
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA, Frozen

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


def completion_logp(params, batch):
    hidden_BTD = completions.completion_hidden(params, CONFIG, *batch[0:2], *batch[4:6])
    return completions.token_logp(
        hidden_BTD, parameters.head(params, CONFIG), batch.completion_ids_BT
    )


# ----------------------------------------------------------------------------- teacher and state


@functools.cache
def moving_step():
    return make_step(Distill(support=TopC(8)), ADAM, EMA(0.25))
