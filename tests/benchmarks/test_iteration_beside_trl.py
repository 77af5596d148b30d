"""The figures of an iteration beside TRL, from made measurements."""

import pytest
from benchmark_scripts import script


def of_trl(sampling, update, **more):
    parts = {"sampling": sampling, "text": 0.5, "update": update}
    timed = {
        **parts,
        "seconds": sampling + 0.5 + update,
        "peak_sampling": 20.0,
        "peak_update": 90.0,
    }
    sizes = {"tokens": 6000, "steps": 1024, "rows": 64, "versions": {"trl": "1.16.0"}}
    return {"iterations": [timed], **sizes, **more}


@pytest.fixture
def found():
    beside = script("iteration_beside_trl")
    ours = {
        "seconds": 4.0, "seconds_sampling": 3.0, "seconds_step": 1.0, "tokens": 6000,
        "memory": {"peak": 2**35}, "share_of_matmul": 0.5,
    }  # fmt: skip
    return {
        "work": {"questions": 8, "rollouts": 8, "prompt": 256, "new": 1024},
        "date": "2026-12-01",
        "command": "python benchmarks/iteration_beside_trl.py",
        "measured": {
            "ours 0": ours,
            "ours 1": {"failed": "ended after 270 s"},
            "TRL 0: static, compiled; fast": of_trl(9.5, 2.0),
            "TRL 1: static, compiled; slow": of_trl(15.0, 4.0),
            "TRL 1: static, compiled; large": {"failed": "out of memory"},
            f"step: {beside.FAITHFUL}": of_trl(0.0, 1.5, rows=16, tokens=1500),
        },
    }


def test_the_peer_is_the_fastest_setting_and_that_of_equal_precision_stands_beside_it(found):
    whole, sampling, update, faithful = script("iteration_beside_trl").rows(found)
    assert (whole["ours"], whole["theirs"]) == (6000 / 4, 6000 / 12)
    assert whole["peer"] == "TRL 1.16.0: static, compiled; fast"
    assert whole["memory_gib"] == [32, 90]
    assert sampling["theirs"] == pytest.approx(6000 / 9.5)
    assert update["theirs"] == 3000
    assert update["share"] == [0.5, "matmul"]
    # A quarter of the rows took 1.5 s, all of them, padded alike, four times as long.
    assert faithful["theirs"] == 6000 / 6


def test_without_a_measurement_of_both_sides_there_is_no_row(found):
    beside = script("iteration_beside_trl")
    found["measured"]["ours 0"] = {"failed": "no memory"}
    assert beside.rows(found) == []
    assert len(beside.summary(found["measured"])) == 6


def test_the_table_takes_the_rows(found):
    text = script("table").table(script("iteration_beside_trl").rows(found))
    assert "1,500 tokens/s, 32.0 GiB" in text
    assert "| 3.00 |" in text


def test_seconds_of_a_decode_step_leave_the_prompts_out():
    beside = script("iteration_beside_trl")
    few, many = ({"sampling": seconds} for seconds in (2.0, 5.36))
    result = {"iterations": [few, many], "steps": 192}
    assert beside.seconds_of("sampling", result) == pytest.approx(0.02)
