"""Evaluations: the same noise for every checkpoint and batch size, and sums checked by hand."""

import dataclasses
import json
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from counted_responses import RECORDS, record
from tiny_rollouts import PAIR, QUESTIONS, TASK, rollouts_of
from tiny_run import ARCHITECTURE

from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import (
    Evaluation,
    Split,
    evaluate_run,
    evaluate_split,
    named_split,
    named_splits,
)
from jaxdistill.evaluation.measures import EVALUATION_FIELDS, RECORD_FIELDS, summarize
from jaxdistill.evaluation.records import evaluation_folder, response_record, write_rollouts
from jaxdistill.evaluation.saved import read_evaluation, read_summary
from jaxdistill.evaluation.summary import summary_lines
from jaxdistill.sampling import Address, Sampling, engine
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ChoiceTask, ExactTask, MathTask, ToyTask, questions_of

SPLIT = Split("heldout", ToyTask(pool="heldout", count=5))
CONFIG = Evaluation(splits=(SPLIT,), samples=2, sampling=Sampling(max_new_tokens=8))
FIELDS = {
    "question_id": str,
    "problem": str,
    "question": str,
    "answer": str,
    "rollout": int,
    "response": str,
    "correct": bool,
    "verdict": str,
    "finished": bool,
    "num_tokens": int,
    "epistemic": int,
    "words": dict,
    "checks": int | None,
    "copy": bool | None,
    "finish": str,
    "thinking_tokens": int,
    "answer_tokens": int,
    "answer_at": int | None,
    "correct_at": dict,
    "epistemic_paper": int,
    "words_paper": dict,
    "epistemic_token": int,
    "words_token": dict,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def records_of(policy, params=None, split=SPLIT, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    params = policy.params if params is None else params
    return evaluate_split(Engine(policy), params, split, config)


# ---------------------------------------------------------------------------------- the sampling


@pytest.mark.long
def test_every_question_is_answered_k_times_whatever_the_batch_size(policy):
    whole = records_of(policy)
    questions = questions_of(SPLIT.task)
    expected = [(question.id, rollout) for question in questions for rollout in range(2)]
    assert [(r["question_id"], r["rollout"]) for r in whole] == expected
    # In batches of two the last is filled with a repeated question, whose responses are dropped.
    assert records_of(policy, questions_per_batch=2) == whole
    assert records_of(policy, questions_per_batch=5) == whole


def test_every_question_is_answered_alike_in_fewer_slots_than_rows(policy, monkeypatch):
    seen, rollouts = [], Engine.rollouts

    def sample(*arguments, slots, **options):
        seen.append(slots)
        return rollouts(*arguments, slots=slots, **options)

    monkeypatch.setattr(Engine, "rollouts", sample)
    in_one = records_of(policy)
    monkeypatch.setattr("jaxdistill.evaluation.evaluate._SLOTS_ON_CPU", 3)
    assert records_of(policy) == in_one
    assert seen == [64, 3]


def test_the_cache_is_the_one_that_was_asked_for(policy, monkeypatch):
    asked, make_sampler = [], engine.make_sampler

    def record(*args, **options):
        asked.append(options["cache_dtype"])
        return make_sampler(*args, **options)

    monkeypatch.setattr(engine, "make_sampler", record)
    evaluate_split(Engine(policy, cache_dtype="int8"), policy.params, SPLIT, CONFIG)
    records_of(policy)
    assert asked == ["int8", "auto"]


@pytest.mark.parametrize(
    ("evaluation", "expected"), [("as_student", False), (True, True), (None, None)]
)
def test_an_evaluation_has_the_students_thinking_mode_or_its_own(
    policy, monkeypatch, evaluation, expected
):
    asked, encode_prompts = [], engine.encode_prompts

    def record(tokenizer, questions, enable_thinking):
        asked.append(enable_thinking)
        return encode_prompts(tokenizer, questions, enable_thinking)

    monkeypatch.setattr(engine, "encode_prompts", record)
    config = dataclasses.replace(CONFIG, evaluation_thinking=evaluation)
    evaluate_split(Engine(policy, enable_thinking=False), policy.params, SPLIT, config)
    assert asked == [expected]


def test_two_checkpoints_answer_with_the_same_noise(policy):
    responses = [record["response"] for record in records_of(policy)]
    nearly = jax.tree.map(lambda x: x * np.float32(1 + 1e-4), policy.params)
    same_noise = [record["response"] for record in records_of(policy, nearly)]
    other_noise = [record["response"] for record in records_of(policy, seed=1)]
    # A nearly equal model gives nearly equal responses: differences come from the checkpoints.
    assert np.mean([a == b for a, b in zip(responses, same_noise)]) >= 0.9
    assert not any(a == b for a, b in zip(responses, other_noise))


def test_splits_of_the_same_questions_are_answered_independently(policy):
    other = records_of(policy, split=Split("other", SPLIT.task))
    pairs = zip(records_of(policy), other, strict=True)
    assert not any(a["response"] == b["response"] for a, b in pairs)


def test_a_record_has_the_fields_that_reports_read_and_survives_json(policy):
    records = records_of(policy)
    for each in records:
        assert set(each) == set(FIELDS)
        for name, kind in FIELDS.items():
            assert isinstance(each[name], kind), name
        assert 1 <= each["num_tokens"] <= 8
    assert [json.loads(json.dumps(each)) for each in records] == records


def rollout_of(question, text, verdict, num_tokens, finished):
    mask_BT = np.zeros((2, 16), np.int32)
    mask_BT[1, :num_tokens] = 1
    zeros = np.zeros((2, 16), np.float32)
    return Rollouts(
        address=Address(seed=0, purpose="eval/heldout"),
        questions=[question],
        rollouts=2,
        prompt_ids_BP=mask_BT,
        prompt_mask_BP=mask_BT,
        tokens_BT=mask_BT,
        mask_BT=mask_BT,
        logp_BT=zeros,
        finished_B=np.array([True, finished]),
        responses=["", text],
        verdicts=[Verdict(False, "no answer", None), verdict],
    )


def test_a_task_may_not_call_its_numbers_as_a_field_of_evaluations_is_called():
    question = Question("q", "1+1?", "2")
    found = rollout_of(question, "2", Verdict(False, "no box", None), num_tokens=4, finished=True)
    for name in EVALUATION_FIELDS:
        with pytest.raises(UserError, match="is a field of every record"):
            response_record(Named("unused.jsonl", name=name), found, 1)


def test_a_record_of_a_response_by_hand():
    question = questions_of(SPLIT.task)[0]
    assert question.solution is not None
    tries = question.solution.split(" </think>")[0]
    text = f"maybe {tries} wait perhaps check {question.solution}"
    verdict = Verdict(True, "match", question.answer)
    found = rollout_of(question, text, verdict, num_tokens=12, finished=False)
    assert response_record(SPLIT.task, found, 1) == {
        "question_id": question.id,
        "problem": question.id,
        "question": question.prompt,
        "answer": question.answer,
        "rollout": 1,
        "response": text,
        "correct": True,
        "verdict": "match",
        "finished": False,
        "num_tokens": 12,
        "epistemic": 4,
        "words": {"wait": 1, "perhaps": 1, "maybe": 1, "check": 1},
        "checks": 1,
        "copy": True,
    }


def test_mathematics_has_no_checks_and_no_copies():
    verdict = Verdict(False, "no box", None)
    found = rollout_of(Question("q", "1+1?", "2"), "Wait, 2.", verdict, num_tokens=4, finished=True)
    record = response_record(MathTask("unused.jsonl"), found, 1)
    assert tuple(record) == RECORD_FIELDS
    assert record["epistemic"] == 1


@dataclass(frozen=True)
class Named(MathTask):
    name: str = "digits"

    def facts(self, question, response):
        return {self.name: sum(map(str.isdigit, response)), "rare": None}


def test_what_an_own_task_tells_is_in_records_and_their_summary():
    verdict = Verdict(False, "no box", None)
    question = Question("q", "1+1?", "2")
    found = rollout_of(question, "Wait, 12.", verdict, num_tokens=4, finished=True)
    task = Named("unused.jsonl")
    record = response_record(task, found, 1)
    assert (record["digits"], record["rare"]) == (2, None)
    summary = summarize([record, record | {"digits": 5}, record | {"digits": None}])
    assert (summary["digits"], summary["rare"], summary["n"]) == (3.5, None, 3)
    assert "digits" not in summarize([record, record | {"digits": "two"}])  # a file may hold it
    for name in ("correct", "accuracy", "n"):
        with pytest.raises(UserError, match=f"Named.facts: '{name}' is a field of every record"):
            response_record(dataclasses.replace(task, name=name), found, 1)


# ----------------------------------------------------------------------------------- the numbers


def test_the_lines_for_a_person_hold_both_accuracies_and_every_known_mean():
    lines = dict(line.split(maxsplit=1) for line in summary_lines(RECORDS, 2))
    # Means over problems a, b, c: avg@2 of 1/2, 1, 0 and pass@2 of 1, 1, 0.
    assert lines.pop("avg@2").startswith("50.0%  [")
    assert lines.pop("pass@1").startswith("50.0%  [")
    assert lines.pop("pass@2").startswith("66.7%  [")
    assert lines == {
        "length": "33.33", "epistemic_per_response": "1", "epistemic_per_1k": "30",
        "check_rate": "33.3%", "copy_fidelity": "75.0%", "finished": "66.7%", "n": "6",
    }  # fmt: skip


@pytest.mark.long
def test_many_responses_are_counted_in_full():
    lines = list(summary_lines([record(str(i), correct=True) for i in range(12_345)], 1))
    assert lines[-1].split() == ["n", "12345"]
    assert not any(line.startswith(("check_rate", "copy_fidelity")) for line in lines)


# ------------------------------------------------------------------------------------- the files


def test_saved_rollouts_are_a_sample_with_verdicts(policy, tmp_path):
    found = rollouts_of(policy, [PAIR] * 30, QUESTIONS * 6, step=7)
    write_rollouts(tmp_path / "rollouts", TASK, found)
    lines = (tmp_path / "rollouts" / "step_000007.jsonl").read_text().splitlines()
    saved = [json.loads(line) for line in lines]
    assert len(saved) == 64
    assert [r["correct"] for r in saved[:3]] == [True, False, True]
    assert [r["rollout"] for r in saved[:4]] == [0, 1, 2, 0]
    assert saved[3]["question_id"] == QUESTIONS[1].id


def test_an_evaluation_of_a_run_is_on_disk_and_goes_on_with_the_same_parameters_alone(
    policy, tmp_path
):
    folder = evaluation_folder(tmp_path, 40)
    assert folder == tmp_path / "evals" / "step_000040"

    def evaluated(params):
        evaluate_run(Engine(policy), params, CONFIG, folder, run="tiny", step=40)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    whole = evaluated(policy.params)
    assert set(whole) == {"evaluation.json", "heldout.jsonl", "questions.json", "summary.json"}
    saved = read_evaluation(folder)
    assert saved.records["heldout"] == records_of(policy)
    assert read_summary(folder) == {"heldout": summarize(records_of(policy))}
    assert saved.identity["model"]["step"] == 40

    def cut():  # as a kill within the second question leaves it
        (folder / "summary.json").unlink()
        (folder / "heldout.jsonl").rename(folder / "heldout.jsonl.part")
        lines = whole["heldout.jsonl"].splitlines(keepends=True)
        changed = lines[0].replace(b'"rollout": 0', b'"rollout": 0, "kept": true')
        part = b"".join([changed, *lines[1:3], lines[3][:40]])
        (folder / "heldout.jsonl.part").write_bytes(part)

    cut()
    assert b'"kept": true' in evaluated(policy.params)["heldout.jsonl"]
    cut()
    other = evaluated(jax.tree.map(lambda x: x * np.float32(1.001), policy.params))
    assert b'"kept": true' not in other["heldout.jsonl"]
    assert evaluated(policy.params) == whole


def test_a_missing_or_broken_summary_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no readable evaluation in"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="no readable evaluation in"):
        read_summary(tmp_path)


def test_names_of_splits():
    assert named_split("toy:ood", None).task == ToyTask("heldout", 4, 128)
    assert named_split("toy:train", 7) == Split("train", ToyTask("train", 3, 7))
    for name, kind, split in (
        (
            "some/where/aime24.parquet",
            "math",
            Split("aime24", MathTask("some/where/aime24.parquet", 3)),
        ),
        (
            "tfds:coverage/64:train",
            "math",
            Split("coverage-64-train", MathTask("tfds:coverage/64:train", 3)),
        ),
        ("hub:a/b:test", "choice", Split("b-test", ChoiceTask("hub:a/b:test", 3))),
        ("x.csv", "exact", Split("x", ExactTask("x.csv", 3))),
    ):
        assert named_split(name, 3, kind) == split
    with pytest.raises(UserError, match=r"toy:moon.*use toy:train, toy:heldout, toy:ood"):
        named_split("toy:moon", None)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a/test.json", "b/test.json"], ["a-test", "b-test"]),
        (["x/a/test.json", "y/a/test.json"], ["x-a-test", "y-a-test"]),
        (["a/test.json", "b/test.json", "aime24.parquet"], ["a-test", "b-test", "aime24"]),
        (["a/test.json", "a/b/test.json"], ["a-test", "b-test"]),
        (["hub:a/x", "hub:b/x"], ["a-x", "b-x"]),
        (["toy:heldout", "a/heldout.json"], ["heldout", "a-heldout"]),
    ],
)
def test_data_sets_of_one_name_are_told_apart(names, splits):
    found = named_splits(names, None, "math")
    assert [split.name for split in found] == splits
    Evaluation(splits=found)  # which refuses names that collide


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.json", "a.json"], "--data a.json is named twice"),
        (["a/test.json", "a/test.csv"], "several data sets are called test; rename one"),
    ],
)
def test_data_sets_that_cannot_be_told_apart_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        named_splits(names, None, "math")


def test_the_rows_of_a_repeated_prompt_are_one_problem_to_the_interval(tmp_path):
    # 20 rows of one prompt and one row of another: two problems, whatever the number of rows.
    rows = [record(f"a:{n}", correct=n < 10) | {"problem": "a:0"} for n in range(20)]
    rows.append(record("b", correct=True))
    lines = dict(line.split(maxsplit=1) for line in summary_lines(rows, 1))
    # Resamples of two problems hold a alone (10/20), b alone (1) or both (11/21).
    assert lines["avg@1"] == "52.4%  [50.0%, 100.0%]"
    assert lines["pass@1"] == lines["avg@1"]


@pytest.mark.parametrize("field", [{"samples": 0}, {"questions_per_batch": 0}, {"every": -1}])
def test_invalid_settings_are_refused(field):
    with pytest.raises(UserError, match="at least 1"):
        Evaluation(splits=(SPLIT,), **field)


def test_several_greedy_samples_of_a_question_are_refused_in_a_run_too():
    greedy = Sampling(temperature=0.0)
    Evaluation(splits=(SPLIT,), samples=1, sampling=greedy)
    with pytest.raises(UserError, match=r"`samples=4` with `sampling\.temperature=0`: greedy"):
        Evaluation(splits=(SPLIT,), sampling=greedy)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "\ud800", 3])
def test_a_splits_name_must_be_a_file_name(name):
    with pytest.raises(UserError, match=r"Split.name must be usable as a file name, got"):
        Split(name, SPLIT.task)


def test_two_splits_of_one_name_would_overwrite_each_other():
    with pytest.raises(UserError, match="`splits` must have different names"):
        Evaluation(splits=(SPLIT, SPLIT))
