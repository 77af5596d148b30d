"""A training step of a model with one layer: its batch, its networks, its gradients.

Compiling a step takes seconds and running it none: tests share `ADAM`, `EMA(0.25)`, chunks of four
positions and the shapes of `make_batch`, so that one program serves many of them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from own_choices import OwnForks, OwnGate, OwnMeanOne, OwnTerm

from jaxdistill import sharding
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import (
    GRPO,
    RLCSD,
    AnchorEpistemicMass,
    AnchorForks,
    CrossEntropy,
    Distill,
    EntropyWeight,
    ForkingTokens,
    Mixed,
    OutcomeKL,
    RolloutCorrection,
    Routed,
    StudentTeacherRatio,
    SuppressionGate,
    TopC,
    WrongPrefix,
)
from jaxdistill.training import step as train
from jaxdistill.training.batch import Batch, pad, texts_of
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import EMA

# One layer compiles in two thirds of the time of two. Steps of several layers are those of
# test_padded_vocabulary.py, also on a mesh, and of tests/golden.
CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
)

EPISTEMIC = (3, 5, 7)

ROWS, PROMPT, TOKENS = 8, 10, 7

ANCHORED = Distill(support=TopC(8), target=AnchorEpistemicMass())

OBJECTIVES = {"sdpo_anchor": ANCHORED, "grpo": GRPO(), "cross_entropy": CrossEntropy()}

TOKEN = Distill(support=TopC(8), reduction="token")

# Each looks at the whole batch before it weighs a position. "everything" reads all networks, has
# weights of the whole batch in both parts, and is what tests of the layout take.
OF_THE_BATCH = {
    "everything": Routed(
        distill=Distill(
            support=TopC(8),
            target=OwnForks(),
            weights=(ForkingTokens(0.3), OwnMeanOne(), OwnGate(0.001)),
            terms=(OwnTerm(),),
            normalizer="kept",
        ),
        policy_gradient=GRPO(credit=RLCSD(temperature=1.0)),
    ),
    "forks": Distill(
        support=TopC(8), weights=(ForkingTokens(0.3), EntropyWeight()), normalizer="kept"
    ),
    "anchored forks": Distill(
        divergence=OutcomeKL(),
        support=TopC(8),
        target=AnchorForks(0.4, 0.1),
        weights=(WrongPrefix(), StudentTeacherRatio()),
    ),
    "srpo": Routed(distill=Distill(support=TopC(8), weights=(EntropyWeight(),))),
    "rlcsd": GRPO(credit=RLCSD(temperature=1.0), reduction="token"),
    "kept tokens": Distill(
        support=TopC(8), weights=(SuppressionGate(0.001),), normalizer="kept", reduction="token"
    ),
    "sequences": Distill(
        support=TopC(8), rollout_correction=RolloutCorrection(2.0, "sequence", two_sided=True)
    ),
    "mixed": Mixed(Distill(support=TopC(8), reduction="token"), GRPO(reduction="token")),
}

# eps bounds how much a rounding error in a near-zero gradient can move a parameter (lr / eps). With
# b1 = 0 the first moment is the gradient itself.
ADAM = Optimizer(peak_lr=0.02, warmup_steps=0, b1=0.0, eps=1e-2, clip_norm=1e9)


@functools.cache
def model(seed):
    assert jax.sharding.get_abstract_mesh().empty, "kept, and so not for one mesh alone"
    return jax.jit(parameters.init, static_argnums=0)(CONFIG, jax.random.key(seed))


STUDENT, REFERENCE = 1, 0  # seeds: a student that has already left the reference


def split(mesh, tree):
    """A model or a state on the mesh, by way of the host.

    Splitting arrays that a device holds, and making a state there, would compile a program for each
    of their shapes. That `init_state` splits its arrays is a test of its own (test_step.py).
    """
    return jax.device_put(jax.device_get(tree), sharding.shardings_of(mesh, tree))


def texts(rng, rows, width, *, left):
    """Random ids of random lengths, padded with zeros on one side."""
    lengths = rng.integers(2, width + 1, rows)
    columns = np.arange(width)[::-1] if left else np.arange(width)
    mask = (columns[None, :] < lengths[:, None]).astype(np.int32)
    return rng.integers(1, CONFIG.vocab_size, (rows, width)).astype(np.int32) * mask, mask


def make_batch(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    prompt, teacher = (texts_of(*texts(rng, rows, PROMPT, left=True)) for _ in range(2))
    completion = texts_of(*texts(rng, rows, TOKENS, left=False))
    behaviour_logp_BT = -rng.uniform(2.5, 4.5, (rows, TOKENS)).astype(np.float32)
    advantage_B = rng.normal(size=rows).astype(np.float32)
    correct_B = rng.integers(0, 2, rows).astype(np.float32)
    contrasts = tuple(texts_of(*texts(rng, rows, PROMPT, left=True)) for _ in range(2))
    weight_BJ = np.stack([np.ones(rows), rng.integers(0, 2, rows)], axis=1)  # some lack the second
    return Batch(
        prompt=prompt,
        teacher=teacher,
        completion=completion,
        behaviour_logp_BT=behaviour_logp_BT,
        advantage_B=advantage_B,
        row_weight_B=np.ones(rows, np.float32),
        correct_B=correct_B,
        contrasts=contrasts,
        contrast_weight_BJ=weight_BJ.astype(np.float32),
    )


def weighing(weights, batch):
    return dataclasses.replace(batch, row_weight_B=np.float32(weights))


def alone(batch):
    """Without teacher and contrasts."""
    return dataclasses.replace(batch, teacher=None, contrasts=(), contrast_weight_BJ=None)


def rows_of(batch, rows):
    return dataclasses.replace(batch, **jax.tree.map(lambda x: x[rows], vars(batch)))


def mask_of(texts):
    return (np.arange(texts.ids_BP.shape[1]) < texts.length_B[:, None]).astype(np.int32)


def make_step(
    objective,
    teacher=EMA(0.25),  # noqa: B008
    optimizer=ADAM,
    chunk=4,
    teacher_temperature=None,
    updates=1,
    **compute,
):
    compute = Compute(chunk=chunk, **compute)
    return train.make_train_step(
        CONFIG, objective, EPISTEMIC, optimizer, teacher, compute, 10, 1.0, True,
        teacher_temperature=teacher_temperature, updates=updates,
    )  # fmt: skip


def start(teacher=EMA(0.25), optimizer=ADAM, student=STUDENT):  # noqa: B008
    return init_state(model(student), optimizer, teacher, 10)


def run(step, state, *batches):
    """(state, metrics) after one step on each of the micro-batches."""
    for batch in batches:
        state, metrics = step(state, model(REFERENCE), jax.device_put(batch))
    return jax.device_get(state), jax.device_get(metrics)


def update(objective, batch, teacher=EMA(0.25), **compute):  # noqa: B008
    """(gradient, metrics) of one batch, padded."""
    arrays = pad(batch, compute.get("micro_batches", 1))
    state, metrics = run(make_step(objective, teacher, **compute), start(teacher), arrays)
    return gradient_of(state), metrics


def gradient_of(state):
    """Of the step that led to the state."""
    return state.opt_state[1][0].mu


def difference(new, old):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), new, old)


def assert_close(actual, expected, atol, rtol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol),
                 actual, expected)  # fmt: skip


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def assert_same_update(actual, expected):
    """Gradients are sums of some hundred numbers, here in another order."""
    size = largest(expected[0])
    assert size > 1e-2
    assert_close(actual[0], expected[0], 1e-6 * max(size, 1.0), 1e-4)
    assert_close(actual[1]["loss"].mean, expected[1]["loss"].mean, 1e-6)


@functools.cache
def on_one_device(name):
    """(state, metrics) after two steps on padded rows."""
    step = make_step({**OBJECTIVES, **OF_THE_BATCH}[name])
    return run(step, start(), pad(make_batch(0)), pad(make_batch(1)))


def on_mesh(sizes, step, layout):
    """The same on a mesh, whose state must stay where it was; `layout` of a batch gives arrays."""
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    # Made before the mesh is in use: models are kept, for tests on one device too.
    state, reference = split(mesh, start()), split(mesh, model(REFERENCE))
    with sharding.use_mesh(mesh):
        before = [leaf.sharding for leaf in jax.tree.leaves(state)]
        for seed in (0, 1):
            arrays = sharding.shard_batch(mesh, layout(make_batch(seed)))
            state, metrics = step(state, reference, arrays)
    # Every leaf ends where it began: else the second step compiles anew, and nothing is donated.
    for place, leaf in zip(before, jax.tree.leaves(state), strict=True):
        assert place.is_equivalent_to(leaf.sharding, leaf.ndim)
    return jax.device_get(state), jax.device_get(metrics)


def assert_same_steps(actual, expected):
    """lr / eps = 2 times the rounding of gradients of order 0.1."""
    assert largest(difference(expected[0].params, model(STUDENT))) > 1e-2
    assert_close(actual[0], expected[0], 2e-6, 1e-4)
    assert_close(actual[1], expected[1], 1e-4, 1e-4)


@jax.jit
def _hidden(params, *texts):
    return completions.completion_hidden(params, CONFIG, *texts)


def logits_by_masks(params, prompt, completion):
    """[B, T, V] of the completions under a prompt, by the scoring that takes masks."""
    texts = [x for text in (prompt, completion) for x in (text.ids_BP, mask_of(text))]
    return _hidden(params, *texts) @ parameters.head(params, CONFIG)


def completion_logp(params, batch):
    logp_BTV = jax.nn.log_softmax(logits_by_masks(params, batch.prompt, batch.completion))
    return jnp.take_along_axis(logp_BTV, batch.completion.ids_BP[:, :, None], axis=2)[:, :, 0]
