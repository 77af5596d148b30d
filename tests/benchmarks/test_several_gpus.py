"""What several GPUs give: the figures that are drawn from results, and who sees which devices."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from benchmark_scripts import script


def result(rate, flops=None):
    found = {"tokens_per_second": rate, "seconds": 2.0, "memory": {"peak": 2**31, "planned": 1}}
    return found | ({"model_flops_per_second": flops} if flops else {})


def test_efficiency_is_against_one_gpu_of_the_same_run():
    several = script("several_gpus")
    found = several.table({
        "step Qwen3-1.7B 1": result(1000.0, 400e12),
        "step Qwen3-1.7B 4": result(3600.0, 1440e12),
        "step Qwen3-8B 4": result(800.0, 1280e12),
        "decode Qwen3-1.7B 1": {"failed": "ended after 9 s"},
        "decode Qwen3-1.7B 4": result(4000.0),
    })  # fmt: skip
    assert found["step Qwen3-1.7B 4"]["tokens_per_second_per_gpu_of_one_gpu"] == pytest.approx(0.9)
    # Tokens of different models do not compare; the operations that they need do.
    large = found["step Qwen3-8B 4"]
    assert "tokens_per_second_per_gpu_of_one_gpu" not in large
    assert large["model_tflops_per_gpu_of_one_gpu"] == pytest.approx(0.8)
    assert found["decode Qwen3-1.7B 1"] == {"failed": "ended after 9 s"}
    assert not any("of_one_gpu" in key for key in found["decode Qwen3-1.7B 4"])


def test_processes_are_compared_step_by_step():
    def steps(*losses):
        return {"steps": [{"loss": loss, "seconds": 9.0 - n} for n, loss in enumerate(losses)]}

    found = script("several_gpus").table({
        "run 1 x 2": steps(1.0, 2.0, 4.0),
        "run 2 x 1": steps(1.0, 2.0, 4.4),
    })["processes"]  # fmt: skip
    assert found["largest_relative_difference_of_loss"] == pytest.approx(0.4 / 4.4)
    assert found["seconds_of_a_step"] == {"run 1 x 2": 7.0, "run 2 x 1": 7.0}


def test_each_of_several_processes_sees_one_gpu_and_all_the_same_first_one():
    several = script("several_gpus")
    options = Namespace(simulated=0)
    places = several.places(options, Path("scratch"), [range(n, n + 1) for n in range(3)])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "2"]
    assert [place["JAX_PROCESS_ID"] for place in places] == ["0", "1", "2"]
    assert len({place["JAX_COORDINATOR_ADDRESS"] for place in places}) == 1
    assert {place["NCCL_NVLS_ENABLE"] for place in places} == {"0"}
    (alone,) = several.places(options, Path("scratch"), [range(3)])
    assert alone["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert "JAX_NUM_PROCESSES" not in alone


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    """Every process fails here at once, since there is no such module as its first word."""
    several, processes = script("several_gpus"), script("in_processes")

    def start(command, environment, log):
        log.touch()
        return processes.subprocess.Popen(["false"])

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(processes, "message", lambda log: "no such device")
    out = tmp_path / "gpus.json"
    monkeypatch.setattr(
        "sys.argv",
        ["several_gpus", "--simulated", "2", "--out", str(out), "--only", "iteration,step"],
    )
    several.main()
    measured = json.loads(out.read_text())["measured"]
    assert {name.partition(" ")[0] for name in measured} == {"iteration", "step"}
    assert {result["failed"] for result in measured.values()} == {"no such device"}
    assert "no such device" in capsys.readouterr().out
