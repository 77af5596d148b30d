"""The trace of a row that a run has saved: without sampling, from the folder alone."""

import json
import shutil

import numpy as np
import pytest
from tiny_run import tiny

from jaxdistill import cli, sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.evaluation.revision import model_identity
from jaxdistill.run.loop import run
from jaxdistill.sampling import engine
from jaxdistill.tracing import rollouts
from jaxdistill.tracing.record import Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three steps with an EMA teacher; it saves rollouts of each, checkpoints of 2, 3."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny(
        steps=3, rollouts_every=1, rollouts_token_ids=True, evaluation=Evaluation(), export=False
    )
    return run(config, folder, quiet=True)


def traced(folder, step, row, **changes):
    mesh = sharding.make_mesh("fsdp=1")
    return rollouts.trace_rollout(folder, step, row, mesh=mesh, **changes)


@pytest.mark.long
def test_the_student_of_the_same_step_gives_the_samplers_log_probs(folder, monkeypatch):
    monkeypatch.setattr(engine.Engine, "rollouts", None)  # nothing is sampled
    record = rollouts.read_row(folder, 2, 1)
    trace = traced(folder, 2, 1)
    # The sampler's cache and the scoring of whole rows round float32 differently.
    np.testing.assert_allclose(trace.logp[:, 0], record["logp"], atol=2e-5)
    assert trace.ids.tolist() == record["token_ids"]
    assert "".join(trace.texts).startswith(record["response"])
    assert record["answer"] in trace.prompts[1]
    # Two updates have moved the student from the initial model, and the teacher behind it.
    assert abs(trace.logp[:, 0] - trace.logp[:, 2]).max() > 1e-3
    assert trace.has_objective
    assert trace.notes == ()
    assert trace.context == "AnswerOnly()"


def test_at_step_0_the_student_is_the_initial_model(folder):
    trace = traced(folder, 0, 0)
    np.testing.assert_allclose(trace.logp[:, 0], rollouts.read_row(folder, 0, 0)["logp"], atol=2e-5)
    assert not trace.has_reference


def test_without_a_checkpoint_of_the_step_a_note_says_which_student_it_is(folder):
    trace = traced(folder, 1, 0, context="Solution('5 + 4')")
    assert trace.notes[0].startswith("The run has no checkpoint of step 1 (it has 2, 3)")
    assert trace.context == "Solution(text='5 + 4')"
    assert "5 + 4" in trace.prompts[1]


def test_the_command_writes_page_and_json(folder, tmp_path, capsys):
    page, numbers = tmp_path / "row.html", tmp_path / "row.json"
    arguments = ["trace", str(folder), "--step", "2", "--row", "3", "--mesh", "fsdp=1"]
    assert cli.main([*arguments, "--out", str(page), "--json", str(numbers)]) == 0
    trace = Trace.from_json(numbers.read_bytes())
    assert trace.finding() in page.read_text(encoding="utf-8")
    assert trace.finding() in capsys.readouterr().out


def test_any_question_is_traced_by_the_runs_own_networks(folder):
    trace = rollouts.trace_of_run(
        folder,
        "5 4 3 -> 6",
        "wait 5 + 4",
        context="Solution('x')",
        mesh=sharding.make_mesh("fsdp=1"),
    )
    assert (len(trace.ids), trace.model) == (4, "tiny, step 3")
    assert trace.has_reference


def test_checkpoints_that_lie_elsewhere_are_the_same_student(folder, tmp_path):
    moved = tmp_path / "tiny"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(folder / "checkpoints", tmp_path / "elsewhere")
    (moved / "places.json").write_text(json.dumps({"checkpoints": str(tmp_path / "elsewhere")}))
    np.testing.assert_array_equal(traced(moved, 2, 1).logp, traced(folder, 2, 1).logp)
    assert model_identity(moved) == model_identity(folder) | {"name": str(moved)}


@pytest.mark.parametrize(
    ("step", "row", "line"),
    [
        (7, 0, "has no rollouts of step 7; it has 0, 1, 2"),
        (2, 4, "has rows 0 to 3, and no row 4"),
    ],
)
def test_a_row_that_was_not_saved_is_one_clear_line(folder, step, row, line):
    with pytest.raises(UserError, match=line):
        traced(folder, step, row)


DAMAGE = {
    "token_ids": (None, "has no `token_ids`: a run saves what a trace reads with"),
    "teacher_prompt_ids": (None, "has no `teacher_prompt_ids`"),
    "logp": ([0.0], "`logp` and `token_ids` must be equally long"),
    "question": (3, "`question` must be a str, got 3"),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_row_without_what_a_trace_reads_is_one_clear_line(folder, tmp_path, field):
    value, line = DAMAGE[field]
    record = rollouts.read_row(folder, 2, 0)
    changed = {name: x for name, x in record.items() if name != field}
    changed |= {} if value is None else {field: value}
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step_000002.jsonl").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=line):
        traced(tmp_path, 2, 0)


def test_what_is_no_run_has_no_rollouts(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        traced(tmp_path, 0, 0)
