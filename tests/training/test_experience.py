"""The sources of a step's batch: its arrays, and the facts that the host reports."""

import dataclasses
import json
from typing import ClassVar

import jax
import numpy as np
import pytest
from tiny_rollouts import (
    ALL,
    LONE,
    NONE,
    PAIR,
    QUESTIONS,
    experience,
    rendered,
    response,
    rollouts_of,
    shown,
)
from tiny_run import ARCHITECTURE

from jaxdistill import objectives
from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import write_rollouts
from jaxdistill.objectives import GRPO, CrossEntropy, Distill
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompts import prompt_lengths
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.contexts import (
    AnswerOnly,
    ContextOnly,
    Regenerated,
    WorkedExample,
    WrongSolution,
)
from jaxdistill.tasks.demonstrations import Majority, Shortest
from jaxdistill.tasks.grading import Verdict, grade_all
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.tasks.toy import grader as toy_grader
from jaxdistill.training.batch import bucket, trim_or_pad
from jaxdistill.training.experience import (
    Setting,
    Supervised,
    on_policy_batch,
    open_source,
    with_unique_ids,
)
from jaxdistill.training.on_policy import check_demonstrations, within_limit


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


@pytest.fixture
def setting(policy, tmp_path):
    return Setting(
        engine=Engine(policy),
        objective=Distill(),
        seed=0,
        words=TEN_WORDS,
        rollouts_dir=tmp_path / "rollouts",
    )


def no_grade(questions, responses):
    raise AssertionError("nothing was sampled that could be graded")


def batch_of(config, setting, found, grade=no_grade):
    return on_policy_batch(config, setting, found, grade)


def test_repeated_questions_get_ids_of_their_own_and_the_first_keeps_its_own():
    a, b = QUESTIONS[:2]
    named = with_unique_ids([a, b, a, a])
    assert [question.id for question in named] == [a.id, b.id, f"{a.id}#2", f"{a.id}#3"]
    assert [question.prompt for question in named] == [a.prompt, b.prompt, a.prompt, a.prompt]


# ----------------------------------------------------------------------------- arrays and facts


def test_completions_keep_every_token_and_end_at_a_bucket(setting, policy):
    found = rollouts_of(policy, [LONE, [(response(1, *["wait"] * 9), False)] * 3])
    for multiple, width in ((8, 16), (5, 15), (14, 14)):
        batch, _ = batch_of(experience(completion_multiple=multiple), setting, found)
        assert batch.completion.ids_BP.shape[1] == width  # the longest: 9 + 4 words and a stop
        assert batch.completion.length_B.tolist() == found.lengths_B.tolist()
        kept_BT = np.arange(width) < batch.completion.length_B[:, None]
        for given, kept in (
            (found.tokens_BT, batch.completion.ids_BP),
            (found.logp_BT, batch.behaviour_logp_BT),
        ):
            is_real = found.mask_BT == 1
            np.testing.assert_array_equal(given[is_real], kept[kept_BT])
            assert kept.dtype == given.dtype


def test_a_samplers_empty_columns_are_trimmed_to_the_bucket(setting, policy):
    found = rollouts_of(policy, [LONE])
    wide = dataclasses.replace(
        found,
        **{
            name: trim_or_pad(getattr(found, name), 64)
            for name in ("tokens_BT", "mask_BT", "logp_BT")
        },
    )
    narrow, expected = (batch_of(experience(), setting, x)[0] for x in (wide, found))
    assert_same_arrays(narrow, expected)


@pytest.mark.parametrize("objective", [Distill(), GRPO()])
def test_rows_that_were_cut_can_be_left_out_of_the_loss(setting, policy, objective):
    setting = dataclasses.replace(setting, objective=objective)
    found = dataclasses.replace(
        rollouts_of(policy, [PAIR, ALL]), finished_B=np.array([True, False] * 3)
    )
    kept, _ = batch_of(experience(), setting, found)
    batch, facts = batch_of(experience(cut_rows_in_loss=False), setting, found)
    assert kept.completion.length_B.all()
    expected_B = np.where(found.finished_B, kept.completion.length_B, 0)
    assert batch.completion.length_B.tolist() == expected_B.tolist()
    assert facts["truncated"] == 0.5
    whole = dataclasses.replace(batch, completion=kept.completion)
    assert_same_arrays(whole, kept)


def assert_same_arrays(batch, other):
    jax.tree.map(np.testing.assert_array_equal, vars(batch), vars(other))


def test_a_bucket_is_the_next_multiple_and_never_empty():
    assert [bucket(size, 8) for size in (0, 1, 8, 9)] == [8, 8, 8, 16]


def test_the_facts_of_a_step_by_hand(setting, policy):
    # 4 and 6 words and a stop token: five and seven tokens per row.
    group = [(response(1), True), (response(2, "wait", "unlikely"), False)]
    found = rollouts_of(
        policy, [group, [(response(3), False), (response(4, "hmm", "check"), False)]]
    )
    found = dataclasses.replace(found, finished_B=np.array([True, True, True, False]))
    _, facts = batch_of(experience(), setting, found)
    assert facts == pytest.approx({
        "reward": 1 / 4,
        "solved": 1 / 2,
        "length": (5 + 7 + 5 + 7) / 4,
        "truncated": 1 / 4,
        "epistemic_per_response": (0 + 1 + 0 + 2) / 4,
        "epistemic_per_1k": 1000 * 3 / 24,
        "tokens": 24,
        "distilled": 1 / 4,
        "contexts_cut": 0,
        "contexts_dropped": 0,
    })  # fmt: skip


def test_the_lexicons_own_words_are_counted_beside_the_papers(setting, policy):
    found = rollouts_of(policy, [[(response(1, "then", "wait"), False)] * 3])
    setting = dataclasses.replace(setting, words=("then",))
    _, facts = batch_of(experience(), setting, found)
    assert (facts["lexicon_per_response"], facts["epistemic_per_response"]) == (1, 1)
    setting = dataclasses.replace(setting, words=("then", "wait"))
    _, facts = batch_of(experience(), setting, found)
    assert (facts["lexicon_per_response"], facts["epistemic_per_response"]) == (2, 1)
    assert facts["lexicon_per_1k"] == 2 * facts["epistemic_per_1k"]
    setting = dataclasses.replace(setting, words=TEN_WORDS[::-1])
    assert not any("lexicon" in name for name in batch_of(experience(), setting, found)[1])


@pytest.mark.parametrize(("by_std", "scale"), [(False, 1.0), (True, 3**0.5)])
def test_a_grpo_batch_has_centred_rewards_no_teacher_and_every_row(setting, policy, by_std, scale):
    setting = dataclasses.replace(setting, objective=GRPO(normalize_std=by_std))
    batch, facts = batch_of(experience(), setting, rollouts_of(policy, [LONE, ALL]))
    # Rewards 0 1 0: mean 1/3, unbiased deviation 1/sqrt(3). Equal rewards have advantage 0.
    expected = np.array([-1 / 3, 2 / 3, -1 / 3, 0, 0, 0]) * scale
    np.testing.assert_allclose(batch.advantage_B, expected, atol=1e-5)
    assert batch.advantage_B.dtype == np.float32
    assert batch.teacher is None
    assert batch.row_weight_B.tolist() == [1] * 6
    assert facts["distilled"] == 1
    assert not any("context" in name or "contrast" in name for name in facts)


@pytest.mark.parametrize("objective", [Distill(), GRPO()])
def test_every_batch_marks_the_correct_rows(setting, policy, objective):
    setting = dataclasses.replace(setting, objective=objective)
    batch, facts = batch_of(experience(), setting, rollouts_of(policy, [LONE, NONE]))
    assert batch.correct_B.tolist() == [0, 1, 0, 0, 0, 0]
    assert batch.correct_B.dtype == np.float32
    assert facts["solved"] == 1 / 2


# -------------------------------------------------------------------------- what the teacher sees


def test_the_arrays_of_teacher_prompts_are_as_wide_as_a_bucket(setting, policy):
    for multiple in (32, 48):
        config = experience(teacher_prompt_multiple=multiple)
        batch, _ = batch_of(config, setting, rollouts_of(policy, [LONE, NONE]))
        assert batch.teacher.ids_BP.shape[1] % multiple == 0
        assert batch.teacher.ids_BP.shape[1] < batch.teacher.length_B.max() + multiple


def test_a_row_that_is_shown_nothing_has_the_students_prompt_and_no_weight(setting, policy):
    batch, facts = batch_of(experience(), setting, rollouts_of(policy, [LONE]))
    student = rendered(policy, batch.prompt)
    teacher = rendered(policy, batch.teacher)
    assert teacher[1] == student[1]
    assert teacher[0] == teacher[2] != student[0]
    assert " ".join(shown(QUESTIONS[0], response(2)).split()) in teacher[0]
    assert batch.row_weight_B.tolist() == [1, 0, 1]
    assert facts["distilled"] == pytest.approx(2 / 3)
    assert batch.contrasts == ()


LONG = [(response(1, *["wait"] * 20), True), (response(2), False), (response(3), False)]


@pytest.mark.parametrize("overlong", ["cut", "drop"])
def test_contexts_that_were_too_long_are_counted(setting, policy, overlong):
    config = experience(max_demonstration_tokens=4, overlong=overlong)
    batch, facts = batch_of(config, setting, rollouts_of(policy, [LONG, NONE]))
    was_cut = overlong == "cut"
    assert facts["contexts_cut"] == pytest.approx(2 / 6 if was_cut else 0)
    assert facts["contexts_dropped"] == pytest.approx(0 if was_cut else 2 / 6)
    assert batch.row_weight_B.tolist() == [0, was_cut, was_cut, 0, 0, 0]


@pytest.fixture
def contrasting(monkeypatch):
    monkeypatch.setattr(
        objectives, "needs_contrast", lambda objective: isinstance(objective, Distill)
    )


@pytest.mark.usefixtures("contrasting")
def test_every_row_has_its_own_contrasts(setting, policy):
    config = experience(contrasts=2, demonstration_choice="first")
    batch, facts = batch_of(config, setting, rollouts_of(policy, [LONE, ALL]))
    assert len(batch.contrasts) == 2
    assert {contrast.ids_BP.shape for contrast in batch.contrasts} == {(6, 32)}
    weight_BJ = batch.contrast_weight_BJ
    assert weight_BJ.dtype == np.float32
    assert weight_BJ.tolist() == [[1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [0, 0]]
    assert facts["contrasted"] == 3 / 6
    assert (facts["contrasts_cut"], facts["contrasts_dropped"]) == (0, 0)
    texts = [rendered(policy, contrast) for contrast in batch.contrasts]
    student = rendered(policy, batch.prompt)
    wrong = [response(3), response(1), response(1)]  # of LONE, but never the row's own
    for row in range(6):
        expected = " ".join(wrong[row].split()) if row < 3 else student[row]
        assert expected in texts[0][row]
        assert weight_BJ[row, 1] or texts[1][row] == student[row]
    assert " ".join(response(3).split()) in texts[1][1]


@pytest.mark.usefixtures("contrasting")
def test_the_context_alone_is_the_teachers_prompt_without_the_question(setting, policy):
    config = experience(contrast=ContextOnly())
    batch, _ = batch_of(config, setting, rollouts_of(policy, [PAIR]))
    teacher = rendered(policy, batch.teacher)
    alone = rendered(policy, batch.contrasts[0])
    assert alone == [text.replace(f"{QUESTIONS[0].prompt} ", "") for text in teacher]
    assert batch.contrast_weight_BJ.tolist() == [[1]] * 3


# ---------------------------------------------------------------------------------- regeneration


class Judge:
    """A grader that accepts every second answer and records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, questions, responses):
        self.calls.append((list(questions), list(responses)))
        return [Verdict(i % 2 == 0, "", None) for i in range(len(responses))]


@dataclasses.dataclass(frozen=True)
class Redone:
    """A recipe's own context that shows what the initial model wrote."""

    regenerates: ClassVar = True

    def compose(self, attempt):
        return attempt.show(attempt.solution)


REGENERATED = experience(context=Regenerated())


def test_a_right_regenerated_answer_is_what_the_teacher_sees(setting, policy):
    judge = Judge()
    batch, facts = batch_of(REGENERATED, setting, rollouts_of(policy, [LONE, PAIR]), judge)
    ((questions, responses),) = judge.calls
    # Five rows have a solution to show; the sixth is a repetition that keeps the batch's shape.
    a, b = QUESTIONS[:2]
    assert questions == [a, a, b, b, b, a]  # graded as the original questions
    # Rows 0, 2, 3, 4 and 5 are answered, and every second answer is accepted.
    assert batch.row_weight_B.tolist() == [1, 0, 0, 1, 0, 1]
    assert facts["regenerated_correct"] == 3 / 5
    assert facts["distilled"] == 3 / 6
    assert (facts["regenerations_cut"], facts["regenerations_dropped"]) == (0, 0)
    teacher = rendered(policy, batch.teacher)
    for row, response_ in {0: responses[0], 3: responses[2], 5: responses[4]}.items():
        told = shown(QUESTIONS[row // 3], response_)
        assert " ".join(told.split()) in teacher[row]
    student = rendered(policy, batch.prompt)
    assert [teacher[row] for row in (1, 2, 4)] == [student[row] for row in (1, 2, 4)]
    own = batch_of(experience(context=Redone()), setting, rollouts_of(policy, [LONE, PAIR]), judge)
    assert_same_arrays(own[0], batch)


def test_the_initial_model_answers_the_guided_question_at_its_own_address(
    setting, policy, monkeypatch
):
    """Its answers depend on neither the student's samples nor the other rows."""
    asked, real = [], Engine.rollouts

    def rollouts(self, *arguments, **options):
        asked.append(arguments)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Engine, "rollouts", rollouts)
    judge = Judge()
    batch_of(REGENERATED, setting, rollouts_of(policy, [LONE], step=7), judge)
    ((params, questions, sampling, num_rollouts, address),) = asked
    assert params is policy.params
    assert (sampling, num_rollouts) == (REGENERATED.sampling, 1)
    assert address == Address(seed=0, purpose="regenerate", step=7)
    assert [question.prompt for question in questions] == [shown(QUESTIONS[0], response(2))] * 3
    assert [question.id for question in questions[:2]] == [
        f"{QUESTIONS[0].id}/0", f"{QUESTIONS[0].id}/2",
    ]  # fmt: skip
    # The same rows elsewhere in another batch have the same answers.
    found = rollouts_of(policy, [PAIR, LONE], [QUESTIONS[1], QUESTIONS[0]], step=7)
    batch_of(REGENERATED, setting, found, judge)
    (_, first), (_, second) = judge.calls
    assert second[3:5] == first[:2]
    assert first[0] != first[1]  # same question and solution, but a sample each


def test_without_any_solution_nothing_is_regenerated(setting, policy):
    batch, facts = batch_of(REGENERATED, setting, rollouts_of(policy, [NONE]))
    assert batch.row_weight_B.tolist() == [0, 0, 0]
    assert facts["regenerated_correct"] is None


# -------------------------------------------------------------------------------------- sources


def take(source, policy, first, count):
    return [source.next_batch(policy.params, step) for step in range(first, first + count)]


def assert_same_batches(actual, expected):
    for (batch, facts), (other, other_facts) in zip(actual, expected, strict=True):
        assert_same_arrays(batch, other)
        assert facts == other_facts


ON_POLICY = experience(context=AnswerOnly(), rollouts=2)
GUIDED = experience(context=Regenerated(), demonstration="reference", rollouts=2)
TEXTS = Supervised(examples=50, batch_size=4)


@pytest.mark.parametrize(
    ("config", "objective"),
    [(ON_POLICY, Distill()), (GUIDED, Distill()), (TEXTS, CrossEntropy())],
    ids=["on_policy", "regenerated", "supervised"],
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
    rows = [row.tolist() for row in (*batch.completion.ids_BP, *later.completion.ids_BP)]
    assert len(rows) == 8
    assert len({tuple(row) for row in rows}) == 8
    # One question: all the student's prompts are the same.
    assert len({tuple(row) for row in batch.prompt.ids_BP.tolist()}) == 1


def test_the_behaviour_temperature_is_the_samplers(setting):
    for temperature, expected in ((0.7, 0.7), (0.0, 1.0)):
        config = dataclasses.replace(ON_POLICY, sampling=Sampling(temperature))
        source = open_source(config, setting)
        assert source.temperature == expected
        source.close()


def test_rollouts_are_saved_every_few_steps(setting, policy):
    setting = dataclasses.replace(setting, rollouts_every=2)
    source = open_source(ON_POLICY, setting)
    take(source, policy, 0, 4)
    source.close()
    names = sorted(file.name for file in setting.rollouts_dir.iterdir())
    assert names == ["step_000000.jsonl", "step_000002.jsonl"]


@pytest.mark.parametrize(("rows", "kept"), [(None, 6), (4, 4), (64, 6)])
def test_a_file_of_rollouts_keeps_the_rows_asked_for_and_no_ids_unless_asked(
    tmp_path, policy, rows, kept
):
    found = rollouts_of(policy, [LONE, PAIR])
    for token_ids in (False, True):
        write_rollouts(tmp_path / "rollouts", ToyTask(), found, rows, token_ids=token_ids)
        lines = (tmp_path / "rollouts" / "step_000000.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [r["response"] for r in records] == found.responses[:kept]
        assert all(("prompt_ids" in r, "token_ids" in r) == (token_ids,) * 2 for r in records)
    for record in records:
        prompt = policy.tokenizer.decode(record["prompt_ids"])
        assert prompt.startswith("<|im_start|> user")
        assert record["question"] in prompt
        assert policy.tokenizer.decode(record["token_ids"]) == record["response"] + " <|im_end|>"
        assert len(record["token_ids"]) == record["num_tokens"]


def test_a_run_saves_every_row_with_its_ids_where_asked(setting, policy):
    setting = dataclasses.replace(setting, rollouts_every=1, rollouts_token_ids=True)
    source = open_source(ON_POLICY, setting)
    ((batch, _),) = take(source, policy, 0, 1)
    source.close()
    records = (setting.rollouts_dir / "step_000000.jsonl").read_text().splitlines()
    lengths = [len(json.loads(record)["token_ids"]) for record in records]
    assert lengths == batch.completion.length_B.tolist()


# --------------------------------------------------------------------------- prompts too long


@dataclasses.dataclass(frozen=True)
class Growing:
    """Questions of 1, 2, 3, 4 and 5 words; the toy's own are all equally long."""

    def questions(self):
        return [Question(f"{n} words", " ".join(["9"] * n), "9") for n in range(1, 6)]

    def grade(self, question, response):
        return Verdict(False, "wrong answer", None)


def growing(policy, **changes):
    """An experience of such questions, and the tokens of the prompt of one word."""
    task = Growing()
    (shortest,) = prompt_lengths(policy.tokenizer, task.questions()[:1])
    return dataclasses.replace(ON_POLICY, task=task, **changes), shortest


def test_questions_with_prompts_over_the_limit_are_dropped_and_counted(policy, capsys):
    questions = Growing().questions()
    _, shortest = growing(policy)
    config, _ = growing(policy, max_prompt_tokens=shortest + 2)
    lengths = [shortest + i for i in range(5)]
    expected = questions[:3], lengths[:3], {"questions_dropped": 2}
    assert within_limit(config, policy, questions) == expected
    assert capsys.readouterr().err == (
        f"2 of 5 questions have prompts of more than {shortest + 2} tokens (the longest: "
        f"{shortest + 4}): they are dropped\n"
    )
    config, _ = growing(policy)
    expected = questions, lengths, {"questions_dropped": 0}
    assert within_limit(config, policy, questions) == expected
    assert capsys.readouterr().err == ""


def test_the_limit_without_a_setting_is_what_the_model_leaves_beside_a_response(policy):
    questions = Growing().questions()
    _, shortest = growing(policy)
    for num_dropped in range(5):  # the model has 256 positions
        new = 256 - (shortest + 4) + num_dropped
        config, _ = growing(policy, sampling=Sampling(max_new_tokens=new))
        assert len(within_limit(config, policy, questions)[0]) == 5 - num_dropped
    sizes = "the model's 256 positions less `experience.sampling.max_new_tokens="
    for changes, refused in (
        ({"max_prompt_tokens": 249}, "`experience.max_prompt_tokens=249` must be at most 248: "),
        ({"max_prompt_tokens": 1}, "prompts of more than 1 tokens .*none is left.*up to 248: "),
        ({"sampling": Sampling(max_new_tokens=256)}, "nothing is left for a prompt: "),
    ):
        with pytest.raises(UserError, match=refused + sizes):
            within_limit(growing(policy, **changes)[0], policy, questions)
    with pytest.raises(UserError, match="`max_prompt_tokens` must be at least 1 or None, got 0"):
        experience(max_prompt_tokens=0)


@pytest.mark.long
def test_a_step_draws_from_the_questions_that_are_left_and_logs_the_count(setting, policy):
    _, shortest = growing(policy)
    config, _ = growing(policy, max_prompt_tokens=shortest + 1)
    source = open_source(config, setting)
    taken = take(source, policy, 0, 2)
    source.close()
    for batch, facts in taken:
        assert facts["questions_dropped"] == 3
        assert sorted(set(batch.prompt.length_B.tolist())) == [shortest, shortest + 1]


def test_solutions_are_regenerated_within_the_models_positions(setting, policy):
    # A guided prompt that fits beside the row's short completion and not beside a new one.
    positions = max(prompt_lengths(policy.tokenizer, QUESTIONS)) + 60
    small = policy._replace(config=dataclasses.replace(policy.config, max_positions=positions))
    setting = dataclasses.replace(setting, engine=Engine(small))
    config = experience(context=Regenerated(), sampling=Sampling(max_new_tokens=40))
    long = response(1, *["wait"] * 30)
    group = [(long, True), (long, True), (response(3), False)]
    _, facts = batch_of(
        config,
        setting,
        rollouts_of(small, [group]),
        grade=lambda _, responses: [Verdict(False, "wrong answer", "9") for _ in responses],
    )
    assert facts["regenerations_cut"] > 0


def test_supervised_rows_are_whole_texts_that_end_in_a_stop_token(setting, policy):
    source = open_source(TEXTS, setting)
    ((batch, facts),) = take(source, policy, 0, 1)
    source.close()
    assert batch.prompt.ids_BP.shape == batch.completion.ids_BP.shape == (4, 128)
    assert batch.teacher is None
    assert batch.row_weight_B.tolist() == batch.correct_B.tolist() == [1] * 4
    assert facts == {"tokens": batch.completion.length_B.sum()}
    prompts = rendered(policy, batch.prompt)
    completions = rendered(policy, batch.completion)
    for prompt, completion in zip(prompts, completions):
        assert prompt.endswith("<|im_start|> assistant <think>")
        assert "</think> answer" in completion
        assert completion.endswith("<|im_end|>")
        assert completion.count("<|im_end|>") == 1


@pytest.mark.usefixtures("contrasting")
def test_a_source_that_could_never_show_anything_is_not_opened(setting):
    with pytest.raises(UserError, match=r"`context=Solution.*`rollouts` must be at least 2"):
        open_source(experience(rollouts=1), setting)
    with pytest.raises(UserError, match=r"`contrast=WrongSolution.*`rollouts` must be at least 2"):
        open_source(experience(context=AnswerOnly(), rollouts=1), setting)
    # Without a teacher no demonstration is needed.
    open_source(experience(rollouts=1), dataclasses.replace(setting, objective=GRPO())).close()


# ------------------------------------------------------------- demonstrations without gold answers


def answering(*answers):
    """Responses with these answers, of which the grader has accepted none."""
    return [(f"{n} </think> answer {answer}".strip(), False) for n, answer in enumerate(answers)]


def grade_toy(questions, responses):
    return grade_all(toy_grader.grade, questions, responses)


VOTED = [answering("4", "5", "5"), answering("6", "", "6")]


def test_a_majority_is_shown_whatever_the_gold_answers_are(setting, policy):
    """Verdicts and golds of any kind change a diagnosis alone."""
    config = experience(demonstration_choice=Majority(min_share=0.5))
    found = rollouts_of(policy, VOTED)
    batch, facts = on_policy_batch(config, setting, found, grade_toy)
    prompts = rendered(policy, batch.teacher)
    texts = [text for group in VOTED for text, _ in group]
    for row, other in ((0, None), (1, 2), (2, 1), (3, 5), (4, None), (5, 3)):
        if other is not None:
            assert " ".join(texts[other].split()) in prompts[row]
    assert any(" ".join(texts[other].split()) in prompts[0] for other in (1, 2))
    assert batch.row_weight_B.tolist() == [1] * 6
    names = ("majority", "majority_share", "majority_right", "demonstrations_right")
    assert [facts[name] for name in names] == pytest.approx([1, 2 / 3, 0, 0])
    golds = [question.answer for question in found.questions]
    permuted = dataclasses.replace(
        found,
        questions=[
            dataclasses.replace(question, answer=gold)
            for question, gold in zip(found.questions, golds[::-1], strict=True)
        ],
        verdicts=[dataclasses.replace(v, correct=row == 1) for row, v in enumerate(found.verdicts)],
    )
    other, seen = on_policy_batch(config, setting, permuted, grade_toy)
    jax.tree.map(np.testing.assert_array_equal, batch.teacher, other.teacher)
    assert seen["majority_right"] == 1 / 2
    strict = experience(demonstration_choice=Majority(min_share=0.75))
    batch, facts = on_policy_batch(strict, setting, found, grade_toy)
    assert batch.row_weight_B.tolist() == [0] * 6
    assert (facts["majority"], facts["majority_right"]) == (0, None)


def test_a_worked_example_is_another_problem_of_batch_or_data(setting, policy):
    found = rollouts_of(policy, [LONE, NONE])
    config = experience(context=WorkedExample())
    batch, facts = on_policy_batch(config, setting, found, no_grade, QUESTIONS)
    # Only the first question has a correct rollout, which is an example for the second.
    assert batch.row_weight_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert facts["examples_missing"] == 1 / 2
    example = f"{QUESTIONS[0].prompt} {response(2)}"
    prompts = rendered(policy, batch.teacher)
    assert all(example in text for text in prompts[3:])
    config = experience(context=WorkedExample(), demonstration="reference")
    batch, facts = on_policy_batch(config, setting, found, no_grade, QUESTIONS)
    assert facts["examples_missing"] == 0
    for row, text in enumerate(rendered(policy, batch.teacher)):
        others = [q for q in QUESTIONS if q != found.question_of(row)]
        assert sum(f"{q.prompt} {' '.join(q.solution.split())}" in text for q in others) == 1


@pytest.mark.parametrize(
    ("changes", "questions", "said"),
    [
        ({"context": WorkedExample(), "questions": 1}, QUESTIONS, "`questions` must be at least 2"),
        ({"context": WorkedExample()}, QUESTIONS[:1], "the task has only one"),
        (
            {"context": WrongSolution(), "demonstration_choice": Shortest(judged=False)},
            QUESTIONS,
            "reads no verdicts; use Majority",
        ),
    ],
)
def test_a_demonstration_that_there_could_never_be_is_refused(changes, questions, said):
    with pytest.raises(UserError, match=said):
        check_demonstrations(experience(**changes), questions)


def test_the_names_of_the_first_three_choices_are_still_read():
    assert experience(demonstration_choice="shortest").choice == Shortest()
    assert experience(demonstration_choice="random") == experience()
    with pytest.raises(UserError, match="must be a choice or random, first, shortest, got 'best'"):
        experience(demonstration_choice="best")
    with pytest.raises(UserError, match="`demonstration=reference` shows none"):
        experience(demonstration_choice=Majority(), demonstration="reference")
