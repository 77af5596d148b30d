"""One run of a study, and where it lies."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole
from jaxdistill.run.folder import finished_step

STOPPED = "stopped.json"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of the study, and the labels of its rows in the tables.

    `labels` are extra columns, such as coverage or context, of a study that varies more than the
    method. A run that `may_stop` and stops itself, because its steps were not finite, is a result
    of the study and not its end: its accuracy counts as 0.
    """

    world: str
    method: str
    config: RunConfig
    labels: tuple[tuple[str, str | int], ...] = ()
    may_stop: bool = False

    @property
    def name(self) -> str:
        extra = "".join(f"-{key}{value}" for key, value in self.labels)
        # The runs of one recipe (`run.grid`) have no world.
        return f"{self.world}-{self.method}{extra}-s{self.config.seed}".removeprefix("-")

    @property
    def steps(self) -> int:
        """Raises UserError if only the epochs determine it: work is divided before it starts."""
        if self.config.steps is None:
            raise UserError(f"arm {self.name}: a study's runs need `steps`, got None")
        return self.config.steps


def folder_of(arm: Arm, study_dir: Path) -> Path:
    return study_dir / "runs" / arm.name


def has_stopped(arm: Arm, study_dir: Path) -> bool:
    """Whether the run stopped itself, which its arm allows."""
    return arm.may_stop and (folder_of(arm, study_dir) / STOPPED).exists()


def is_finished(arm: Arm, study_dir: Path) -> bool:
    if has_stopped(arm, study_dir):
        return True
    return finished_step(folder_of(arm, study_dir)) == arm.steps


def note_stopped(arm: Arm, study_dir: Path, reason: str) -> None:
    write_whole(folder_of(arm, study_dir) / STOPPED, json.dumps({"reason": reason}, indent=1))
