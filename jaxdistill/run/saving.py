"""The state of a run's last completed step: saved when a checkpoint is due and when it is stopped.

The update reuses the buffers of the state that it replaces (donation), so that between its start
and its end there is no state that could be saved. Two locks keep a stop, which runs in a thread of
its own, out of the main thread's way; once the stop has them it keeps them, and the main thread
waits there for the end of the process.

Several hosts save the same step. The first one decides which: no host begins an update before the
first has, and once the first is being stopped it begins none. The others wait until they have
completed the step that it has completed, and save that one. JAX's own preemption service would
agree on the end of the step in flight, which long samples put minutes away.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill import hosts
from jaxdistill.config import RunConfig
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.evaluation.saved import read_summary
from jaxdistill.run.places import Places
from jaxdistill.storage.best import Best
from jaxdistill.storage.checkpoint import Checkpoints


class Kept(NamedTuple):
    """What a checkpoint of a step holds."""

    step: int
    state: Any  # pytree of arrays
    host: dict[str, Any]  # the data's position and the known shapes, as JSON values


class Saving:
    """Saves the steps of one run. A `Stoppable`.

    Its methods, `stop` and `last_lines` excepted, belong to the main thread.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        places: Places | None = None,
        *,
        verify: bool = True,
    ) -> None:
        self._places = places or Places(run_dir)
        self.checkpoints = Checkpoints(
            self._places.checkpoints, keep=config.keep_checkpoints, verify=verify
        )
        self.grace_s = config.grace_seconds
        # Completes the files that belong to the kept step.
        self.sync: Callable[[], None] = lambda: None
        # Whether a step's parameters may be saved, or raises; (step, parameters, is it the last).
        self.may_save: Callable[[int, Any, bool], bool] = lambda step, params, is_last: True
        self._config = config
        self._run_dir, self._steps = run_dir, config.steps
        self._kept: Kept | None = None
        self._saved = 0  # the step that was handed to `checkpoints` last, which may still write it
        self._saved_at = time.monotonic()
        self._began: float | None = None  # of the step in flight
        self._durations: list[float] = []  # of the last steps, without compilations
        self._is_whole = threading.Lock()  # held while the state is replaced
        self._files = threading.Lock()  # held while `checkpoints` is used
        self._completed = threading.Condition()
        self._lost: BaseException | None = None  # why the kept state was replaced by none

    # ---------------------------------------------------------------- the main thread

    def follow(self, *syncs: Callable[[], None]) -> None:
        """`syncs` put the files of the last step on the disk; they are copied where the run is."""

        def sync() -> None:
            for each in syncs:
                each()

        self.sync = self._places.copying(sync)

    def start(self, step: int, steps: int) -> None:
        """The steps begin after `step`, which has been restored or is 0."""
        self._saved, self._steps, self._saved_at = step, steps, time.monotonic()
        best = self.checkpoints.best()
        if hosts.broadcast(best is not None and best.step > step, "best is later"):
            # Its checkpoint is of steps that are taken again, and may come out otherwise.
            self.checkpoints.forget_best()

    def begin(self) -> None:
        """A step begins. Until it is completed, a stop may drop it."""
        self._began = time.monotonic()

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Within this context, the state is replaced by the next one, which is handed to `keep`."""
        if not hosts.is_first():  # before the lock, which a stop must find free meanwhile
            hosts.broadcast(None, "update")
        with self._is_whole:
            if hosts.is_first():
                hosts.broadcast(None, "update")
            try:
                yield
            except BaseException as error:
                self._lost = error
                raise

    def keep(self, kept: Kept, compiling: float) -> None:
        """A step is complete and its metrics are written. compiling: that part of its seconds."""
        assert self._began is not None
        seconds = time.monotonic() - self._began - compiling
        self._durations = [*self._durations[-2:], max(seconds, 0.0)]
        self._kept, self._began = kept, None
        with self._completed:
            self._completed.notify_all()

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the kept step, the last of `steps` or another, is to be saved."""
        seconds = time.monotonic() - self._saved_at
        due = self._config.checkpoint.is_due(step, seconds, self._durations[-1])
        due = hosts.broadcast(bool(due), "checkpoint")  # by the first one's clock
        return self._config.save_checkpoints and (due or step == steps)

    def save(self) -> None:
        """Save the kept step, in the background, unless it is saved already."""
        with self._files:
            if self._kept is not None and self._kept.step != self._saved:
                self._save()

    def save_and_wait(self) -> None:
        """Save the kept step, if the run saves any, and wait until it is on the disk."""
        with self._files:
            if self._config.save_checkpoints and self._kept is not None:
                if self._kept.step != self._saved:
                    self._save()
                self.checkpoints.wait()

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of an evaluated step, saved now if need be, if it is the best so far.

        The model of step 0 is the base, of which there is no checkpoint.
        """
        rule = self._config.keep_best
        if rule is None or step == 0:
            return
        value = best = None
        if hosts.is_first() and (folder := evaluation_folder(self._run_dir, step)).exists():
            value = read_summary(folder).get(rule.data, {}).get(rule.measure)
            best = self.checkpoints.best()
            if best is not None and (best.data, best.measure) != (rule.data, rule.measure):
                best = None  # the resumed run has another rule
        than = None if best is None else best.value
        is_best = best is None or best.step != step
        if not hosts.broadcast(is_best and rule.is_better(value, than), "is the best"):
            return
        value = hosts.broadcast(value, "the best value")
        with self._files:
            found = Best(step=step, data=rule.data, measure=rule.measure, value=value)
            self.checkpoints.keep_best(found)
            if self._kept is not None and self._kept.step != self._saved:
                self._save()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end Orbax's threads."""
        with self._files:
            self.checkpoints.close()

    def finish(self) -> None:
        """The run is finished: its last files are copied where the run is."""
        self._places.copy()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Within this context the run is declared finished: either before a stop, or not at all."""
        with self._is_whole:
            yield

    def _save(self) -> None:
        assert self._kept is not None
        step = self._kept.step
        if self.may_save(step, self._kept.state["params"], step == self._steps):
            # A resumed run drops what comes after its checkpoint, but cannot restore what is
            # missing: the files of the step are on the disk first.
            self.sync()
            self.checkpoints.save(*self._kept)
            self._saved = step
        self._saved_at = time.monotonic()

    # ---------------------------------------------------------------- the thread of a stop

    def stop(self, deadline: float) -> None:
        """Save the last completed step; the one in flight is awaited if it seems to fit.

        At most half of the time is for that step, so that the rest is left for the files.
        """
        if (step := self._settled(deadline)) is not None and self._config.save_checkpoints:
            acquire(self._files, deadline)
            assert self._kept is not None
            # One host may save a step that was completed meanwhile; several save what was decided.
            is_meant = hosts.count() == 1 or self._kept.step == step
            if is_meant and self._kept.step != self._saved:
                self._save()
            self.checkpoints.wait()
        self.sync()

    def _settled(self, deadline: float) -> int | None:
        """The step that all hosts save, once it is complete here and no other one can begin."""
        if not hosts.is_first():
            step = hosts.await_decided(deadline)
            if step is not None:
                self._await_completed(step, deadline)
            return step
        self._await_step((time.monotonic() + deadline) / 2)
        if self._kept is None or not self._config.save_checkpoints:
            hosts.decided(None)
            return None
        if self._kept.step != self._saved:
            acquire(self._is_whole, deadline)
            if self._lost is not None:
                raise self._lost
        else:
            # What is saved already needs no waiting for an update that is under way, but the main
            # thread is not to begin and complete another one.
            self._is_whole.acquire(blocking=False)
        step = self._kept.step
        hosts.decided(step)
        return step

    def _await_completed(self, step: int, deadline: float) -> None:
        """Wait until `step`, which the first host has completed, is complete here too."""

        def is_complete() -> bool:
            return self._saved == step or (self._kept is not None and self._kept.step == step)

        with self._completed:
            left = deadline - time.monotonic()
            if not self._completed.wait_for(is_complete, max(left, 0.0)):
                raise TimeoutError("a step was being computed")

    def _await_step(self, until: float) -> None:
        began = self._began
        if began is None or not self._durations or began + max(self._durations) > until:
            return
        with self._completed:
            self._completed.wait_for(lambda: self._began != began, until - time.monotonic())

    def last_lines(self, failure: str) -> Iterator[str]:
        """What was lost, if anything, and where `--resume` continues."""
        completed = 0 if self._kept is None else self._kept.step
        of = "" if self._steps is None else f" of {self._steps}"
        if not self._config.save_checkpoints:
            without = "without `save_checkpoints`, --resume starts anew"
            yield f"stopped at step {completed}{of}; {without}"
            return
        saved = max(self.checkpoints.usable_steps(), default=0)
        if completed > saved:
            left = f"the checkpoint of step {saved} stands" if saved else "there is no other yet"
            lost = " ".join(filter(None, ("could not be saved", failure)))
            yield f"the state of step {completed} {lost}; {left}"
        yield f"stopped at step {saved}{of}; --resume goes on"


def acquire(lock: threading.Lock, deadline: float) -> None:
    """Take a lock for good. Raises TimeoutError if the main thread still has it at the deadline."""
    if not lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
        raise TimeoutError("a step was being computed")
