"""TensorBoard's event files, in the run folder."""

import socket
import time
from collections.abc import Mapping, Sequence
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
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        with naming(folder):
            # The name that TensorBoard looks for; a run that is resumed has a file for each start.
            file = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            return Events(record_writer.RecordWriter(str(file)), folder)


class Events:
    """TensorBoard's event file of a run, written by the thread that calls.

    tensorboardX's own SummaryWriter writes in a thread: on a full disk that thread ends with a
    traceback, and the run later waits for it without end.
    """

    def __init__(self, writer: Any, folder: Path) -> None:
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2  # its classes are made when it is imported
        self._writer, self._folder, self._messages = writer, folder, messages
        self._flushed_s = time.monotonic()
        self._add(file_version="brain.Event:2")

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
            self._writer.flush()
        self._flushed_s = time.monotonic()

    def finish(self, status: Status) -> None:
        with naming(self._folder):
            self._writer.close()

    def _add(self, **fields: Any) -> None:
        with naming(self._folder):
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
