"""The toy world's base models, which are bundled with the package."""

import pytest

from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import ToyBase
from jaxdistill.storage.toy import toy_base_folder


@pytest.mark.parametrize("world", ["main", "control"])
def test_a_bundled_base_loads_with_its_tokenizer(world, tmp_path):
    policy = loading.load(ToyBase(world), 0, tmp_path)
    words = ["20", "15", "1", "->", "34"]
    ids = tokenizers.encode(policy.tokenizer, [" ".join(words)])[0]
    assert len(ids) == len(set(ids)) == len(words)  # one token per word
    assert tokenizers.decode(policy.tokenizer, ids).split() == words
    assert policy.stop_ids == (policy.tokenizer.eos_token_id,)
    assert policy.config.vocab_size >= len(policy.tokenizer)


def test_the_bases_share_a_tokenizer_and_differ_in_weights(tmp_path):
    folders = [toy_base_folder(world) for world in ("main", "control")]
    texts = [(folder / "tokenizer.json").read_text() for folder in folders]
    assert texts[0] == texts[1]
    assert len({loading.fingerprint(folder) for folder in folders}) == 2
