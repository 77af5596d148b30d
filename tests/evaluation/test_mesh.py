"""An evaluation on a mesh of eight devices gives the records of one device."""

import dataclasses

import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.evaluation.batches import questions_at_a_time
from jaxdistill.evaluation.evaluate import Evaluation, Split, named_split, sample_questions
from jaxdistill.sampling import Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sharding import make_mesh
from jaxdistill.storage.loading import open_model
from jaxdistill.tasks.tasks import ToyTask, questions_of

# The greedy choice of two logits this close may differ with the order of a sum in float32.
LEAST_GAP = 1e-4
SPLIT = named_split("toy:ood", 12)
GREEDY = Evaluation(
    splits=(SPLIT,),
    samples=1,
    sampling=Sampling(temperature=0.0, max_new_tokens=96),
    questions_per_batch=5,
)


def records_on(mesh, config=GREEDY):
    policy = open_model("toy:main", make_mesh(mesh))
    engine = Engine(policy, mesh=make_mesh(mesh), dtype="float32")
    questions = questions_of(SPLIT.task)
    drawn = sample_questions(engine, policy.params, SPLIT, questions, config, token_ids=True)
    return [record for records in drawn for record in records]


def least_gap(model, record):
    """The smallest difference of the two largest logits at any token of a response."""
    prompt, tokens = record["prompt_ids"], record["token_ids"]
    ids = [*prompt, *tokens]
    # Padded to one length, so that one shape is compiled.
    row = np.zeros((1, 160), np.int64)
    mask = np.zeros_like(row)
    row[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    logits_TV = np.asarray(model.logits(row, mask, dtype="float32"))[0, len(prompt) - 1 :]
    largest = np.sort(logits_TV[: len(tokens)], axis=-1)
    assert (logits_TV[: len(tokens)].argmax(-1) == tokens).mean() > 0.9
    return (largest[:, -1] - largest[:, -2]).min()


@pytest.mark.slow  # a minute: the sampler is compiled for eight devices
def test_eight_devices_give_the_tokens_of_one_wherever_no_choice_is_close():
    one, eight = records_on("fsdp=1"), records_on("data=2,fsdp=2,tensor=2")
    model = jd.load("toy:main", mesh="fsdp=1")
    clear = [least_gap(model, record) >= LEAST_GAP for record in one]
    assert sum(clear) >= len(one) - 1
    for first, second, is_clear in zip(one, eight, clear, strict=True):
        assert first == second or not is_clear


def test_a_batch_has_the_questions_whose_caches_fit_into_a_quarter_of_the_memory(monkeypatch):
    policy = open_model("toy:main", make_mesh("fsdp=1"))
    engine = Engine(policy, dtype="float32")
    sampling = dataclasses.replace(GREEDY.sampling, temperature=1.0)
    splits = (Split("x", ToyTask()),)
    config = dataclasses.replace(GREEDY, samples=4, sampling=sampling, splits=splits)
    lengths = [10] * 1000
    assert questions_at_a_time(engine, lengths, config, 128) == 128
    assert questions_at_a_time(engine, lengths[:7], config, 128) == 7
    c = policy.config
    row = (16 + 96) * 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 4 * row * 4 * 20 + 5}  # of 20 questions
    monkeypatch.setattr("os.sysconf", memory.__getitem__)
    assert questions_at_a_time(engine, lengths, config, 128) == 20
    memory["SC_PHYS_PAGES"] = 10  # too small for one: it is tried all the same
    assert questions_at_a_time(engine, lengths, config, 128) == 1
