"""Guided generation: what is shown, what is recorded, and that a stopped run ends as a whole one.

The model is random and the task accepts a quarter of all responses, so that a run takes seconds.
"""

import dataclasses
import json
from typing import Any, ClassVar

import numpy as np
import pytest
from tiny_run import ARCHITECTURE, tree_of

from jaxdistill.errors import UserError
from jaxdistill.evaluation import guided
from jaxdistill.evaluation.guided import Generation, generate, prepare
from jaxdistill.evaluation.guided_contexts import Chosen, Guided, compose, ordered
from jaxdistill.evaluation.guided_table import summarize_guided, table_lines
from jaxdistill.sampling import Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompts import prompt_lengths
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.training.traces import Counts, Traces

SETTINGS = Guided(
    sampling=Sampling(max_new_tokens=8), problems=3, samples=4, accuracy=(0.25, 0.75), batch=2
)
NAMES = ordered(["regenerated", "answer"])


@dataclasses.dataclass(frozen=True)
class Coin:
    """Sums, of which a response is right if its characters say so."""

    grading_workers: ClassVar = 0

    def questions(self):
        return [Question(f"sum:{n}", f"{n} + 1 -> {n}", str(n + 1)) for n in range(12)]

    def grade(self, question, response):
        assert "Correct" not in question.prompt  # the plain question, whatever was shown
        correct = sum(map(ord, response)) % 4 == 0
        return Verdict(correct, "match" if correct else "other", None)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def run_in(folder, policy, settings=SETTINGS, **changes):
    found: dict[str, Any] = {
        "settings": settings,
        "task": Coin(),
        "questions": Coin().questions(),
        "folder": folder,
        "facts": {"model": "tiny"},
        "tokenizer": policy.tokenizer,
        "max_positions": ARCHITECTURE.max_positions,
        "thinking": None,
        "open_engine": lambda: Engine(policy),
    }
    return Generation(**(found | changes))


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    """The folder of a run that nothing disturbed, and its outcome."""
    folder = tmp_path_factory.mktemp("guided") / "whole"
    return folder, generate(run_in(folder, policy), NAMES)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# -------------------------------------------------------------------------------------- a run


def test_a_run_keeps_every_plain_sample_and_the_first_problems_in_the_range(whole):
    folder, outcome = whole
    base = lines_of(folder / "base.jsonl")
    assert base == outcome.base
    groups = [base[start : start + 4] for start in range(0, len(base), 4)]
    assert len(groups) % 2 == 0  # whole batches
    chosen = [g for g in groups if 1 <= sum(r["correct"] for r in g) <= 3][:3]
    assert len(chosen) == 3
    assert lines_of(folder / "none.jsonl") == [record for group in chosen for record in group]
    assert {r["richness"] for r in base} == {r["richness_sum"] for r in base} == {0.0}


def test_a_record_says_what_was_shown_and_from_which_sample(whole):
    folder, _ = whole
    records = {name: lines_of(folder / f"{name}.jsonl") for name in NAMES}
    samples = {
        (name, r["question_id"], r["rollout"]): r for name, found in records.items() for r in found
    }
    for name, origin in (("solution", "none"), ("regenerated", "solution")):
        for record in records[name]:
            context, _, rollout = record["shown_from"].partition("/")
            source = samples[context, record["question_id"], int(rollout)]
            assert context == origin
            assert (record["shown"], record["shown_correct"]) == (
                source["response"], source["correct"],
            )  # fmt: skip
            assert name != "solution" or source["correct"]
            assert record["question"] == source["question"]
            assert record["shown_tokens"] == len(source["response"].split())
    assert {(r["shown"], r["shown_from"]) for r in records["answer"]} == {
        (r["answer"], None) for r in records["none"]
    }
    informed = [r for name in NAMES[1:] for r in records[name]]
    assert all(r["richness_sum"] != 0 for r in informed)
    for r in informed:
        assert r["richness"] * r["num_tokens"] == pytest.approx(r["richness_sum"], rel=1e-12)
        assert r["epistemic_paper"] == sum(r["words_paper"].values())
        assert r["epistemic_token"] == sum(r["words_token"].values())


@pytest.mark.parametrize("batches", [1, 4])
def test_a_run_that_was_stopped_ends_with_the_same_files(
    batches, whole, policy, tmp_path, monkeypatch
):
    folder, outcome = whole
    run, left = run_in(tmp_path / "run", policy), [batches]
    sample = guided.sample_batch

    def stop(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return sample(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(guided, "sample_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(run, NAMES)
    assert tree_of(run.folder) != tree_of(folder)
    again = run_in(run.folder, policy)
    again.check_folder()
    assert generate(again, NAMES) == outcome
    assert tree_of(run.folder) == tree_of(folder)
    finished = run_in(run.folder, policy)
    assert generate(finished, NAMES) == outcome
    assert not finished.opened


def test_a_later_context_is_added_to_a_finished_folder(whole, policy, tmp_path):
    first = generate(run_in(tmp_path / "run", policy), ["none", "solution"])
    more = generate(run_in(tmp_path / "run", policy), NAMES)
    assert first.records["solution"] == more.records["solution"]
    assert tree_of(tmp_path / "run") == tree_of(whole[0])


def test_the_files_are_training_data_of_plain_questions_and_correct_responses(whole):
    folder, outcome = whole
    for name in ("none", "solution"):
        path = str(folder / f"{name}.jsonl")
        rows = list(Traces(path, correct=True).rows(Counts()))
        right = [record for record in outcome.records[name] if record["correct"]]
        assert [row.response for row in rows] == [record["response"] for record in right]
        asked = [[{"role": "user", "content": record["question"]}] for record in right]
        assert [row.chat for row in rows] == asked
        assert rows


def test_a_folder_of_other_settings_or_contents_is_refused(whole, policy, tmp_path):
    folder, _ = whole
    for changes, message in (
        ({"settings": dataclasses.replace(SETTINGS, seed=1)}, "seed=0 and not 1; name another"),
        ({"facts": {"model": "big"}}, "model='tiny' and not 'big'"),
        ({"thinking": True}, "thinking=None and not True"),
        ({"settings": dataclasses.replace(SETTINGS, seed=1, batch=9)}, r"not 9 \(and seed\)"),
    ):
        with pytest.raises(UserError, match=message) as error:
            dataclasses.replace(run_in(folder, policy), **changes).check_folder()
        assert "\n" not in str(error.value)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        run_in(tmp_path, policy).check_folder()
    with pytest.raises(UserError, match="is a file"):
        run_in(tmp_path / "notes.txt", policy).check_folder()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json\n", "damaged"),
        ('{"question_id": "sum:0"}\n', "holds other problems"),
        ('{"question_id": "sum:1"}\n' * 4, "holds other problems"),
    ],
    ids=["no JSON", "a part of a problem", "another problem"],
)
def test_a_file_with_anything_else_is_named(content, message, policy, tmp_path):
    (tmp_path / "base.jsonl").write_text(content)
    with pytest.raises(UserError, match=rf"base\.jsonl: {message}"):
        generate(run_in(tmp_path, policy), NAMES)


def test_no_problem_in_the_range_is_said_and_the_samples_are_kept(policy, tmp_path, capsys):
    certain = dataclasses.replace(SETTINGS, accuracy=(1.0, 1.0))
    run = run_in(tmp_path / "run", policy, certain, questions=Coin().questions()[:2])
    with pytest.raises(UserError, match=r"none of 2 questions had 1 to 1 of 4 samples right"):
        generate(run, NAMES)
    assert len(lines_of(run.path("base"))) == 8
    some = dataclasses.replace(SETTINGS, accuracy=(0.0, 1.0), problems=5)
    outcome = generate(run_in(run.folder, policy, some, questions=run.questions), ["none"])
    assert len(outcome.records["none"]) == 8
    assert "2 of 2 questions had 0 to 1 of 4 samples right; --problems 5" in capsys.readouterr().err


LONG = Chosen(
    Question("long", "1 + 1?", "2"),
    [{"question_id": "long", "rollout": 0, "response": "9 " * 300, "correct": True}],
)


def test_a_prompt_without_positions_for_a_response_is_counted_and_dropped(policy, tmp_path, capsys):
    short = Chosen(Question("short", "1 + 1?", "2"), [LONG.records[0] | {"response": "9"}])
    run = run_in(tmp_path, policy)
    found = prepare(run, "solution", [short, LONG], [])
    assert [each.question.id for each in found.asked] == ["short"]
    assert found.dropped == {"prompt too long": ["long"]}
    told = "solution: 1 of 2 problems dropped, prompt too long\n"
    assert capsys.readouterr().err == told
    # The limit is exact: the same prompt fits once it has the positions.
    asked = compose(SETTINGS, "solution", LONG, [])
    assert asked is not None
    (length,) = prompt_lengths(policy.tokenizer, [asked.guided])
    for spare, kept in ((0, 1), (-1, 0)):
        run = run_in(tmp_path, policy, max_positions=length + 8 + spare)
        assert len(prepare(run, "solution", [LONG], []).asked) == kept


# ---------------------------------------------------------------------------------- the table


def test_the_table_has_a_row_for_each_context(whole):
    _, outcome = whole
    summary = summarize_guided(outcome.base, outcome.records, outcome.dropped)
    json.loads(json.dumps(summary, allow_nan=False))
    rows = [line.split()[0] for line in table_lines(summary) if line]
    for name in NAMES:
        assert rows.count(name) == (3 if name == "none" else 4)
    lengths = [record["num_tokens"] for record in outcome.records["answer"]]
    assert summary["contexts"]["answer"]["length"]["value"] == pytest.approx(np.mean(lengths))
