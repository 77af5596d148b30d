"""A trace's numbers against logits computed by hand, and its push against jax.grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import init_params
from tiny_run import ARCHITECTURE

from jaxdistill import api, objectives, sharding
from jaxdistill.errors import UserError
from jaxdistill.models import completions, parameters
from jaxdistill.objectives import Positions, Rows, Sampled
from jaxdistill.tracing import scoring
from jaxdistill.tracing.scoring import Answer, Settings, score_answer
from jaxdistill.training.networks import Networks

V, T = 61, 11  # a vocabulary that two devices share only with padding
MODEL = ARCHITECTURE.__class__(**{**vars(ARCHITECTURE), "vocab_size": V})
EPISTEMIC = (3, 17, 40)
RNG = np.random.default_rng(0)
ANSWER = Answer(
    plain=RNG.integers(0, V, 7).tolist(),
    informed=RNG.integers(0, V, 19).tolist(),
    tokens=RNG.integers(0, V, T).tolist(),
    behaviour_logp=(-RNG.exponential(4.0, T)).tolist(),
    advantage=-0.7,
    is_correct=False,
)
# A chunk of 4 does not divide the 11 tokens.
SETTINGS = Settings(model=MODEL, epistemic_ids=EPISTEMIC, alternatives=3, chunk=4)
MESHES = {"padded": None, "sharded": "data=2,fsdp=2,tensor=2"}


@functools.cache
def params(seed):
    # Weights twice as large as a fresh model's, so that the networks are far from uniform; with
    # still larger ones float32 would not hold their logits to 1e-5.
    made = init_params(MODEL, jax.random.key(seed))
    return jax.tree.map(lambda x: x * 2.0 if x.ndim > 1 else x, made)


def networks(mesh=None):
    """Student, a teacher of two networks, reference: all different."""
    placed = [params(seed) for seed in range(3)]
    if mesh is not None:
        placed = [parameters.padded(x, mesh) for x in placed]
        # From the host: splitting an array that a device holds would compile a program.
        placed = [jax.device_put(jax.device_get(x), sharding.shardings_of(mesh, x)) for x in placed]
    student, other, reference = placed
    return Networks(student, ((other, 0.75), (reference, 0.25)), reference)


@functools.cache
def by_hand():
    """float64 log-probabilities [T, V] of student, teacher and reference, from `Model.logits`."""
    mesh = sharding.make_mesh("fsdp=1")

    def logits(seed, prompt):
        model = api.Model(config=MODEL, params=params(seed), folder=None, mesh=mesh)
        tokens_BS = [[*prompt, *ANSWER.tokens]]
        return np.float64(model.logits(tokens_BS)[0, len(prompt) - 1 : -1])

    mixed = 0.75 * logits(1, ANSWER.informed) + 0.25 * logits(2, ANSWER.informed)
    found = logits(0, ANSWER.plain), mixed, logits(2, ANSWER.plain)
    return [x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in found]


def check(found):
    logps = by_hand()
    for n, logp_TV in enumerate(logps):
        p_TV = np.exp(logp_TV)
        expected = {
            "logp": logp_TV[np.arange(T), ANSWER.tokens],
            "entropy": -(p_TV * logp_TV).sum(axis=1),
            "mass": p_TV[:, EPISTEMIC].sum(axis=1),
            "top_logp": -np.sort(-logp_TV, axis=1)[:, :3],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name)[:, n], value, atol=1e-5, err_msg=name)
        assert (found.top_ids[:, n] == np.argsort(-logp_TV, axis=1)[:, :3]).all()
    student, teacher, _ = logps
    kl = (np.exp(teacher) * (teacher - student)).sum(axis=1)
    np.testing.assert_allclose(found.kl, kl, atol=1e-5)


@pytest.mark.parametrize("layout", MESHES)
def test_a_trace_equals_logits_by_hand(layout):
    mesh = None if MESHES[layout] is None else sharding.make_mesh(MESHES[layout])
    check(score_answer(SETTINGS, networks(mesh), ANSWER, mesh))


def test_a_trace_equals_logits_by_hand_from_packed_rows():
    """Each row holds another sequence before the traced one and another after it."""

    def packed(network, prompt):
        before, after = [5, 6, 7, 8], [9, 10, 11]
        row = [*before, *prompt, *ANSWER.tokens, *after]
        read = jax.jit(
            functools.partial(
                completions.packed_completion_hidden, config=MODEL, num_positions=T + 2
            )
        )
        hidden_BTD = read(
            network,
            tokens_BS=np.array([row], np.int32),
            lengths_BA=np.array([[len(before), len(prompt) + T, len(after)]], np.int32),
            completion_lengths_BA=np.array([[1, T, 1]], np.int32),
        )
        return scoring.Hidden(hidden_BTD[:, 1:-1], network)

    student, teacher, reference = networks()
    scored = scoring.Scored(
        packed(student, ANSWER.plain),
        tuple(packed(network, ANSWER.informed) for network, _ in teacher),
        tuple(weight for _, weight in teacher),
        packed(reference, ANSWER.plain),
    )
    check(scoring.score_hidden(SETTINGS, scored, ANSWER))


@functools.partial(jax.jit, static_argnames="objective")
def full_vocabulary(objective, logits_BTV):
    """(loss, gradient of their sum in the logits) of the real objective, without chunks."""
    _, teacher, reference = (jnp.asarray(x[None], jnp.float32) for x in by_hand())

    def ones(value):
        return jnp.full((1, T), value, jnp.float32)

    rows = Rows(ones(-0.7), ones(0.0), ones(1.0), jnp.full((1, T), T), jnp.zeros((1, T), int))
    sampled = Sampled(
        jnp.array([ANSWER.tokens]), jnp.array([ANSWER.behaviour_logp]), jnp.arange(T)[None]
    )

    def positions(logits_BTV):
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        return Positions(logp_BTV, teacher, reference, None, sampled, rows)

    if objectives.needs_whole_batch(objective):
        scores = objectives.make_scores(objective, EPISTEMIC)(positions(logits_BTV))
        weight_BT = objectives.reduced(objective, np.ones((1, T), int), np.ones(1)).weight_BT
        factors = objectives.factors(objective, scores, weight_BT, rows)
        sampled = factors.added_to(sampled)

    def total(logits_BTV):
        evaluate = objectives.make_objective(objective, EPISTEMIC)
        loss_BT = evaluate(positions(logits_BTV))[0]
        return loss_BT.sum(), loss_BT

    gradient_BTV, loss_BT = jax.grad(total, has_aux=True)(logits_BTV)
    return loss_BT[0], gradient_BTV[0]


SLOW = ("sdpo", "opsd", "epi_gate", "srpo", "grpo")


# Of the whole vocabulary and of samples, with weights, an edited target, factors of the batch.
@pytest.mark.parametrize(
    "name",
    ["epi_anchor", "anti_e", *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)],
)
def test_the_push_is_the_gradient_on_the_epistemic_tokens_logits(name):
    objective = objectives.PRESETS[name]()
    settings = Settings(model=MODEL, epistemic_ids=EPISTEMIC, objective=objective, chunk=4)
    found = score_answer(settings, networks(), ANSWER)
    loss_T, gradient_TV = full_vocabulary(objective, jnp.asarray(by_hand()[0][None], jnp.float32))
    expected_T = -np.asarray(gradient_TV)[:, EPISTEMIC].sum(axis=1)
    # Sums of 64 float32 terms of up to a few nats.
    np.testing.assert_allclose(found.loss, loss_T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.push, expected_T, rtol=1e-3, atol=1e-5)
    is_clear = np.abs(expected_T) > 1e-4
    assert is_clear.any()
    assert (np.sign(found.push) == np.sign(expected_T))[is_clear].all()
    assert ((found.weight == 0) <= (np.abs(expected_T) < 1e-7)).all()


def test_a_divergence_of_the_whole_vocabulary_pushes_by_the_difference_of_the_masses():
    """For KL(T||S) the push is m_T - m_S, by hand."""
    objective = objectives.Distill(
        divergence=objectives.ForwardKL(),
        support=objectives.FullVocabulary(),
        importance_clip=None,
    )
    settings = Settings(model=MODEL, epistemic_ids=EPISTEMIC, objective=objective)
    found = score_answer(settings, networks(), ANSWER)
    np.testing.assert_allclose(found.push, found.mass[:, 1] - found.mass[:, 0], atol=1e-6)


def test_without_behaviour_log_probs_the_samples_are_the_students_own():
    settings = Settings(
        model=MODEL, epistemic_ids=EPISTEMIC, objective=objectives.epi_anchor(), chunk=4
    )
    found = score_answer(settings, networks(), ANSWER._replace(behaviour_logp=None))
    np.testing.assert_allclose(found.weight, 1.0, atol=1e-6)  # an importance ratio of 1


def test_the_chunk_program_is_compiled_once_whatever_the_length(compilations):
    lengths = []
    for length in (5, 11, 9):
        score_answer(
            SETTINGS,
            networks(),
            ANSWER._replace(tokens=ANSWER.tokens[:length], behaviour_logp=None),
        )
        lengths.append(len(compilations))
    assert lengths[1] == lengths[2] == lengths[0]


def test_an_objective_with_a_contrast_is_refused():
    with pytest.raises(UserError, match="contrast"):
        Settings(model=MODEL, epistemic_ids=EPISTEMIC, objective=objectives.rlcsd())
