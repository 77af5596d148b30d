"""What the teacher sees."""

import dataclasses
import re
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.errors import UserError
from jaxdistill.tasks import contexts as ctx
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question


def attempt(solution, *, verdict=None, wrong=None):
    """A row of the question `1+3?`, whose response is correct unless `verdict` says otherwise."""
    verdict = verdict or Verdict(correct=True, reason="match", answer="4")
    return ctx.Attempt(Question("q", "1+3?", "4"), "its response", verdict, solution, wrong)


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
    shown = ctx.SolutionWithoutThinking().compose(attempt(response))
    assert shown is not None
    assert shown.solution == "It is \\boxed{4}."


def test_a_response_that_never_closes_its_thinking_stays_whole():
    assert ctx.remove_thinking("<think>\nWait, no end") == "<think>\nWait, no end"


@given(st.lists(PIECES, max_size=12).map("".join))
def test_thinking_is_removed_as_by_the_released_code(text):
    assert ctx.remove_thinking(text) == _released_code(text)


@pytest.mark.timeout(5)
def test_a_response_full_of_unclosed_thinking_is_no_trouble():
    unclosed = "<think> " * 100_000
    assert ctx.remove_thinking("</think>" + unclosed) == unclosed


@pytest.mark.parametrize(
    ("fraction", "words"), [(0.01, 1), (0.25, 2), (0.5, 3), (0.7, 4), (0.6, 3), (1.0, 5)]
)
def test_a_partial_solution_is_its_first_words_rounded_up(fraction, words):
    text = "a  b\n\nc d e"
    shown = ctx.PartialSolution(fraction).compose(attempt("Hmm</think>" + text))
    assert shown is not None
    assert shown.solution is not None
    assert text.startswith(shown.solution)
    assert len(shown.solution.split()) == words


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_a_fraction_that_shows_nothing_or_too_much_is_refused(fraction):
    with pytest.raises(UserError, match=r"PartialSolution\.fraction"):
        ctx.PartialSolution(fraction)


def test_without_anything_to_show_the_prompt_is_unchanged():
    assert ctx.render(ctx.NoContext(), "1+3?", QWEN3, "4") == "1+3?"
    for context in (ctx.Solution(), ctx.SolutionWithoutThinking(), ctx.PartialSolution()):
        assert context.compose(attempt(None)) is None
        assert ctx.render(context, "1+3?", None, "4") == "1+3?"


def test_the_answer_needs_no_demonstration():
    for demonstration in (None, QWEN3):
        assert ctx.render(ctx.AnswerOnly(), "1+3?", demonstration, "4") == (
            "1+3?\nCorrect solution:\n\n4\n\nCorrectly solve the original question."
        )


@pytest.mark.parametrize("context", [ctx.Regenerated(), ctx.WrongSolution()])
def test_other_responses_stand_whole_in_the_words_of_the_solution(context):
    shown = ctx.render(context, "1+3?", QWEN3, "4")
    assert shown == ctx.render(ctx.Solution(), "1+3?", QWEN3, "4")
    assert context.compose(attempt(None)) is None


def test_a_right_response_is_no_wrong_solution_and_the_other_way_round():
    assert ctx.WrongSolution().compose(attempt(QWEN3)) is None
    assert ctx.Solution().compose(attempt(None, wrong=QWEN3)) is None


def test_the_controls_leave_out_the_solution_or_the_question():
    instruction = ctx.render(ctx.InstructionOnly(), "1+3?", QWEN3, "4")
    assert instruction == "1+3?\n\nCorrectly solve the original question."
    context = ctx.render(ctx.ContextOnly(), "1+3?", R1, "4")
    assert context == f"Correct solution:\n\n{R1}\n\nCorrectly solve the original question."
    assert ctx.ContextOnly().compose(attempt(None)) is None


NOT_5 = Verdict(correct=False, reason="different", answer="5")


@pytest.mark.parametrize(
    ("with_solution", "solution", "verdict", "expected"),
    [
        (
            False, QWEN3, NOT_5,
            "1+3?\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
            "Your answer 5 is incorrect (different).\n\nCorrectly solve the original question.",
        ),
        (
            True, "It is 4.", NOT_5,
            "1+3?\nCorrect solution:\n\nIt is 4."
            "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
            "Your answer 5 is incorrect (different).\n\nCorrectly solve the original question.",
        ),
        (
            True, "It is 4.", None,
            "1+3?\nCorrect solution:\n\nIt is 4.\n\nCorrectly solve the original question.",
        ),
        (False, "It is 4.", None, "1+3?"),
        (True, None, None, "1+3?"),
    ],
)  # fmt: skip
def test_feedback_stands_below_the_solution_as_in_the_released_code(
    with_solution, solution, verdict, expected
):
    shown = ctx.Feedback(with_solution).compose(attempt(solution, verdict=verdict))
    if expected == "1+3?":
        assert shown is None
    else:
        assert shown is not None
        assert shown.turn() == expected


def test_feedback_belongs_to_its_own_context_alone():
    for context in (ctx.Solution(), ctx.AnswerOnly(), ctx.ContextOnly(), ctx.InstructionOnly()):
        shown = context.compose(attempt(QWEN3, verdict=NOT_5))
        assert shown is not None
        assert "incorrect" not in shown.turn()


@given(st.text(max_size=30), st.none() | st.text(max_size=300))
def test_feedback_tells_the_gold_answer_only_where_it_is_given(reason, given):
    # A private-use character is the gold answer, which may follow the colon of a grader's reason.
    gold = "\ue000"
    reason, given = reason.replace(gold, ""), given and given.replace(gold, "")
    assert gold not in ctx.feedback_text(f"{reason}: {gold}", given)
    assert ctx.feedback_text(reason, given, gold).endswith(f" The answer is {gold}.")


def test_an_answer_without_end_is_not_quoted():
    assert ctx.feedback_text("different", "9" * 201) == "Your answer is incorrect (different)."
    assert "9" * 200 in ctx.feedback_text("different", "9" * 200)


def test_blanks_are_nothing_to_show():
    assert ctx.SolutionWithoutThinking().compose(attempt("Hmm 4</think>\n\n")) is None
    assert ctx.render(ctx.Solution(), "1+3?", " \n", "4") == "1+3?"


# -------------------------------------------------------------------------------- own contexts


@dataclasses.dataclass(frozen=True)
class Mine:
    gives: Callable[[ctx.Attempt], object]

    def compose(self, attempt):
        return self.gives(attempt)


def test_an_own_context_sees_the_attempt_and_what_it_returns_is_checked():
    seen = attempt("a b c", verdict=NOT_5, wrong="d")
    mine = Mine(lambda row: row.show(row.solution, f"Not {row.verdict.answer}: {row.response}"))
    assert ctx.composed(mine, seen) == ctx.Shown("1+3?", "a b c", "Not 5: its response")
    assert ctx.composed(Mine(lambda row: None), seen) is None
    for gives, said in (
        (lambda row: "text", "expected a Shown of text, or None, got 'text'"),
        (lambda row: ctx.Shown("1+3?", 4), "expected a Shown of text, or .*solution is 4"),
        (lambda row: ctx.Shown(None), "expected a Shown of text, or .*prompt is None"),
        (lambda row: ctx.Shown("\ud800"), "expected a Shown of text, or .*prompt is '.ud800'"),
        (lambda row: ctx.Shown("a", template="{prompt}"), "expected .*is not a Template: '{prompt"),
        (lambda row: sys.exit(0), "SystemExit: 0"),
        (lambda row: row.solution.no_such, "AttributeError: 'str' object has no attribute"),
    ):
        with pytest.raises(UserError, match=f"^Mine.compose on question 'q': {said}"):
            ctx.composed(Mine(gives), seen)


# --------------------------------------------------------------------------------- the template

MINE = ctx.Template(
    turn="{solution}{feedback}\nIn \\boxed{{}}, {prompt}",
    solution="<<{solution}>>",
    feedback="[{feedback}]",
)


def test_a_users_own_words_stand_where_the_template_says():
    both = ctx.Shown("1+3?", "It is 4.", "Not 5.")
    assert both.turn(MINE) == "<<It is 4.>>[Not 5.]\nIn \\boxed{}, 1+3?"
    assert both._replace(template=MINE).turn(ctx.PAPER) == both.turn(MINE)
    none = ctx.render(ctx.InstructionOnly(), "1+3?", None, "4", MINE)
    assert none == "\nIn \\boxed{}, 1+3?"
    assert ctx.render(ctx.Solution(), "1+3?", None, "4", MINE) == "1+3?"


@given(*[st.lists(st.sampled_from(["{prompt}", "{0}", "{", "}", "}}", "{x!r}", "a"]))] * 3)
def test_braces_in_what_is_shown_are_never_read(prompt, solution, feedback):
    prompt, solution, feedback = ("Z" + "".join(text) for text in (prompt, solution, feedback))
    shown = ctx.Shown(prompt, solution, feedback).turn(MINE)
    assert shown == f"<<{solution}>>[{feedback}]\nIn \\boxed{{}}, {prompt}"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("turn", "{prompt} {solution}"),
        ("turn", "{prompt}{solution}{feedback}{answer}"),
        ("turn", "{prompt}{solution!r}{feedback}"),
        ("turn", "{prompt:>9}{solution}{feedback}"),
        ("turn", "{prompt}{solution.x}{feedback}"),
        ("turn", "{prompt}{solution}{feedback}\\boxed{}"),
        ("turn", "{{prompt}}{solution}{feedback}"),
        ("solution", "Solution:"),
        ("solution", "{prompt}{solution}"),
        ("solution", "{solution"),
        ("feedback", "}{feedback}"),
    ],
)
def test_a_template_with_other_fields_is_refused_by_name(field, text):
    with pytest.raises(UserError, match=rf"^Template\.{field} must hold \{{.*, got .*$") as error:
        ctx.Template(**{field: text})
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------- what fits


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


def test_a_worked_example_is_worded_as_another_problem_and_needs_no_solution_of_this_one():
    example = attempt("its own solution")._replace(example="2+2?\n\n4")
    shown = ctx.composed(ctx.WorkedExample(), example)
    assert shown is not None
    assert shown.turn() == (
        "1+3?\nAnother problem with its correct solution:\n\n2+2?\n\n4\n\n"
        "Correctly solve the original question."
    )
    same_words = ctx.Template(example=ctx.PAPER.solution)
    assert shown.turn(same_words) == ctx.Shown("1+3?", "2+2?\n\n4").turn()
    assert ctx.composed(ctx.WorkedExample(), attempt("its own solution")) is None
    assert ctx.composed(ctx.WorkedExample("a text"), attempt(None)) is not None
