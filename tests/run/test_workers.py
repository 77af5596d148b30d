"""Where the runs of a study run: on which cores, on which GPUs, in how many processes."""

import subprocess

import pytest

from jaxdistill.errors import UserError
from jaxdistill.run import workers
from jaxdistill.run.workers import count_workers, find_gpus, places

FOUR = ("0", "1", "2", "3")
CORES = tuple(range(64))


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)


def seen(found):
    return [place.environment["CUDA_VISIBLE_DEVICES"] for place in found]


def test_every_gpu_has_a_worker_and_every_core_belongs_to_one():
    found = places(4, FOUR, CORES)
    assert seen(found) == ["0", "1", "2", "3"]
    assert sorted(core for place in found for core in place.cores) == list(CORES)
    assert all(place.environment.keys() == {"CUDA_VISIBLE_DEVICES"} for place in found)


def test_workers_that_share_a_gpu_share_its_memory():
    found = places(8, FOUR, CORES)
    assert seen(found) == [*FOUR, *FOUR]
    assert {p.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for p in found} == {"0.450"}
    # Three on the first two, two on the others: the parts of each GPU fit on it.
    found = places(10, FOUR, CORES)
    for gpu in FOUR:
        parts = [p.environment for p in found if p.environment["CUDA_VISIBLE_DEVICES"] == gpu]
        assert sum(float(e["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for e in parts) <= 0.9 + 1e-6


def test_a_share_of_the_memory_that_a_user_has_set_is_that_of_all_workers(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    (one, _) = places(2, ("0",), CORES)
    assert one.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.250"


def test_fewer_workers_than_gpus_divide_all_of_them():
    assert seen(places(2, FOUR, CORES)) == ["0,1", "2,3"]
    assert seen(places(3, FOUR, CORES)) == ["0", "1", "2,3"]


@pytest.mark.parametrize(
    ("asked", "one_device", "gpus", "backend", "expected"),
    [
        (None, False, (), "cpu", 2),
        (5, False, (), "cpu", 5),
        (None, True, FOUR, "gpu", 4),
        (None, False, FOUR, "gpu", 1),  # a run of a real model takes all of them
        (8, True, FOUR, "gpu", 8),
        (2, False, FOUR, "gpu", 2),
        (None, True, (), "tpu", 1),
        (1, True, (), "tpu", 1),
    ],
)
def test_the_number_of_processes(asked, one_device, gpus, backend, expected):
    found = count_workers(asked, usual=2, one_device=one_device, gpus=gpus, backend=backend)
    assert found == expected


def test_a_tpu_is_not_shared():
    with pytest.raises(UserError, match="--workers 2: several processes cannot share a TPU"):
        count_workers(2, usual=2, one_device=True, gpus=(), backend="tpu")


def test_processes_do_not_share_gpus_that_nobody_divides_among_them():
    with pytest.raises(UserError, match="--workers 2: the GPUs could not be counted"):
        count_workers(2, usual=2, one_device=True, gpus=(), backend="gpu")


def test_gpus_are_named_as_the_user_has_restricted_them(monkeypatch):
    """Asked in another process; here it answers for a machine of two visible GPUs."""
    asked = []

    def run(command, env, **_):
        asked.append(env["XLA_PYTHON_CLIENT_PREALLOCATE"])
        return subprocess.CompletedProcess(command, 0, stdout="a warning\n2\n")

    monkeypatch.setattr(workers.subprocess, "run", run)
    monkeypatch.setattr(workers.Path, "exists", lambda path: True)
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "5, GPU-8f"}) == ("5", "GPU-8f")
    assert find_gpus({}) == ("0", "1")
    assert asked == ["false", "false"]
    monkeypatch.setattr(workers.Path, "exists", lambda path: False)
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    assert find_gpus({}) == ()
