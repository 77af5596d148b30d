"""A vocabulary and heads that the mesh does not divide train and resume as on one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_step
from flax import nnx
from small_step import (
    EPISTEMIC,
    OBJECTIVES,
    OF_THE_BATCH,
    REFERENCE,
    STUDENT,
    assert_close,
    make_batch,
)

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, parameters
from jaxdistill.objectives import Distill, FullVocabulary
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training import step as train
from jaxdistill.training.base_samples import BaseSample, arrays_of, make_base_kl
from jaxdistill.training.batch import pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.teachers import EMA, External, Fixed, Untrained

pytestmark = pytest.mark.long

# Four devices share 30 tokens, and two key/value heads of two queries each, in two layers.
CONFIG = dataclasses.replace(small_step.CONFIG, vocab_size=30, num_layers=2)
MESH = "data=1,fsdp=2,tensor=4"
# Weights decay and gradients are clipped: both would show what padding adds.
OPTIMIZER = Optimizer(
    peak_lr=0.02, warmup_steps=0, b1=0.0, eps=1e-2, clip_norm=0.05, weight_decay=0.1
)


@functools.cache
def one_device(seed):
    return jax.jit(parameters.init, static_argnums=0)(CONFIG, jax.random.key(seed))


def placed(mesh, seed):
    # From the host: splitting an array that a device holds would compile a program.
    params = jax.device_get(parameters.padded(one_device(seed), mesh))
    return jax.device_put(params, sharding.shardings_of(mesh, params))


def batch_of(seed, num_ids=30):
    """The ids of `make_batch` that this vocabulary has."""
    inside = lambda x: np.where(x < num_ids, x, x - 15) if x.dtype == np.int32 else x  # noqa: E731
    batch = make_batch(seed)
    texts = lambda t: t._replace(ids_BP=inside(t.ids_BP))  # noqa: E731
    changed = {name: texts(getattr(batch, name)) for name in ("prompt", "teacher", "completion")}
    return dataclasses.replace(batch, **changed, contrasts=tuple(map(texts, batch.contrasts)))


def two_steps(objective, mesh):
    step = train.make_train_step(
        CONFIG, objective, EPISTEMIC, OPTIMIZER, EMA(0.25), Compute(chunk=4), 10,
        1.0, True,
    )  # fmt: skip
    student, reference = (
        one_device(seed) if mesh is None else placed(mesh, seed) for seed in (STUDENT, REFERENCE)
    )
    with sharding.use_mesh(mesh):
        state = init_state(student, OPTIMIZER, EMA(0.25), 10)
        for seed in (0, 1):
            arrays = pad(batch_of(seed))
            arrays = arrays if mesh is None else sharding.shard_batch(mesh, arrays)
            state, metrics = step(state, reference, arrays)
    return state, jax.device_get(metrics)


def split(tree):
    """(the tree without padding, all of its padding) of a state on a mesh."""
    added = []

    def cut(leaf):
        axes = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None
        if axes is None or "V" not in axes:
            return leaf
        value, at = np.asarray(leaf.get_raw_value()), axes.index("V")
        added.append(np.take(value, range(30, value.shape[at]), axis=at))
        return leaf.replace(np.take(value, range(30), axis=at))

    return jax.tree.map(cut, tree, is_leaf=lambda x: isinstance(x, nnx.Variable)), added


# "everything" reads all networks and weighs the whole batch, and compiles three times as long.
@pytest.fixture(
    scope="module", params=["sdpo_anchor", pytest.param("everything", marks=pytest.mark.slow)]
)
def both(request):
    mesh, objective = sharding.make_mesh(MESH), {**OBJECTIVES, **OF_THE_BATCH}[request.param]
    return two_steps(objective, None), two_steps(objective, mesh)


def test_the_steps_are_those_of_one_device_and_the_padding_stays_zero(both):
    (expected, numbers), (state, on_mesh) = both
    cut, added = split(state)
    # Embedding and head, of the student, its two moments and the teacher: 512 rows instead of 30.
    assert [x.size for x in added] == [482 * CONFIG.hidden_size] * 8
    assert not any(x.any() for x in added)
    # lr / eps = 2 times the rounding of gradients of order 0.1, as in `assert_same_steps`.
    assert_close(jax.device_get(cut), jax.device_get(expected), 2e-6, 1e-4)
    assert_close(on_mesh, numbers, 1e-4, 1e-4)
    moved = jax.device_get(expected.params["head"][...]) - one_device(STUDENT)["head"][...]
    assert np.abs(moved).max() > 1e-3


WIDE = dataclasses.replace(CONFIG, hidden_size=24, num_layers=1, qk_norm="none")
NUM_IDS = 29  # of the tokenizer; the student's vocabulary has one more
FULL = Distill(support=FullVocabulary(), importance_clip=None, reduction="token")


# Of another model: fewer ids than the student, and more.
@pytest.mark.slow
@pytest.mark.parametrize("rows", [29, 40])
def test_another_model_teaches_on_a_mesh_as_on_one_device_whatever_pads_either(rows):
    """Its own padding, the student's, and what the mesh adds to both are left out together."""
    config = dataclasses.replace(WIDE, vocab_size=rows)
    theirs = jax.jit(parameters.init, static_argnums=0)(config, jax.random.key(7))
    teacher = Fixed("another")

    def updated(mesh):
        step = train.make_train_step(
            CONFIG, FULL, EPISTEMIC, OPTIMIZER, teacher, Compute(chunk=4), 10, 1.0, True
        )
        student, reference, params = one_device(STUDENT), one_device(REFERENCE), theirs
        arrays = pad(batch_of(0, NUM_IDS))
        if mesh is not None:
            student, reference = placed(mesh, STUDENT), placed(mesh, REFERENCE)
            params = parameters.padded(theirs, mesh)
            params = jax.device_put(params, sharding.shardings_of(mesh, params))
            arrays = sharding.shard_batch(mesh, arrays)
        with sharding.use_mesh(mesh):
            state = init_state(student, OPTIMIZER, teacher, 10)
            untrained = Untrained(reference, External(params, config, NUM_IDS))
            state, metrics = step(state, untrained, arrays)
        return split(state), jax.device_get(metrics)

    (expected, _), numbers = updated(None)
    assert np.isfinite(numbers["loss"].mean)
    (cut, added), on_mesh = updated(sharding.make_mesh(MESH))
    assert not any(x.any() for x in added)
    assert_close(jax.device_get(cut), jax.device_get(expected), 2e-6, 1e-4)
    assert_close(on_mesh, numbers, 1e-4, 1e-4)
    # The student's id beyond the tokenizer's has no gradient: it only decays, as the padding would.
    moment_DV = np.asarray(expected.opt_state[1][0].mu["head"][...])
    assert not moment_DV[:, NUM_IDS:].any()
    assert np.abs(moment_DV).max() > 1e-4


def test_the_drift_on_base_samples_leaves_out_the_padding():
    rng = np.random.default_rng(0)
    samples = [BaseSample(*rng.integers(1, 30, (2, 5)).tolist()) for _ in range(8)]
    found = []
    for mesh in (None, sharding.make_mesh(MESH)):
        both = [one_device(x) if mesh is None else placed(mesh, x) for x in (STUDENT, REFERENCE)]
        with sharding.use_mesh(mesh):
            parts = sharding.num_parts("B")
            arrays = arrays_of(samples, 8, parts)
            arrays = arrays if mesh is None else sharding.shard_batch(mesh, arrays)
            kl = make_base_kl(CONFIG, Compute(chunk=4, remat="none"))
            found.append(kl(*both, arrays).mean)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_no_large_array_of_the_state_is_whole_on_a_device(both):
    _, (state, _) = both
    # The student, both of its moments and the teacher.
    for leaf in jax.tree.leaves(state):
        parts = leaf.size / leaf.addressable_shards[0].data.size
        # Eight parts; norms are vectors, which stay whole, as counters do.
        assert parts == 8 or leaf.size <= CONFIG.num_layers * CONFIG.hidden_size


@pytest.mark.long
def test_a_state_saved_on_four_tensor_parallel_devices_resumes_on_one_and_back(both, tmp_path):
    (one, _), (four, _) = both
    with Checkpoints(tmp_path / "four", save_async=False) as checkpoints:
        checkpoints.save(2, four._asdict(), {})
        restored, _ = checkpoints.restore(2, one._asdict(), vocab_size=30)
        cut, _ = split(four)
        jax.tree.map(np.testing.assert_array_equal, TrainState(**restored), cut)
        with pytest.raises(UserError, match="does not match this config"):
            checkpoints.restore(2, one._asdict())
    with Checkpoints(tmp_path / "one", save_async=False) as checkpoints:
        checkpoints.save(2, one._asdict(), {})
        restored, _ = checkpoints.restore(2, four._asdict(), vocab_size=30)
        with pytest.raises(UserError, match=r"embed.*expected float32\[31, 16\], got float32\[30"):
            checkpoints.restore(2, four._asdict(), vocab_size=31)
    back, added = split(TrainState(**restored))
    jax.tree.map(np.testing.assert_array_equal, back, one)
    assert not any(x.any() for x in added)
    for old, new in zip(
        jax.tree.leaves(four), jax.tree.leaves(TrainState(**restored)), strict=True
    ):
        assert old.sharding.is_equivalent_to(new.sharding, old.ndim)


def test_an_id_of_the_padding_is_outside_the_vocabulary():
    mesh = sharding.make_mesh(MESH)
    ids_BS, mask_BS = np.array([[1, 2], [1, 30]], np.int32), np.ones((2, 2), np.int32)
    with sharding.use_mesh(mesh):
        hidden = jax.jit(lambda p: decoder.hidden_states(p, CONFIG, ids_BS, mask_BS))
        found = hidden(placed(mesh, STUDENT))
    assert jnp.isnan(found).any(axis=(1, 2)).tolist() == [False, True]
