"""TensorBoard's event files, in the run folder."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill.files import naming
from jaxdistill.tracking.names import SAMPLES
from jaxdistill.tracking.session import Sample, Status, TrackedRun, package


@dataclass(frozen=True)
class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`."""

    def open(self, run: TrackedRun) -> "Events":
        record_writer: Any = package("tensorboardX.record_writer", "TensorBoard", "dev")
        return Events(record_writer.RecordWriter, run.folder / "tensorboard")


class Events:
    """TensorBoard's event file of a run, written by the thread that calls.

    It is created with its first event: a resumption that is refused changes nothing.

    tensorboardX's own SummaryWriter writes in a thread: on a full disk that thread ends with a
    traceback, and the run later waits for it without end.
    """

    def __init__(self, open_file: Callable[[str], Any], folder: Path) -> None:
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2  # its classes are made when it is imported
        self._open_file, self._folder, self._messages = open_file, folder, messages
        self._writer: Any = None
        self._flushed_s = time.monotonic()

    def rewind(self, step: int) -> None:
        # TensorBoard drops what earlier event files say of this step and later ones.
        log = self._messages.SessionLog
        self._add(step=step + 1, session_log=log(status=log.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))
        # Often enough for a person who watches; every flush waits for the disk.
        if time.monotonic() - self._flushed_s > 60:
            self.flush()

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        from tensorboardX.summary import text

        for index, sample in enumerate(samples):
            self._add(step=step, summary=text(f"{SAMPLES}/{index}", in_markdown(sample)))

    def flush(self) -> None:
        with naming(self._folder):
            if self._writer is not None:
                self._writer.flush()
        self._flushed_s = time.monotonic()

    def finish(self, status: Status) -> None:
        with naming(self._folder):
            if self._writer is not None:
                self._writer.close()

    def _add(self, **fields: Any) -> None:
        with naming(self._folder):
            if self._writer is None:
                self._folder.mkdir(exist_ok=True)
                # The name that TensorBoard looks for; each start of a run has a file of its own.
                name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
                self._writer = self._open_file(str(self._folder / name))
                self._add(file_version="brain.Event:2")
            event = self._messages.Event(wall_time=time.time(), **fields)
            self._writer.write(event.SerializeToString())


def in_markdown(sample: Sample) -> str:
    """A sample as Markdown. Its texts are code blocks, in which tags such as <think> are shown."""

    def block(text: str) -> str:
        return "\n".join(f"    {line}" for line in text.splitlines())

    mark = "right" if sample.correct else "wrong"
    head = f"**{mark}** ({sample.verdict}), {sample.tokens} tokens; expected:"
    return f"{head}\n\n{block(sample.answer)}\n\n{block(sample.question)}\n\n---\n\n" + block(
        sample.response
    )
