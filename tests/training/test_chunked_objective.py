"""The chunked objective: the same loss and gradients as from one array of all logits."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_completions import B, T, V, assert_trees_close, random_data, random_model

from jaxdistill import sharding
from jaxdistill.objectives import (
    PRESETS,
    AnchorEpistemicMass,
    Distill,
    MassPenalty,
    Mixed,
    Positions,
    Purified,
    Rows,
    Sampled,
    SuppressionGate,
    TopC,
    make_objective,
    sdpo,
)
from jaxdistill.objectives.positions import Weighted, everywhere
from jaxdistill.training import chunked_objective
from jaxdistill.training.metrics import Sum


def objective(positions):
    """Reads every field: a weighted KL to the teacher plus a policy-gradient term."""
    student, teacher = positions.student_logp_BTV, positions.teacher_logp_BTV
    reference = jnp.exp(positions.reference_logp_BTV)
    kl_BT = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    ratio_BT = jnp.exp(positions.of_token(student) - positions.sampled.behaviour_logp_BT)
    loss_BT = kl_BT - ratio_BT * positions.rows.advantage_BT
    weight_BT = jax.lax.stop_gradient(1.0 - reference[..., 3])
    loss_BT *= weight_BT / (1.0 + positions.sampled.index_BT)
    entropy_BT = -jnp.sum(jnp.exp(student) * student, -1)
    return loss_BT, {"kl": Weighted(kl_BT, weight_BT), "entropy": everywhere(entropy_BT)}


@functools.partial(jax.jit, static_argnames=("chunk", "temperature", "objective"))
def run(models, data, chunk, temperature=1.0, objective=objective):
    """Evaluate in chunks; `models` is the student, or student, teacher and reference."""
    student, *others = models
    return chunked_objective.chunked_objective(
        objective,
        student,
        chunked_objective.OtherNetworks(
            teacher=tuple(others[:1]), reference=others[1] if others else None
        ),
        data,
        chunked_objective.ChunkOptions(chunk, temperature),
    )


@functools.cache
def three_models():
    return tuple(random_model(i) for i in range(3))


def loss_and_gradients(chunk, temperature=1.0, models=None):
    def loss(models):
        total, metrics = run(models, random_data(), chunk, temperature)
        return total, (total, metrics)

    models = models or three_models()
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(models)
    return outputs, gradients


@functools.cache
def all_at_once():
    """(loss, totals) and the student's gradient, from one array of all logits."""
    data = random_data()

    def total(student, *others):
        logps = [jax.nn.log_softmax((h @ w) / 1.3) for h, w in (student, *others)]
        loss_BT, values = objective(Positions(*logps, None, data.sampled, data.rows))
        return jnp.sum(loss_BT * data.loss_weight_BT), totals_of(values, data.mask_BT)

    return jax.jit(jax.value_and_grad(total, has_aux=True))(*three_models())


def totals_of(values, mask_BT):
    return {n: Sum(jnp.sum(v * w * mask_BT), jnp.sum(w * mask_BT)) for n, (v, w) in values.items()}


@pytest.mark.parametrize(
    "chunk",
    [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(11, marks=pytest.mark.slow), 64],
)
def test_chunk_size_changes_neither_loss_nor_gradient_nor_metrics(chunk):
    (expected_loss, expected_totals), expected_gradient = all_at_once()
    (loss, metrics), gradients = loss_and_gradients(chunk, 1.3)
    # float32 sums of up to 44 terms in another order: a few ulp of values of order 10.
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-4)
    assert_trees_close(gradients[0], expected_gradient, 1e-5)
    assert_trees_close(metrics, expected_totals, 1e-4)


@pytest.mark.parametrize("positions", [1, 31, 32, 100, 3840, 20224, 22528])
@pytest.mark.parametrize("chunk", [4, 32, 96, 512, 1024])
def test_even_chunks_are_no_more_and_no_larger_and_overlap_less(positions, chunk):
    """As on GPUs: in multiples of 32 positions, unless a whole chunk is smaller."""
    chunk = min(chunk, positions)
    size = chunked_objective.even_size(positions, chunk)
    number = -(-positions // chunk)
    assert 0 < size <= chunk
    assert -(-positions // size) == number
    assert number * size - positions <= number * chunk - positions
    assert size == chunk or (size % 32 == 0 and (size - 32) * number < positions)


def test_even_chunks_change_neither_loss_nor_gradient(monkeypatch):
    """As on GPUs; two chunks of 6 positions instead of 10."""
    outputs = [run(three_models(), random_data(), 10)]
    monkeypatch.setattr(chunked_objective, "platform", lambda: "gpu")
    monkeypatch.setattr(chunked_objective, "even_size", lambda *given: {(T, 10): 6}[given])
    outputs.append(run.__wrapped__(three_models(), random_data(), 10))
    assert_trees_close(*outputs, 1e-4)


@pytest.mark.parametrize("num_ids", [None, V - 2])
def test_separate_passes_give_the_same_loss_gradient_and_metrics(num_ids):
    """As on GPUs; also where a chunk overlaps the one before, and where ids are left out."""
    student, teacher, reference = three_models()
    others = chunked_objective.OtherNetworks(
        teacher=(teacher,), reference=reference, num_ids=num_ids
    )

    def of(separate_passes):
        options = chunked_objective.ChunkOptions(4, 1.3, 0.7, separate_passes=separate_passes)

        def total(student):
            return chunked_objective.chunked_objective(
                objective, student, others, random_data(), options
            )

        return jax.jit(jax.value_and_grad(total, has_aux=True))(student)

    ((loss, metrics), gradient), expected = of(True), of(False)
    np.testing.assert_allclose(loss, expected[0][0], rtol=1e-6)
    assert_trees_close(gradient, expected[1], 1e-5)
    assert_trees_close(metrics, expected[0][1], 1e-5)


def sampled_logps(positions):
    """Each network's log-probability of the sampled token, as a metric."""
    fields = {name: getattr(positions, f"{name}_logp_BTV") for name in NETWORKS}
    values = {name: positions.of_token(logp_BTV) for name, logp_BTV in fields.items()}
    return values["student"], {name: everywhere(x_BT) for name, x_BT in values.items()}


NETWORKS = ("student", "teacher", "reference", "contrast")


@pytest.mark.parametrize("own", [None, 0.7])
def test_a_teachers_own_temperature_divides_its_logits_and_the_contrasts(own):
    """Against NumPy in float64."""
    student, teacher, reference, contrast = models = [random_model(i) for i in range(4)]
    data = random_data()._replace(contrast_weight_BTJ=np.ones((B, T, 1), np.float32))
    others = chunked_objective.OtherNetworks(
        teacher=(teacher,), reference=reference, contrasts=((contrast,),)
    )
    options = chunked_objective.ChunkOptions(4, 1.3, own)
    _, totals = jax.jit(
        lambda s: chunked_objective.chunked_objective(sampled_logps, s, others, data, options)
    )(student)
    for name, (hidden_BTD, head_DV) in zip(NETWORKS, models):
        temperature = own if own and name in ("teacher", "contrast") else 1.3
        logits_BTV = np.float64(hidden_BTD) @ np.float64(head_DV) / temperature
        logps_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(axis=-1, keepdims=True))
        tokens_BT1 = data.sampled.tokens_BT[..., None]
        logp_BT = np.take_along_axis(logps_BTV, tokens_BT1, axis=-1)[..., 0]
        # Sums of 21 numbers of order 10 in float32.
        np.testing.assert_allclose(totals[name].total, (logp_BT * data.mask_BT).sum(), rtol=1e-5)


def infinite_where_nothing_counts(positions):
    """A loss with a factor such as 1 / (length - index), infinite after a completion's end."""
    loss_BT, values = objective(positions)
    is_counted_BT = random_data().loss_weight_BT != 0
    return loss_BT / jnp.where(is_counted_BT, 1.0, 0.0), values


def test_an_infinity_at_a_masked_position_reaches_no_gradient():
    def gradient_of(objective):
        def loss(models):
            return run(models, random_data(), 64, 1.3, objective=objective)[0]

        return jax.grad(loss)(three_models())[0]

    assert (random_data().loss_weight_BT == 0).any()
    assert_trees_close(gradient_of(infinite_where_nothing_counts), gradient_of(objective), 1e-6)


REAL = {
    "sdpo": Distill(support=TopC(5)),
    "anchored": Distill(support=TopC(5), target=AnchorEpistemicMass(), terms=(MassPenalty(),)),
    "sampled": PRESETS["anti_e"](),
    "rlcsd": PRESETS["rlcsd"](),
    "mixed": Mixed(Distill(target=Purified(), weights=(SuppressionGate(0.01),))),
}


# "anchored" is "sdpo" with another target and a term.
@pytest.mark.parametrize(
    "name",
    [
        "anchored",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("sampled", "rlcsd", "mixed")),
        pytest.param("sdpo", marks=pytest.mark.slow),
    ],
)
def test_a_chunked_objective_equals_the_unchunked_one(name):
    """A chunk of 4 does not divide the 11 positions; the oracle has one array of all logits."""
    evaluate = make_objective(REAL[name], (1, 5, 7))
    student, teacher, reference, contrast = (random_model(i) for i in range(4))
    data = random_data()._replace(contrast_weight_BTJ=np.ones((B, T, 1), np.float32))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def fused(student):
        others = chunked_objective.OtherNetworks(
            teacher=(teacher,), reference=reference, contrasts=((contrast,),)
        )
        return chunked_objective.chunked_objective(
            evaluate, student, others, data, chunked_objective.ChunkOptions(4)
        )

    @functools.partial(jax.value_and_grad, has_aux=True)
    def unfused(student):
        models = student, teacher, reference, contrast
        logps = [jax.nn.log_softmax(hidden @ head) for hidden, head in models]
        loss_BT, values = evaluate(Positions(*logps, data.sampled, data.rows))
        return jnp.sum(loss_BT * data.loss_weight_BT), totals_of(values, data.mask_BT)

    # One program for both, so that what they share is compiled once.
    (first, a), (second, b) = jax.jit(lambda s: (fused(s), unfused(s)))(student)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-5, atol=1e-5)
    assert_trees_close(first[1], second[1], 1e-4)  # sums over 44 positions
    size = max(float(jnp.abs(x).max()) for x in b)
    assert_trees_close(a, b, 1e-5 * max(size, 1.0))


@pytest.mark.parametrize("chunk", [3, 64])
def test_a_teacher_may_be_a_mixture_and_contrasts_are_averaged_where_they_exist(chunk):
    student, first, second, one, two = (random_model(i) for i in range(5))
    weight_BJ = jnp.array([[1, 1], [1, 0], [0, 0], [0, 1]], jnp.float32)
    weight_BTJ = jnp.broadcast_to(weight_BJ[:, None], (B, T, 2))
    others = chunked_objective.OtherNetworks(
        teacher=(first, second),
        teacher_mix=(0.75, jnp.float32(0.25)),  # a number or a traced scalar
        contrasts=((one, one), (two, two)),
    )
    data = random_data()._replace(contrast_weight_BTJ=weight_BTJ)

    def both(positions):
        return jnp.stack([positions.teacher[..., 0], positions.contrast[..., 0]], axis=-1)

    options = chunked_objective.ChunkOptions(chunk, 1.3)
    scores = jax.jit(chunked_objective.chunked_scores, static_argnums=(0, 4))(
        both, student, others, data, options
    )
    logits = [h @ w / 1.3 for h, w in (first, second, one, two)]
    teacher = jax.nn.log_softmax(0.75 * logits[0] + 0.25 * logits[1])
    P = [np.exp(jax.nn.log_softmax(x)) for x in logits[2:]]
    contrast = [(P[0][0] + P[1][0]) / 2, P[0][1], np.exp(teacher[2]), P[1][3]]
    np.testing.assert_allclose(scores[..., 0], teacher[..., 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.exp(scores[..., 1]), np.stack(contrast)[..., 0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("chunk", [4, 64])
def test_no_gradient_reaches_teacher_or_reference(chunk):
    _, (student, teacher, reference) = loss_and_gradients(chunk)
    assert all(np.abs(x).max() > 0 for x in student)
    assert all(np.abs(x).max() == 0 for x in (*teacher, *reference))


def test_no_array_of_positions_times_vocabulary_exists_when_chunked():
    def loss(student):
        return run((student, *three_models()[1:]), random_data(), 4)[0]

    text = str(jax.make_jaxpr(jax.grad(loss))(three_models()[0]))
    assert f"{B},4,{V}]" in text
    for positions in (T, 12):
        assert f"{B},{positions},{V}]" not in text
    assert f"3,{B},4,{V}]" not in text, "logits stacked over chunks: a chunk was not rematerialised"


def temporary_memory(num_positions, rows=B, width=32, vocabulary=2048, chunk=16, mesh=None):
    """Bytes per device that the compiled loss and gradient need besides inputs and outputs."""

    def loss(student, teacher, data):
        return chunked_objective.chunked_objective(
            make_objective(sdpo(), (1, 2, 3)),
            student,
            chunked_objective.OtherNetworks((teacher,)),
            data,
            chunked_objective.ChunkOptions(chunk),
        )

    def shaped(axes, dtype=jnp.float32):
        sizes = {"B": rows, "T": num_positions, "D": width, "V": vocabulary}
        place = None if mesh is None else sharding.sharding_of(mesh, axes)
        return jax.ShapeDtypeStruct([sizes[a] for a in axes], dtype, sharding=place)

    model = chunked_objective.HiddenAndHead(shaped("BTD"), shaped("DV"))
    floats_BT, whole_BT = shaped("BT"), shaped("BT", jnp.int32)
    of_rows = Rows(floats_BT, floats_BT, floats_BT, whole_BT, whole_BT)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    with contextlib.nullcontext() if mesh is None else sharding.use_mesh(mesh):
        sampled = Sampled(whole_BT, floats_BT, whole_BT)
        data = chunked_objective.PositionData(sampled, of_rows, floats_BT, floats_BT)
        lowered = step.lower(model, model, data)
        return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.long
def test_temporary_memory_does_not_grow_with_the_completion():
    """Only the hidden states' gradient, which is an output here, has all T positions."""
    grown = temporary_memory(1024) - temporary_memory(64)
    assert grown < 32 * 1024  # compared with 480 KiB of additional hidden states


@pytest.mark.slow  # a minute of compilation
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2)], ids=str)
def test_at_real_size_too_temporary_memory_does_not_grow_with_the_completion(sizes):
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes)) if np.prod(sizes) > 1 else None
    rows = sizes[0] * sizes[1]
    measured = {
        num_positions: temporary_memory(num_positions, rows, 1024, 151_936, 512, mesh)
        for num_positions in (4096, 16_384, 65_536)
    }
    print(sizes, {T: f"{size / 1e9:.3f} GB a device" for T, size in measured.items()})
    assert max(measured.values()) - min(measured.values()) < 16 << 20


@pytest.mark.parametrize("chunk", [4, 64])
def test_nan_at_a_masked_position_does_not_reach_a_sum(chunk):
    def broken(positions):
        loss_BT, values = objective(positions)
        is_marked = positions.sampled.behaviour_logp_BT == -5.0
        spoilt = {n: Weighted(jnp.where(is_marked, jnp.inf, v), w) for n, (v, w) in values.items()}
        return jnp.where(is_marked, jnp.nan, loss_BT), spoilt

    data = random_data()
    marked_BT = np.where(data.mask_BT == 1, data.sampled.behaviour_logp_BT, np.float32(-5.0))
    marked = data._replace(sampled=data.sampled._replace(behaviour_logp_BT=marked_BT))
    expected = run(three_models(), data, chunk)
    assert_trees_close(run(three_models(), marked, chunk, objective=broken), expected, 0)


@pytest.mark.parametrize("chunk", [3, 64])
def test_longer_padding_of_the_completion_changes_nothing(chunk):
    def pad(x, value):
        widths = ((0, 0), (0, 5)) + ((0, 0),) * (x.ndim - 2)
        return np.pad(x, widths, constant_values=value)

    wide = tuple(
        chunked_objective.HiddenAndHead(pad(np.asarray(hidden), 9.0), head)
        for hidden, head in three_models()
    )
    data = random_data()
    wider = chunked_objective.PositionData(
        sampled=Sampled(*(pad(x, n) for x, n in zip(data.sampled[:3], (2, -3.0, 0)))),
        rows=jax.tree.map(lambda x_BT: pad(x_BT, 7), data.rows),
        mask_BT=pad(data.mask_BT, 0),
        loss_weight_BT=pad(data.loss_weight_BT, 0),
    )
    assert_trees_close(run(wide, wider, chunk), run(three_models(), data, chunk), 1e-4)


def test_objectives_without_teacher_or_reference_receive_none():
    def entropy(positions):
        assert positions.teacher_logp_BTV is None
        assert positions.reference_logp_BTV is None
        value = -jnp.sum(jnp.exp(positions.student_logp_BTV) * positions.student_logp_BTV, -1)
        return value, {}

    data = random_data()
    loss, metrics = run(three_models()[:1], data, 4, objective=entropy)
    assert 0 < loss / data.loss_weight_BT.sum() < np.log(V)
    assert metrics == {}


def test_eight_devices_score_like_one():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    models = three_models()
    expected, expected_gradients = loss_and_gradients(4)
    sharded = tuple(
        chunked_objective.HiddenAndHead(
            sharding.shard_batch(mesh, hidden),
            jax.device_put(head, sharding.sharding_of(mesh, "DV")),
        )
        for hidden, head in models
    )
    with sharding.use_mesh(mesh):
        actual, gradients = loss_and_gradients(4, models=sharded)
    assert_trees_close(jax.device_get(actual), jax.device_get(expected), 1e-4)
    assert_trees_close(jax.device_get(gradients), jax.device_get(expected_gradients), 1e-5)
    assert_trees_close(jax.device_get(gradients), jax.device_get(expected_gradients), 1e-4)
