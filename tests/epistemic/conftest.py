"""Qwen3's real tokenizer, and tokenizers with one id per word."""

import pytest
from places import SHARED_DATA

from jaxdistill import epistemic


@pytest.fixture(scope="session")
def qwen():
    folder = SHARED_DATA / "qwen3_tokenizer"
    if not folder.exists():
        pytest.skip("no shared/data/qwen3_tokenizer beside the repository")
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def qwen_lexicon(qwen):
    return epistemic.build_lexicon(qwen)


@pytest.fixture(scope="session")
def qwen_merged(qwen):
    return epistemic.build_lexicon(qwen, merged=True)


@pytest.fixture(scope="session")
def word_level():
    """word_level(words): ids 1, 2, ... in the order of `words`, and 0 for `<unk>`."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")

    def build(vocabulary):
        ids = {word: i for i, word in enumerate(["<unk>", *vocabulary])}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

    return build
