"""Which prompts leave the model its positions, by lengths that are counted by hand."""

import dataclasses

import pytest
from tiny_run import ARCHITECTURE

from jaxdistill.errors import UserError
from jaxdistill.sampling import prompts
from jaxdistill.storage import tokenizer as tok
from jaxdistill.storage import toy
from jaxdistill.tasks.questions import Question

CONFIG = dataclasses.replace(ARCHITECTURE, max_positions=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.write_tokenizer(folder)
    return tok.load(folder)


def question(name, words, system=None):
    return Question(name, " ".join(["9"] * words), "9", system)


def test_lengths_are_those_of_the_encoded_prompts(tokenizer, monkeypatch):
    questions = [question("a", 3), question("b", 5), question("c", 3), question("d", 3, "9 9")]
    expected = [len(ids) for ids in prompts.encode_prompts(tokenizer, questions)]
    assert expected[0] == expected[2] == expected[1] - 2 < expected[3]
    encoded = []
    monkeypatch.setattr(
        prompts, "encode_prompts", lambda _, some, __: encoded.extend(some) or [[0]] * len(some)
    )
    assert prompts.prompt_lengths(tokenizer, questions) == [1] * 4
    assert [each.id for each in encoded] == ["c", "b", "d"]  # one that repeats is encoded once
    monkeypatch.undo()
    assert prompts.prompt_lengths(tokenizer, questions) == expected


def test_earlier_turns_are_part_of_a_prompts_length(tokenizer):
    bare = question("a", 3)
    shot = dataclasses.replace(bare, earlier=(("user", "9 9 9"), ("assistant", "9")))
    expected = [len(ids) for ids in prompts.encode_prompts(tokenizer, [bare, shot])]
    assert expected[0] < expected[1]
    assert prompts.prompt_lengths(tokenizer, [bare, shot]) == expected


def test_prompts_of_more_than_one_batch_keep_their_order(tokenizer):
    questions = [question(str(i), 1 + i % 7, str(i // 7)) for i in range(1100)]
    (shortest,) = prompts.prompt_lengths(tokenizer, questions[:1])
    lengths = prompts.prompt_lengths(tokenizer, questions)
    assert lengths == [shortest + i % 7 for i in range(1100)]


def test_the_last_position_may_be_used_and_no_further_one(tokenizer):
    questions = [question("short", 2), question("long", 20), question("medium", 12)]
    short, long, medium = prompts.prompt_lengths(tokenizer, questions)
    prompts.check_prompts(CONFIG, tokenizer, questions, 40 - long)
    for new, num_over in ((41 - long, 1), (41 - medium, 2), (41 - short, 3)):
        refused = (
            f"question 'long': its prompt has {long} tokens, and with max_new_tokens={new} that is "
            rf"{long + new}, beyond the model's 40 positions.*; so are {num_over} of 3 questions"
        )
        with pytest.raises(UserError, match=refused):
            prompts.check_prompts(CONFIG, tokenizer, questions, new)
