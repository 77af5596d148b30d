"""Pretraining texts as token ids: each record depends only on its index and fits the limits."""

import pickle

import pytest

from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.tasks import tasks
from jaxdistill.tasks.pipelines import example_iterator
from jaxdistill.training.supervised_texts import ToyTexts

SIZE = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return str(folder)


def source(folder, max_prompt_tokens=1000, max_completion_tokens=1000) -> ToyTexts:
    return ToyTexts(
        world="main",
        seed=0,
        size=SIZE,
        tokenizer_folder=folder,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
    )


def test_a_record_is_its_text_under_the_chat_template_and_ends_in_the_stop_token(folder):
    texts, tokenizer = source(folder), tokenizers.load(folder)
    assert len(texts) == SIZE
    for i in (0, 1, 17, SIZE - 1):
        turn, response = tasks.example_text("main", 0, i)
        prompt_ids, completion_ids = texts[i]
        spelled = " ".join(tokenizer.convert_ids_to_tokens(prompt_ids))
        assert spelled == (
            f"<|im_start|> user {' '.join(turn.split())} <|im_end|> <|im_start|> assistant <think>"
        )
        assert tokenizer.convert_ids_to_tokens(completion_ids) == [*response.split(), "<|im_end|>"]
        assert tokenizer.unk_token_id not in prompt_ids + completion_ids


def test_longer_texts_are_replaced_and_the_others_stay(folder):
    free, strict = source(folder), source(folder, 60, 50)
    replaced = 0
    for i in range(SIZE):
        prompt_ids, completion_ids = strict[i]
        assert len(prompt_ids) <= 60
        assert len(completion_ids) <= 50
        fits = len(free[i][0]) <= 60 and len(free[i][1]) <= 50
        assert not fits or strict[i] == free[i]
        replaced += not fits
    assert 0 < replaced < SIZE / 2


def test_a_replacement_is_no_other_records_text(folder):
    """Replacing a text by the next record's would show some texts twice."""
    strict = source(folder, 60, 50)
    records = [strict[i] for i in range(SIZE)]
    assert len({(*prompt, -1, *completion) for prompt, completion in records}) == SIZE


def test_limits_that_no_text_meets_fail_an_assertion(folder):
    with pytest.raises(AssertionError, match="exceed the limits"):
        source(folder, max_completion_tokens=3)[0]


def test_a_source_survives_being_sent_to_a_worker(folder):
    texts = source(folder)
    assert pickle.loads(pickle.dumps(texts))[5] == texts[5]


def test_grain_reads_every_record_once_an_epoch(folder):
    texts = source(folder)
    batches = example_iterator(texts, 0, 40, 0)
    seen = [record for _ in range(SIZE // 40) for record in next(batches)]
    batches.close()

    def key(record):
        return tuple(map(tuple, record))

    assert sorted(map(key, seen)) == sorted(key(texts[i]) for i in range(SIZE))
