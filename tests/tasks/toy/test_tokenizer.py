"""The toy tokenizer: every word of the world is one token, and decoding inverts encoding."""

import random
import re

import pytest

from jaxdistill import epistemic
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import toy_base_folder, write_tokenizer
from jaxdistill.tasks import contexts
from jaxdistill.tasks.toy import problems, tokenizer, traces


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return tokenizers.load(folder)


@pytest.fixture(scope="module")
def some_texts() -> list[str]:
    """Responses of both worlds, unguided and guided, and the teacher's prompts."""
    examples = [traces.example(world, 0, i) for world in traces.WORLDS.values() for i in range(600)]
    assert {e.reveal for e in examples} == {"none", "part", "answer", "whole"}
    return [text for e in examples for text in (e.prompt, e.response)]


def test_every_word_of_every_text_is_one_known_token(toy, some_texts):
    encoded = tokenizers.encode(toy, some_texts)
    assert [len(ids) for ids in encoded] == [len(text.split()) for text in some_texts]
    assert all(toy.unk_token_id not in ids for ids in encoded)


def test_text_comes_back_as_it_went_in(toy, some_texts):
    encoded = tokenizers.encode(toy, some_texts)
    plain = [" ".join(text.split()) for text in some_texts]
    assert tokenizers.decode_all(toy, encoded) == plain
    assert tokenizers.encode(toy, plain) == encoded


def test_what_was_sampled_is_graded_without_its_end_token(toy):
    (ids,) = tokenizers.encode(toy, ["1 + 2 = 3 </think> answer 1 + 2"])
    text = tokenizers.decode(toy, [*ids, toy.eos_token_id, toy.pad_token_id])
    assert text == "1 + 2 = 3 </think> answer 1 + 2"


def test_the_papers_template_is_in_the_vocabulary(toy):
    words = contexts.TEMPLATE.replace("{prompt}", "").replace("{solution}", "").split()
    assert "Correctly" in words
    assert set(words) <= set(tokenizer.vocabulary())
    ((*ids,),) = tokenizers.encode(toy, [" ".join(words)])
    assert len(ids) == len(words)
    assert toy.unk_token_id not in ids


def test_every_epistemic_word_is_one_token_that_the_losses_see(toy):
    lexicon = epistemic.build_lexicon(toy)
    spelled = [toy.convert_ids_to_tokens(i) for i in lexicon.ids]
    assert sorted(spelled) == sorted(epistemic.TEN_WORDS)
    assert {*traces.WAIT_WORDS, *traces.HEDGE_WORDS, traces.CHECK} == set(spelled)


def test_a_word_from_elsewhere_is_unknown(toy):
    assert tokenizers.encode(toy, ["100", "Wait", "20+15"]) == [[toy.unk_token_id]] * 3


def test_the_ids_are_pinned():
    """The shipped weights depend on these ids: append new words, never insert them."""
    words = tokenizer.vocabulary()
    assert len(words) == len(set(words)) == 133
    assert words[:4] == ["<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>"]
    assert words[4:104] == [str(n) for n in range(100)]
    assert words[104:109] == ["+", "-", "*", "=", "->"]
    assert words[109:114] == ["<think>", "</think>", "answer", "then", "check"]
    assert words[-1] == "question."


@pytest.mark.parametrize("world", traces.BUNDLED)
def test_the_shipped_tokenizers_are_this_one(toy, world):
    shipped = tokenizers.load(toy_base_folder(world))
    assert shipped.get_vocab() == toy.get_vocab()
    assert shipped.chat_template == toy.chat_template
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(shipped, name) == getattr(toy, name)


# --------------------------------------------------------------------------------------- the chat


def test_the_prompt_opens_the_thinking(toy):
    chat = [{"role": "system", "content": "question."}, {"role": "user", "content": "1 2 3 -> 6"}]
    text = tokenizers.prompt_text(toy, chat)
    assert text == (
        "<|im_start|> system question. <|im_end|> <|im_start|> user 1 2 3 -> 6 <|im_end|> "
        "<|im_start|> assistant <think>"
    )
    (ids,) = tokenizers.prompt_ids(toy, [chat])
    assert toy.convert_ids_to_tokens(ids) == text.split()
    history = toy.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    assert text.startswith(history)
    assert "<think>" not in history


def test_removing_the_thinking_leaves_the_answer():
    """The prompt opens `<think>`, so a response only closes it; the paper's code handles both."""
    rng = random.Random(0)
    for problem in problems.draw_distinct(200, 3, "train", seed=0):
        response = traces.correct_trace(problem, traces.MAIN, rng)
        for text in (response, f"<think> {response}"):
            assert contexts.remove_thinking(text) == f"answer {problem.answer}"
        for context, shown in (
            (contexts.Solution(), response),
            (contexts.SolutionWithoutThinking(), f"answer {problem.answer}"),
            (contexts.AnswerOnly(), problem.answer),
        ):
            turn = contexts.render(context, problem.text, response, problem.answer)
            assert re.split(r"\n+", turn) == [
                problem.text, "Correct solution:", shown, "Correctly solve the original question.",
            ]  # fmt: skip


def test_half_a_solution_tells_the_first_operation_alone():
    problem = problems.parse("20 15 1 -> 34")
    turn = contexts.render(contexts.PartialSolution(), "", traces.concise(problem), "")
    assert "\nanswer 20 +\n" in turn
