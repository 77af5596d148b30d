"""What the teacher sees."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import contexts as ctx
from jaxdistill.errors import UserError

QWEN3 = "<think>\nWait, {4}?\n</think>\n\nIt is \\boxed{4}."
R1 = "Wait, {4}?\n</think>\n\nIt is \\boxed{4}."
PIECES = st.sampled_from(["<think>", "</think>", "a", " ", "\n", "\x1f", "{x}"])


def _released_code(text):
    """The two substitutions of the paper's released code, as they stand there."""
    text = re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)
    return re.sub(r"^.*?</think>\s*", "", text, flags=re.DOTALL)


def test_the_solution_stands_in_the_user_turn_in_the_papers_words():
    assert ctx.render(ctx.Solution(), "1+3?", QWEN3, "4") == (
        "1+3?\nCorrect solution:\n\n"
        "<think>\nWait, {4}?\n</think>\n\nIt is \\boxed{4}."
        "\n\nCorrectly solve the original question."
    )


@pytest.mark.parametrize("response", [QWEN3, R1])
def test_thinking_goes_whether_or_not_the_response_opens_it(response):
    shown = ctx.shown_text(ctx.SolutionWithoutThinking(), response, "4")
    assert shown == "It is \\boxed{4}."


def test_a_response_that_never_closes_its_thinking_stays_whole():
    assert ctx.remove_thinking("<think>\nWait, no end") == "<think>\nWait, no end"


@given(st.lists(PIECES, max_size=12).map("".join))
def test_thinking_is_removed_as_by_the_released_code(text):
    assert ctx.remove_thinking(text) == _released_code(text)


@pytest.mark.timeout(5)
def test_a_response_full_of_unclosed_thinking_is_no_trouble():
    ctx.remove_thinking("</think>" + "<think> " * 100_000)


@pytest.mark.parametrize(
    ("fraction", "words"), [(0.01, 1), (0.25, 2), (0.5, 3), (0.7, 4), (0.6, 3), (1.0, 5)]
)
def test_a_partial_solution_is_its_first_words_rounded_up(fraction, words):
    text = "a  b\n\nc d e"
    shown = ctx.shown_text(ctx.PartialSolution(fraction), "Hmm</think>" + text, "4")
    assert shown is not None
    assert text.startswith(shown)
    assert len(shown.split()) == words


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_a_fraction_that_shows_nothing_or_too_much_is_refused(fraction):
    with pytest.raises(UserError, match=r"PartialSolution\.fraction"):
        ctx.PartialSolution(fraction)


def test_without_anything_to_show_the_prompt_is_unchanged():
    assert ctx.render(ctx.NoContext(), "1+3?", QWEN3, "4") == "1+3?"
    for context in (ctx.Solution(), ctx.SolutionWithoutThinking(), ctx.PartialSolution()):
        assert ctx.needs_demonstration(context)
        assert ctx.render(context, "1+3?", None, "4") == "1+3?"


def test_the_answer_needs_no_demonstration():
    assert not ctx.needs_demonstration(ctx.AnswerOnly())
    for demonstration in (None, QWEN3):
        shown = ctx.render(ctx.AnswerOnly(), "1+3?", demonstration, "4")
        assert shown == ctx.TEMPLATE.format(prompt="1+3?", solution="4")


def _encode(text):
    return list(text.encode())


def _decode(ids):
    return bytes(ids).decode(errors="replace")


@given(st.text(max_size=40), st.integers(0, 60))
def test_a_shortened_text_is_a_beginning_that_fits(text, max_tokens):
    shortened, was_cut = ctx.shorten(text, _encode, _decode, max_tokens)
    assert len(_encode(shortened)) <= max_tokens
    assert text.startswith(shortened)
    assert was_cut == (shortened != text)


def test_a_long_demonstration_is_cut_and_the_instruction_stays():
    demonstration = "Hmm " * 1000 + "</think>" + "step " * 1000
    text, was_cut = ctx.render_within(
        ctx.SolutionWithoutThinking(), "1+3?", demonstration, "4",
        encode=_encode, decode=_decode, max_tokens=10,
    )  # fmt: skip
    assert was_cut
    assert text == ctx.TEMPLATE.format(prompt="1+3?", solution="step step ")
    short, was_cut = ctx.render_within(
        ctx.Solution(), "1+3?", QWEN3, "4", encode=_encode, decode=_decode, max_tokens=500
    )
    assert not was_cut
    assert short == ctx.render(ctx.Solution(), "1+3?", QWEN3, "4")


@given(st.lists(st.booleans(), max_size=9), st.sampled_from(["random", "first", "shortest"]))
def test_a_row_is_shown_another_rows_success_or_nothing(correct, choice):
    lengths = [7 * row % 5 for row in range(len(correct))]
    chosen = ctx.choose_demonstrations(correct, np.random.default_rng(0), choice, lengths)
    for row, other in enumerate(chosen):
        siblings = [j for j, right in enumerate(correct) if right and j != row]
        assert (other is None) == (not siblings)
        assert other is None or other in siblings
        if choice == "first":
            assert other == next(iter(siblings), None)
        if choice == "shortest" and siblings:
            assert lengths[other] == min(lengths[j] for j in siblings)


def test_a_lone_winner_learns_nothing_and_teaches_the_rest():
    chosen = ctx.choose_demonstrations([False, True, False], np.random.default_rng(0))
    assert chosen == [1, None, 1]


def test_siblings_are_drawn_uniformly_and_the_same_again_for_the_same_seed():
    draws = [ctx.choose_demonstrations([True] * 4, np.random.default_rng(s)) for s in range(600)]
    counts = np.bincount([row[0] for row in draws], minlength=4)
    # 600 draws of probability 1/3: mean 200, standard deviation 11.5; 60 is more than five of it.
    assert counts[0] == 0
    assert (abs(counts[1:] - 200) < 60).all()
    assert draws[7] == ctx.choose_demonstrations([True] * 4, np.random.default_rng(7))
