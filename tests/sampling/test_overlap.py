"""Texts and verdicts made while other rows are still decoded: the same, and in the same order."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.sampling import Address, Sampling, engine, overlap, shrinking
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.overlap import Answers, sample_in_steps
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.tasks import ToyTask, questions_of

QUESTIONS = questions_of(ToyTask(count=4))
SAMPLING = Sampling(max_new_tokens=24)
ADDRESS = Address(seed=0, purpose="train")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    # Of two layers, whose responses end at many different steps.
    model = Fresh(dataclasses.replace(ARCHITECTURE, num_layers=2))
    return loading.load(model, 0, tmp_path_factory.mktemp("model"))


@pytest.fixture
def every_four_steps(monkeypatch):
    monkeypatch.setattr(engine, "steps_between_texts", lambda max_new_tokens: 4)


def grade(questions, responses):
    return [Verdict(len(r) % 2 == 0, q.id, r) for q, r in zip(questions, responses, strict=True)]


class Grader:
    """Keeps what it was given, call by call; verdicts wait until they are asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, questions, responses):
        self.calls.append(list(responses))
        return lambda: grade(questions, responses)


def rollouts_of(policy, weights: Any = "auto", **options):
    return Engine(policy, weights_dtype=weights, grade_while_decoding=True).rollouts(
        policy.params, QUESTIONS, SAMPLING, 4, ADDRESS, grade=grade, **options
    )


@pytest.mark.long
@pytest.mark.usefixtures("every_four_steps")
@pytest.mark.parametrize(
    ("slots", "pages", "counts", "weights"),
    [
        (None, None, 1, "auto"),
        (5, None, 1, "int8"),
        pytest.param(None, None, 4, "auto", marks=pytest.mark.slow),
        (None, 16, 4, "int8"),
    ],
)
def test_what_ends_first_is_graded_first_and_nothing_else_changes(
    policy, slots, pages, counts, weights, monkeypatch
):
    """Also if the rows that are left go on in fewer slots, and each program rounds the weights."""
    monkeypatch.setattr(Engine, "fit_slots", lambda *_: (16, pages))
    monkeypatch.setattr(shrinking, "_LEAST_SLOTS", 2)  # 16 slots become 8, 4 and 2
    policy = policy._replace(stop_ids=tuple(range(25)))  # a sixth of the vocabulary
    expected, submit = rollouts_of(policy, weights, slots=slots), Grader()
    found = rollouts_of(policy, weights, slots=slots, submit=submit, most_slot_counts=counts)
    for name in (field.name for field in dataclasses.fields(found)):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if name == "logp_BT" and counts > 1:  # products of fewer rows may round differently
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert len(submit.calls) > 1, "some rows ended before others"
    assert sorted(itertools.chain(*submit.calls)) == sorted(expected.responses)


@pytest.mark.slow
@pytest.mark.usefixtures("every_four_steps")
@pytest.mark.parametrize(
    ("counts", "pages", "weights"), [(1, None, "auto"), (4, None, "auto"), (4, 16, "int8")]
)
def test_eight_devices_grade_on_the_way_too_and_update_their_caches_in_place(
    policy, counts, pages, weights, monkeypatch
):
    """JAX warns, and a warning fails, where a donated cache has to be copied."""
    monkeypatch.setattr(Engine, "fit_slots", lambda *_: (16, pages))
    monkeypatch.setattr(shrinking, "_LEAST_SLOTS", 1)  # per part of the rows
    policy = policy._replace(stop_ids=tuple(range(25)))
    expected = rollouts_of(policy, weights)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(policy.params, sharding.shardings_of(mesh, policy.params))
    engine = Engine(policy, mesh=mesh, weights_dtype=weights, grade_while_decoding=True)
    found = engine.rollouts(
        params, QUESTIONS, SAMPLING, 4, ADDRESS, submit=Grader(), most_slot_counts=counts
    )
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    assert found.responses == expected.responses
    assert found.verdicts == expected.verdicts


class Told:
    """An array that tells when the host reads it."""

    def __init__(self, array, tell):
        self.array, self.tell = array, tell

    def __array__(self, *_, **__):
        self.tell()
        return np.asarray(self.array)


def test_the_next_steps_are_queued_before_the_host_reads_what_the_last_ones_drew(policy):
    """Otherwise the device would wait for the host between any two programs."""
    sampler = Engine(policy).sampler(SAMPLING, 4, in_steps=4)
    events, waits = [], []

    def advance(params, rows, state):
        number = sum(kind == "queued" for kind, _ in events)
        events.append(("queued", number))
        state, now = sampler.advance(params, rows, state)
        told = Told(now.ended_B, lambda: events.append(("read", number)))
        return state, now._replace(ended_B=told)

    def submit(questions, responses):
        return lambda: waits.append(responses) or grade(questions, responses)

    ids_QP = np.tile(np.arange(1, 6, dtype=np.int32), (4, 1))
    keys_B2 = np.arange(32, dtype=np.uint32).reshape(16, 2)
    answers = Answers(policy.tokenizer, QUESTIONS, 4, submit)
    arguments = policy.params, ids_QP, np.ones_like(ids_QP), keys_B2
    sample_in_steps(sampler._replace(advance=advance), arguments, 16, answers)
    reads = [number for kind, number in events if kind == "read"]
    assert len(reads) > 1
    for number in reads:
        assert events.index(("queued", number + 1)) < events.index(("read", number))
    assert not waits, "no verdict is waited for while rows are decoded"


@pytest.mark.long
@pytest.mark.usefixtures("every_four_steps")
def test_what_the_grader_raises_is_raised_and_the_next_call_works(policy):
    def fail(questions, responses):
        def wait():
            raise UserError("the grader cannot run: no module")

        return wait

    with pytest.raises(UserError, match="the grader cannot run: no module"):
        rollouts_of(policy, submit=fail)
    assert rollouts_of(policy, submit=Grader()).verdicts == rollouts_of(policy).verdicts


def test_only_long_responses_on_an_accelerator_are_cut_into_steps(monkeypatch):
    assert overlap.steps_between_texts(20_000) == 0  # a CPU
    monkeypatch.setattr(overlap, "platform", lambda: "gpu")
    assert [overlap.steps_between_texts(n) for n in (512, 513)] == [0, overlap.STEPS]
    monkeypatch.setattr(overlap.hosts, "count", lambda: 2)
    assert overlap.steps_between_texts(20_000) == 0
