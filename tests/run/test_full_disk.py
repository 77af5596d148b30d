"""A disk that is full at any point of a run costs no finished step, and one line says so."""

import json
import os
import subprocess

import jax
import numpy as np
import pytest
from command_line import besides_warnings, call
from tiny_run import tiny, tree_of, write_config

from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training.state import init_state
from jaxdistill.training.timing import TIMINGS

CONFIG = tiny(rollouts_every=1)
POINTS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of 16 MB of its own."""
    place = tmp_path_factory.mktemp("disk")
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk could be mounted: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


class Syncs:
    """Counts the files that a run syncs, and keeps its disk full from number `full_at` on."""

    def __init__(self, disk):
        self.disk, self.count, self.full_at, self.fsync = disk, 0, None, os.fsync

    def __call__(self, handle):
        self.count += 1
        # Again each time: an older checkpoint that is deleted makes room.
        if self.full_at is not None and self.count >= self.full_at:
            with (self.disk / "ballast").open("ab", buffering=0) as file:
                for size in (4096 * 64, 4096):
                    while write_some(file, size):
                        pass
        self.fsync(handle)


def write_some(file, size):
    try:
        return file.write(bytes(size)) == size
    except OSError:
        return False


def train(run_dir, *more):
    config = write_config(run_dir.parent.parent / "config.json", CONFIG)
    return call("train", config, "--run-dir", run_dir, "--quiet", *more)


def results(run_dir):
    """What two runs must have in common, to the bit: all but times and names of Orbax's files."""
    policy = loading.load(CONFIG.model, CONFIG.seed, run_dir / "model")
    example = init_state(policy.params, CONFIG.optimizer, CONFIG.teacher, CONFIG.steps)
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        restored = [checkpoints.restore(step, example._asdict()) for step in checkpoints.steps()]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
    trees = [tree_of(run_dir / name) for name in ("rollouts", "evals", "model", "export")]
    states = [[np.asarray(x).tobytes() for x in jax.tree.leaves(state)] for state, _ in restored]
    return states, [host for _, host in restored], metrics, trees


@pytest.fixture(autouse=True)
def room(disk):
    yield
    (disk / "ballast").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(the results of a run with room, the number of its syncs)."""
    place = tmp_path_factory.mktemp("whole")
    (place / "inner").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        syncs = Syncs(place)
        patch.setattr("os.fsync", syncs)
        assert train(place / "inner" / "run")[0] == 0
    return results(place / "inner" / "run"), syncs.count


@pytest.mark.parametrize("point", range(POINTS))
def test_a_full_disk_is_one_line_and_the_run_goes_on_bit_for_bit_with_room(
    disk, whole, monkeypatch, point
):
    expected, num_syncs = whole
    run_dir = disk / f"run_{point}"
    syncs = Syncs(disk)
    syncs.full_at = 1 + point * num_syncs // POINTS
    monkeypatch.setattr("os.fsync", syncs)
    code, out, err = train(run_dir)
    assert (code, out) == (2, ""), err
    line = besides_warnings(err)
    assert line.count("\n") == 1, err
    assert str(run_dir) in line
    assert "No space left on device" in line
    syncs.full_at = None
    (disk / "ballast").unlink()
    code, _, err = train(run_dir, "--resume")
    assert code == 0, err
    assert results(run_dir) == expected
    assert not [path for path in run_dir.rglob("*") if "tmp" in path.name or ".new" in path.name]
    subprocess.run(["rm", "-r", str(run_dir)], check=True)
