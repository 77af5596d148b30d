"""Three ways of counting words of doubt."""

import importlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import epistemic
from jaxdistill.errors import UserError

# The over-counting example: seventeen substrings, six words.
SENTENCE = (
    "Wait, the checkmate is unlikely. I am awaiting the waiter in Kuwait; the mighty checker "
    "recheck, checkpoint. Hmm... Hmmm, it seems likely. Double-check. actually factually"
)
# Words, their near misses, and neighbours of every kind.
PIECES = st.sampled_from([
    *epistemic.TEN_WORDS, "Wait", "CHECK", "unlikely", "waiter", "Hmmm", " ", "\n", "\t", ".", "-",
    "_", "0", "é", "ñ", "\u0301", "ß", "İ", "ſ", "Σ", "我", "и", "\U0001f914", "\u2028", "\x00",
])  # fmt: skip
TEXTS = st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)


def test_paper_mode_counts_seventeen_substrings_where_word_mode_counts_six_words():
    paper, word = epistemic.count(SENTENCE, mode="paper"), epistemic.count(SENTENCE)
    assert (sum(paper.values()), sum(word.values())) == (17, 6)
    assert {w: (paper[w], word[w]) for w in ("wait", "check", "likely", "might", "hmm")} == {
        "wait": (4, 1),
        "check": (5, 1),
        "likely": (2, 1),
        "might": (1, 0),
        "hmm": (2, 1),
    }


def test_every_word_has_an_entry_and_case_does_not_matter():
    counts = epistemic.count("WAIT wait Wait")
    assert counts == dict.fromkeys(epistemic.TEN_WORDS, 0) | {"wait": 3}
    for mode in ("paper", "word"):
        assert epistemic.count("WAIT wait", ("Wait",), mode) == {"Wait": 2}


def test_only_letters_join_words():
    assert epistemic.count("wait2 _wait_ \nwait\n我wait", ("wait",)) == {"wait": 4}
    assert epistemic.count("éwait waitñ ḁwait waitợ", ("wait",)) == {"wait": 0}


def test_an_accent_is_one_letter_with_what_it_stands_on_however_it_is_stored():
    assert epistemic.count("e\u0301wait wait\u0301", ("wait",)) == {"wait": 0}
    assert epistemic.count("caf\u00e9 wait cafe\u0301 wait", ("wait",)) == {"wait": 2}


def test_a_word_may_hold_what_means_something_in_a_regular_expression():
    assert epistemic.count("a.b axb", ("a.b",)) == {"a.b": 1}
    assert epistemic.count("hold on, hold  on", ("hold on",)) == {"hold on": 1}


@given(TEXTS)
def test_paper_mode_is_the_papers_line_of_code(text):
    expected = {word: text.lower().count(word) for word in epistemic.TEN_WORDS}
    assert epistemic.count(text, mode="paper") == expected


@given(TEXTS)
def test_no_word_is_counted_that_is_no_substring(text):
    paper, word = epistemic.count(text, mode="paper"), epistemic.count(text, mode="word")
    assert all(word[w] <= paper[w] for w in epistemic.TEN_WORDS)


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["\n", " ", ". ", "\n\n---\n\n"]))
def test_counts_of_texts_between_separators_add_up(texts, separator):
    for mode in ("paper", "word"):
        whole = epistemic.count(separator.join(texts), mode=mode)
        parts = [epistemic.count(text, mode=mode) for text in texts]
        assert whole == {w: sum(part[w] for part in parts) for w in epistemic.TEN_WORDS}


def test_an_unknown_mode_is_named():
    with pytest.raises(UserError, match="'token'"):
        epistemic.count("", mode="token")


def test_the_tiers_divide_the_ten_words_and_stand_for_their_lists():
    assert sorted(epistemic.CORE + epistemic.HEDGE) == sorted(epistemic.TEN_WORDS)
    assert epistemic.expand(["core"]) == epistemic.CORE
    assert epistemic.expand(["core", "hedge", "Wait", " so "]) == (
        *epistemic.CORE, *epistemic.HEDGE, "so",
    )  # fmt: skip
    assert epistemic.expand(["ten"]) == epistemic.TEN_WORDS


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), min_size=1))
def test_sequences_are_found_as_a_loop_finds_them(ids, sequence):
    found = place = 0
    while place <= len(ids) - len(sequence):
        hit = ids[place : place + len(sequence)] == sequence
        found += hit
        place += len(sequence) if hit else 1
    offset = 151_000  # ids as large as real ones, surrogates' code points among the small
    for shift in (0, 0xD7FF, offset):
        moved = [[i + shift for i in each] for each in (ids, sequence)]
        assert epistemic.count_sequences(moved[0], [moved[1]]) == found


def test_counting_needs_no_jax():
    name = importlib.import_module("jaxdistill.epistemic").__name__
    code = f"import sys, {name}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
