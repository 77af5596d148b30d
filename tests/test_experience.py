"""What a step learns from: who is shown what, which rows count, and what the host reports."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import policy as policies
from jaxdistill import tokenizer as tokenizers
from jaxdistill.contexts import (
    AnswerOnly,
    NoContext,
    PartialSolution,
    Solution,
    SolutionWithoutThinking,
)
from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.errors import UserError
from jaxdistill.experience import (
    OnPolicy,
    Setting,
    Supervised,
    bucket,
    check_demonstrations,
    choose_siblings,
    fit,
    on_policy_batch,
    open_source,
    save_rollouts,
    teacher_turns,
    told_apart,
)
from jaxdistill.grading import Verdict
from jaxdistill.objectives import GRPO, CrossEntropy, Distill
from jaxdistill.policy import Fresh
from jaxdistill.questions import Question, messages
from jaxdistill.rollouts import Rollouts
from jaxdistill.sampling import Sampling
from jaxdistill.tasks import ToyTask, questions_of

TASK = ToyTask(count=5)
QUESTIONS = questions_of(TASK)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return policies.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


@pytest.fixture
def setting(policy, tmp_path):
    return Setting(
        policy, Distill(), 0, TEN_WORDS, "float32", "auto", lambda tree: tree,
        tmp_path / "rollouts", 0,
    )  # fmt: skip


def experience(**changes):
    config = OnPolicy(
        TASK, 2, 3, Sampling(max_new_tokens=8), Solution(), teacher_prompt_multiple=32,
        completion_multiple=8,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def response(number, *words):
    """Thinking that differs by `number`, then the answer `number`."""
    return " ".join([*words, str(number), "</think>", "answer", str(number)])


def rollouts_of(policy, groups, questions=QUESTIONS):
    """Rollouts by hand: for each question a list of (response, is it right)."""
    texts = [text for group in groups for text, _ in group]
    rights = [right for group in groups for _, right in group]
    num_rollouts = len(groups[0])
    stop = policy.stop_ids[0]
    ids = [[*tokens, stop] for tokens in tokenizers.encode(policy.tokenizer, texts)]
    tokens_BT, mask_BT = tokenizers.right_pad(ids, 0, 1)
    chats = [messages(question) for question in questions[: len(groups)]]
    prompts = tokenizers.left_pad(tokenizers.prompt_ids(policy.tokenizer, chats), 0, 16)
    return Rollouts(
        list(questions[: len(groups)]), num_rollouts,
        *(np.repeat(x, num_rollouts, axis=0) for x in prompts),
        tokens_BT, mask_BT, np.full(tokens_BT.shape, -1.5, np.float32),
        np.ones(len(texts), bool), texts, [Verdict(right, "", None) for right in rights],
    )  # fmt: skip


LONE = [(response(1), False), (response(2), True), (response(3), False)]  # the second alone wins
PAIR = [(response(4), True), (response(5), False), (response(6), True)]
NONE = [(response(7), False), (response(8), False), (response(9), False)]
ALL = [(response(10), True), (response(11), True), (response(12), True)]


def shown(question, text):
    return (
        f"{question.prompt}\nCorrect solution:\n\n{text}\n\nCorrectly solve the original question."
    )


# ------------------------------------------------------------------------- who is shown what


def test_a_lone_winner_is_masked_and_its_siblings_are_shown_it(setting, policy):
    turns, weight_B, _ = teacher_turns(experience(), setting, rollouts_of(policy, [LONE]), 0)
    demonstrated = shown(QUESTIONS[0], response(2))
    assert turns == [demonstrated, QUESTIONS[0].prompt, demonstrated]
    assert weight_B.tolist() == [1, 0, 1]


def test_a_group_without_success_has_weight_zero_and_the_plain_prompt(setting, policy):
    turns, weight_B, _ = teacher_turns(experience(), setting, rollouts_of(policy, [NONE]), 0)
    assert turns == [QUESTIONS[0].prompt] * 3
    assert weight_B.tolist() == [0, 0, 0]


def test_with_two_successes_every_row_is_distilled_and_none_is_shown_itself(setting, policy):
    found = rollouts_of(policy, [PAIR, ALL])
    turns, weight_B, _ = teacher_turns(experience(), setting, found, 0)
    assert weight_B.tolist() == [1] * 6
    first, third = shown(QUESTIONS[0], response(4)), shown(QUESTIONS[0], response(6))
    assert turns[0] == third
    assert turns[1] in (first, third)
    assert turns[2] == first
    for row, turn in enumerate(turns[3:]):
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
def test_where_demonstrations_come_from(setting, policy, mode, second_group, weight_B):
    config = experience(demonstration=mode)
    found = rollouts_of(policy, [NONE, LONE])
    turns, weights, _ = teacher_turns(config, setting, found, 0)
    question = QUESTIONS[1]
    texts = [question.solution if text == "solution" else text for text in second_group]
    assert turns[3:] == [question.prompt if t is None else shown(question, t) for t in texts]
    assert weights[3:].tolist() == weight_B
    # The group without success has its reference solution, if that may be shown.
    assert weights[:3].tolist() == ([0, 0, 0] if mode == "sibling" else [1, 1, 1])


def test_a_question_without_a_reference_solution_is_not_distilled_from_it(setting, policy):
    bare = [dataclasses.replace(QUESTIONS[0], solution=None), QUESTIONS[1]]
    found = rollouts_of(policy, [PAIR, PAIR], bare)
    _, weight_B, _ = teacher_turns(experience(demonstration="reference"), setting, found, 0)
    assert weight_B.tolist() == [0, 0, 0, 1, 1, 1]


def test_which_sibling_is_a_choice(policy):
    wordy = [(response(1, "wait"), True), (response(2), True), (response(3, "hmm"), True)]
    found = rollouts_of(policy, [wordy])
    chosen = {
        choice: choose_siblings(experience(demonstration_choice=choice), 0, found, 0, 0)
        for choice in ("first", "shortest")
    }
    assert chosen == {"first": [1, 0, 0], "shortest": [1, 0, 1]}


def test_a_context_that_needs_no_demonstration_distils_every_row(setting, policy):
    found = rollouts_of(policy, [NONE, LONE])
    for context, expected in (
        (AnswerOnly(), [shown(question, question.answer) for question in QUESTIONS[:2]]),
        (NoContext(), [question.prompt for question in QUESTIONS[:2]]),
    ):
        turns, weight_B, _ = teacher_turns(experience(context=context), setting, found, 0)
        assert turns == [expected[0]] * 3 + [expected[1]] * 3
        assert weight_B.tolist() == [1] * 6


def test_the_context_decides_how_much_of_the_sibling_is_shown(setting, policy):
    group = [("wait 1 </think> answer a b c", True), (response(2), False)]
    found = rollouts_of(policy, [group])
    for context, text in (
        (Solution(), "wait 1 </think> answer a b c"),
        (SolutionWithoutThinking(), "answer a b c"),
        (PartialSolution(0.5), "answer a"),
    ):
        turns, _, _ = teacher_turns(experience(context=context), setting, found, 0)
        assert turns == [QUESTIONS[0].prompt, shown(QUESTIONS[0], text)]


# ------------------------------------------------------------------------- the teacher's prompt


def rendered(policy, ids_BP, mask_BP):
    """The prompts as text, special tokens included."""
    return [policy.tokenizer.decode(ids[mask == 1]) for ids, mask in zip(ids_BP, mask_BP)]


def test_the_demonstration_stands_in_the_user_turn_before_the_assistant_begins(setting, policy):
    system = dataclasses.replace(QUESTIONS[0], system="20 15 1")
    found = rollouts_of(policy, [LONE], [system])
    batch, _ = on_policy_batch(experience(), setting, found, 0)
    student = rendered(policy, batch.prompt_ids_BP, batch.prompt_mask_BP)
    teacher = rendered(policy, batch.teacher_ids_BP, batch.teacher_mask_BP)
    before, after = "<|im_start|> system 20 15 1 <|im_end|> ", "<|im_start|> assistant <think>"
    user = f"<|im_start|> user {' '.join(shown(system, response(2)).split())} <|im_end|> "
    assert teacher[0] == teacher[2] == before + user + after
    # The lone winner is shown nothing: its teacher sees what the student sees.
    plain = f"{before}<|im_start|> user {system.prompt} <|im_end|> {after}"
    assert [teacher[1], *student] == [plain] * 4


def test_teacher_prompts_are_padded_on_the_left_to_a_bucket(setting, policy):
    for multiple in (32, 48):
        config = experience(teacher_prompt_multiple=multiple)
        batch, _ = on_policy_batch(config, setting, rollouts_of(policy, [LONE, NONE]), 0)
        assert batch.teacher_ids_BP.shape == batch.teacher_mask_BP.shape
        assert batch.teacher_ids_BP.shape[1] % multiple == 0
        assert np.all(np.diff(batch.teacher_mask_BP, axis=1) >= 0)


def test_a_demonstration_that_is_too_long_is_cut_inside_and_counted(setting, policy):
    long = [(response(1, *["wait"] * 20), True), (response(2), False), (response(3), False)]
    config = experience(max_demonstration_tokens=4)
    turns, weight_B, share = teacher_turns(config, setting, rollouts_of(policy, [long, NONE]), 0)
    # The question, the header and the instruction stay whole.
    assert turns[1] == turns[2] == shown(QUESTIONS[0], "wait wait wait wait")
    assert weight_B.tolist() == [0, 1, 1, 0, 0, 0]
    assert share == pytest.approx(2 / 6)
    _, facts = on_policy_batch(config, setting, rollouts_of(policy, [long, NONE]), 0)
    assert facts["contexts_cut"] == pytest.approx(2 / 6)


# ------------------------------------------------------------------------- addressed randomness


def siblings_by_question(policy, order, *, seed=0, step=0):
    found = rollouts_of(policy, [ALL] * len(order), [QUESTIONS[i] for i in order])
    return {
        i: choose_siblings(experience(), seed, found, q, step) for q, i in enumerate(order)
    }  # fmt: skip


def test_the_demonstrations_of_a_question_do_not_depend_on_the_rest_of_the_batch(policy):
    first = siblings_by_question(policy, [0, 1, 2])
    second = siblings_by_question(policy, [4, 2, 1])
    assert {i: first[i] for i in (1, 2)} == {i: second[i] for i in (1, 2)}


def test_demonstrations_are_drawn_anew_at_every_step_question_and_seed(policy):
    def draws(**address):
        return [siblings_by_question(policy, [i], **address)[i] for i in range(5)]

    assert draws() == draws()
    assert draws() != draws(step=1)
    assert draws() != draws(seed=1)
    assert len({tuple(chosen) for chosen in draws()}) > 1


def test_repeated_questions_get_ids_of_their_own_and_the_first_keeps_its_own():
    a, b = QUESTIONS[:2]
    named = told_apart([a, b, a, a])
    assert [question.id for question in named] == [a.id, b.id, f"{a.id}#2", f"{a.id}#3"]
    assert [question.prompt for question in named] == [a.prompt, b.prompt, a.prompt, a.prompt]


# ----------------------------------------------------------------------------- arrays and facts


def test_completions_keep_every_token_and_end_at_a_bucket(setting, policy):
    found = rollouts_of(policy, [LONE, [(response(1, *["wait"] * 9), False)] * 3])
    for multiple, width in ((8, 16), (5, 15), (14, 14)):
        batch, _ = on_policy_batch(experience(completion_multiple=multiple), setting, found, 0)
        assert batch.completion_ids_BT.shape[1] == width  # the longest has 9 + 4 words and a stop
        assert batch.completion_mask_BT.sum(axis=1).tolist() == found.lengths_B.tolist()
        for given, kept in (
            (found.tokens_BT, batch.completion_ids_BT),
            (found.logp_BT, batch.behaviour_logp_BT),
        ):
            is_real = found.mask_BT == 1
            np.testing.assert_array_equal(given[is_real], kept[batch.completion_mask_BT == 1])
            assert kept.dtype == given.dtype


def test_a_samplers_empty_columns_are_trimmed_to_the_bucket(setting, policy):
    found = rollouts_of(policy, [LONE])
    wide = dataclasses.replace(
        found,
        **{name: fit(getattr(found, name), 64) for name in ("tokens_BT", "mask_BT", "logp_BT")},
    )
    narrow, expected = (on_policy_batch(experience(), setting, x, 0)[0] for x in (wide, found))
    for ours, theirs in zip(narrow, expected):
        np.testing.assert_array_equal(ours, theirs)


def test_a_bucket_is_the_next_multiple_and_never_empty():
    assert [bucket(size, 8) for size in (0, 1, 8, 9)] == [8, 8, 8, 16]


def test_the_facts_of_a_step_by_hand(setting, policy):
    # 4 and 6 words, each with a stop: five and seven tokens a row.
    group = [(response(1), True), (response(2, "wait", "unlikely"), False)]
    found = rollouts_of(
        policy, [group, [(response(3), False), (response(4, "hmm", "check"), False)]]
    )
    found = dataclasses.replace(found, finished_B=np.array([True, True, True, False]))
    _, facts = on_policy_batch(experience(), setting, found, 0)
    assert facts == pytest.approx({
        "reward": 1 / 4,
        "length": (5 + 7 + 5 + 7) / 4,
        "truncated": 1 / 4,
        "epistemic_per_response": (0 + 1 + 0 + 2) / 4,
        "epistemic_per_1k": 1000 * 3 / 24,
        "tokens": 24,
        "distilled": 1 / 4,
        "contexts_cut": 0,
    })  # fmt: skip


def test_the_settings_own_words_are_counted(setting, policy):
    found = rollouts_of(policy, [[(response(1, "then", "wait"), False)] * 3])
    setting = dataclasses.replace(setting, words=("then",))
    _, facts = on_policy_batch(experience(), setting, found, 0)
    assert facts["epistemic_per_response"] == 1


@pytest.mark.parametrize(("by_std", "scale"), [(False, 1.0), (True, 3**0.5)])
def test_grpo_gets_centred_rewards_no_teacher_and_every_row(setting, policy, by_std, scale):
    setting = dataclasses.replace(setting, objective=GRPO(normalize_std=by_std))
    batch, facts = on_policy_batch(experience(), setting, rollouts_of(policy, [LONE, ALL]), 0)
    # Rewards 0 1 0: mean 1/3, unbiased deviation 1/sqrt(3). A group of equals teaches nothing.
    expected = np.array([-1 / 3, 2 / 3, -1 / 3, 0, 0, 0]) * scale
    np.testing.assert_allclose(batch.advantage_B, expected, atol=1e-5)
    assert batch.advantage_B.dtype == np.float32
    assert batch.teacher_ids_BP is None
    assert batch.row_weight_B.tolist() == [1] * 6
    assert (facts["distilled"], facts["contexts_cut"]) == (1, None)


def test_saved_rollouts_are_a_sample_with_verdicts(policy, tmp_path):
    found = rollouts_of(policy, [PAIR] * 30, QUESTIONS * 6)
    save_rollouts(TASK, found, tmp_path / "rollouts", 7)
    lines = (tmp_path / "rollouts" / "step_000007.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 64
    assert [r["correct"] for r in records[:3]] == [True, False, True]
    assert [r["rollout"] for r in records[:4]] == [0, 1, 2, 0]
    assert records[3]["question_id"] == QUESTIONS[1].id


# -------------------------------------------------------------------------------------- sources


def take(source, policy, first, count):
    return [source.next_batch(policy.params, step) for step in range(first, first + count)]


def assert_same_batches(actual, expected):
    for (batch, facts), (other, other_facts) in zip(actual, expected, strict=True):
        for ours, theirs in zip(batch, other):
            np.testing.assert_array_equal(ours, theirs)
        assert facts == other_facts


ON_POLICY = experience(context=AnswerOnly(), rollouts=2)
TEXTS = Supervised(examples=50, batch_size=4)


@pytest.mark.parametrize(
    ("config", "objective"), [(ON_POLICY, Distill()), (TEXTS, CrossEntropy())],
    ids=["on_policy", "supervised"],
)  # fmt: skip
def test_a_restored_source_goes_on_with_the_same_batches(setting, policy, config, objective):
    setting = dataclasses.replace(setting, objective=objective)
    source = open_source(config, setting)
    take(source, policy, 0, 2)
    state = json.dumps(source.batches.get_state())
    expected = take(source, policy, 2, 3)
    source.close()

    resumed = open_source(config, setting)
    resumed.batches.set_state(json.loads(state))
    assert_same_batches(take(resumed, policy, 2, 3), expected)
    resumed.close()


def test_a_set_smaller_than_the_batch_is_sampled_anew_for_each_repeat(setting, policy):
    source = open_source(dataclasses.replace(ON_POLICY, task=ToyTask(count=1)), setting)
    (batch, _), (later, _) = take(source, policy, 0, 2)
    source.close()
    rows = [row.tolist() for row in (*batch.completion_ids_BT, *later.completion_ids_BT)]
    assert len(rows) == 8
    assert len({tuple(row) for row in rows}) == 8
    # One question: all the student's prompts are the same.
    assert len({tuple(row) for row in batch.prompt_ids_BP.tolist()}) == 1


def test_the_behaviour_temperature_is_the_samplers(setting):
    for temperature, expected in ((0.7, 0.7), (0.0, 1.0)):
        config = dataclasses.replace(ON_POLICY, sampling=Sampling(temperature))
        source = open_source(config, setting)
        assert source.temperature == expected
        source.close()


def test_rollouts_are_saved_as_often_as_asked(setting, policy):
    setting = dataclasses.replace(setting, rollouts_every=2)
    source = open_source(ON_POLICY, setting)
    take(source, policy, 0, 4)
    source.close()
    names = sorted(file.name for file in setting.rollouts_dir.iterdir())
    assert names == ["step_000000.jsonl", "step_000002.jsonl"]


def test_supervised_rows_are_whole_texts_that_end_in_a_stop(setting, policy):
    source = open_source(TEXTS, setting)
    ((batch, facts),) = take(source, policy, 0, 1)
    source.close()
    assert batch.prompt_ids_BP.shape == batch.completion_ids_BT.shape == (4, 128)
    assert batch.teacher_ids_BP is None
    assert batch.row_weight_B.tolist() == [1] * 4
    assert facts == {"tokens": batch.completion_mask_BT.sum()}
    prompts = rendered(policy, batch.prompt_ids_BP, batch.prompt_mask_BP)
    completions = rendered(policy, batch.completion_ids_BT, batch.completion_mask_BT)
    for prompt, completion in zip(prompts, completions):
        assert prompt.endswith("<|im_start|> assistant <think>")
        assert "</think> answer" in completion
        assert completion.endswith("<|im_end|>")
        assert completion.count("<|im_end|>") == 1


# --------------------------------------------------------------------------------------- errors


def test_a_teacher_that_could_never_be_shown_anything_is_refused():
    bare = [Question("q", "1+1?", "2")]
    check_demonstrations(experience(), bare)
    check_demonstrations(experience(demonstration="sibling_or_reference", rollouts=1), bare)
    check_demonstrations(experience(context=AnswerOnly(), rollouts=1), bare)
    check_demonstrations(experience(demonstration="reference"), QUESTIONS)
    with pytest.raises(UserError, match="`rollouts` must be at least 2"):
        check_demonstrations(experience(rollouts=1), bare)
    with pytest.raises(UserError, match="no question of the task has one"):
        check_demonstrations(experience(demonstration="reference"), bare)


@pytest.mark.parametrize("name", ["questions", "rollouts", "completion_multiple"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"`{name}` must be at least 1, got 0"):
        experience(**{name: 0})
