"""The lexicon on Qwen3's real tokenizer and on one word per id; the two ways of counting words."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdistill import epistemic
from jaxdistill.errors import UserError

# The over-counting example: seventeen substrings, six words.
SENTENCE = (
    "Wait, the checkmate is unlikely. I am awaiting the waiter in Kuwait; the mighty checker "
    "recheck, checkpoint. Hmm... Hmmm, it seems likely. Double-check. actually factually"
)


@pytest.fixture(scope="module")
def qwen():
    above = Path(__file__).resolve().parents
    folders = [folder / "shared" / "data" / "qwen3_tokenizer" for folder in above]
    folder = next((each for each in folders if each.exists()), None)
    if folder is None:
        pytest.skip("no shared/data/qwen3_tokenizer at or above the repository")
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def word_level(vocabulary):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    ids = {word: i for i, word in enumerate(["<unk>", *vocabulary])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


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


def test_only_letters_join_words():
    assert epistemic.count("wait2 _wait_ \nwait\n我wait", ("wait",)) == {"wait": 4}
    assert epistemic.count("éwait waitñ", ("wait",)) == {"wait": 0}


def test_an_unknown_mode_is_named():
    with pytest.raises(UserError, match="'token'"):
        epistemic.count("", mode="token")  # pyright: ignore[reportArgumentType]


def test_the_tiers_divide_the_ten_words():
    assert sorted(epistemic.CORE + epistemic.HEDGE) == sorted(epistemic.TEN_WORDS)


def test_qwen3_ids_are_all_and_only_the_tokens_that_decode_to_a_word(qwen):
    lexicon = epistemic.build_lexicon(qwen)
    by_scanning_the_vocabulary = set()
    for token, i in qwen.get_vocab().items():
        if any(word in token.lower() for word in epistemic.TEN_WORDS):
            text = qwen.decode([i])
            text = text[1:] if text[0] in " .,(\t" else text
            if text.lower() in epistemic.TEN_WORDS:
                by_scanning_the_vocabulary.add(i)
    assert set(lexicon.ids) == by_scanning_the_vocabulary
    known = {11489, 3783, 14190, 13824, 28384, 64092, 71032, 54390, 80022, 87501, 21390, 38478}
    assert known <= set(lexicon.ids)


def test_qwen3_forms_of_two_tokens_are_reported_and_their_first_piece_is_no_member(qwen):
    lexicon = epistemic.build_lexicon(qwen)
    assert {"hmm", "alternatively", "Seems", "seems", "Might", "Likely"} <= set(lexicon.uncovered)
    assert not {"Wait", " Wait", "maybe"} & set(lexicon.uncovered)
    assert qwen.encode("Might")[0] not in lexicon.ids


def test_building_the_lexicon_of_151k_tokens_takes_under_a_second(qwen):
    # Processor time, the best of three: what else the machine does is no matter here.
    seconds = []
    for _ in range(3):
        start = time.process_time()
        epistemic.build_lexicon(qwen)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1


def test_a_tokenizer_of_whole_words_gives_one_id_a_word_and_never_the_unknown_one():
    tokenizer = word_level(["go", "Wait", "hmm", "Hold", "waiting"])
    lexicon = epistemic.build_lexicon(tokenizer, ("wait", "hmm", "maybe"))
    assert lexicon.ids == (2, 3)
    assert {"maybe", "Maybe", "MAYBE", "wait", "Hmm"} <= set(lexicon.uncovered)


def test_words_may_be_written_in_any_case():
    tokenizer = word_level(["Wait"])
    assert epistemic.build_lexicon(tokenizer, ("Wait",)).words == ("wait",)
    assert epistemic.build_lexicon(tokenizer, ("Wait",)).ids == (1,)


def test_an_empty_list_of_words_gives_an_empty_lexicon():
    lexicon = epistemic.build_lexicon(word_level(["Wait"]), ())
    assert (lexicon.words, lexicon.ids, lexicon.uncovered) == ((), (), ())


def test_the_hash_tells_vocabularies_apart_and_ignores_padding_settings():
    tokenizer, twin = word_level(["go", "wait"]), word_level(["go", "wait"])
    twin.padding_side = "left"
    assert epistemic.hash_tokenizer(tokenizer) == epistemic.hash_tokenizer(twin)
    assert epistemic.hash_tokenizer(tokenizer) != epistemic.hash_tokenizer(word_level(["wait"]))


def test_ids_are_counted_as_often_as_they_occur():
    lexicon = epistemic.Lexicon(words=("wait",), ids=(3, 5), tokenizer_hash="")
    assert epistemic.count_ids([3, 4, 5, 3, 0], lexicon) == 3
    assert epistemic.count_ids([], lexicon) == 0


def test_counting_needs_no_jax():
    name = importlib.import_module("jaxdistill.epistemic").__name__
    code = f"import sys, {name}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
