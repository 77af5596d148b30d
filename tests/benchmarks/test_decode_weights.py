"""What `decode_weights.py` keeps when a variant fails, and when it is stopped."""

import contextlib
import json

import pytest
from benchmark_scripts import script


class Made:
    """A program in the place of a compiled one; every timed step takes a millisecond."""

    def __init__(self, variant, params, options):
        if variant.weights == "float8_dynamic":
            raise NotImplementedError("no products of float8 here")
        self.seconds = []

    def time_step(self):
        self.seconds.append(0.001)

    def result(self, exact):
        step = self.seconds[0]
        return {
            "step_seconds": step,
            "step_tokens_per_second": 4 / step,
            "ratio_to_exact": exact / step,
            "share_of_copy": 0.5,
            "compile_seconds": 20,
        }


def variants(tmp_path, monkeypatch, made):
    """Those in the file after a run with these programs, which may end it."""
    decode_weights, file = script("decode_weights"), tmp_path / "found.json"
    monkeypatch.setattr(decode_weights, "Program", made)
    monkeypatch.setattr(decode_weights, "random_params", lambda *given: {})
    given = ["--rows", "4", "--out", str(file), "--only", "int8", "float8_dynamic", "int8 cache"]
    monkeypatch.setattr("sys.argv", ["decode_weights", *given])
    with contextlib.suppress(KeyboardInterrupt):
        decode_weights.main()
    return json.loads(file.read_text())["variants"]


def test_a_number_format_that_fails_is_named_and_leaves_the_others(tmp_path, monkeypatch):
    found = variants(tmp_path, monkeypatch, Made)
    assert found["float8_dynamic"] == {
        "failed": "NotImplementedError: no products of float8 here"
    }  # fmt: skip
    assert found["int8 cache"]["ratio_to_exact"] == 1
    # The first variant, with which the others are compared, is timed although it is not named.
    assert list(found) == ["exact", "int8", "float8_dynamic", "int8 cache"]


def test_a_stopped_process_leaves_what_it_has_timed(tmp_path, monkeypatch):
    class Stopped(Made):
        def __init__(self, variant, params, options):
            if variant.cache == "int8":
                raise KeyboardInterrupt
            super().__init__(variant, params, options)

    found = variants(tmp_path, monkeypatch, Stopped)
    assert found["int8"]["seconds_of_turns"] == pytest.approx([0.001])
