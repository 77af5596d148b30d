"""Scoring with and without a solution: siblings, and sums compared with single rows."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdistill import epistemic, sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation import lexicon_proposals, pair_scoring
from jaxdistill.evaluation.responses import Response
from jaxdistill.models import decoder, parameters
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks import contexts
from jaxdistill.tasks.tasks import ToyTask, probe_prefixes

pytestmark = pytest.mark.long


def response(text, question, correct):
    return Response(text, "a.jsonl", "a.jsonl:1", question, None, correct, None, None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return loading.load(loading.ToyBase("main"), 0, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def responses():
    """Traces of held-out problems with words of doubt, each with its concise solution."""
    found = []
    for question, text in probe_prefixes(ToyTask(pool="heldout", count=24), seed=3):
        found.append(response(text, question.prompt, False))
        found.append(response(question.solution, question.prompt, True))
    return found


def test_a_response_is_shown_a_correct_sibling_and_never_itself():
    group = [response(text, "p", correct) for text, correct in
             (("a", True), ("b", False), ("c", True), ("d", None))]  # fmt: skip
    others = [response("e", "q", True), response("f", "r", False), response("g", "r", False)]
    drawn = lexicon_proposals.with_siblings([*group, *others], seed=0)
    pairs = [(each.text, shown) for each, shown in drawn]
    assert [text for text, _ in pairs] == ["a", "b", "c", "d"]  # e, f and g have no sibling
    shown = dict(pairs)
    assert (shown["a"], shown["c"]) == ("c", "a")
    assert {shown["b"], shown["d"]} <= {"a", "c"}
    alone = [(each.text, text) for each, text in lexicon_proposals.with_siblings(group, seed=0)]
    assert alone == pairs  # a question's draw does not depend on the others
    draws = [lexicon_proposals.with_siblings(group, seed=seed) for seed in range(20)]
    drawn = {tuple(text for _, text in draw) for draw in draws}
    assert len(drawn) > 1


def test_the_sums_are_those_of_every_row_run_alone(base, responses):
    """The reference uses no batches, no left padding, and log-softmax over the vocabulary."""
    responses = responses[:16]  # single rows are slow
    stats, num_rows = lexicon_proposals.score_pmi(base, responses, seed=5)
    expected = np.zeros_like(stats.surprise_V)
    run = jax.jit(decoder.hidden_states, static_argnums=1)
    pairs = list(lexicon_proposals.with_siblings(responses, seed=5))
    for each, sibling in pairs:
        (ids,) = tokenizers.encode(base.tokenizer, [each.text])
        turns = [each.question, contexts.render(contexts.Solution(), each.question, sibling, "")]
        for sign, turn in zip((1, -1), turns):
            chat = [[{"role": "user", "content": turn}]]
            (prompt,) = tokenizers.prompt_ids(base.tokenizer, chat)
            row = tokenizers.right_pad([[*prompt, *ids]], 0, 256)  # one shape, one compilation
            logits_SV = run(base.params, base.config, *row)[0] @ parameters.head(
                base.params, base.config
            )
            logp_SV = np.asarray(jax.nn.log_softmax(logits_SV), np.float64)
            for t, i in enumerate(ids):
                expected[i] += sign * logp_SV[len(prompt) + t - 1, i]
    assert num_rows == len(pairs) == 8  # the solutions' only siblings are wrong
    # float32 log-probs of up to 20 nats, some hundred per token, summed in another order
    np.testing.assert_allclose(stats.surprise_V, expected, rtol=1e-4, atol=2e-2)
    ids = tokenizers.encode(base.tokenizer, [each.text for each, _ in pairs])
    counts = np.bincount(np.concatenate(ids), minlength=len(stats.count_V))
    np.testing.assert_array_equal(stats.count_V, counts)


def test_the_toy_bases_own_words_of_doubt_are_proposed_without_a_word_list(base, responses):
    stats, _ = lexicon_proposals.score_pmi(base, responses, seed=0)
    lexicon = epistemic.propose(base.tokenizer, stats, 8, min_count=3)
    assert len(lexicon.ids) == 8
    assert len(set(lexicon.words) & set(epistemic.TEN_WORDS)) >= 7


def test_batches_change_nothing(base, responses, monkeypatch):
    whole, _ = lexicon_proposals.score_pmi(base, responses[:16])
    monkeypatch.setattr(pair_scoring, "TOKENS_PER_BATCH", 1000)
    cut, _ = lexicon_proposals.score_pmi(base, responses[:16])
    np.testing.assert_array_equal(whole.count_V, cut.count_V)
    # rounding of float32 log-probs, summed over some hundred samples
    np.testing.assert_allclose(whole.surprise_V, cut.surprise_V, rtol=1e-4, atol=1e-2)


def test_all_devices_score_what_one_does(base, responses):
    """Seven rows do not split over eight devices."""
    alone, num_alone = lexicon_proposals.score_pmi(base, responses[:15])
    mesh = sharding.make_mesh(sharding.MeshConfig())
    params = jax.device_put(base.params, sharding.shardings_of(mesh, base.params))
    spread = base._replace(params=params)
    stats, number = lexicon_proposals.score_pmi(spread, responses[:15], mesh=mesh)
    assert number == num_alone
    assert number % 8
    np.testing.assert_array_equal(stats.count_V, alone.count_V)
    np.testing.assert_allclose(stats.surprise_V, alone.surprise_V, atol=1e-4)


def test_responses_that_cannot_be_scored_are_refused(base, responses):
    with pytest.raises(UserError, match="no response has a correct sibling"):
        lexicon_proposals.score_pmi(base, [each for each in responses if not each.correct])
    nameless = responses[0]._replace(question=None)
    with pytest.raises(UserError, match=r"a\.jsonl:1: no text in `question`"):
        lexicon_proposals.score_pmi(base, [nameless])


def test_a_records_system_turn_stands_in_both_prompts(base, responses):
    backend = base.tokenizer.backend_tokenizer
    tokenizer = base.tokenizer.__class__(tokenizer_object=backend)
    tokenizer.chat_template = "{{ messages[0].content if messages[0].role == 'system' }}"
    policy_ = base._replace(tokenizer=tokenizer)
    asked = [each._replace(system="wait 7") for each in responses]
    for row in lexicon_proposals.rows_of(policy_, asked, 0, None):
        assert row.plain == row.informed == tokenizers.encode(tokenizer, ["wait 7"])[0]


def test_a_solution_is_cut_to_the_models_positions_and_a_row_without_space_is_not_scored(
    base, responses
):
    """A response may fill the model's positions; with a blank solution both scores would agree."""
    whole = lexicon_proposals.rows_of(base, responses, 5, None)
    longest = max(len(row.informed) + len(row.response) for row in whole)

    def within(size):
        narrow = base._replace(config=dataclasses.replace(base.config, max_positions=size))
        return lexicon_proposals.rows_of(narrow, responses, 5, None)

    assert within(longest + lexicon_proposals.TEMPLATE_TOKENS) == whole
    cut = within(longest)
    assert all(len(row.informed) + len(row.response) <= longest for row in cut)
    assert any(len(short.informed) < len(row.informed) for short, row in zip(cut, whole))
    nothing = {len(row.plain) for row in whole}
    few = within(lexicon_proposals.TEMPLATE_TOKENS + 40)
    assert 0 < len(few) < len(whole)
    assert all(len(row.informed) > max(nothing) for row in few)
    with pytest.raises(UserError, match="no response fits into the model's 70 positions"):
        within(70)
