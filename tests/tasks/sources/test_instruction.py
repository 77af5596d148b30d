r"""What a prompt asks for: the boxed sentence is added once, "Answer:" sentences are replaced."""

import pytest

from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources.instruction import BOX, DEFAULT, LETTER, RESPONSE, TAG, instruct
from jaxdistill.tasks.sources.place import BadRow, Place

SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."
BOXED = f"1+1?\n{SENTENCE}"
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    "1+1?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
SIMPLE_EVALS = DAPO.replace("$Answer", "$ANSWER").replace(
    '"Answer:".', '"Answer:", and you do not need to use a \\boxed command.'
)


def question(prompt, **fields):
    return Question("q", prompt, "2", **fields)


def changed(prompt, form=BOX, instruction=DEFAULT, **fields):
    asked, change = instruct(question(prompt, **fields), form, instruction)
    return asked.prompt, change


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("1+1?", (BOXED, "added")),
        ("1+1?\n\n", (BOXED, "added")),
        (BOXED, (BOXED, "kept")),
        (DAPO, (BOXED, "replaced")),
        (SIMPLE_EVALS, (BOXED, "replaced")),
        (DAPO.replace(" (", '" (').replace("form ", 'form "'), (BOXED, "replaced")),
        (DAPO.split("\n\n", 1)[1], (BOXED, "replaced")),  # the second sentence alone
        (DAPO.rsplit("\n\n", 1)[0], (BOXED, "replaced")),  # the first alone
        (f"{DAPO}\n{SENTENCE}", (None, "replaced")),
        (r"1+1? Answer in \boxed{}.", (None, "kept")),
        (r"1+1? Use \\boxed{}.", (None, "kept")),
        (r"1+1? Put it in \boxed.", (None, "kept")),
        ("1+1? Put it in \x08oxed{}.", (None, "kept")),
        ("1+1? Put it in boxed{}.", (None, "kept")),
        # Near misses: words that ask for no box.
        ("Chocolates are boxed by 2. 1+1?", (None, "added")),
        (r"1+1? Do not use \boxed{}.", (None, "added")),
        (r"1+1? Don't put your answer in \boxed{}.", (None, "added")),
        (r"1+1? You do not need to use a \boxed command.", (None, "added")),
        (r"1+1? No \boxed{} please.", (None, "added")),
        (r"1+1? Avoid using \boxed.", (None, "added")),
        # A "not" that is said of something else.
        (r"Without a calculator, put 1+1 in \boxed{}.", (None, "kept")),
        (r"You cannot use a calculator; answer in \boxed{}.", (None, "kept")),
        (r"It is not an integer; write \boxed{p/q}.", (None, "kept")),
        (r"Don't guess 1+1; put it in $\boxed{}$.", (None, "kept")),
        # Chinese problems have DAPO's English sentences, or a sentence of their own.
        ("求1+1。请把最终答案放在\\boxed{}中。", (None, "kept")),
        ("求1+1。", (f"求1+1。\n{SENTENCE}", "added")),
        (DAPO.replace("1+1?", "求1+1。"), (f"求1+1。\n{SENTENCE}", "replaced")),
        (DAPO.replace(" (without quotes)", ""), (BOXED, "replaced")),
        (DAPO.replace("the answer to the problem", "your final answer"), (BOXED, "replaced")),
        (DAPO.replace("math problem", "problem"), (BOXED, "replaced")),
        ("The answer is a box. 1+1?", (None, "added")),
        ("Answer: 1+1?", (None, "added")),
    ],
)
def test_mathematics_asks_for_a_box_exactly_once(prompt, expected):
    asked, change = changed(prompt)
    assert change == expected[1]
    assert BOX.is_asked_by(question(asked))
    assert "Answer: $" not in asked
    assert "own line" not in asked
    assert asked.count(SENTENCE) == (0 if change == "kept" and SENTENCE not in prompt else 1)
    if expected[0] is not None:
        assert asked == expected[0]
    assert changed(asked) == (asked, "kept")  # nothing is left to do


def test_a_box_that_the_system_turn_or_an_earlier_user_turn_asks_for_is_enough():
    shot = (("user", r"0+1? Use \boxed{}."), ("assistant", "1"))
    assert changed("1+1?", system=SENTENCE) == ("1+1?", "kept")
    assert changed("1+1?", earlier=shot) == ("1+1?", "kept")
    # That an answer holds a box asks for nothing.
    answered = (("user", "0+1?"), ("assistant", r"\boxed{1}"))
    assert changed("1+1?", earlier=answered) == (BOXED, "added")


def test_a_system_turn_that_asks_for_an_answer_line_goes():
    first = DAPO.split("\n\n")[0]
    asked, change = instruct(question("1+1?", system=first), BOX, DEFAULT)
    assert (asked.prompt, asked.system, change) == (BOXED, None, "replaced")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("1+1?", ("1+1?\nBe quick.", "added")),
        (BOXED, ("1+1?\nBe quick.", "replaced")),
        (DAPO, ("1+1?\nBe quick.", "replaced")),
        ("1+1?\nBe quick.", ("1+1?\nBe quick.", "kept")),
    ],
)
def test_a_text_of_ones_own_takes_the_place_of_known_sentences(prompt, expected):
    assert changed(prompt, instruction="Be quick.") == expected


@pytest.mark.parametrize("prompt", ["1+1?", BOXED, DAPO])
def test_without_an_instruction_prompts_stay_as_they_are(prompt):
    assert changed(prompt, instruction=None) == (prompt, "kept")


@pytest.mark.parametrize("form", [LETTER, TAG])
def test_a_tag_is_asked_for_where_it_is_graded(form):
    assert changed("1+1?", form) == (f"1+1?\n{form.sentence}", "added")
    assert changed("1+1?", form, system="Use <answer>\n...\n</answer>.") == ("1+1?", "kept")
    assert changed("1+1?", RESPONSE) == ("1+1?", "kept")


@pytest.mark.parametrize(
    ("form", "prompt", "answer", "message"),
    [
        (BOX, "1+1? Use <answer></answer>.", "2", "use ChoiceTask or ExactTask"),
        (LETTER, r"1+1? A: 2 B: 3 Use \boxed{}.", "A", "use MathTask"),
        (TAG, BOXED, "2", "use MathTask"),
        (LETTER, "1+1?", "2", "the letter of an option"),
        (LETTER, "1+1?", "AB", "the letter of an option"),
        (LETTER, "1+1?", "b", "the letter of an option"),
    ],
)
def test_a_row_for_another_kind_of_task_is_refused(form, prompt, answer, message):
    with pytest.raises(BadRow, match=message):
        form.check(Place("a.jsonl", "a", 0), Question("q", prompt, answer))


def test_a_row_that_asks_for_both_forms_suits_both():
    both = Question("q", r"1+1? Use <answer>\boxed{}</answer>.", "A")
    for form in (BOX, LETTER, TAG, RESPONSE):
        form.check(Place("a.jsonl", "a", 0), both)
