"""Ids chosen from data: the ranking against a loop, and the control's frequencies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import epistemic
from jaxdistill.errors import UserError

# Quarters of a nat: sums of them are exact, so ties are true ties.
QUARTERS = st.integers(-40, 0).map(lambda n: n / 4)
PLACES = st.lists(st.tuples(st.integers(0, 6), QUARTERS, QUARTERS), max_size=60)


def stats_of(places, size=7):
    tokens, reference, teacher = zip(*places) if places else ((), (), ())
    return epistemic.tally(
        np.array(tokens, np.int64), np.array(reference, float), np.array(teacher, float), size
    )


def ranked_by_a_loop(places, min_count, banned):
    gaps = {}
    for token, reference, teacher in places:
        gaps.setdefault(token, []).append(reference - teacher)
    kept = {t: g for t, g in gaps.items() if len(g) >= min_count and t not in banned}
    mean = {token: sum(each) / len(each) for token, each in kept.items()}
    ids = [token for token in kept if mean[token] > 0]
    return sorted(ids, key=lambda token: (-round(mean[token], 9), -len(kept[token]), token))


@given(PLACES, st.integers(1, 5), st.sets(st.integers(0, 6), max_size=2))
def test_the_ranking_is_that_of_a_loop(places, min_count, banned):
    expected = ranked_by_a_loop(places, min_count, banned)
    assert epistemic.rank_ids(stats_of(places), min_count, banned) == expected


@given(PLACES, st.randoms())
def test_the_order_of_the_places_changes_nothing(places, random):
    shuffled = [(t, r / 3, q / 3) for t, r, q in places]  # thirds: their sums do round
    before = epistemic.rank_ids(stats_of(shuffled), 2)
    random.shuffle(shuffled)
    assert epistemic.rank_ids(stats_of(shuffled), 2) == before


def test_equal_means_go_by_count_and_then_by_id():
    places = [(5, -1, -3), (2, -1, -3), (4, -1, -3), (4, 0, -2), (1, 0, -1)]
    assert epistemic.rank_ids(stats_of(places), 1) == [4, 2, 5, 1]


def test_a_teacher_that_knows_nothing_more_proposes_nothing(word_level):
    tokenizer = word_level(["a", "b"])
    lexicon = epistemic.propose(tokenizer, stats_of([(1, -1, -1), (2, -2, -2)], 3), 5, 1)
    assert (lexicon.ids, lexicon.words) == ((), ())


def test_a_proposal_is_a_lexicon_of_the_best_ids_without_special_ones(word_level):
    tokenizer = word_level(["So", "+", "Hold", "then"])
    places = [(0, 0, -9), (3, 0, -5), (2, 0, -4), (1, 0, -3), (4, 0, 0)] * 2
    lexicon = epistemic.propose(tokenizer, stats_of(places, 5), 3, min_count=2)
    assert lexicon.ids == (3, 2, 1)
    assert lexicon.words == ("hold", "so")  # + is no word
    assert lexicon.tokenizer_hash == epistemic.hash_tokenizer(tokenizer)
    assert lexicon.made.startswith("proposal: top 3 ")
    assert epistemic.propose(tokenizer, stats_of(places, 5), 3, min_count=3).ids == ()


# ------------------------------------------------------------------------------------ control

COUNTS = st.lists(st.integers(0, 50), min_size=12, max_size=40)


@given(COUNTS, st.integers(0, 5), st.integers(0, 9), st.sampled_from([0.0, 0.1, 0.5]))
def test_every_match_is_free_distinct_and_as_near_as_the_tolerance_or_the_nearest(
    counts, num_ids, seed, tolerance
):
    count_V = np.array(counts)
    is_free_V = np.arange(len(counts)) % 3 > 0
    ids = list(range(num_ids))
    matched = epistemic.match_ids(ids, count_V, is_free_V, seed, tolerance)
    assert len(set(matched)) == len(ids)
    assert not set(matched) & set(ids)
    free = {int(i) for i in np.flatnonzero(is_free_V)} - set(ids)
    for i, match in sorted(zip(ids, matched), key=lambda pair: (-counts[pair[0]], pair[0])):
        nearest = min(abs(counts[other] - counts[i]) for other in free)
        assert match in free
        assert abs(counts[match] - counts[i]) <= max(nearest, tolerance * counts[i])
        free.remove(match)


@pytest.mark.slow
def test_the_control_of_qwen3s_lexicon_has_its_total_frequency_within_a_tenth(qwen, qwen_lexicon):
    """A million tokens with the frequencies of language (Zipf); the default tolerance is used."""
    lexicon, size = qwen_lexicon, epistemic.vocab_size(qwen)
    rng = np.random.default_rng(0)
    chance_V = 1 / (1 + rng.permutation(size))
    # Words of doubt are as frequent as in a trace: one token in a hundred.
    chance_V[list(lexicon.ids)] = rng.dirichlet(np.ones(42)) * 0.01 * chance_V.sum()
    count_V = rng.multinomial(1_000_000, chance_V / chance_V.sum())
    controls = [epistemic.matched_control(qwen, lexicon, count_V, seed) for seed in (0, 0, 1)]
    total = count_V[list(lexicon.ids)].sum()
    for control in controls:
        assert len(control.ids) == 42
        assert abs(count_V[list(control.ids)].sum() - total) <= 0.1 * total
        assert not set(control.ids) & (set(lexicon.ids) | epistemic.special_ids(qwen))
        says = {epistemic.word_of_id(qwen, i).strip("(._\t") for i in control.ids}
        assert not says & set(epistemic.TEN_WORDS)
    assert controls[0] == controls[1]
    assert controls[0].ids != controls[2].ids


def test_a_vocabulary_without_enough_others_is_refused(word_level):
    tokenizer = word_level(["wait", "hmm", "go"])
    lexicon = epistemic.build_lexicon(tokenizer)
    with pytest.raises(UserError, match="needs 2 other tokens, but this vocabulary has only 1"):
        epistemic.matched_control(tokenizer, lexicon, np.array([0, 3, 4, 5]), 0)
