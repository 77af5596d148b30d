"""What prompts.json shows is what the roles have read."""

import dataclasses
import json

import numpy as np
import pytest
from thinking_templates import BY_OPENING
from tiny_rollouts import LONE, NONE, PAIR, QUESTIONS, experience, response, rollouts_of, shown
from tiny_run import ARCHITECTURE, tiny

from jaxdistill import objectives
from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.errors import UserError
from jaxdistill.objectives import Distill
from jaxdistill.run.loop import run
from jaxdistill.sampling.engine import Engine
from jaxdistill.storage import hf_files, loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.tasks.contexts import Regenerated
from jaxdistill.tasks.grading import Verdict
from jaxdistill.training import prompt_file
from jaxdistill.training.batch import pad
from jaxdistill.training.experience import Setting, on_policy_batch
from jaxdistill.training.prompt_file import PromptFile, ReadPrompt


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model that thinks only if it is told to."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    loaded = loading.with_tokenizer(ARCHITECTURE, None, folder)
    loaded.tokenizer.chat_template = BY_OPENING
    loaded.tokenizer.save_pretrained(folder)
    return Fresh(ARCHITECTURE, tokenizer=str(folder))


@pytest.fixture(scope="module")
def policy(model, tmp_path_factory):
    return loading.load(model, 0, tmp_path_factory.mktemp("model"))


@pytest.fixture
def setting(policy, tmp_path):
    return Setting(
        engine=Engine(policy, enable_thinking=False),
        objective=Distill(),
        seed=0,
        words=TEN_WORDS,
        prompts=PromptFile(tmp_path / "prompts.json", policy.tokenizer),
    )


ROLES = experience(student_thinking=False, teacher_thinking=True)


def kept(setting):
    return json.loads(setting.prompts.path.read_text(encoding="utf-8"))


def keep(setting, groups, config=ROLES, step=0):
    found = rollouts_of(setting.engine.policy, groups, step=step, thinking=config.student_thinking)
    batch, _ = on_policy_batch(config, setting, found)
    setting.prompts.keep_batch(config, found, batch)
    return batch


def chat(turn, ending=""):
    return f"<|im_start|> user {' '.join(turn.split())} <|im_end|> <|im_start|> assistant{ending}"


def test_each_role_of_one_row_is_shown_with_the_same_response_after_it(setting, monkeypatch):
    monkeypatch.setattr(objectives, "needs_contrast", lambda _: True)
    keep(setting, [NONE, LONE])
    found = kept(setting)
    # Row 0 of LONE: the first that has both a correct and an incorrect sibling.
    question = QUESTIONS[1]
    assert found["student"]["prompt"] == [chat(question.prompt, " <think> </think>")]
    assert found["teacher"]["prompt"] == [chat(shown(question, response(2)))]
    assert found["contrast"]["prompt"] == [chat(shown(question, response(3)))]
    for role, thinking in {"student": False, "teacher": True, "contrast": True}.items():
        entry = found[role]
        assert (entry["question_id"], entry["step"]) == (question.id, 0)
        assert (entry["thinking"], entry["is_informed"]) == (thinking, True)
        assert entry["num_tokens"] == len(" ".join(entry["prompt"]).split())  # a token per word
        assert entry["response_begins"] == f"{response(1)} <|im_end|>"


def test_a_row_that_is_shown_nothing_gives_way_to_the_first_that_is(setting):
    keep(setting, [NONE])
    plain = kept(setting)
    assert plain["teacher"]["prompt"] == [chat(QUESTIONS[0].prompt)]
    assert not plain["teacher"]["is_informed"]
    keep(setting, [NONE], step=1)
    assert kept(setting) == plain
    keep(setting, [NONE, LONE], step=2)
    informed = kept(setting)
    assert {entry["step"] for entry in informed.values()} == {2}  # the student's moves with it
    assert informed["teacher"]["is_informed"]
    keep(setting, [PAIR], step=3)
    assert kept(setting) == informed
    # What is written at every start does replace what an earlier one wrote, and nothing else.
    setting.prompts.write("q", 0, {"teacher": ReadPrompt([5], None)})
    assert kept(setting)["teacher"]["question_id"] == "q"
    assert kept(setting)["student"] == informed["student"]


def test_a_file_that_cannot_be_read_is_one_line_that_names_it(setting):
    setting.prompts.path.write_text("{")
    with pytest.raises(UserError, match=r"prompts\.json") as caught:
        keep(setting, [LONE])
    assert "\n" not in str(caught.value)


def test_the_prompt_of_a_regenerated_solution_is_in_the_students_mode(setting):
    config = dataclasses.replace(ROLES, context=Regenerated())
    found = rollouts_of(setting.engine.policy, [LONE])

    def grade(questions, responses):
        return [Verdict(True, "", None) for _ in responses]

    on_policy_batch(config, setting, found, grade)
    entry = kept(setting)["regeneration"]
    told = shown(QUESTIONS[0], response(2))
    assert entry["prompt"] == [chat(told, " <think> </think>")]
    assert entry["thinking"] is False
    assert entry["response_begins"]


def test_lines_and_characters_outside_ascii_are_readable(tmp_path):
    class Bytes:
        """A tokenizer of UTF-8 bytes."""

        @property
        def backend_tokenizer(self):
            return self

        def decode(self, ids, skip_special_tokens):
            assert not skip_special_tokens
            return bytes(ids).decode()

    file = PromptFile(tmp_path / "prompts.json", Bytes())
    prompt, response_ = "Löse 1+1\n\nfür 解", "zwei oder auch drei oder vier"
    read = ReadPrompt(list(prompt.encode()), None, list(response_.encode()))
    file.write("q", 3, {"student": read})
    text = file.path.read_text(encoding="utf-8")
    assert "für 解" in text
    entry = json.loads(text)["student"]
    assert "\n".join(entry["prompt"]) == prompt
    assert entry["response_begins"] == "zwei oder auch d"  # 16 tokens


def test_a_complete_file_is_not_read_again(setting, monkeypatch):
    keep(setting, [LONE])
    complete = kept(setting)
    monkeypatch.setattr(hf_files, "read_json", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(prompt_file, "write_whole", lambda *_: pytest.fail("written again"))
    keep(setting, [LONE], step=1)
    assert kept(setting) == complete


def test_a_resumed_run_keeps_what_the_file_has(setting):
    keep(setting, [LONE])
    complete = kept(setting)
    again = dataclasses.replace(
        setting, prompts=PromptFile(setting.prompts.path, setting.engine.policy.tokenizer)
    )
    keep(again, [LONE], step=1)
    assert kept(again) == complete


def test_student_and_teacher_read_the_same_tokens_from_the_responses_first_on(setting):
    """In the arrays that the step reads: each prompt, then the response, without a gap."""
    batch = keep(setting, [LONE, PAIR])
    rows = pad(batch).rows
    prompts = {"plain": batch.prompt, "teacher": batch.teacher}
    endings = {"plain": "assistant <think> </think>", "teacher": "assistant"}
    decode = setting.engine.policy.tokenizer.decode
    for row in range(6):
        response_T = batch.completion.ids_BP[row, : batch.completion.length_B[row]]
        for role, prompt in prompts.items():
            start = prompt.length_B[row]
            tokens_S = getattr(rows, role).tokens_BS[row, 0]
            assert decode(tokens_S[:start]).endswith(endings[role])
            np.testing.assert_array_equal(tokens_S[start : start + len(response_T)], response_T)


@pytest.mark.long
def test_a_student_that_answers_learns_from_a_teacher_that_thinks(model, tmp_path, capsys):
    base = tiny()
    config = tiny(
        model=model,
        experience=dataclasses.replace(
            base.experience, student_thinking=False, teacher_thinking=True, teacher_temperature=0.8
        ),
        evaluation=dataclasses.replace(base.evaluation, evaluation_thinking=True, every=0),
        steps=2,
        export=False,
        save_checkpoints=False,
    )
    folder = run(config, tmp_path / "run", quiet=True)
    assert "expects thinking" in capsys.readouterr().err
    shown_ = json.loads((folder / "prompts.json").read_text())
    endings = {"student": "assistant <think> </think>", "teacher": "assistant",
               "evaluation/heldout": "assistant"}  # fmt: skip
    assert shown_.keys() == endings.keys()
    for role, ending in endings.items():
        assert shown_[role]["prompt"][-1].endswith(ending)
    assert shown_["student"]["response_begins"] == shown_["teacher"]["response_begins"] != ""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["distilled"] for line in lines] == [1, 1]
    assert all(line["grad_norm"] > 0 and line["skipped"] == 0 for line in lines)
