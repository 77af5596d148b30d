"""The figures of an iteration beside TRL, from made measurements."""

import argparse
import json
import sys
from types import SimpleNamespace

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
        "memory": {"peak": 2**35}, "share_of_matmul": 0.5, "remat": "mlp",
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


@pytest.mark.parametrize("new", [608, 1024, 1104, 2144, 4096])
@pytest.mark.parametrize("rows", [1, 7, 12, 16, 64])
def test_passes_of_equal_rows_make_up_an_iteration(rows, new):
    """TRL samples for rows per pass x passes, and refuses what is no multiple of the rollouts."""
    trl_iteration = script("trl_iteration")
    for tokens in (100, 4096, 8192, 16384):
        at_once = trl_iteration.rows_at_once(rows, tokens, new)
        assert at_once * (rows // at_once) == rows
        assert at_once == 1 or at_once * new <= tokens
        larger = [n for n in range(at_once + 1, rows + 1) if n * new <= tokens]
        assert all(rows % n for n in larger)


def asked(*parts, turns=1, **given):
    return argparse.Namespace(
        **{"only": parts, "turns": turns, "sampling": None, "step": None}, **given
    )


def test_a_process_that_came_to_its_limit_is_named_and_missing(found):
    beside = script("iteration_beside_trl")
    early = {
        "iterations": [], "warm_up": {"seconds": 49.25}, "ended": "ended after 163 s",
        "unfinished": {"steps": 2560, "sampling": 89.6},
    }  # fmt: skip
    measured = {"ours 0": found["measured"]["ours 0"], "TRL 0: static; fast": early}
    assert beside.summary(measured)[1] == (
        "TRL 0: static; fast: ended at its limit before the first iteration, warm-up 49.2 s, then "
        "2560 decode steps, 35.0 ms each with the prompts"
    )
    assert beside.missing(measured, asked("iteration")) == ["an iteration of TRL in turn 0"]
    # Another setting that was timed is enough, and so is no wish for an iteration.
    timed = measured | {"TRL 0: static; slow": of_trl(15.0, 4.0)}
    assert beside.missing(timed, asked("iteration")) == []
    assert beside.missing(measured, asked()) == []


def test_a_process_that_failed_after_it_had_written_says_why():
    early = {"iterations": [], "warm_up": None, "unfinished": None, "ended": "out of memory"}
    said = "step: large: failed (out of memory) before the first iteration"
    assert script("iteration_beside_trl").summary({"step: large": early}) == [said]


def test_what_could_not_be_timed_at_all_is_missing(found):
    missing = script("iteration_beside_trl").missing
    lacking = missing(
        {"sampling: dynamic": {"failed": "ValueError"}}, asked("sampling", "iteration")
    )
    assert lacking == [
        "an iteration of ours in turn 0",
        "an iteration of TRL in turn 0",
        "a setting for sampling that could be timed",
    ]
    # One setting of a part is enough, since one that does not fit into memory is a finding.
    measured = {"sampling: dynamic": of_trl(1.0, 0.0), "sampling: static": {"failed": "no memory"}}
    measured["sampling: dynamic"]["iterations"] *= 2
    assert missing(measured, asked("sampling")) == []
    assert missing(found["measured"], asked("iteration", turns=2)) == [
        "an iteration of ours in turn 1"
    ]


# In the place of trl_iteration.py and of jaxdistill: it takes no time, and writes what they write.
STANDS_IN = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
setting = json.loads(given["--setting"])
step = 0.012 if setting.get("compiled") else 0.025
few, many = 1.0, 1.0 + step * (192 - 24)
update = 0.8 if setting.get("liger") else 1.1
parts = {"text": 0.1, "update": update, "peak_sampling": 20.0, "peak_update": 50.0}
timed = [parts | {"sampling": s, "seconds": s + 0.1 + update} for s in (few, many)]
result = {"iterations": timed[-int(given["--repeats"]):], "warm_up": timed[0], "tokens": 21000}
sizes = {"steps": 192, "rows": int(given.get("--rows", 64)), "versions": {"trl": "1.16.0"}}
pathlib.Path(given["--out"]).write_text(json.dumps(result | sizes))
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The benchmark with a stand-in for both sides; returns what it exits with and its file."""
    beside = script("iteration_beside_trl")
    stand_in, out = tmp_path / "stand_in.py", tmp_path / "found.json"
    stand_in.write_text(STANDS_IN)
    process = beside.Run.process

    def peer(run, key, command):
        return process(run, key, [str(stand_in), *command[1:]])

    def ours(run, turn):
        result = {"seconds": 4.3, "seconds_sampling": 2.5, "seconds_step": 1.8, "tokens": 21000}
        more = {"memory": {"peak": 2**35}, "share_of_matmul": 0.5, "remat": "mlp"}
        run.runs.keep(f"ours {turn}", result | more)

    monkeypatch.setattr(beside.Run, "process", peer)
    monkeypatch.setattr(beside.Run, "ours", ours)

    def run(*given):
        monkeypatch.setattr(sys, "argv", ["beside", "--out", str(out), *given])
        return beside.main(), json.loads(out.read_text())

    return run


def test_an_iteration_takes_the_fastest_of_both_parts(beside):
    tried = ["--tried", "dynamic", "static, compiled", "bfloat16, 8k, top 100, Liger"]
    code, found = beside(*tried, "--turns", "1", "--repeats", "1")
    assert code == 0
    measured = list(found["measured"])
    assert measured == [
        "ours 0",
        "sampling: dynamic",
        "sampling: static, compiled",
        "step: bfloat16, 8k, top 100, Liger",
        "TRL 0: static, compiled; bfloat16, 8k, top 100, Liger",
    ]
    assert {row["date"] for row in found["rows"]} == {found["date"]}


def test_one_that_was_ended_early_is_measured_again(beside, tmp_path):
    arguments = ["--tried", "dynamic", "--only", "sampling"]
    _, found = beside(*arguments)
    found["measured"]["sampling: dynamic"]["iterations"] = []
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert script("iteration_beside_trl").missing(found["measured"], asked("sampling"))
    code, found = beside(*arguments)
    assert code == 0
    assert len(found["measured"]["sampling: dynamic"]["iterations"]) == 2


def test_generation_computes_without_ligers_kernels_and_the_update_with_them(monkeypatch):
    class Module:
        def forward(self):
            return "transformers"

    def forward(self):
        return "Liger"

    forward.__module__ = "liger_kernel.transformers.rms_norm"
    norm, plain = Module(), Module()
    norm.__dict__["forward"] = forward.__get__(norm)
    plain.__dict__["forward"] = lambda: "of accelerate"
    qwen3 = SimpleNamespace(apply_rotary_pos_emb="Liger's")
    monkeypatch.setitem(
        sys.modules, "transformers.models.qwen3", SimpleNamespace(modeling_qwen3=qwen3)
    )
    model = SimpleNamespace(modules=lambda: [norm, plain, Module()])
    with script("trl_iteration").without_liger(model, "transformers'"):
        assert norm.forward() == "transformers"
        assert plain.forward() == "of accelerate"
        assert qwen3.apply_rotary_pos_emb == "transformers'"
    assert norm.forward() == "Liger"
    assert qwen3.apply_rotary_pos_emb == "Liger's"


def test_a_process_that_is_ended_while_it_samples_leaves_how_far_it_came(tmp_path):
    trl_iteration = script("trl_iteration")
    options = argparse.Namespace(part="iteration", out=tmp_path / "result.json")
    clock = trl_iteration.Clock([300, 20], trl_iteration.Work(new=300), options)
    clock.write({"steps": 256, "sampling": 3.2})
    result = json.loads(options.out.read_text()) | {"ended": "ended after 60 s"}
    assert script("iteration_beside_trl").summary({"TRL 0: dynamic; fast": result}) == [
        "TRL 0: dynamic; fast: ended at its limit before the first iteration, then 256 decode "
        "steps, 12.5 ms each with the prompts"
    ]
