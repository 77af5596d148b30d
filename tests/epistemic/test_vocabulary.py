"""Which vocabulary entries the ids leave out, and which other words they spell."""

from collections import Counter

import pytest

from jaxdistill import epistemic

# Entries of the real vocabulary that contain the word, members and others.
CONTAINING = {"wait": 46, "check": 91, "might": 7, "likely": 6, "maybe": 5, "perhaps": 4,
              "actually": 4, "hmm": 3, "alternatively": 3, "seems": 2}  # fmt: skip


@pytest.fixture(scope="module")
def found(qwen, qwen_lexicon):
    return qwen_lexicon, epistemic.examine(qwen, qwen_lexicon)


def test_qwen3_entries_that_contain_a_word_are_members_or_near(qwen, found):
    lexicon, report = found
    members = Counter(epistemic.word_of_id(qwen, i) for i in lexicon.ids)
    near = Counter(each.word for each in report.near)
    assert {word: members[word] + near[word] for word in lexicon.words} == CONTAINING
    assert not {each.id for each in report.near} & set(lexicon.ids)
    tokens = {each.token for each in report.near}
    assert {" unlikely", " awaiting", " mighty", "checked", "(wait", ".check"} <= tokens


def test_an_over_inclusive_qwen3_id_is_a_piece_of_the_words_it_is_said_to_be_in(qwen, found):
    lexicon, report = found
    for each in report.over_inclusive:
        assert each.id in lexicon.ids
        assert each.token == qwen.decode([each.id])
        for word in each.inside:
            assert each.id in {*qwen.encode(word), *qwen.encode(" " + word)}
            assert word.lower() not in lexicon.words
    inside = {each.token: each.inside for each in report.over_inclusive}
    assert inside["likely"] == ("Unlikely",)  # the opposite
    assert "Waiter" in inside[" Wait"]
    assert "Kuwait" in inside["wait"]
    # "unlikely" and " mighty" are entries of their own, so these members spell no other word.
    assert not {" likely", " might", " maybe", " perhaps", " hmm"} & inside.keys()


def test_whole_words_are_neither_near_nor_over_inclusive(word_level):
    tokenizer = word_level(["wait", "waiter", "go"])
    report = epistemic.examine(tokenizer, epistemic.build_lexicon(tokenizer))
    assert [(each.word, each.token) for each in report.near] == [("wait", "waiter")]
    assert report.over_inclusive == ()


def test_special_tokens_are_known(qwen, qwen_lexicon, word_level):
    special = epistemic.special_ids(qwen)
    assert {151643, 151645, 151668} <= special  # <|endoftext|>, <|im_end|>, </think>
    assert not special & set(qwen_lexicon.ids)
    assert epistemic.special_ids(word_level(["go"])) == {0}
