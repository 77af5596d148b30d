"""Statistics of responses compared with their records and ids, and missing values."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import epistemic
from jaxdistill.errors import UserError
from jaxdistill.evaluation import analyze
from jaxdistill.evaluation.responses import Response, encode
from jaxdistill.evaluation.responses import read_responses as read
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import toy_base_folder

SENTENCE = (
    "Wait, the checkmate is unlikely. I am awaiting the waiter in Kuwait; the mighty checker "
    "recheck, checkpoint. Hmm... Hmmm, it seems likely. Double-check. actually factually"
)


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def read_responses(paths, field=None):
    return read(paths, field).responses


def counts_of(responses, modes=("paper", "word"), vocabulary=None):
    return analyze.analyze(responses, epistemic.TEN_WORDS, modes, vocabulary)["groups"]


@pytest.fixture(scope="module")
def toy():
    tokenizer = tokenizers.load(toy_base_folder("main"))
    return analyze.Vocabulary(tokenizer, epistemic.build_lexicon(tokenizer))


# ------------------------------------------------------------------------------------ numbers


def test_the_hostile_sentence_is_seventeen_in_paper_and_six_in_word_mode(tmp_path):
    responses = read_responses([write(tmp_path / "a.jsonl", {"response": SENTENCE})])
    counts = counts_of(responses)["all"]["counts"]
    assert (counts["paper"]["total"], counts["word"]["total"]) == (17, 6)


def test_means_shares_and_the_split_by_verdict_are_those_of_the_records(tmp_path):
    records = [
        {"response": "wait maybe", "correct": True, "finished": True, "num_tokens": 10},
        {"response": "wait", "correct": True, "finished": False, "num_tokens": 20},
        {"response": "go", "correct": False, "finished": True, "num_tokens": 70},
        {"response": "hmm hmm unlikely", "correct": False, "finished": False, "num_tokens": 100},
    ]
    groups = counts_of(read_responses([write(tmp_path / "a.jsonl", *records)]))
    assert list(groups) == ["all", "correct", "incorrect"]
    whole, right, wrong = groups.values()
    assert (whole["responses"], whole["tokens"], whole["truncated"]) == (4, 50, 0.5)
    assert (whole["accuracy"], right["accuracy"], wrong["accuracy"]) == (0.5, 1, 0)
    assert whole["characters"] == pytest.approx((10 + 4 + 2 + 16) / 4)
    word = whole["counts"]["word"]
    assert (word["total"], word["per_response"], word["per_1k"]) == (5, 1.25, 25)
    assert word["words"]["wait"] == {"total": 2, "per_response": 0.5, "per_1k": 10}
    assert whole["counts"]["paper"]["words"]["likely"]["total"] == 1
    # 3 of 30 tokens: a ratio of sums, not a mean of ratios
    assert right["counts"]["word"]["per_1k"] == 100
    assert wrong["counts"]["word"]["per_response"] == 1


def test_what_the_records_do_not_tell_is_absent_and_never_a_guess(tmp_path):
    records = [{"response": "wait", "num_tokens": 3, "finished": True}, {"response": "wait"}]
    found = analyze.analyze(
        read_responses([write(tmp_path / "a.jsonl", *records)]), ("wait",), ("word",)
    )
    (group,) = found["groups"].values()
    assert [group[key] for key in ("tokens", "truncated", "accuracy")] == [None] * 3
    assert group["counts"]["word"] == {
        "total": 2, "per_response": 1, "per_1k": None,
        "words": {"wait": {"total": 2, "per_response": 1, "per_1k": None}},
    }  # fmt: skip
    assert any("add --model" in line for line in analyze.table(found))


TOKENS = st.sampled_from(["wait", "maybe", "check", "+", "7", "</think>", "so", "waiter", "-"])


@pytest.mark.long
@given(st.lists(st.lists(TOKENS, max_size=12).map(" ".join), min_size=1, max_size=5))
def test_the_words_sum_to_the_total_in_every_mode_and_groups_to_all(toy, texts):
    responses = [
        Response(text, f"{i % 2}.jsonl", "", None, None, i % 3 == 0, None, None)
        for i, text in enumerate(texts)
    ]
    groups = counts_of(responses, analyze.MODES, toy)
    for group in groups.values():
        for mode in analyze.MODES:
            counts = group["counts"][mode]
            words = counts["words"].values()
            assert counts["total"] == sum(word["total"] for word in words)
            assert counts["per_response"] == pytest.approx(counts["total"] / group["responses"])
    for name in analyze.MODES:
        verdicts = [groups[key] for key in ("correct", "incorrect") if key in groups]
        assert (
            sum(g["counts"][name]["total"] for g in verdicts)
            == (groups["all"]["counts"][name]["total"])
        )
    ids = encode(toy.tokenizer, responses)
    assert groups["all"]["counts"]["token"]["total"] == sum(
        i in toy.lexicon.ids for row in ids for i in row
    )
    assert groups["all"]["tokens"] == pytest.approx(sum(map(len, ids)) / len(texts))
    count_V = analyze.count_tokens(toy.tokenizer, responses)
    assert count_V[list(toy.lexicon.ids)].sum() == groups["all"]["counts"]["token"]["total"]
    assert (count_V.sum(), len(count_V)) == (sum(map(len, ids)), len(toy.tokenizer))


def test_files_are_groups_of_their_own_where_there_are_several(tmp_path):
    paths = [write(tmp_path / name, {"text": "wait"}) for name in ("a.jsonl", "b.jsonl")]
    assert list(counts_of(read_responses(paths[:1]))) == ["all"]
    assert list(counts_of(read_responses(paths))) == [*map(str, paths), "all"]
    assert list(counts_of(read_responses([tmp_path]))) == ["a.jsonl", "b.jsonl", "all"]


def test_forms_that_no_id_covers_are_counted_apart(tmp_path):
    tokenizer = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pieces = {piece: i for i, piece in enumerate(["<unk>", "se", "##ems", "wait", "go"])}
    inner = tokenizer.Tokenizer(tokenizer.models.WordPiece(pieces, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizer.pre_tokenizers.WhitespaceSplit()
    inner.decoder = tokenizer.decoders.WordPiece()
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    lexicon = epistemic.build_lexicon(loaded, ("seems", "wait", "maybe"))
    assert lexicon.ids == (3,)
    text = "seems wait seems go what"  # `what` is <unk>, like `maybe`, but does not count as it
    responses = read_responses([write(tmp_path / "a.jsonl", {"response": text})])
    vocabulary = analyze.Vocabulary(loaded, lexicon)
    found = analyze.analyze(responses, lexicon.words, ("word", "token"), vocabulary)
    group = found["groups"]["all"]
    assert [group["counts"][mode]["total"] for mode in ("word", "token")] == [3, 1]
    # this tokenizer splits " seems" and "seems" alike, and they count once
    assert group["uncovered"] == 2


def test_token_mode_needs_a_tokenizer(tmp_path):
    responses = read_responses([write(tmp_path / "a.jsonl", {"text": ""})])
    with pytest.raises(UserError, match="add --model"):
        counts_of(responses, ("token",))


def test_half_a_character_is_no_reason_to_stop(toy, tmp_path):
    path = write(tmp_path / "a.jsonl", '{"response": "wait \\ud800 maybe"}')
    groups = counts_of(read_responses([path]), analyze.MODES, toy)
    counts = groups["all"]["counts"]
    assert [counts[mode]["total"] for mode in analyze.MODES] == [2, 2, 2]


# ------------------------------------------------------------------------------------ the table


def test_the_table_shows_the_numbers_and_no_text_of_a_response(toy, tmp_path):
    records = [{"response": "wait \x1b[31m [bold]x[/bold] {0} %s", "correct": True}]
    responses = read_responses([write(tmp_path / "a.jsonl", *records)])
    found = analyze.analyze(responses, epistemic.TEN_WORDS, analyze.MODES, toy)
    lines = list(analyze.table(found))
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "bold" not in text
    total = next(line for line in lines if line.startswith("total")).split()
    each = found["groups"]["all"]["counts"]
    assert total[1::2] == [f"{each[mode]['per_response']:.4g}" for mode in analyze.MODES]
    assert total[2::2] == [f"{each[mode]['per_1k']:.4g}" for mode in analyze.MODES]
    assert json.loads(json.dumps(found))["lexicon"]["tokenizer_hash"] in text


def test_reading_and_counting_need_no_jax():
    code = "import sys, jaxdistill.evaluation.analyze; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
