"""A run's trackers together: what each was sent, and what happens when one fails.

`RUN/tracking.json` has the run's id and, for each tracker, the last step and the evaluations that
it was sent. A resumed run sends what is missing, from the run's own files, and nothing twice.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import rollouts_file
from jaxdistill.files import naming, parse_json
from jaxdistill.tracking import names
from jaxdistill.tracking.session import Sample, Session, Status, TrackedRun, label_of
from jaxdistill.tracking.tensorboard import TensorBoard
from jaxdistill.training.metrics import read_rows

LEDGER = "tracking.json"
# Samples per step, each of another question, and characters of a text: enough to see what a model
# does, and kilobytes per step in every tracker. Chosen, not measured.
MOST_SAMPLES, MOST_CHARACTERS = 4, 2000
# For a service to take the last values at the end of a run. Chosen: a service that answers takes a
# second or two.
FINISH_S = 60.0


@dataclass
class _Tracked:
    """A tracker with its open session, and what the session was given."""

    tracker: Any
    session: Session
    step: int = 0
    evaluations: set[int] = field(default_factory=set)


class Tracking:
    """Hands the values of a run to its trackers; a `Stoppable`. On other hosts than the first none.

    A tracker that fails while the run is under way is said once and left out from then on. The
    errors of TensorBoard's files, which are in the run folder, are the run's own.
    """

    def __init__(self, run_dir: Path, *, grace_s: float, say: Callable[[str], None]) -> None:
        self.grace_s = grace_s
        self._run_dir, self._say = run_dir, say
        self._open: list[_Tracked] = []
        self._left_out: dict[str, Any] = {}  # what the ledger says of trackers that are not open
        self._id = ""
        self._lock = threading.Lock()  # a stop, in its own thread, finishes the sessions

    def open(
        self,
        trackers: Sequence[Any],
        *,
        name: str,
        study: str | None,
        config: dict[str, Any],
        is_resumed: bool,
        quiet: bool = False,
    ) -> None:
        """Open the run in each tracker. Raises UserError, with one line, for one that fails.

        Unless `quiet`, a line says where a tracker shows the run.
        """
        ledger = self._read()
        self._id = ledger["id"]
        run = TrackedRun(
            name=name,
            id=self._id,
            study=study,
            folder=self._run_dir,
            config=config,
            is_resumed=is_resumed,
        )
        self._left_out = dict(ledger["sent"])
        for tracker in trackers:
            label = label_of(tracker)
            session: Any = _opened(tracker, run)
            sent = self._left_out.pop(label, {})
            tracked = _Tracked(tracker, session, sent.get("step", 0))
            tracked.evaluations = set(sent.get("evaluations", ()))
            self._open.append(tracked)
            if hasattr(session, "says") and not quiet:
                self._say(f"{label}: {session.says()}")
        if not is_resumed:  # else a resumption may still be refused, which changes nothing
            self._write()

    def go_on(self, step: int) -> None:
        """The run continues after `step`: send what its files have and a tracker has not."""
        with self._lock:
            for tracked in list(self._open):
                if hasattr(tracked.session, "rewind"):
                    # To what it was sent for certain: the rest comes again, as does all of a run
                    # without a ledger, which an older version has begun or which was deleted.
                    tracked.step = min(tracked.step, step)
                    self._attempt(tracked, lambda session, to=tracked.step: session.rewind(to))
                    tracked.evaluations = {s for s in tracked.evaluations if s <= tracked.step}
                elif hasattr(tracked.session, "last_step"):
                    self._attempt(tracked, lambda session, of=tracked: _catch_up(session, of))
            if any(tracked.step < step for tracked in self._open):
                for row in read_rows(self._run_dir):
                    if row["step"] <= step:
                        self._send_step(row["step"], row)
            for found in sorted(self._run_dir.glob(f"evals/step_*/{names.SUMMARY}")):
                number = found.parent.name.removeprefix("step_")
                if number.isdecimal() and int(number) <= step:
                    self._send_evaluation(int(number), found.parent)
            self._write()

    def step(self, step: int, row: dict[str, Any]) -> None:
        """Send the metrics of a step, and its samples if they were saved."""
        with self._lock:
            self._send_step(step, row)
            self._write()

    def evaluation(self, step: int, folder: Path) -> None:
        """Send the evaluation of a step, which is complete in `folder`, if there is one."""
        with self._lock:
            if (folder / names.SUMMARY).exists():
                self._send_evaluation(step, folder)
                self._write()

    def flush(self) -> None:
        """Put on the disk what the trackers keep there, as before a checkpoint."""
        with self._lock:
            for tracked in list(self._open):
                if hasattr(tracked.session, "flush"):
                    self._attempt(tracked, lambda session: session.flush())

    def finish(self, status: Status, within_s: float = FINISH_S) -> None:
        """End the sessions, each in a thread that is left behind after `within_s` seconds."""
        end = time.monotonic() + within_s
        if not self._lock.acquire(timeout=within_s):
            return
        try:
            finishing = [(each, _finishing(each, status)) for each in self._open]
            self._open = []
            for tracked, (thread, errors) in finishing:
                thread.join(max(end - time.monotonic(), 0.0))
                if thread.is_alive():
                    reason = f"did not take the last values within {within_s:g} s"
                elif errors and isinstance(tracked.tracker, TensorBoard):
                    if status == "failed":  # as on a full disk, for the same reason as the run
                        continue
                    raise errors[0]
                elif errors:
                    reason = f"{type(errors[0]).__name__}: {' '.join(str(errors[0]).split())[:160]}"
                else:
                    continue
                self._say(f"{label_of(tracked.tracker)}: {reason}; metrics.jsonl has all values")
        finally:
            self._lock.release()

    # ------------------------------------------------------------ the thread of a stop

    def stop(self, deadline: float) -> None:
        """End the sessions of a run that a signal has stopped."""
        # A second is left for the end of the process.
        self.finish("stopped", max(deadline - time.monotonic() - 1.0, 0.1))

    def last_lines(self, failure: str) -> Iterator[str]:
        yield from ()

    # ------------------------------------------------------------ one value to all

    def _send_step(self, step: int, row: dict[str, Any]) -> None:
        if not self._open:
            return
        values = names.of_step(row)
        # The file has the number of the steps that its policy had taken: one less.
        samples = samples_of(rollouts_file(self._run_dir / "rollouts", step - 1))
        for tracked in list(self._open):
            if step > tracked.step:
                self._attempt(tracked, lambda session: session.log(step, values))
                if samples:
                    self._attempt(tracked, lambda session: session.log_samples(step, samples))
                tracked.step = step

    def _send_evaluation(self, step: int, folder: Path) -> None:
        for tracked in list(self._open):
            if step not in tracked.evaluations:
                for _, values in names.of_evaluation(folder):
                    self._attempt(tracked, lambda session, v=values: session.log(step, v))
                tracked.evaluations.add(step)

    def _attempt(self, tracked: _Tracked, act: Callable[[Any], None]) -> None:
        if tracked not in self._open:
            return
        try:
            act(tracked.session)
        except Exception as error:
            if isinstance(tracked.tracker, TensorBoard):
                raise
            self._open.remove(tracked)
            label = label_of(tracked.tracker)
            self._left_out[label] = _sent(tracked)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            self._say(
                f"WARNING: {label} failed ({reason}) and gets nothing more; the run continues, "
                "metrics.jsonl has all values, and --resume sends what is missing"
            )

    # ------------------------------------------------------------ what was sent

    def _read(self) -> dict[str, Any]:
        file = self._run_dir / LEDGER
        if not file.exists():
            # W&B allows 128 characters; 8 hexadecimal ones distinguish all runs of a project.
            return {"id": uuid.uuid4().hex[:8], "sent": {}}
        try:
            found = parse_json(file.read_bytes())
            steps = [[sent["step"], *sent["evaluations"]] for sent in found["sent"].values()]
            if not str(found["id"]).isalnum() or {type(n) for row in steps for n in row} - {int}:
                raise ValueError("an id of letters and digits, and whole steps")
            return found
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file}: expected what a run writes there ({error}); restore it, or delete it to "
                "track the run anew"
            ) from error

    def _write(self) -> None:
        if not (self._open or self._left_out):
            return
        sent = self._left_out | {label_of(each.tracker): _sent(each) for each in self._open}
        file = self._run_dir / LEDGER
        new = file.with_name(f"{LEDGER}.tmp")
        # Not synced: a step may take milliseconds, and what is lost with the machine is sent again.
        with naming(file):
            new.write_text(json.dumps({"id": self._id, "sent": sent}, indent=1))
            os.replace(new, file)


def _sent(tracked: _Tracked) -> dict[str, Any]:
    return {"step": tracked.step, "evaluations": sorted(tracked.evaluations)}


def _catch_up(session: Any, tracked: _Tracked) -> None:
    """The service may hold more than the ledger says, which another machine's disk has lost."""
    tracked.step = max(tracked.step, session.last_step() or 0)


def _opened(tracker: Any, run: TrackedRun) -> Session:
    """Open a tracker. Raises UserError for whatever a recipe's own tracker raises."""
    try:
        return tracker.open(run)
    except Exception as error:
        if isinstance(error, UserError) or isinstance(tracker, TensorBoard):
            raise
        label, text = label_of(tracker), " ".join(str(error).split())[:160]
        raise UserError(f"tracking: {label}.open raised {type(error).__name__}: {text}") from error


def _finishing(tracked: _Tracked, status: Status) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def finish() -> None:
        try:
            tracked.session.finish(status)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=finish, daemon=True, name="tracker")
    thread.start()
    return thread, errors


def samples_of(file: Path) -> list[Sample]:
    """The first response to each of the first questions in a file of rollouts, if there is one."""
    if not file.exists():
        return []
    found: dict[str, Sample] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = parse_json(line)
        if row["question_id"] not in found:
            found[row["question_id"]] = Sample(
                question=cut(str(row["question"])),
                answer=cut(str(row["answer"])),
                response=cut(str(row["response"])),
                correct=bool(row["correct"]),
                verdict=str(row["verdict"]),
                tokens=int(row["num_tokens"]),
            )
        if len(found) == MOST_SAMPLES:
            break
    return list(found.values())


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """The beginning and the end of a text that is too long, each half of what may be shown.

    >>> cut("abcdefgh", most=4)
    'ab[... 4 characters ...]gh'
    """
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[: most - half]}[... {left_out} characters ...]{text[-half:]}"
