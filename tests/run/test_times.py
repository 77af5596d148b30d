"""The seconds in a run's files are those of its parts."""

import json
import time
from functools import partial

import jax
import pytest
from tiny_run import tiny

from jaxdistill.run import folder, loop, programs
from jaxdistill.run.saving import Saving
from jaxdistill.tracking.record import Tracking
from jaxdistill.training.timing import PARTS

DELAY_S = 1.0


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def slow_step(tmp_path_factory):
    """A run of two steps, each of which the device finishes a second late; and its wall time."""
    run_dir, make = tmp_path_factory.mktemp("slow") / "run", programs.make_train_step

    def sleep(x):
        time.sleep(DELAY_S)
        return x

    @jax.jit
    def late(x):
        return jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def slowed(step, state, *rest):
        state, sums = step(state, *rest)
        return state._replace(step=late(state.step)), sums

    config = tiny(steps=2, export=False)
    folder.start_folder(config, run_dir, resume=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "make_train_step", lambda **kwargs: partial(slowed, make(**kwargs)))
        began = time.monotonic()
        saving, tracking = Saving(config, run_dir), Tracking(run_dir, grace_s=1.0, say=print)
        loop.train(config, run_dir, False, True, saving=saving, tracking=tracking)
        return run_dir, time.monotonic() - began


def test_the_devices_time_counts_for_the_step_that_it_works_on(slow_step):
    first, second = rows_of(slow_step[0])
    for row in (first, second):
        assert row["seconds_update"] >= DELAY_S
    # The sampler needs the parameters of the late step, and does not wait for them any more.
    assert second["seconds_sampling"] < DELAY_S


def test_the_parts_add_up_to_the_wall_time_within_three_per_cent(slow_step):
    """By another clock, with two evaluations and a checkpoint; `host` is what no part names."""
    run_dir, wall = slow_step
    seconds = json.loads((run_dir / "finished.json").read_text())["seconds"]
    assert sum(seconds[part] for part in PARTS) == pytest.approx(wall, rel=0.03)
    assert all(seconds[part] > 0 for part in PARTS)


def test_a_row_has_the_parts_of_its_step_and_marks_the_one_that_compiled(slow_step):
    first, second = rows_of(slow_step[0])
    for row in (first, second):
        inside = ("sampling", "grading", "host", "update")
        assert row["seconds"] == pytest.approx(sum(row[f"seconds_{part}"] for part in inside))
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["mfu"] is None  # the peak of a CPU is not known
    assert first["seconds_compiling"] > second["seconds_compiling"]
