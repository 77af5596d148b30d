"""What `windowed_decode.py` keeps when a setting does not fit into memory."""

import json

import pytest
from benchmark_scripts import script
from jax.errors import JaxRuntimeError


def run(tmp_path, monkeypatch, bench):
    windowed_decode, file = script("windowed_decode"), tmp_path / "found.json"
    monkeypatch.setattr(windowed_decode, "bench_decode", bench)
    monkeypatch.setattr("sys.argv", ["windowed_decode", "--rows", "4", "--out", str(file)])
    return windowed_decode.main, file


@pytest.mark.long
def test_a_setting_that_does_not_fit_is_named_and_leaves_the_others(tmp_path, monkeypatch):
    def bench(work):
        if not calls:
            calls.append(work)
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nsecond line")
        # What was measured before stands in the file already.
        assert len(json.loads(file.read_text())) == len(calls)
        calls.append(work)
        return {"tokens_per_second": work.rows}

    calls = []
    main, file = run(tmp_path, monkeypatch, bench)
    assert main() == 1
    assert json.loads(file.read_text()) == {
        "all positions": {"failed": "RESOURCE_EXHAUSTED: Out of memory"},
        "rings": {"tokens_per_second": 4},
        "rings, twice the rows": {"tokens_per_second": 8},
    }


def test_any_other_fault_ends_the_benchmark(tmp_path, monkeypatch):
    def bench(work):
        raise JaxRuntimeError("INTERNAL: no kernel")

    main, _ = run(tmp_path, monkeypatch, bench)
    with pytest.raises(JaxRuntimeError, match="no kernel"):
        main()
