"""A trace as JSON holds all of it, and what is none is refused."""

import dataclasses
import json

import numpy as np
import pytest
from made_trace import made_trace

from jaxdistill.errors import UserError
from jaxdistill.tracing.record import Trace


@pytest.mark.parametrize("reference", ["base", ""])
def test_json_holds_everything(reference, tmp_path):
    trace = made_trace(reference=reference)
    trace = dataclasses.replace(trace, kl=np.where(trace.kl > 2, np.inf, trace.kl))
    text = trace.to_json(tmp_path / "new" / "trace.json")
    assert (tmp_path / "new" / "trace.json").read_text(encoding="utf-8") == text
    tokens = json.loads(text)["tokens"]
    assert "".join(tokens["text"]) == "".join(trace.texts)
    assert None in tokens["kl"]
    assert ("reference" in tokens) == bool(reference)
    again = Trace.from_json(text)
    assert again.to_json() == text
    for name in ("ids", "logp", "entropy", "mass", "push", "top_ids", "top_logp"):
        mine, yours = getattr(trace, name), getattr(again, name)
        kept = np.s_[:, : 3 if reference else 2] if mine.ndim > 1 else np.s_[:]
        np.testing.assert_allclose(yours[kept], mine[kept], rtol=1e-6)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_what_is_no_trace_is_refused(content):
    with pytest.raises(UserError, match="not a trace"):
        Trace.from_json(content)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        made_trace().to_json(tmp_path / "file" / "trace.json")
