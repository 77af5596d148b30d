"""Data order: whole epochs, a new shuffle for each, and exact resumption."""

import dataclasses
import json

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks import pipelines
from jaxdistill.tasks.questions import Question

QUESTIONS = [Question(str(n), f"{n}+1?", str(n + 1)) for n in range(10)]
EXAMPLES = [([n], [n, n]) for n in range(10)]


def _take(batches, count):
    return [next(batches) for _ in range(count)]


def test_every_epoch_visits_every_question_once_in_an_order_of_its_own():
    # The third batch of 4 out of 10 questions spans the first two epochs.
    batches = _take(pipelines.questions_iterator(QUESTIONS, seed=5, batch_size=4), 15)
    assert all(len(batch) == 4 for batch in batches)
    flat = [question for batch in batches for question in batch]
    epochs = [flat[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch, key=lambda q: int(q.id)) == QUESTIONS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = _take(pipelines.questions_iterator(QUESTIONS[:2], seed=0, batch_size=6), 1)
    assert sorted(question.id for question in batch) == ["0"] * 3 + ["1"] * 3


@pytest.mark.parametrize("num_records", [1, 2, 3, 7, 10, 64, 512, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_any_number_of_records_goes_into_batches_of_any_size(num_records, batch_size):
    questions = [Question(str(n), f"{n}+1?", "1") for n in range(num_records)]
    batches = pipelines.questions_iterator(questions, seed=0, batch_size=batch_size)
    count = 2 * num_records // batch_size + 1
    flat = [question for batch in _take(batches, count) for question in batch]
    assert {question.id for question in flat[:num_records]} == {str(n) for n in range(num_records)}
    batches.set_state({**batches.get_state(), "next_batch": count - 1})
    assert next(batches) == flat[(count - 1) * batch_size :]


def test_the_seed_alone_sets_the_order():
    def orders(seed):
        return _take(pipelines.questions_iterator(QUESTIONS, seed, batch_size=10), 4)

    assert orders(1) == orders(1)
    # No epoch of seed 0 has the order of any epoch of seed 1.
    assert not any(order in orders(1) for order in orders(0))


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 7])
def test_a_resumed_iterator_goes_on_with_the_very_next_batch(taken):
    whole = pipelines.questions_iterator(QUESTIONS, seed=3, batch_size=4)
    _take(whole, taken)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = pipelines.questions_iterator(QUESTIONS, seed=3, batch_size=4)
    _take(resumed, 2)  # earlier batches of the resumed iterator must not matter
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert _take(resumed, 5) == _take(whole, 5)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (pipelines.questions_iterator(QUESTIONS, seed=4, batch_size=4), "seed"),
        (pipelines.questions_iterator(QUESTIONS, seed=3, batch_size=5), "batch_size"),
        (pipelines.questions_iterator(QUESTIONS[:9], seed=3, batch_size=4), "num_records"),
    ],
)
def test_a_state_of_another_order_is_refused(other, named):
    batches = pipelines.questions_iterator(QUESTIONS, seed=3, batch_size=4)
    with pytest.raises(UserError, match=named):
        batches.set_state(other.get_state())


@pytest.mark.parametrize(
    "changed",
    [
        QUESTIONS[::-1],
        [*QUESTIONS[1:], QUESTIONS[0]],
        [dataclasses.replace(QUESTIONS[0], prompt="7+1?"), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], answer="7"), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], id="x"), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], system="Be brief."), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], solution="One."), *QUESTIONS[1:]],
    ],
)
def test_other_data_behind_the_same_name_are_refused_in_one_line(changed):
    state = pipelines.questions_iterator(QUESTIONS, seed=3, batch_size=4).get_state()
    batches = pipelines.questions_iterator(changed, seed=3, batch_size=4)
    with pytest.raises(UserError, match="the data behind the same name has changed") as caught:
        batches.set_state(json.loads(json.dumps(state)))
    assert "\n" not in str(caught.value)
    assert batches.get_state()["next_batch"] == 0
    pipelines.questions_iterator(list(QUESTIONS), seed=3, batch_size=4).set_state(state)


def test_no_data_and_no_batch_size_are_refused():
    with pytest.raises(UserError, match="empty"):
        pipelines.questions_iterator([], seed=0, batch_size=4)
    with pytest.raises(UserError, match="batch_size"):
        pipelines.questions_iterator(QUESTIONS, seed=0, batch_size=0)


@pytest.mark.long
def test_worker_processes_change_neither_the_batches_nor_the_resume():
    alone = pipelines.example_iterator(EXAMPLES, seed=3, batch_size=4)
    workers = pipelines.example_iterator(EXAMPLES, seed=3, batch_size=4, num_workers=2)
    expected = _take(alone, 8)
    try:
        workers.set_state({**workers.get_state(), "next_batch": 1})
        assert _take(workers, 4) == expected[1:5]
        assert workers.get_state()["next_batch"] == 5  # prefetched batches do not count
        alone.set_state(workers.get_state())
        assert _take(alone, 3) == expected[5:]
    finally:
        workers.close()
