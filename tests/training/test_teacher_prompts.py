"""The teacher's prompts: whose response they show, in which words, and how they are cut."""

import dataclasses
from typing import ClassVar, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED_DATA
from several_hosts import on_two_hosts
from tiny_rollouts import (
    ALL,
    LONE,
    NONE,
    PAIR,
    QUESTIONS,
    experience,
    response,
    rollouts_of,
    shown,
)
from tiny_run import ARCHITECTURE

from jaxdistill import overrides
from jaxdistill.errors import UserError
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import with_tokenizer
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.tasks.contexts import (
    AnswerOnly,
    Context,
    ContextOnly,
    Feedback,
    InstructionOnly,
    NoContext,
    PartialSolution,
    Regenerated,
    Shown,
    Solution,
    SolutionWithoutThinking,
    Template,
    WrongSolution,
)
from jaxdistill.tasks.questions import Question, messages
from jaxdistill.training import teacher_prompts
from jaxdistill.training.on_policy import check_contrast, check_demonstrations

QWEN3 = SHARED_DATA / "qwen3_tokenizer"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy without parameters: the tests read only text and token ids."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return with_tokenizer(ARCHITECTURE, None, folder)


@pytest.fixture(scope="module")
def qwen3():
    if not QWEN3.is_dir():
        pytest.skip(f"no {QWEN3}")
    return with_tokenizer(ARCHITECTURE, None, QWEN3)


@dataclasses.dataclass(frozen=True)
class Redone:
    """A recipe's own context that shows a part of what the initial model wrote."""

    regenerates: ClassVar = True

    def compose(self, attempt):
        return attempt.show(attempt.solution and attempt.solution.split()[0])


@dataclasses.dataclass(frozen=True)
class SameWords:
    """A recipe's own contrast: the teacher's context without the question."""

    reuses_shown: ClassVar = True

    def compose(self, attempt):
        raise AssertionError("not asked as a contrast")


@dataclasses.dataclass(frozen=True)
class Hint:
    """A recipe's own context with its own template; it shows nothing after a correct attempt."""

    words: int = 2

    def compose(self, attempt):
        if attempt.verdict.correct or attempt.solution is None:
            return None
        told = " ".join(attempt.solution.split()[: self.words])
        return Shown(attempt.question.prompt, told, template=HINT)


@dataclasses.dataclass(frozen=True)
class Rephrased:
    """A context that shows a longer prompt and no solution."""

    def compose(self, attempt):
        return Shown(f"{attempt.question.prompt} {attempt.wrong_solution}", instruction=False)


HINT = Template(turn="{solution}{feedback} {prompt}", solution="answer {solution} then")


def with_positions(policy, positions):
    config = dataclasses.replace(policy.config, max_positions=positions)
    return policy._replace(config=config)


def taught(policy, groups, questions=QUESTIONS, *, seed=0, step=0, **changes):
    found = rollouts_of(policy, groups, questions, seed=seed, step=step)
    return teacher_prompts.teacher_prompts(experience(**changes), policy, found)


def contrasted(policy, groups, questions=QUESTIONS, **changes):
    config, found = experience(**changes), rollouts_of(policy, groups, questions)
    prompts = teacher_prompts.teacher_prompts(config, policy, found)
    return teacher_prompts.contrast_prompts(config, policy, found, prompts)


# ---------------------------------------------------------------------------- demonstrations


def test_a_lone_winner_is_masked_and_its_siblings_are_shown_it(policy):
    prompts = taught(policy, [LONE])
    demonstrated = shown(QUESTIONS[0], response(2))
    assert prompts.turns == [demonstrated, QUESTIONS[0].prompt, demonstrated]
    assert prompts.weight_B.tolist() == [1, 0, 1]
    assert prompts.weight_B.dtype == np.float32


def test_a_group_without_success_has_weight_zero_and_the_plain_prompt(policy):
    prompts = taught(policy, [NONE])
    assert prompts.turns == [QUESTIONS[0].prompt] * 3
    assert prompts.weight_B.tolist() == [0, 0, 0]


def test_with_two_successes_every_row_is_distilled_and_none_is_shown_itself(policy):
    prompts = taught(policy, [PAIR, ALL])
    assert prompts.weight_B.tolist() == [1] * 6
    first, third = shown(QUESTIONS[0], response(4)), shown(QUESTIONS[0], response(6))
    assert prompts.turns[0] == third
    assert prompts.turns[1] in (first, third)
    assert prompts.turns[2] == first
    for row, turn in enumerate(prompts.turns[3:]):
        others = [response(10 + other) for other in range(3) if other != row]
        assert turn in [shown(QUESTIONS[1], text) for text in others]


@pytest.mark.parametrize(
    ("mode", "second_group", "weight_B"),
    [
        ("sibling", [response(2), None, response(2)], [1, 0, 1]),
        ("reference", ["solution", "solution", "solution"], [1, 1, 1]),
        ("sibling_or_reference", [response(2), "solution", response(2)], [1, 1, 1]),
    ],
)
def test_where_demonstrations_come_from(policy, mode, second_group, weight_B):
    prompts = taught(policy, [NONE, LONE], demonstration=mode)
    question = QUESTIONS[1]
    texts = [question.solution if text == "solution" else text for text in second_group]
    assert prompts.turns[3:] == [
        question.prompt if text is None else shown(question, text) for text in texts
    ]
    assert prompts.weight_B[3:].tolist() == weight_B
    # The group without a correct rollout is shown the reference solution, if that is allowed.
    assert prompts.weight_B[:3].tolist() == ([0, 0, 0] if mode == "sibling" else [1, 1, 1])


def test_a_question_without_a_reference_solution_is_not_distilled_from_it(policy):
    bare = [dataclasses.replace(QUESTIONS[0], solution=None), QUESTIONS[1]]
    prompts = taught(policy, [PAIR, PAIR], bare, demonstration="reference")
    assert prompts.weight_B.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_choice_of_the_sibling_is_a_setting(policy):
    wordy = [(response(1, "wait"), True), (response(2), True), (response(3, "hmm"), True)]
    for choice, others in {"first": [2, 1, 1], "shortest": [2, 1, 2]}.items():
        prompts = taught(policy, [wordy], demonstration_choice=choice)
        assert prompts.turns == [shown(QUESTIONS[0], wordy[other - 1][0]) for other in others]


def test_a_context_that_needs_no_demonstration_distils_every_row(policy):
    for context, turn in (
        (AnswerOnly(), lambda question: shown(question, question.answer)),
        (NoContext(), lambda question: question.prompt),
        (
            InstructionOnly(),
            lambda question: f"{question.prompt}\n\nCorrectly solve the original question.",
        ),
    ):
        prompts = taught(policy, [NONE, LONE], context=context)
        assert prompts.turns == [turn(QUESTIONS[0])] * 3 + [turn(QUESTIONS[1])] * 3
        assert prompts.weight_B.tolist() == [1] * 6


def test_the_context_decides_how_much_of_the_sibling_is_shown(policy):
    group = [("wait 1 </think> answer a b c", True), (response(2), False)]
    for context, text in (
        (Solution(), "wait 1 </think> answer a b c"),
        (SolutionWithoutThinking(), "answer a b c"),
        (PartialSolution(0.5), "answer a"),
    ):
        prompts = taught(policy, [group], context=context)
        assert prompts.turns == [QUESTIONS[0].prompt, shown(QUESTIONS[0], text)]


def test_a_wrong_solution_is_an_incorrect_sibling_in_the_words_of_a_correct_one(policy):
    for mode in ("sibling", "reference", "sibling_or_reference"):
        prompts = taught(policy, [PAIR, ALL], context=WrongSolution(), demonstration=mode)
        wrong = shown(QUESTIONS[0], response(5))
        assert prompts.turns == [wrong, QUESTIONS[0].prompt, wrong] + [QUESTIONS[1].prompt] * 3
        assert prompts.weight_B.tolist() == [1, 0, 1, 0, 0, 0]


def test_the_context_alone_is_a_sibling_without_the_question(policy):
    prompts = taught(policy, [LONE], context=ContextOnly())
    alone = f"Correct solution:\n\n{response(2)}\n\nCorrectly solve the original question."
    assert prompts.turns == [alone, QUESTIONS[0].prompt, alone]
    assert prompts.weight_B.tolist() == [1, 0, 1]


FAILED = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
CLOSING = "\n\nCorrectly solve the original question."


def test_feedback_is_the_rows_own_verdict_and_a_right_row_has_none(policy):
    question = QUESTIONS[0]
    prompts = taught(policy, [LONE], context=Feedback())
    told = f"{question.prompt}{FAILED}Your answer 9 is incorrect (wrong answer).{CLOSING}"
    assert prompts.turns == [told, question.prompt, told]
    assert prompts.weight_B.tolist() == [1, 0, 1]
    assert all(question.answer not in turn for turn in prompts.turns)
    revealed = taught(policy, [LONE], context=Feedback(reveal_answer=True))
    assert revealed.turns[0] == told.replace(CLOSING, f" The answer is {question.answer}.{CLOSING}")


def test_feedback_with_solutions_shows_each_row_what_there_is(policy):
    a, b = QUESTIONS[:2]
    prompts = taught(policy, [LONE, NONE], context=Feedback(with_solution=True))
    feedback = f"{FAILED}Your answer 9 is incorrect (wrong answer).{CLOSING}"
    both = f"{a.prompt}\nCorrect solution:\n\n{response(2)}{feedback}"
    assert prompts.turns == [both, a.prompt, both] + [f"{b.prompt}{feedback}"] * 3
    assert prompts.weight_B.tolist() == [1, 0, 1, 1, 1, 1]
    prompts = taught(policy, [PAIR], context=Feedback(with_solution=True))
    assert prompts.turns[0] == shown(a, response(6))  # this attempt was correct itself


def test_regenerated_texts_are_shown_where_there_are_any(policy):
    found = rollouts_of(policy, [LONE])
    config = experience(context=Regenerated())
    texts = [None, None, "10 </think> answer 10"]
    prompts = teacher_prompts.teacher_prompts(config, policy, found, texts)
    plain_turn = QUESTIONS[0].prompt
    assert prompts.turns == [plain_turn, plain_turn, shown(QUESTIONS[0], texts[2])]
    assert prompts.weight_B.tolist() == [0, 0, 1]
    own = teacher_prompts.teacher_prompts(experience(context=Redone()), policy, found, texts)
    assert own.turns == [plain_turn, plain_turn, shown(QUESTIONS[0], "10")]


def test_a_users_own_template_is_used(policy):
    mine = Template(solution="\n= {solution} =")
    prompts = taught(policy, [LONE], template=mine)
    assert prompts.turns[0] == f"{QUESTIONS[0].prompt}\n= {response(2)} ={CLOSING}"


PATTERNS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.sampled_from(["random", "first", "shortest"]), st.integers(1, 3))
def test_no_row_is_ever_shown_itself_whatever_was_right(policy, patterns, choice, J):
    groups = [
        [(response(10 * q + r), right) for r, right in enumerate(pattern)]
        for q, pattern in enumerate(patterns)
    ]
    found = rollouts_of(policy, groups)
    config = experience(demonstration_choice=choice, contrasts=J)
    prompts = teacher_prompts.teacher_prompts(config, policy, found)
    contrasts = teacher_prompts.contrast_prompts(config, policy, found, prompts)
    for q, pattern in enumerate(patterns):
        for r in range(len(pattern)):
            row, texts = 4 * q + r, [text for text, _ in groups[q]]
            good = {t for t, is_right in groups[q] if is_right} - {texts[r]}
            bad = {t for t, is_right in groups[q] if not is_right} - {texts[r]}
            assert prompts.weight_B[row] == bool(good)
            seen = prompts.shown[row]
            assert seen is None or seen.solution in good
            others = [x.solution for x in contrasts.shown[row * J : (row + 1) * J] if x]
            assert len(others) == len(set(others)) == min(J, len(bad))
            assert set(others) <= bad


# ----------------------------------------------------------------------------------- contrasts


def test_contrasts_are_in_row_order_and_missing_ones_are_plain(policy):
    prompts = contrasted(policy, [LONE, ALL], contrasts=2, demonstration_choice="first")
    one, three = (shown(QUESTIONS[0], response(n)) for n in (1, 3))
    nothing, nothing_else = QUESTIONS[0].prompt, QUESTIONS[1].prompt
    assert prompts.turns == [three, nothing, one, three, one, nothing] + [nothing_else] * 6
    assert prompts.weight_B.reshape(6, 2).tolist() == [[1, 0], [1, 1], [1, 0]] + [[0, 0]] * 3


@pytest.mark.parametrize(
    "context", [Solution(), SolutionWithoutThinking(), AnswerOnly(), Feedback(with_solution=True)]
)
def test_the_context_alone_as_a_contrast_is_the_teachers_without_the_question(policy, context):
    groups = [PAIR, ALL]
    prompts = taught(policy, groups, context=context)
    contrasts = contrasted(policy, groups, context=context, contrast=ContextOnly())
    assert contrasts.weight_B.tolist() == prompts.weight_B.tolist()
    for row, (ours, theirs) in enumerate(zip(contrasts.turns, prompts.turns)):
        assert f"{QUESTIONS[row // 3].prompt}\n{ours}" == theirs
    own = contrasted(policy, groups, context=context, contrast=SameWords())
    assert own.turns == contrasts.turns


def test_a_contrast_may_be_another_context_of_the_same_row(policy):
    question = QUESTIONS[0]
    answer = contrasted(policy, [LONE], contrast=AnswerOnly())
    assert answer.turns == [shown(question, question.answer)] * 3
    nothing = contrasted(policy, [LONE], contrast=NoContext())
    assert nothing.turns == [question.prompt] * 3
    assert nothing.weight_B.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------- addressed randomness


def siblings_by_question(policy, order, **address):
    outcomes = [(response(n), n % 2 == 0) for n in range(6)]
    options = {"count": 2, **address}
    place = {name: options.pop(name, 0) for name in ("seed", "step")}
    questions = [QUESTIONS[i] for i in order]
    found = rollouts_of(policy, [outcomes] * len(order), questions, **place)
    return {
        i: teacher_prompts.draw_siblings(experience(), found, q, **options)
        for q, i in enumerate(order)
    }


@pytest.mark.parametrize("correct", [True, False])
def test_what_a_question_shows_does_not_depend_on_the_rest_of_the_batch(policy, correct):
    first = siblings_by_question(policy, [0, 1, 2], correct=correct)
    second = siblings_by_question(policy, [4, 2, 1], correct=correct)
    assert {i: first[i] for i in (1, 2)} == {i: second[i] for i in (1, 2)}


def test_demonstrations_are_drawn_anew_for_every_step_question_seed_and_purpose(policy):
    def draws(**address):
        return [siblings_by_question(policy, [i], **address)[i] for i in range(5)]

    assert draws() == draws()
    for other in ({"step": 1}, {"seed": 1}, {"purpose": "contrast"}):
        assert draws() != draws(**other)
    assert len({str(chosen) for chosen in draws()}) > 1


def test_the_first_draw_does_not_depend_on_how_many_follow(policy):
    one, two = (siblings_by_question(policy, [0], count=count)[0] for count in (1, 2))
    # Later rows draw from the same stream, so this holds for the first row only.
    assert one[0] == two[0][:1]


# -------------------------------------------------------------------------------------- lengths

LONG = [(response(1, *["wait"] * 20), True), (response(2), False), (response(3), False)]


def test_a_demonstration_that_is_too_long_is_cut_inside_and_counted(policy):
    prompts = taught(policy, [LONG, NONE], max_demonstration_tokens=4)
    # Question, header and instruction are not cut.
    cut = shown(QUESTIONS[0], "wait wait wait wait")
    assert prompts.turns[:3] == [QUESTIONS[0].prompt, cut, cut]
    assert prompts.weight_B.tolist() == [0, 1, 1, 0, 0, 0]
    assert prompts.is_cut_B.tolist() == [False, True, True, False, False, False]
    assert not prompts.is_dropped_B.any()


def test_a_row_with_a_demonstration_that_is_too_long_can_be_dropped_instead(policy):
    short = [(response(4), True), (response(5), False), (response(6), False)]
    prompts = taught(policy, [LONG, short], max_demonstration_tokens=4, overlong="drop")
    assert prompts.turns[:3] == [QUESTIONS[0].prompt] * 3
    assert prompts.weight_B.tolist() == [0, 0, 0, 0, 1, 1]
    assert prompts.is_dropped_B.tolist() == [False, True, True, False, False, False]
    assert not prompts.is_cut_B.any()


def test_an_own_context_is_cut_where_it_shows_a_solution_and_nowhere_else(policy):
    told = dataclasses.replace(QUESTIONS[0], id="own")
    prompts = taught(policy, [LONG], [told], context=Hint(words=9), max_demonstration_tokens=4)
    cut = f"answer wait wait wait wait then {told.prompt}"
    assert prompts.turns == [told.prompt, cut, cut]
    assert prompts.is_cut_B.tolist() == [False, True, True]
    assert prompts.weight_B.tolist() == [0, 1, 1]
    # Fewer model positions cut it in the same way, until the words around it alone are too long.
    outcomes = set()
    for positions in range(20, 50):
        small = with_positions(policy, positions)
        prompts = taught(small, [LONG], [told], context=Hint(words=9))
        assert len(prompts.ids[1]) <= positions - 5 or prompts.is_dropped_B[1]
        if not prompts.is_dropped_B[1]:
            assert prompts.turns[1].startswith("answer wait")
            assert prompts.turns[1].endswith(f" then {told.prompt}")
        outcomes.add((bool(prompts.is_cut_B[1]), bool(prompts.is_dropped_B[1])))
    assert outcomes == {(False, False), (True, False), (False, True)}


def test_an_own_context_that_is_too_long_around_its_solution_is_dropped(policy):
    fits = taught(policy, [PAIR], context=Rephrased())
    assert fits.turns[0] == f"{QUESTIONS[0].prompt} {response(5)}"
    prompts = taught(with_positions(policy, 15), [PAIR], context=Rephrased())
    assert prompts.is_dropped_B.all()
    assert prompts.turns == [QUESTIONS[0].prompt] * 3


def test_contrasts_are_held_to_the_same_length(policy):
    wrong = [(text, not right) for text, right in LONG]
    prompts = contrasted(policy, [wrong], max_demonstration_tokens=4)
    assert prompts.turns[1] == shown(QUESTIONS[0], "wait wait wait wait")
    assert prompts.is_cut_B.tolist() == [False, True, True]


def ids_of(policy, question, turn, thinking=None):
    return tokenizers.prompt_ids(policy.tokenizer, [messages(question, turn)], thinking)[0]


@pytest.mark.parametrize("overlong", ["cut", "drop"])
def test_prompt_and_completion_always_fit_into_the_models_positions(policy, overlong):
    """For every number of positions, from none left to more than enough."""
    question = QUESTIONS[0]
    whole, empty = (len(ids_of(policy, question, shown(question, t))) for t in (LONG[0][0], ""))
    outcomes = set()
    for positions in range(20, 80):
        small = with_positions(policy, positions)
        prompts = taught(small, [LONG], overlong=overlong)
        room = positions - 5  # `2 </think> answer 2` and a stop token
        plain_ids = ids_of(policy, question, None)
        assert prompts.ids[0] == plain_ids  # the lone winner's
        if prompts.weight_B[1]:
            assert len(prompts.ids[1]) <= room
            turn = prompts.turns[1]
            before, _, after = shown(question, "*").partition("*")
            assert turn.startswith(before)
            assert turn.endswith(after)
            assert prompts.is_cut_B[1] == (turn != shown(question, LONG[0][0]))
            assert prompts.ids[1][-3:] == plain_ids[-3:]  # <|im_start|> assistant <think>
        else:
            assert prompts.is_dropped_B[1]
            assert prompts.ids[1] == plain_ids
        outcomes.add((bool(prompts.weight_B[1]), bool(prompts.is_cut_B[1])))
        if room >= whole + 8:  # the reserved tokens
            assert (prompts.weight_B[1], prompts.is_cut_B[1]) == (1, False)
        if room <= empty:
            assert prompts.is_dropped_B[1]
    assert outcomes == {(True, False), (False, False)} | (
        {(True, True)} if overlong == "cut" else set()
    )


def test_a_context_without_a_demonstration_is_dropped_where_it_does_not_fit(policy):
    small = with_positions(policy, 15)
    for context, is_dropped in (
        (InstructionOnly(), True),
        (Feedback(), True),
        (NoContext(), False),
    ):
        prompts = taught(small, [NONE], context=context)
        assert prompts.is_dropped_B.tolist() == [is_dropped] * 3
        assert prompts.turns == [QUESTIONS[0].prompt] * 3
        assert prompts.weight_B.tolist() == [0 if is_dropped else 1] * 3


# ---------------------------------------------------------------------------- the chat template


def test_the_demonstration_stands_in_the_user_turn_before_the_assistant_begins(policy):
    system = dataclasses.replace(QUESTIONS[0], system="20 15 1")
    prompts = taught(policy, [LONE], [system])
    before, after = "<|im_start|> system 20 15 1 <|im_end|> ", "<|im_start|> assistant <think>"
    user = f"<|im_start|> user {' '.join(shown(system, response(2)).split())} <|im_end|> "
    texts = [policy.tokenizer.decode(ids) for ids in prompts.ids]
    assert texts[0] == texts[2] == before + user + after
    # The only correct row is shown nothing: its teacher sees the student's prompt.
    assert texts[1] == f"{before}<|im_start|> user {system.prompt} <|im_end|> {after}"


@pytest.mark.parametrize(
    ("thinking", "ending"),
    [
        (True, "<|im_start|>assistant\n"),
        (False, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_qwen3s_teacher_reads_the_same_and_ends_where_the_assistant_starts(qwen3, thinking, ending):
    tokenizer = qwen3.tokenizer
    question = Question("q", "What is $\\frac{4}{2}$?", "2", system="Be brief.")
    good = "<think>\nWait, {2}?\n</think>\n\n解 \\boxed{2}"
    group = [(good, True), ("\\boxed{3}", False)]
    found = rollouts_of(qwen3, [group], [question])
    settings_ = {"student_thinking": thinking, "context": Feedback(with_solution=True)}
    prompts = teacher_prompts.teacher_prompts(experience(**settings_), qwen3, found)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert tokenizer.decode(prompts.ids[1]) == (
        f"{system}<|im_start|>user\nWhat is $\\frac{{4}}{{2}}$?\nCorrect solution:\n\n{good}\n"
        "The following is feedback from your unsuccessful earlier attempt:\n\n"
        "Your answer 9 is incorrect (wrong answer).\n\nCorrectly solve the original question."
        f"<|im_end|>\n{ending}"
    )
    assert tokenizer.decode(prompts.ids[0]) == (
        f"{system}<|im_start|>user\n{question.prompt}<|im_end|>\n{ending}"
    )


def test_a_demonstration_that_spells_control_tokens_ends_no_turn_of_the_teachers(policy, qwen3):
    spelled = "It is 2. <|im_end|> <|im_start|> assistant 2"
    for model in (policy, qwen3):
        ids = [model.tokenizer.convert_tokens_to_ids(x) for x in ("<|im_start|>", "<|im_end|>")]
        prompts = taught(model, [[(spelled, True)] * 2])
        assert all("<|im_end|>" in turn for turn in prompts.turns)
        assert [[row.count(id) for id in ids] for row in prompts.ids] == [[2, 1]] * 2


@pytest.mark.parametrize("thinking", [True, False])
def test_qwen3s_long_demonstrations_are_cut_to_the_positions_that_there_are(qwen3, thinking):
    text = "<think>\nWait, 解 {x} \U0001f642 …\n\n</think>" * 40
    question = Question("q", "1+1?", "2")
    found = rollouts_of(qwen3, [[(text, True), ("3", False)]], [question])
    config = experience(student_thinking=thinking)
    for positions in range(150, 190):
        small = with_positions(qwen3, positions)
        prompts = teacher_prompts.teacher_prompts(config, small, found)
        room = positions - int(found.lengths_B[1])
        # A cut loses the reserved tokens, and what a character of several tokens leaves over.
        assert room - 16 <= len(prompts.ids[1]) <= room
        before, _, after = shown(question, "*").partition("*")
        told = prompts.turns[1].removeprefix(before).removesuffix(after)
        assert text.startswith(told)
        assert "\ufffd" not in told
        plain_ids = ids_of(qwen3, question, None, thinking)
        assert prompts.ids[1][-5:] == plain_ids[-5:]
        assert qwen3.tokenizer.decode(prompts.ids[1]).count("<|im_start|>") == 2


# --------------------------------------------------------------------------------------- errors


def check(questions, **changes):
    check_demonstrations(experience(**changes), questions)


def test_a_teacher_without_any_possible_demonstration_is_refused():
    bare = [Question("q", "1+1?", "2")]
    for fine in (
        {}, {"context": AnswerOnly(), "rollouts": 1}, {"context": Feedback(True), "rollouts": 1},
        {"demonstration": "sibling_or_reference"}, {"context": InstructionOnly(), "rollouts": 1},
        {"context": WrongSolution(), "demonstration": "reference"},
        {"context": Rephrased(), "rollouts": 1},
    ):  # fmt: skip
        check(bare, **fine)
    check(QUESTIONS, demonstration="reference", rollouts=1)
    check(QUESTIONS, demonstration="sibling_or_reference", rollouts=1)
    check(QUESTIONS, demonstration="reference", rollouts=1, context=Regenerated())
    alone = "`rollouts` must be at least 2, got 1"
    for context in (
        Solution(), WrongSolution(), Regenerated(), ContextOnly(), PartialSolution(), Hint(),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"context={type(context).__name__}.*{alone}"):
            check(QUESTIONS, context=context, rollouts=1)
    for demonstration, rollouts in (("reference", 3), ("sibling_or_reference", 1)):
        with pytest.raises(UserError, match="no question of the task has one"):
            check(bare, demonstration=demonstration, rollouts=rollouts)
    with pytest.raises(UserError, match=alone):  # a reference solution is not wrong
        check(QUESTIONS, context=WrongSolution(), rollouts=1, demonstration="reference")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast": Regenerated()}, "which a contrast cannot do"),
        ({"contrast": Redone()}, r"`contrast=Redone\(\)` regenerates solutions"),
        ({"contrast": SameWords(), "context": NoContext()}, "shows nothing but the question"),
        ({"contrast": ContextOnly(), "context": NoContext()}, "shows nothing but the question"),
        ({"rollouts": 1}, "`contrast=WrongSolution.*at least 2, got 1"),
        ({"contrasts": 3}, "at least 4 `rollouts`; got .*WrongSolution.* and 3"),
        ({"contrast": ContextOnly(), "contrasts": 2}, "a `contrast` that shows siblings"),
        ({"contrast": AnswerOnly(), "contrasts": 2}, "a `contrast` that shows siblings"),
        (
            {"contrasts": 2, "contrast": Solution(), "demonstration": "reference"},
            "that shows siblings",
        ),
    ],
)
def test_contrasts_that_could_never_be_made_are_refused(changes, message):
    check_contrast(experience(contrasts=2), QUESTIONS)
    check_contrast(experience(contrast=ContextOnly()), QUESTIONS)
    with pytest.raises(UserError, match=message) as error:
        check_contrast(experience(**changes), QUESTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["questions", "rollouts", "completion_multiple", "contrasts"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"`{name}` must be at least 1, got 0"):
        experience(**{name: 0})


# -------------------------------------------------------------------------------------- settings


def test_every_choice_can_be_set_by_its_path_and_survives_json():
    config = overrides.apply_overrides(experience(), [
        "context=Feedback(with_solution=True)", "overlong=drop", "contrast=ContextOnly()",
        r'template.solution="\nA hint:\n\n{solution}"',
    ])  # fmt: skip
    assert config == experience(
        context=Feedback(with_solution=True), overlong="drop", contrast=ContextOnly(),
        template=Template(solution="\nA hint:\n\n{solution}"),
    )  # fmt: skip
    for context in filter(dataclasses.is_dataclass, get_args(Context)):
        config = experience(context=context(), contrast=context())
        assert overrides.from_json(type(config), overrides.to_json(config)) == config


def test_a_template_set_wrongly_is_one_line_with_its_path():
    with pytest.raises(UserError) as error:
        overrides.apply_overrides(experience(), ["template.solution='Hint: {hint}'"])
    assert str(error.value) == (
        "template: Template.solution must hold {solution} and no other field (literal braces: {{ "
        "and }}), got 'Hint: {hint}'"
    )


# ------------------------------------------------------------------------------------ cut rows


@pytest.mark.parametrize("correct", [True, False])
def test_a_sibling_cut_at_the_limit_is_shown_only_if_asked_for(policy, correct):
    found = rollouts_of(policy, [[(response(n), correct) for n in range(3)]])
    found = dataclasses.replace(found, finished_B=np.array([False, True, False]))
    drawn = {
        cut: teacher_prompts.draw_siblings(
            experience(cut_demonstrations=cut), found, 0, correct=correct, count=2
        )
        for cut in (False, True)
    }
    assert drawn[False] == [[1], [], [1]]
    assert [sorted(rows) for rows in drawn[True]] == [[1, 2], [0, 2], [0, 1]]


VOTERS = """
from types import SimpleNamespace
from jaxdistill import hosts
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.training.teacher_prompts import count_votes

hosts.start()
asked = set()

def grade(questions, responses):
    asked.update(question.id for question in questions)
    pairs = zip(questions, responses, strict=True)
    return [Verdict(q.answer == text, "", None if text == "-" else text) for q, text in pairs]

questions = [Question(id, "?", "") for id in "abc"]
rollouts = SimpleNamespace(questions=questions, rollouts=3, responses=list("122-55717"))
print(count_votes(rollouts, grade), "".join(sorted(asked)))
hosts.part(0)
"""


@pytest.mark.slow
def test_each_host_compares_the_answers_to_its_own_questions_and_all_have_every_vote():
    votes = [0, 1, 1, None, 1, 1, 0, 1, 0]
    assert on_two_hosts(VOTERS, "", "") == [(0, f"{votes} a"), (0, f"{votes} bc")]
