"""What a run says on stderr: warnings once, then their number; evaluations; the next commands."""

import contextlib
import dataclasses
import json
import shlex

import pytest
from tiny_run import tiny

from jaxdistill.cli import build_parser
from jaxdistill.evaluation.evaluate import Evaluation, Split, named_split
from jaxdistill.run.loop import run
from jaxdistill.run.telling import (
    Progress,
    Warnings,
    evaluation_table,
    last_lines,
    next_commands,
)
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.timing import PARTS

GOOD = {"distilled": 0.5, "reward": 0.25, "grad_norm": 1.0, "truncated": 0.0, "skipped": 0.0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"distilled": 0.0}, "no row was distilled"),
        ({"reward": 0.0}, "no response was correct"),
        ({"truncated": 1.0}, "all responses were cut off"),
        ({"skipped": 1.0}, "an update was skipped"),
        ({"skipped": 0.5}, "an update was skipped"),  # one of two in a step
        ({"grad_norm": 0.0}, "the gradient is zero"),  # every group all right, or all masked
        (
            {"sampler_gap": 1.0, "sampler_gap_p99": 2.0, "sampler_gap_max": 3.0},
            "the samples are off-policy",
        ),
    ],
)
def test_a_condition_is_told_once_and_then_counted(changed, said):
    lines = []
    warnings = Warnings("tiny", lines.append)
    warnings.note(1, GOOD)
    for step in (2, 3):
        warnings.note(step, GOOD | changed)
    warnings.note(4, GOOD)
    assert len(lines) == 1
    assert lines[0].startswith(f"tiny, step 2: {said}: ")
    (line,) = warnings.summary()
    assert line == f"tiny: {said} in 2 of 4 steps, first in step 2, last in 3"


def test_a_step_that_teaches_gives_no_warning_and_neither_does_pretraining():
    lines = []
    warnings = Warnings("tiny", lines.append)
    warnings.note(1, GOOD)
    warnings.note(2, {"loss": 1.0, "skipped": 0.0, "tokens": 5})
    assert lines == list(warnings.summary()) == []


@pytest.mark.parametrize("known", [{"distilled": 0.0}, {"reward": 0.0}], ids=str)
def test_a_zero_gradient_with_a_known_reason_is_one_line(known):
    lines = []
    Warnings("tiny", lines.append).note(1, GOOD | {"grad_norm": 0.0} | known)
    assert len(lines) == 1


def test_the_bar_says_what_is_done_and_the_last_steps_metrics(capsys):
    progress = Progress("tiny", steps=3, step=1, quiet=False)
    progress.doing("compiling")
    values = {"loss": 0.5, "reward": 0.25, "length": 41.3, "epistemic_mass_student": 0.0123}
    progress.advance(values | {"tokens_per_second": 1234.0, "grad_norm": 3.0})
    progress.doing("evaluation")
    progress.write("a line above")
    progress.close()
    found = capsys.readouterr().err
    assert "tiny (evaluating)" in found
    shown = "loss=0.5, reward=0.25, length=41.3, epistemic mass=0.0123, tokens/s=1.23e+03"
    assert shown in found
    assert "2/3" in found
    assert "a line above\n" in found


def test_the_loss_of_a_step_without_a_distilled_row_is_no_number(capsys):
    with contextlib.closing(Progress("tiny", steps=1, step=0, quiet=False)) as progress:
        progress.advance({"loss": float("nan"), "reward": 0.0})
    assert "loss=-, reward=0" in capsys.readouterr().err


def written(run_dir, evaluations):
    for step, summary in evaluations.items():
        folder = run_dir / "evals" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary))


def test_the_table_has_each_evaluation_and_its_change_since_the_first(tmp_path):
    before = {"accuracy": 0.88, "length": 41.0, "epistemic_per_response": 2.99, "finished": 1.0}
    after = {"accuracy": 0.7, "length": 27.5, "epistemic_per_response": 0.19, "finished": None}
    written(tmp_path, {0: {"heldout": before}, 30: {"heldout": after}})
    head, names, first, last = evaluation_table(tmp_path)
    assert head == "evaluations, with changes since step 0 in parentheses:"
    assert names.split()[:3] == ["split", "step", "accuracy,"]
    assert first.split() == ["heldout", "0", "88.0", "41.0", "2.99", "100.0"]
    cells = ["heldout", "30", "70.0", "(−18.0)", "27.5", "(−13.5)", "0.19", "(−2.80)", "-"]
    assert last.split() == cells


def test_a_split_that_came_later_is_compared_with_its_own_first_evaluation(tmp_path):
    found = {n: {"accuracy": n / 100} for n in (20, 30, 50, 60)}
    written(tmp_path, {0: {"a": found[20]}, 5: {"a": found[30], "b": found[50]},
                       9: {"a": found[30], "b": found[60]}})  # fmt: skip
    head, _, *rows = evaluation_table(tmp_path)
    assert head == "evaluations, with changes since the first of each split in parentheses:"
    assert [row.split()[:4] for row in rows][-2:] == [["b", "5", "50.0", "-"],
                                                      ["b", "9", "60.0", "(+10.0)"]]  # fmt: skip


def test_a_run_without_evaluations_has_no_table(tmp_path):
    assert evaluation_table(tmp_path) == []


def test_the_next_commands_are_ones_that_the_command_line_accepts(tmp_path):
    toy = tiny()
    data = Split("mine", MathTask("my data/test.jsonl"))
    both = dataclasses.replace(toy.evaluation, splits=(*toy.evaluation.splits, data))
    run_dir = tmp_path / "a run"
    for config, verb in (
        (toy, "eval"),
        (dataclasses.replace(toy, evaluation=both), "eval"),
        (dataclasses.replace(toy, export=False), "analyze"),
        (dataclasses.replace(toy, evaluation=Evaluation()), "sample"),  # it has no responses
    ):
        report, closer = (shlex.split(command)[1:] for command in next_commands(config, run_dir))
        assert build_parser().parse_args(report)
        assert report == ["report", str(run_dir)]
        assert build_parser().parse_args(closer)
        assert closer[:2] == [verb, str(run_dir)]
    (_, closer) = next_commands(dataclasses.replace(toy, evaluation=both), run_dir)
    assert closer.endswith("--data toy:heldout --data 'my data/test.jsonl' --samples 16")


@pytest.mark.parametrize("name", ["toy:train", "toy:heldout", "toy:ood"])
def test_a_toy_split_is_named_as_eval_names_it(name, tmp_path):
    splits = (named_split(name, None),)
    evaluation = dataclasses.replace(tiny().evaluation, splits=splits)
    (_, closer) = next_commands(dataclasses.replace(tiny(), evaluation=evaluation), tmp_path)
    assert f"--data {name} " in closer


def test_the_last_lines_say_where_the_time_went(tmp_path):
    seconds = dict.fromkeys(PARTS, 0.0) | {"sampling": 60.0, "update": 30.0, "compiling": 20.0}
    (time, *_) = last_lines(tiny(), tmp_path, seconds)
    assert (
        time == "90.0 seconds since the start: sampling 60.0, updating 30.0; 20.0 of them compiling"
    )


@pytest.mark.long
def test_a_run_that_teaches_nothing_says_so_and_is_evaluated_before_its_first_step(
    tmp_path, capsys
):
    """A random model never writes a correct sibling, so that there is no solution to show."""
    experience = dataclasses.replace(tiny().experience, context=Solution())
    evaluation = dataclasses.replace(tiny().evaluation, at_start=True)
    config = tiny(experience=experience, evaluation=evaluation, steps=2, export=False)
    run(config, tmp_path / "run", quiet=True)
    said = capsys.readouterr().err
    assert said.count("step 1: no row was distilled: ") == 1
    assert "step 2:" not in said
    assert "no row was distilled in 2 of 2 steps, first in step 1, last in 2\n" in said
    assert (tmp_path / "run" / "evals" / "step_000000" / "summary.json").exists()
    # A resumed, finished run that is not quiet has the table.
    run(config, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "evaluations, with changes since step 0 in parentheses:\n" in said
    assert f"  jaxdistill report {tmp_path / 'run'}\n" in said
