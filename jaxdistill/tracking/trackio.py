"""Trackio, a local dashboard of the Hugging Face hub: `pip install 'jaxdistill[trackio]'`."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.tracking.names import SAMPLES
from jaxdistill.tracking.session import Sample, Status, TrackedRun, package


@dataclass(frozen=True)
class Trackio:
    """A run of a Trackio project on this machine, which a resumed run continues.

    project: as in `trackio show --project NAME`. space: OWNER/NAME of a Hugging Face Space that
    shows it, which needs a login of the hub; None: nothing leaves this machine.

    TRACKIO_DIR says where the data base is.
    """

    project: str = "jaxdistill"
    space: str | None = None

    def __post_init__(self):
        if not any(character.isalnum() for character in self.project):  # its file's name
            raise UserError(f"Trackio.project={self.project!r:.80}: expected a letter or digit")
        if self.space is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.space):
            raise UserError(f"Trackio.space={self.space!r:.80}: expected OWNER/NAME")

    @property
    def label(self) -> str:
        return f"Trackio({self.project})"

    def open(self, run: TrackedRun) -> "TrackioSession":
        trackio: Any = package("trackio", self.label, "trackio")
        if self.space is not None:
            import huggingface_hub

            if huggingface_hub.get_token() is None:
                raise UserError(
                    f"tracking: {self.label}: no login for the Space {self.space}; run `hf auth "
                    "login`, set HF_TOKEN, or leave out `space`"
                )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pages of instructions
                opened = trackio.init(
                    project=self.project,
                    # A name is all that Trackio knows a run by.
                    name=f"{run.name}-{run.id}",
                    group=run.study,
                    space_id=self.space,
                    config=run.config,
                    resume="allow",
                    embed=False,
                    auto_log_cpu=False,
                )
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"tracking: {self.label} cannot be opened: {reason}") from error
        with contextlib.suppress(Exception):
            # Its hook at exit would end the run once more, and print about it.
            trackio.context_vars.current_run.set(None)
        return TrackioSession(trackio, opened, self.project)


class TrackioSession:
    """A Trackio run, whose own thread writes."""

    def __init__(self, trackio: Any, run: Any, project: str) -> None:
        self._trackio, self._run, self._project = trackio, run, project

    def says(self) -> str:
        return f"`trackio show --project {self._project}` shows {self._run.name}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        rows = [asdict(sample) for sample in samples]
        table = self._trackio.Table(
            columns=list(rows[0]), data=[list(row.values()) for row in rows]
        )
        self._run.log({SAMPLES: table}, step=step)

    def finish(self, status: Status) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
