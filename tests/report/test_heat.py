"""Saved traces in a page: coloured tokens, and texts that stay text."""

import json
import re

import pytest
from made_trace import HOSTILE, made_trace
from written_study import Page

from jaxdistill.errors import UserError
from jaxdistill.report import write_run_report


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "traces").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    return tmp_path / "run"


def test_a_saved_trace_is_shown_with_its_heat_and_its_texts_stay_text(run, without_figures):
    trace = made_trace(60)
    trace.to_json(run / "traces" / "a.json")
    text = write_run_report([run], run).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert HOSTILE.partition("\u202e")[0] in page.text
    # The warmest token is the one at which the teacher takes most doubt.
    shown = re.findall(r'class="s(-?\d+)[^"]*" title="epistemic mass: student (\S+), (.*?)"', text)
    warmth = {}
    for shade, student, others in shown:
        teacher = re.search(r"teacher ([\d.]+)", others)
        assert teacher is not None
        warmth[float(student) - float(teacher[1])] = int(shade)
    assert len(warmth) > 3
    assert max(warmth.values()) == warmth[max(warmth)]


def test_a_file_that_is_no_trace_is_named(run, without_figures):
    (run / "traces" / "b.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match=r"traces/b\.json: .*format"):
        write_run_report([run], run)
