"""What a tracker is given and what it does: the protocols of our own trackers and a recipe's.

A tracker is a setting (a frozen dataclass); opened for a run it gives a session, which takes the
run's numbers and samples. A session has the methods of `Session`, and may have more:

- `rewind(step)`: the run continues from this step; what was logged of later ones is dropped. A
  session without it is not given a step twice.
- `last_step()`: the last step that the service holds of this run, or None if it cannot tell.
- `flush()`: what was logged is put on the disk, as before each checkpoint.
- `says()`: a line for the start of the run, such as the address of its page.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

from jaxdistill.errors import UserError

# "stopped": by a signal or the time limit, to be resumed. "ended itself": by one of its own rules
# (exit code 3).
Status = Literal["finished", "stopped", "ended itself", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of the run that it is opened for."""

    name: str
    id: str  # lowercase letters and digits; the same whenever the run is resumed
    study: str | None  # the study's folder, for a run of one
    folder: Path
    config: dict[str, Any]  # the contents of config.json
    is_resumed: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A response of a training step, its texts cut to a bounded length."""

    question: str
    answer: str
    response: str
    correct: bool
    verdict: str
    tokens: int


class Session(Protocol):
    """A run that is open in a tracker. Whatever a method raises ends the tracking, not the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values, by their names of `tracking.names`, of a training step.

        Called once for a step's metrics and once for each evaluated data set.
        """
        ...

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Take a few samples of a step."""
        ...

    def finish(self, status: Status) -> None:
        """The run ends. Called once, perhaps in another thread than the others."""
        ...


@runtime_checkable
class OwnTracker(Protocol):
    """A frozen dataclass with this method, defined here or in a recipe.

    Two trackers of a run must have different `label`s: an attribute, or else the class's name.
    """

    def open(self, run: TrackedRun) -> Session:
        """Open the run, before anything is compiled. Raises UserError if that is impossible."""
        ...


def label_of(tracker: Any) -> str:
    """The name of a tracker in messages and in the run's list of what it was sent."""
    return str(getattr(tracker, "label", type(tracker).__name__))


def package(name: str, label: str, extra: str) -> ModuleType:
    """The package that a tracker writes with. Raises UserError with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"tracking: {label} needs the package {name} ({error}): "
            f"pip install 'jaxdistill[{extra}]', or leave it out of `tracking`"
        ) from error
