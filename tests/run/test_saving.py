"""When a checkpoint is due, and what a stop does with the step in flight."""

import threading
import time

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.run.saving import Kept, Saving
from jaxdistill.training.checkpointing import Minutes, Steps


class Files:
    """In the place of `Checkpoints`: notes what is saved."""

    def __init__(self):
        self.saved = []
        self.usable = []

    def usable_steps(self):
        return self.usable

    def save(self, step, state, host):
        self.saved.append(step)

    def wait(self):
        pass

    def best(self):
        return None


@pytest.fixture
def saving(tmp_path):
    saving = Saving(tiny(steps=9, checkpoint=Minutes(10)), tmp_path)
    saving.checkpoints = Files()
    saving.start(0, 9)
    complete(saving, 1)
    return saving


def complete(saving, step, seconds=0.0):
    saving.begin()
    saving._began -= seconds
    with saving.replacing():
        saving.keep(Kept(step, {"params": {}}, {}), compiling=0.0)


def test_a_stop_saves_the_last_completed_step_once(saving):
    saving.stop(time.monotonic() + 10)
    assert saving.checkpoints.saved == [1]
    # The main thread waits for ever where it would touch the state or the files.
    for touch in (saving.replacing().__enter__, saving.save):
        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()


def test_a_step_that_is_saved_already_is_not_saved_again(saving):
    saving.save()
    saving.begin()
    with saving.replacing():  # its update is under way, and is awaited only as long as it may be
        saving.stop(time.monotonic() + 0.4)
    assert saving.checkpoints.saved == [1]


def stop_during_a_step(saving, left, fits):
    """Stop in step 2, which is completed 0.2 s later; returns the steps that were saved."""
    complete(saving, 1, seconds=0.0 if fits else 100.0)
    saving.begin()
    stop = threading.Thread(target=saving.stop, args=(time.monotonic() + left,), daemon=True)
    stop.start()
    time.sleep(0.2)
    if saving._is_whole.acquire(blocking=False):
        saving.keep(Kept(2, {"params": {}}, {}), compiling=0.0)
        saving._is_whole.release()
    stop.join(left)
    assert not stop.is_alive()
    return saving.checkpoints.saved


def test_the_step_in_flight_is_awaited_if_the_last_ones_say_that_it_fits(saving):
    assert stop_during_a_step(saving, left=20.0, fits=True) == [2]


def test_the_step_in_flight_is_dropped_if_the_last_ones_say_that_it_does_not_fit(saving):
    assert stop_during_a_step(saving, left=20.0, fits=False) == [1]


def test_the_step_in_flight_is_awaited_for_half_of_the_grace_time(saving):
    saving.begin()
    began = time.monotonic()
    saving.stop(began + 0.4)
    assert 0.15 < time.monotonic() - began < 0.39
    assert saving.checkpoints.saved == [1]


def test_a_state_that_is_being_replaced_cannot_be_saved(saving):
    saving.begin()
    with saving.replacing(), pytest.raises(TimeoutError, match="a step was being computed"):
        saving.stop(time.monotonic() + 0.1)
    assert list(saving.last_lines("within 25 s")) == [
        "the state of step 1 could not be saved within 25 s; there is no other yet",
        "stopped at step 0 of 9; --resume goes on",
    ]
    # No failure: parameters that are not finite are not saved.
    line, _ = saving.last_lines("")
    assert line == "the state of step 1 could not be saved; there is no other yet"
    saving.checkpoints.usable = [1]
    assert list(saving.last_lines("")) == ["stopped at step 1 of 9; --resume goes on"]


def test_a_state_that_a_failed_update_has_used_up_is_not_saved(saving):
    with pytest.raises(RuntimeError, match="no more memory"), saving.replacing():
        raise RuntimeError("no more memory")
    with pytest.raises(RuntimeError, match="no more memory"):
        saving.stop(time.monotonic() + 10)
    assert saving.checkpoints.saved == []


def test_a_run_that_keeps_no_checkpoints_says_so(tmp_path):
    saving = Saving(tiny(steps=9, save_checkpoints=False), tmp_path)
    saving.checkpoints = Files()
    saving.start(0, 9)
    complete(saving, 1)
    assert not saving.is_due(9, 9)
    saving.stop(time.monotonic() + 1)
    assert saving.checkpoints.saved == []
    (line,) = saving.last_lines("")
    assert line == "stopped at step 1 of 9; without `save_checkpoints`, --resume starts anew"


# ------------------------------------------------------------------------------- when it is due


@pytest.mark.parametrize(
    ("checkpoint", "step", "seconds", "step_seconds", "due"),
    [
        (Steps(3), 6, 0.0, 0.0, True),
        (Steps(3), 7, 1e9, 1e9, False),
        (Minutes(10), 7, 500.0, 90.0, False),
        (Minutes(10), 7, 500.0, 110.0, True),  # after the next step it would be too late
        (Minutes(10), 1, 601.0, 601.0, True),
        (Minutes(0.5), 7, 29.0, 2.0, True),
    ],
)
def test_a_checkpoint_is_due(checkpoint, step, seconds, step_seconds, due):
    assert checkpoint.is_due(step, seconds, step_seconds) == due


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steps(0), "Steps: `steps` must be at least 1, got 0"),
        (lambda: Minutes(0), "Minutes: `minutes` must be above 0, got 0"),
        (lambda: Minutes(float("nan")), "Minutes: `minutes` must be above 0, got nan"),
    ],
    ids=["steps", "minutes", "nan"],
)
def test_a_checkpoint_never_is_no_choice(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_the_last_step_is_saved_in_any_case(saving):
    assert saving.is_due(9, 9)
    assert not saving.is_due(8, 9)
