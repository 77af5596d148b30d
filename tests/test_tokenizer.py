"""Text to ids and back, on the real Qwen3 tokenizer where it lies beside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxdistill import tokenizer as tok
from jaxdistill.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "qwen3_tokenizer"
CHAT = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def qwen3():
    if not FOLDER.is_dir():
        pytest.skip(f"no {FOLDER}")
    return tok.load(FOLDER)


def test_a_missing_folder_is_named_and_no_hub_is_asked(tmp_path):
    for name in (str(tmp_path / "absent"), "Qwen/Qwen3-8B"):
        with pytest.raises(UserError, match=name) as caught:
            tok.load(name)
        assert "\n" not in str(caught.value)


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
    assert ids[0] == 151644  # one <|im_start|>, not its characters
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
