"""A tracker of one's own, as a recipe may define it: lines in a file."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxdistill.tracking import TrackedRun


@dataclass(frozen=True)
class Lines:
    """Writes what it is given into a file, a JSON list per call."""

    file: str

    def open(self, run: TrackedRun) -> "Session":
        session = Session(Path(self.file))
        session.write("open", run.name, run.id, run.study, run.is_resumed)
        return session


class Session:
    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, *what) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def log(self, step, values) -> None:
        self.write("log", step, values)

    def log_samples(self, step, samples) -> None:
        self.write("samples", step, [vars(sample) for sample in samples])

    def finish(self, status) -> None:
        self.write("finish", status)


def read(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]
