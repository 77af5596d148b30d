"""Student and teacher in thinking modes of their own: what each reads, and from where."""

import dataclasses
import json

import numpy as np
import pytest
from places import SHARED_DATA
from thinking_templates import BY_OPENING, BY_SYSTEM_TURN, ONE_MODE
from tiny_rollouts import LONE, PAIR, QUESTIONS, experience, rollouts_of, shown
from tiny_run import ARCHITECTURE, tiny

from jaxdistill import overrides
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.run.loop import run
from jaxdistill.sampling.prompts import unused_mode
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import with_tokenizer
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.tasks.contexts import Feedback, InstructionOnly, NoContext, WorkedExample
from jaxdistill.tasks.questions import messages
from jaxdistill.tasks.toy.tokenizer import WORDING
from jaxdistill.training import teacher_prompts
from jaxdistill.training.roles import check_roles, say_unknown_words, teacher_ids

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def policy_of(folder):
    """A policy without parameters whose tokenizer has another chat template."""

    def build(template):
        policy = with_tokenizer(ARCHITECTURE, None, folder)
        policy.tokenizer.chat_template = template
        return policy

    return build


def roles(student, teacher, **changes):
    return experience(student_thinking=student, teacher_thinking=teacher, **changes)


def plain(policy, config):
    """The teacher's prompt of a question without a context, as text."""
    (ids,) = teacher_ids(config, policy, [messages(QUESTION)])
    return policy.tokenizer.decode(ids)


USER = f"<|im_start|> user {QUESTION.prompt} <|im_end|> <|im_start|> assistant"


# ------------------------------------------------------------------------------- what is rendered


@pytest.mark.parametrize(
    ("student", "teacher", "ending"),
    [
        (True, "as_student", ""),
        (False, "as_student", " <think> </think>"),
        (False, True, ""),
        (False, None, ""),
        (True, False, " <think> </think>"),
    ],
)
def test_the_teachers_prompt_has_its_own_mode_or_the_students(policy_of, student, teacher, ending):
    policy = policy_of(BY_OPENING)
    assert plain(policy, roles(student, teacher)) == USER + ending


def test_the_context_is_shown_in_the_teachers_mode_too(policy_of):
    policy, config = policy_of(BY_OPENING), roles(False, True)
    found = rollouts_of(policy, [LONE])
    prompts = teacher_prompts.teacher_prompts(config, policy, found)
    contrasts = teacher_prompts.contrast_prompts(config, policy, found, prompts)
    for ids, turn in zip(prompts.ids + contrasts.ids, prompts.turns + contrasts.turns):
        user = f"<|im_start|> user {' '.join(turn.split())} <|im_end|> "
        assert policy.tokenizer.decode(ids) == f"{user}<|im_start|> assistant"
    assert prompts.turns[0] == shown(QUESTION, found.responses[1])


def test_a_turn_that_opens_as_the_students_keeps_the_rest_of_the_teachers_mode(policy_of):
    policy = policy_of(BY_SYSTEM_TURN)
    assert plain(policy, roles(False, False)) == USER + " <think> </think>"
    system = "<|im_start|> system wait <|im_end|> "
    assert plain(policy, roles(False, True)) == system + USER + " <think>"
    same = roles(False, True, teacher_opening="student")
    assert plain(policy, same) == system + USER + " <think> </think>"
    # Nothing is replaced where the modes are the same.
    assert plain(policy, roles(True, True, teacher_opening="student")) == system + USER + " <think>"


def test_a_plain_prompt_too_long_in_the_teachers_mode_is_not_distilled(policy_of):
    """In the student's mode it fits by definition: the student has answered it."""
    policy = policy_of(BY_SYSTEM_TURN)
    found = rollouts_of(policy, [PAIR])
    lengths = [len(teacher_ids(roles(mode, mode), policy, [messages(QUESTION)])[0])
               for mode in (False, True)]  # fmt: skip
    assert lengths[1] > lengths[0]
    positions = lengths[1] + int(found.lengths_B.max())
    for config, spare, is_dropped in (
        (roles(False, True, context=NoContext()), 0, False),
        (roles(False, True, context=NoContext()), 1, True),
        (roles(False, False, context=NoContext()), 1, False),
    ):
        model = dataclasses.replace(policy.config, max_positions=positions - spare)
        small = policy._replace(config=model)
        prompts = teacher_prompts.teacher_prompts(config, small, found)
        assert prompts.is_dropped_B.tolist() == [is_dropped] * 3
        assert prompts.weight_B.tolist() == [1 - is_dropped] * 3


# ------------------------------------------------------------------------------------- the check


def said(capsys, policy, config):
    check_roles(config, policy, QUESTION)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 1
    return "".join(lines)


@pytest.mark.parametrize("template", [BY_OPENING, BY_SYSTEM_TURN, ONE_MODE])
@pytest.mark.parametrize("mode", [None, True, False])
def test_one_mode_for_both_roles_needs_no_word(policy_of, capsys, template, mode):
    for teacher in (mode, "as_student"):
        assert said(capsys, policy_of(template), roles(mode, teacher)) == ""


def test_an_answering_student_under_a_thinking_teacher_is_one_line(policy_of, capsys):
    line = said(capsys, policy_of(BY_OPENING), roles(False, True))
    assert "student_thinking=False" in line
    assert "teacher_thinking=True" in line
    assert "' assistant <think> </think>'" in line.replace("<|im_start|>", "")
    assert "teacher_opening=student" in line


@pytest.mark.parametrize(
    ("template", "student", "teacher"),
    [
        (BY_OPENING, True, False),  # thoughts after a block of thinking that is already closed
        (BY_SYSTEM_TURN, False, True),  # an answer inside a block of thinking
        (BY_SYSTEM_TURN, True, False),  # thoughts after a closed block
    ],
)
def test_a_response_that_the_teacher_would_misread_is_refused(
    policy_of, capsys, template, student, teacher
):
    policy = policy_of(template)
    with pytest.raises(UserError, match="misread") as caught:
        check_roles(roles(student, teacher), policy, QUESTION)
    message = str(caught.value)
    assert "\n" not in message
    for mode in (student, teacher):
        ending = tokenizers.response_opening(policy.tokenizer, messages(QUESTION), mode)
        assert repr(ending) in message
    assert capsys.readouterr().err == ""
    # What the message proposes is accepted.
    aligned = roles(student, teacher, teacher_opening="student")
    line = said(capsys, policy, aligned)
    assert ("no difference" in line) == (template == BY_OPENING)


def test_a_mode_that_the_template_ignores_is_one_line(policy_of, capsys):
    for config in (roles(False, True), roles(True, None, teacher_opening="student")):
        assert "make no difference" in said(capsys, policy_of(ONE_MODE), config)


@pytest.mark.parametrize("mode", [True, False, None, "as_student"])
@pytest.mark.parametrize(
    ("template", "has_modes"), [(BY_OPENING, True), (BY_SYSTEM_TURN, True), (ONE_MODE, False)]
)
def test_a_mode_of_ones_own_under_a_template_without_modes_is_one_line(
    policy_of, template, has_modes, mode
):
    lines = unused_mode("--thinking", mode, policy_of(template).tokenizer)
    assert len(lines) == (isinstance(mode, bool) and not has_modes)
    assert all("`--thinking` makes no difference" in line for line in lines)


@pytest.mark.long
def test_a_run_says_which_of_its_modes_make_no_difference(tmp_path, capsys):
    """The toy world's template has none."""
    base = tiny(steps=0, export=False, save_checkpoints=False)
    evaluation = dataclasses.replace(base.evaluation, evaluation_thinking=False, samples=1)
    config = dataclasses.replace(
        base,
        experience=dataclasses.replace(base.experience, student_thinking=True),
        evaluation=evaluation,
    )
    run(config, tmp_path / "run", quiet=True)
    said = capsys.readouterr().err
    assert "`experience.student_thinking=True` makes no difference" in said
    assert "`evaluation.evaluation_thinking=False` makes no difference" in said
    assert said.count("makes no difference") == 2


def test_a_template_that_rewrites_the_turns_has_no_opening(policy_of):
    policy = policy_of("{{ 'a' if add_generation_prompt else 'b' }} {{ enable_thinking }}")
    with pytest.raises(UserError, match="add_generation_prompt"):
        check_roles(roles(False, True), policy, QUESTION)


def test_qwen3s_thinking_teacher_reads_the_answer_after_the_assistants_header(capsys):
    if not (SHARED_DATA / "qwen3_tokenizer").is_dir():
        pytest.skip(f"no qwen3_tokenizer in {SHARED_DATA}")
    policy = with_tokenizer(ARCHITECTURE, None, SHARED_DATA / "qwen3_tokenizer")
    turn = f"<|im_start|>user\n{QUESTION.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert plain(policy, roles(False, True)) == turn
    assert plain(policy, roles(False, "as_student")) == turn + "<think>\n\n</think>\n\n"
    assert "expects thinking" in said(capsys, policy, roles(False, True))
    with pytest.raises(UserError, match="misread"):
        check_roles(roles(True, False), policy, QUESTION)
    # Its template writes the mode nowhere else.
    same = roles(False, True, teacher_opening="student")
    assert "make no difference" in said(capsys, policy, same)


@pytest.mark.parametrize(
    ("text", "mode"),
    [("true", True), ("False", False), ("none", None), ("as_student", "as_student")],
)
def test_a_mode_is_one_override_and_survives_config_json(text, mode):
    fields = ("experience.teacher_thinking", "evaluation.evaluation_thinking")
    config = overrides.apply_overrides(tiny(), [f"{field}={text}" for field in fields])
    assert config.experience.teacher_thinking is mode or mode == "as_student"
    assert config.evaluation.evaluation_thinking == config.experience.teacher_thinking == mode
    described = json.loads(json.dumps(overrides.to_json(config)))
    assert overrides.from_json(RunConfig, described) == config


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_a_teachers_temperature_is_above_zero(temperature):
    with pytest.raises(UserError, match="teacher_temperature"):
        experience(teacher_temperature=temperature)


def test_words_that_the_tokenizer_does_not_know_are_named(folder, capsys):
    policy = with_tokenizer(ARCHITECTURE, None, folder)

    def said(context, **changes):
        say_unknown_words(experience(context=context, **changes), policy)
        return capsys.readouterr().err

    names = "Another, problem, with, its, correct"
    assert f"reads <|unk|> in place of {names}, which" in said(WorkedExample())
    assert "feedback" in said(Feedback())
    for context in (experience().context, InstructionOnly(), NoContext()):
        assert said(context) == ""
    assert said(WorkedExample(), template=WORDING) == ""
