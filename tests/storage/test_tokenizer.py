"""Text to ids and back, with the real Qwen3 tokenizer if it is found beside the repository.

DeepSeek-R1-Distill's is not at hand: `r1` is a small tokenizer with the same special tokens, the
same kinds of files and a template that does what the published one does for text.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from places import SHARED_DATA

from jaxdistill.errors import UserError
from jaxdistill.storage import tokenizer as tok
from jaxdistill.tasks import contexts

FOLDER = SHARED_DATA / "qwen3_tokenizer"
CHAT = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def qwen3():
    if not FOLDER.is_dir():
        pytest.skip(f"no {FOLDER}")
    return tok.load(FOLDER)


R1_BOS, R1_EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>') | last }}"
    "{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def r1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens([R1_BOS, R1_EOS])
    marks = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
    fast.add_tokens([tokenizers.AddedToken(mark, normalized=False) for mark in marks])
    # The published tokenizer adds a first token to every text that it encodes.
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{R1_BOS} $A", special_tokens=[(R1_BOS, fast.token_to_id(R1_BOS))]
    )
    fast.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": R1_BOS,
        "eos_token": R1_EOS,
        "pad_token": R1_EOS,
        "chat_template": R1_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 257}')
    return folder


def test_a_missing_folder_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UserError, match="absent") as caught:
        tok.load(tmp_path / "absent")
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_fetched_without_weights(r1, monkeypatch):
    asked = []

    def snapshot_download(name, *, allow_patterns, local_files_only=False, **_):
        asked.append((name, allow_patterns))
        if local_files_only:
            raise FileNotFoundError
        return str(r1)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    tokenizer = tok.load("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    assert tok.decode(tokenizer, tok.encode(tokenizer, ["Wait"])[0]) == "Wait"
    name, patterns = asked[-1]
    assert name == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in patterns)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=tmp_path.name) as caught:
        tok.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_published_ids_come_out(qwen3):
    assert tok.encode(qwen3, ["Wait", " Wait", "Hello world"]) == [[14190], [13824], [9707, 1879]]
    assert tok.encode(qwen3, []) == []


@pytest.mark.parametrize(
    ("enable_thinking", "ending"),
    [
        (None, "<|im_start|>assistant\n"),
        (True, "<|im_start|>assistant\n"),
        (False, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_the_prompt_ends_where_the_assistant_starts(qwen3, enable_thinking, ending):
    expected = "<|im_start|>user\n1+1?<|im_end|>\n" + ending
    assert tok.prompt_text(qwen3, CHAT, enable_thinking) == expected
    (ids,) = tok.prompt_ids(qwen3, [CHAT], enable_thinking)
    assert ids[0] == 151644  # <|im_start|> as one token, not as characters
    assert qwen3.decode(ids, skip_special_tokens=False) == expected


def test_a_batch_of_prompts_is_each_prompt_alone(qwen3):
    chats = [[{"role": "system", "content": "Be brief."}, *CHAT], CHAT]
    alone = [tok.prompt_ids(qwen3, [chat], True)[0] for chat in chats]
    assert tok.prompt_ids(qwen3, chats, True) == alone


def test_decoding_keeps_thinking_tags_and_drops_special_tokens(qwen3):
    text = "<think>\nHmm , 解 ...\n</think>\n\n4 ."
    ids = [*tok.encode(qwen3, [text])[0], 151645, 151643]
    assert tok.decode(qwen3, ids) == text
    assert tok.decode(qwen3, np.asarray(ids, np.int32)) == text
    assert tok.decode_all(qwen3, [ids, []]) == [text, ""]


def test_a_tokenizer_without_a_template_says_what_to_add(qwen3):
    bare = tok.load(FOLDER)
    bare.chat_template = None
    with pytest.raises(UserError, match="chat_template"):
        tok.prompt_ids(bare, [CHAT])


def test_stop_ids_join_the_generation_config_and_the_tokenizer(qwen3, tmp_path):
    assert tok.stop_ids(qwen3) == tok.stop_ids(qwen3, tmp_path) == (151645,)
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [151643, 151645]}))
    assert tok.stop_ids(qwen3, tmp_path) == (151643, 151645)
    config.write_text(json.dumps({"eos_token_id": 151643}))
    assert tok.stop_ids(qwen3, tmp_path) == (151643, 151645)
    for broken in ("{", "[1]", '{"eos_token_id": "</s>"}'):
        config.write_text(broken)
        with pytest.raises(UserError, match="generation_config"):
            tok.stop_ids(qwen3, tmp_path)


def test_padding_uses_the_pad_token_or_else_a_stop_token(qwen3):
    assert tok.pad_id(qwen3) == 151643
    bare = tok.load(FOLDER)
    bare.pad_token = None
    assert tok.pad_id(bare) == 151645


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_padding_is_masked_and_nothing_is_lost(multiple):
    rows = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9]]
    for pad, is_left in ((tok.left_pad, True), (tok.right_pad, False)):
        ids_BP, mask_BP = pad(rows, 0, multiple)
        assert ids_BP.dtype == mask_BP.dtype == np.int32
        assert ids_BP.shape[1] == -(-5 // multiple) * multiple
        for row, ids_P, mask_P in zip(rows, ids_BP, mask_BP, strict=True):
            assert ids_P[mask_P == 1].tolist() == row
            assert (ids_P[mask_P == 0] == 0).all()
            assert (np.diff(mask_P) >= 0).all() if is_left else (np.diff(mask_P) <= 0).all()


# ------------------------------------------------------------- templates that open the thinking


@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_r1_opens_the_thinking_itself_whatever_is_asked(r1, enable_thinking):
    tokenizer = tok.load(r1)
    expected = f"{R1_BOS}<｜User｜>1+1?<｜Assistant｜><think>\n"
    assert tok.prompt_text(tokenizer, CHAT, enable_thinking) == expected
    (ids,) = tok.prompt_ids(tokenizer, [CHAT], enable_thinking)
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
    assert ids.count(tokenizer.bos_token_id) == 1  # the template's, and no second one


def test_r1_takes_the_system_prompt_bare(r1):
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    expected = f"{R1_BOS}Be brief.<｜User｜>1+1?<｜Assistant｜><think>\n"
    assert tok.prompt_text(tok.load(r1), chat) == expected


RESPONSE = "Wait, is it 2?\n</think>\n\nIt is 2."  # as sampled: the opening tag is in the prompt


def test_a_response_keeps_the_closing_tag_and_its_thinking_can_be_removed(r1):
    tokenizer = tok.load(r1)
    ids = [*tok.encode(tokenizer, [RESPONSE])[0], tokenizer.eos_token_id]
    assert tok.decode(tokenizer, ids) == RESPONSE
    assert contexts.remove_thinking(tok.decode(tokenizer, ids)) == "It is 2."


def test_past_assistant_turns_lose_their_thinking_and_the_teachers_user_turn_does_not(r1, qwen3):
    for tokenizer in (tok.load(r1), qwen3):
        past = [*CHAT, {"role": "assistant", "content": RESPONSE}, *CHAT]
        assert "Wait" not in tok.prompt_text(tokenizer, past)
        turn = contexts.render(contexts.Solution(), "1+1?", RESPONSE, "2")
        assert RESPONSE in tok.prompt_text(tokenizer, [{"role": "user", "content": turn}])
        turn = contexts.render(contexts.SolutionWithoutThinking(), "1+1?", RESPONSE, "2")
        shown = tok.prompt_text(tokenizer, [{"role": "user", "content": turn}])
        assert "Wait" not in shown
        assert "It is 2." in shown


# ------------------------------------------------------------------ what a folder's files say


def test_the_models_type_does_not_change_how_text_is_split(tmp_path):
    # transformers 5 would apply Qwen2's pre-tokenizer to this vocabulary, which then has no match.
    words = {"[unk]": 0, "wait,": 1, "two": 2, "words": 3}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[unk]"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    for model_type in ("qwen2", "qwen3", "olmo3", "llama"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert tok.encode(tok.load(tmp_path), ["wait, two words"]) == [[1, 2, 3]]


def test_the_older_files_are_read_where_there_is_no_tokenizer_json(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, "Wa", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nW a\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    tokenizer = tok.load(tmp_path)
    assert tok.encode(tokenizer, ["Wait"]) == [[vocab["Wa"], vocab["i"], vocab["t"]]]


@pytest.mark.parametrize(
    ("generation_eos", "expected"),
    [
        (257, (257,)),
        ([257], (257,)),
        (256, (256, 257)),
        ([259, 256], (259, 256, 257)),
        (None, (257,)),
    ],
)
def test_either_files_stop_token_ends_a_response(r1, tmp_path, generation_eos, expected):
    fields = {} if generation_eos is None else {"eos_token_id": generation_eos}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    assert tok.stop_ids(tok.load(r1), tmp_path) == expected


def test_threads_encode_one_at_a_time(qwen3, monkeypatch):
    """Where a control token is spelled, a call switches the tokenizer's mode for all threads."""
    inside, most = [], []
    call = type(qwen3).__call__

    def slow(self, *given, **how):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return call(self, *given, **how)
        finally:
            inside.pop()

    monkeypatch.setattr(type(qwen3), "__call__", slow)
    texts = ["plain", "spelled <|im_end|> here"]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: tok.encode(qwen3, [text]), texts * 4))
    assert found == found[:2] * 4
    assert max(most) == 1
