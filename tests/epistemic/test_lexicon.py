"""The lexicon for Qwen3's real tokenizer and for one id per word, and its file."""

import dataclasses
import json
import time

import pytest

from jaxdistill import epistemic
from jaxdistill.epistemic import LexiconFile, Words
from jaxdistill.errors import UserError

# Surface forms of the real vocabulary and their ids; two pieces where there is no id.
SINGLE = {
    "wait": 11489, " wait": 3783, "Wait": 14190, " Wait": 13824, ".Wait": 28384, "WAIT": 71032,
    " WAIT": 54390, "Hmm": 80022, " Hmm": 88190, " hmm": 87501, "Maybe": 21390, " maybe": 7196,
    "Perhaps": 31476, " perhaps": 8365, "Alternatively": 92014, " Alternatively": 38478,
}  # fmt: skip
PIECES = {
    "hmm": ["h", "mm"], "Hmmm": ["H", "mmm"], "-wait": ["-w", "ait"], "Waits": ["W", "aits"],
    "Seems": ["Se", "ems"], "seems": ["se", "ems"], "Might": ["M", "ight"],
    "Likely": ["Lik", "ely"], "alternatively": ["altern", "atively"], ",wait": [",", "wait"],
    "\nWait": ["\n", "Wait"],
}  # fmt: skip


def test_qwen3_has_42_ids_for_the_ten_words(qwen, qwen_lexicon, qwen_merged):
    assert (len(qwen_lexicon.ids), len(qwen_merged.ids)) == (42, 50)
    assert len(epistemic.build_lexicon(qwen, epistemic.CORE).ids) == 26
    assert len(epistemic.build_lexicon(qwen, epistemic.HEDGE).ids) == 16


@pytest.mark.parametrize("form", SINGLE)
def test_a_qwen3_form_of_one_id_is_a_member(qwen, qwen_lexicon, form):
    assert qwen.encode(form) == [SINGLE[form]]
    assert SINGLE[form] in qwen_lexicon.ids


def test_a_qwen3_form_in_brackets_is_a_member_on_request(qwen, qwen_lexicon, qwen_merged):
    assert qwen.encode("(wait") == [64092]
    assert (64092 in qwen_lexicon.ids, 64092 in qwen_merged.ids) == (False, True)


@pytest.mark.parametrize("form", PIECES)
def test_the_first_piece_of_a_qwen3_form_of_two_ids_is_not_a_member(qwen, qwen_merged, form):
    ids = qwen.encode(form)
    assert [qwen.decode([i]) for i in ids] == PIECES[form]
    assert ids[0] not in qwen_merged.ids


def test_qwen3_ids_are_all_and_only_the_tokens_that_decode_to_a_word(
    qwen, qwen_lexicon, qwen_merged
):
    """With `merged`, every entry that is a word after at most one mark; else no mark or ".Word"."""
    behind_a_mark, plain = set(), set()
    for token, i in qwen.get_vocab().items():
        if any(word in token.lower() for word in epistemic.TEN_WORDS):
            text = qwen.decode([i])
            word = text[1:] if text[0] in " .,(\t" else text
            if word.lower() in epistemic.TEN_WORDS:
                behind_a_mark.add(i)
                if text[0] not in ".,(\t" or text == "." + word.capitalize():
                    plain.add(i)
    assert set(qwen_merged.ids) == behind_a_mark
    assert set(qwen_lexicon.ids) == plain
    assert {qwen.decode([i]) for i in behind_a_mark - plain} == {
        "(wait", ".wait", "\twait", "(check", ".check", "\tcheck", "\tCheck", "\tCHECK",
    }  # fmt: skip


def test_qwen3_forms_of_two_tokens_are_reported(qwen_lexicon, qwen_merged):
    for uncovered in (qwen_lexicon.uncovered, qwen_merged.uncovered):
        assert {"hmm", "alternatively", "Seems", "seems", "Might", "Likely"} <= set(uncovered)
        assert not {"Wait", " Wait", "maybe", ".Seems", ".Wait"} & set(uncovered)


def test_building_the_lexicon_of_151k_tokens_takes_under_a_second(qwen):
    # The best of three processor times, which other programs on the machine hardly affect.
    seconds = []
    for _ in range(3):
        start = time.process_time()
        epistemic.build_lexicon(qwen)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1


def test_a_tokenizer_of_whole_words_gives_one_id_per_word_and_never_the_unknown_one(word_level):
    tokenizer = word_level(["go", "Wait", "hmm", "Hold", "waiting"])
    lexicon = epistemic.build_lexicon(tokenizer, ("wait", "hmm", "maybe"))
    assert lexicon.ids == (2, 3)
    assert {"maybe", "Maybe", "MAYBE", "wait", "Hmm"} <= set(lexicon.uncovered)


def test_words_may_be_written_in_any_case(word_level):
    tokenizer = word_level(["Wait"])
    assert epistemic.build_lexicon(tokenizer, ("Wait",)).words == ("wait",)
    assert epistemic.build_lexicon(tokenizer, ("Wait",)).ids == (1,)


def test_an_empty_list_of_words_gives_an_empty_lexicon(word_level):
    lexicon = epistemic.build_lexicon(word_level(["Wait"]), ())
    assert (lexicon.words, lexicon.ids, lexicon.uncovered) == ((), (), ())


def test_the_hash_tells_vocabularies_apart_and_ignores_padding_settings(word_level):
    tokenizer, twin = word_level(["go", "wait"]), word_level(["go", "wait"])
    twin.padding_side = "left"
    assert epistemic.hash_tokenizer(tokenizer) == epistemic.hash_tokenizer(twin)
    assert epistemic.hash_tokenizer(tokenizer) != epistemic.hash_tokenizer(word_level(["wait"]))


# ------------------------------------------------------------------------------------ the file


def test_a_lexicon_comes_back_from_its_file(qwen, qwen_merged, tmp_path):
    for lexicon in (
        qwen_merged,
        dataclasses.replace(qwen_merged, words=(), ids=(), uncovered=()),
        epistemic.Lexicon(("ünd", 'a"b'), (5, 3), epistemic.hash_tokenizer(qwen), made="by\nhand"),
    ):
        epistemic.write_lexicon(tmp_path / "lexicon.json", lexicon, qwen)
        assert epistemic.read_lexicon(tmp_path / "lexicon.json", qwen) == lexicon
        assert [path.name for path in tmp_path.iterdir()] == ["lexicon.json"]
    tokens = json.loads((tmp_path / "lexicon.json").read_text())["tokens"]
    assert tokens == [qwen.decode([5]), qwen.decode([3])]


def test_words_and_files_open_to_the_same_lexicon(word_level, tmp_path):
    tokenizer = word_level(["go", "wait", "seems", "maybe"])
    built = epistemic.open_lexicon(Words(("core",)), tokenizer)
    assert built == epistemic.build_lexicon(tokenizer, epistemic.CORE)
    assert built.ids == (2, 4)
    path = tmp_path / "lexicon.json"
    epistemic.write_lexicon(path, built, tokenizer)
    assert epistemic.open_lexicon(LexiconFile(str(path)), tokenizer) == built


def test_blank_words_are_refused():
    with pytest.raises(UserError, match="`words` must not be blank"):
        Words(("wait", " "))


BROKEN = {
    "missing.json": (None, "missing.json cannot be read: No such file"),
    "text": ("wait, hmm", "is not JSON"),
    "bytes": (b"\xff\xfe\x00", "is not JSON"),
    "cut": ('{"words": [', "is not JSON"),
    "list": ("[]", "must hold a JSON object, not a list"),
    "no ids": ({"ids": None, "-": "ids"}, "no field `ids`"),
    "no hash": ({"-": "tokenizer_hash"}, "no field `tokenizer_hash`"),
    "ids of text": ({"ids": ["1"]}, "field `ids`: expected a list of token ids, got"),
    "ids of bool": ({"ids": [True]}, "field `ids`: expected a list of token ids"),
    "one id": ({"ids": 3}, "field `ids`: expected a list of token ids, got 3"),
    "words": ({"words": "wait"}, "field `words`: expected a list of texts"),
    "made": ({"made": 3}, "field `made`: expected text, got 3"),
    "negative": ({"ids": [-1]}, "`ids` must be different token ids"),
    "twice": ({"ids": [1, 1]}, "`ids` must be different token ids"),
    "beyond": ({"ids": [3]}, "id 3 is not in the vocabulary of 3 tokens"),
    "another": ({"tokenizer_hash": "0123"}, "tokenizer with hash 0123, but this one has"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_lexicon_of_this_tokenizer_is_one_line(name, word_level, tmp_path):
    change, said = BROKEN[name]
    tokenizer, path = word_level(["go", "wait"]), tmp_path / name
    epistemic.write_lexicon(path, epistemic.build_lexicon(tokenizer), tokenizer)
    if isinstance(change, dict):
        fields = json.loads(path.read_text()) | change
        fields.pop(fields.pop("-", None), None)
        path.write_text(json.dumps(fields))
    elif change is None:
        path.unlink()
    else:
        path.write_bytes(change if isinstance(change, bytes) else change.encode())
    with pytest.raises(UserError) as caught:
        epistemic.read_lexicon(path, tokenizer)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_of_ones_choice_that_no_token_spells_are_refused_and_the_papers_are_not(word_level):
    tokenizer = word_level(["wait", "so"])
    assert epistemic.open_lexicon(epistemic.Words(("wait", "zzzz")), tokenizer).ids == (1,)
    with pytest.raises(UserError, match="spells none of the lexicon's words as one token: zzzz"):
        epistemic.open_lexicon(epistemic.Words(("zzzz",)), tokenizer)
    assert epistemic.open_lexicon(epistemic.Words(), word_level(["so"])).ids == ()


@pytest.mark.parametrize("words", [(), None, "wait", ("wait", 3), ["wait"]])
def test_words_are_a_tuple_of_texts_and_not_empty(words):
    with pytest.raises(UserError, match=r"^`words` must"):
        epistemic.Words(words)
