"""The probe: the positions of forks, and the model's probability masses there."""

import itertools

import jax
import numpy as np
import pytest

from jaxdistill import epistemic
from jaxdistill.evaluation import toy_probe
from jaxdistill.models import decoder, parameters
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks import contexts
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask, probe_prefixes

QUESTION = Question("q", "20 15 1 -> 34", "20 + 15 - 1")
HIT = "20 + 15 = 35 - 1 = 34"
MISS = "20 - 15 = 5 + 1 = 6"
TASK = ToyTask(pool="heldout", count=4)


@pytest.mark.parametrize(
    ("text", "forks"),
    [
        (f"{HIT} </think> answer", [("start", "20"), ("match", "</think>")]),
        (f"maybe {HIT} </think> answer", [("start", "maybe"), ("match", "</think>")]),
        # no fork after a double check that reaches the target again: checks are not checked
        (f"{HIT} check {HIT} </think> x", [("start", "20"), ("match", "check")]),
        # but a double check that finds a slip is a miss
        (f"{MISS[:-1]}34 check {MISS} hmm {HIT} </think> x",
         [("start", "20"), ("match", "check"), ("miss", "hmm"), ("match", "</think>")]),
        (f"{MISS} wait maybe {MISS} then {HIT} </think> x",
         [("start", "20"), ("miss", "wait"), ("miss", "then"), ("match", "</think>")]),
        (f"{MISS} </think> answer 1 = 34 then", [("start", "20"), ("miss", "</think>")]),
        # an intermediate value equal to the target does not end a try
        ("34 + 0 = 34 + 1 = 35 then 1 </think>", [("start", "34"), ("miss", "then"),
                                                  ("miss", "</think>")]),
    ],
)  # fmt: skip
def test_forks_are_the_start_and_what_follows_each_try(text, forks):
    words = text.split()
    assert [(place, words[i]) for place, i in toy_probe.forks(QUESTION, words)] == forks


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return loading.load(loading.ToyBase("main"), 0, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def table(base):
    return {
        (row["context"], row["place"]): row
        for row in toy_probe.probe(base, base.params, TASK, seed=7)
    }


def test_there_is_a_row_for_every_context_and_place(table):
    names = {type(context).__name__ for context in toy_probe.CONTEXTS}
    assert set(table) == set(itertools.product(names, ("start", "miss", "match")))
    for row in table.values():
        assert 0 < row["epistemic"] + row["answer"] + row["then"] + row["check"] <= 1 + 1e-6


@pytest.fixture(scope="module")
def run():
    return jax.jit(decoder.hidden_states, static_argnums=1)


@pytest.mark.parametrize("context", [contexts.NoContext(), contexts.Solution()])
def test_the_masses_are_those_of_each_trace_run_alone(base, table, run, context):
    """The reference runs every question by itself, with padding on the right."""
    groups = {
        "epistemic": {*epistemic.TEN_WORDS} - {"check"},
        "answer": {"</think>"},
        "then": {"then"},
        "check": {"check"},
    }
    sums: dict[str, list[dict[str, float]]] = {"start": [], "miss": [], "match": []}
    for question, text in probe_prefixes(TASK, seed=7):
        turn = contexts.render(context, question.prompt, question.solution, question.answer)
        chat = [[{"role": "user", "content": turn}]]
        (prompt,) = tokenizers.prompt_ids(base.tokenizer, chat)
        (response,) = tokenizers.encode(base.tokenizer, [text])
        row = tokenizers.right_pad([[*prompt, *response]], 0, 256)  # one length, one compilation
        hidden_BSD = run(base.params, base.config, *row)
        chances_SV = jax.nn.softmax(hidden_BSD[0] @ parameters.head(base.params, base.config))
        for place, index in toy_probe.forks(question, text.split()):
            chances = np.asarray(chances_SV[len(prompt) + index - 1])
            ids = {name: base.tokenizer.convert_tokens_to_ids([*g]) for name, g in groups.items()}
            sums[place].append({name: chances[ids[name]].sum() for name in groups})
    for place, masses in sums.items():
        row = table[type(context).__name__, place]
        assert row["n"] == len(masses) > 0
        for name in groups:
            # float32 logits of 10 to 20, summed in another order: a relative 1e-4
            mean = np.mean([mass[name] for mass in masses])
            assert row[name] == pytest.approx(mean, rel=1e-3, abs=1e-7)
