"""The reader of a profile: names of operations, and time that is counted once."""

import gzip
import json

import pytest
from command_line import call

from jaxdistill.errors import UserError
from jaxdistill.run.profiled_steps import ProfiledSteps, parse_steps
from jaxdistill.run.profiling import (
    Profiler,
    Span,
    names_in,
    scope_of,
    seconds_by_scope,
    write_scopes,
)

# As XLA prints a module, cut down: a fusion and a copy without a name of their own.
MODULE = """HloModule jit_step, is_scheduled=true

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2] parameter(0)
  ROOT %sine = f32[2] sine(%p), metadata={op_name="jit(step)/jvp(step/forward)/sin"}
}

%body (x: f32[2]) -> f32[2] {
  %x = f32[2] parameter(0), metadata={op_name="jit(sample)/sample/while/body/sample/decode/dot"}
  ROOT %copy.1 = f32[2] copy(%x)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2] parameter(0), metadata={op_name="a"}
  %copy.2 = f32[2] copy(%a)
  ROOT %fusion.7 = f32[2] fusion(%copy.2), kind=kLoop, calls=%fused
}
"""


def test_instructions_without_a_name_take_that_of_what_they_call_or_stand_among():
    scopes = {instruction: scope_of(name) for instruction, name in names_in(MODULE).items()}
    assert scopes["fusion.7"] == "step/forward"
    assert scopes["copy.1"] == "sample/decode"
    assert scopes["copy.2"] == "other"


def test_an_operation_belongs_to_the_innermost_scope_and_a_transposed_one_to_the_backward_pass():
    assert scope_of("jit(step)/score/teacher/while/body/attention/dot") == "score/teacher"
    assert scope_of("jit(step)/transpose(jvp(step/forward))/mlp/dot") == "step/backward"
    assert scope_of("jit(step)/jvp(step/loss)/loss/exp") == "step/loss"
    assert scope_of("jit(fit)/add") == "other"


def test_a_moment_in_which_two_threads_work_counts_once():
    spans = [Span("step/loss", line, start, start + 2e9, "dot") for line, start in
             (("a", 0.0), ("b", 1e9), ("a", 5e9))]  # fmt: skip
    assert seconds_by_scope(spans) == {"step/loss": 5.0}


def test_neighbours_of_a_scope_are_one_slice_of_their_track(tmp_path):
    spans = [Span("step/loss", "a", 0, 100, "dot"), Span("step/loss", "a", 200, 300, "exp"),
             Span("step/update", "a", 300, 400, "add"), Span("step/loss", "a", 400, 500, "dot"),
             Span("step/loss", "b", 0, 100, "dot")]  # fmt: skip
    write_scopes(tmp_path / "scopes.json.gz", spans)
    events = json.loads(gzip.decompress((tmp_path / "scopes.json.gz").read_bytes()))["traceEvents"]
    slices = [(e["name"], e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("step/loss", 0.0, 0.3, 0), ("step/update", 0.3, 0.1, 0), ("step/loss", 0.4, 0.1, 0),
        ("step/loss", 0.0, 0.1, 1),
    ]  # fmt: skip


def test_steps_are_one_or_a_range():
    assert parse_steps("3") == ProfiledSteps(3, 3)
    assert parse_steps("3-5") == ProfiledSteps(3, 5)


@pytest.mark.parametrize("text", ["0", "5-3", "a", "-1", "3-", "", "1.5"])
def test_other_steps_are_refused_in_one_line(text):
    code, _, err = call("train", "toy_selfdistill", f"--profile={text}")
    assert code == 2
    assert "expected a step from 1 on, such as 3, or steps such as 3-5" in err
    assert err.count("\n") == 1


def test_steps_after_the_end_are_refused_and_steps_that_are_done_are_said(tmp_path):
    said = []
    with pytest.raises(UserError, match="--profile 7: the run ends at step 6"):
        Profiler(ProfiledSteps(7, 9), tmp_path, step=0, steps=6, say=said.append)
    # As a script that passes the same flags at every start.
    profiler = Profiler(ProfiledSteps(2, 3), tmp_path, step=3, steps=6, say=said.append)
    profiler.begin(4)
    profiler.end(4)
    profiler.close()
    assert said == ["--profile: step 3 is done already; the run continues from step 3"]
    assert not list(tmp_path.iterdir())
