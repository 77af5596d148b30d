"""Where a run's files lie: its folder, on the first host's disk, its checkpoints, and a copy.

The checkpoints are written by all hosts, so that they lie where all hosts see them: in the run
folder if that is on a shared disk, in another folder, or in a bucket. A run folder in a bucket is
a copy of one on the first host's disk (`mirror`), with the checkpoints beside it.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.files import in_bucket, place, write_whole
from jaxdistill.run.mirror import Mirror
from jaxdistill.storage import buckets, loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.hub import PLACES

# For a file on a network file system to be seen by another host, which has not asked for it before.
# Chosen, not measured.
PATIENCE_S = 10.0


def folder_here(run_dir: Path | str) -> Path:
    """The run folder on this machine: itself, or for gs://BUCKET/PATH runs/gs/BUCKET/PATH.

    >>> folder_here("gs://bucket/experiments/a"), folder_here("runs/a")
    (PosixPath('runs/gs/bucket/experiments/a'), PosixPath('runs/a'))
    """
    found = place(run_dir)
    return Path("runs/gs", found.removeprefix("gs://")) if isinstance(found, str) else found


class Places:
    """The places of one start of a run. Every host makes every call."""

    def __init__(self, run_dir: Path | str, checkpoints: Path | str | None = None) -> None:
        """run_dir: a local folder, or gs://BUCKET/PATH; checkpoints: another place for these.

        Raises UserError for what is neither a path nor such an address.
        """
        self.run_dir = folder_here(run_dir)
        self._mirror = Mirror(str(place(run_dir)), self.run_dir) if in_bucket(run_dir) else None
        self._given = None if checkpoints is None else place(checkpoints)
        if self._given is None and self._mirror is not None:
            self._given = f"{self._mirror.address}/checkpoints"
        self.checkpoints: Path | str = self.run_dir / "checkpoints"

    def open(self, resume: bool) -> None:
        """Once the run folder is locked: fetch it, if it is in a bucket and no longer here."""
        if self._mirror is not None and hosts.is_first():
            self._mirror.open(resume)

    def start(self, is_new: bool, quiet: bool) -> None:
        """Once the run folder has its first files: settle and try the checkpoints' place.

        Unless `quiet`, says what a person cannot see in the run folder: which other places it has.

        Raises UserError if a host does not see what the first one writes there, if a new run's
        place has checkpoints already, or a resumed run's are in another one.
        """
        found = str(self._settled(is_new)) if hosts.is_first() else ""
        self.checkpoints = place(hosts.broadcast(found, "place of checkpoints"))
        if hosts.count() > 1 or self._given is not None:
            require_shared(self.checkpoints)
        if self._given is not None and hosts.is_first():
            note = json.dumps({"checkpoints": str(self.checkpoints)})
            write_whole(self.run_dir / PLACES, note)
        if self._mirror is not None and not quiet:
            hosts.say(f"run folder {self.run_dir}; copied to {self._mirror.address} at each save")
        if self._given is not None and not quiet:
            hosts.say(f"checkpoints: {self.checkpoints}")
        self.copy()

    def _settled(self, is_new: bool) -> Path | str:
        """Where the checkpoints are, or will be."""
        noted = loading.checkpoints_of(self.run_dir)
        if self._given is None or self._given == noted:
            return noted if isinstance(noted, str) else noted.absolute()
        found = _steps(self._given)
        if is_new and found:
            raise UserError(
                f"{self._given} has checkpoints already (steps {', '.join(map(str, found))}); "
                "name a place of this run's own, or add --resume with its run folder"
            )
        if not is_new and not found and _steps(noted):
            raise UserError(
                f"the checkpoints of run {self.run_dir} are in {noted}, and {self._given} has "
                "none; copy them there, or leave that place as it is"
            )
        return self._given if isinstance(self._given, str) else self._given.absolute()

    def copying(self, sync: Callable[[], None]) -> Callable[[], None]:
        """`sync`, which puts the files of a step on the disk, and then the copy of the run folder.

        For what is called before each checkpoint: with it, the copy has the step's files too.
        """

        def both() -> None:
            sync()
            self.copy()

        return both

    def copy(self) -> None:
        """Copy what has changed to the bucket, if the run has one."""
        if self._mirror is not None and hosts.is_first():
            self._mirror.upload()

    def failed(self) -> None:
        """After an error: copy what is left; nothing is left of a new run without results."""
        if self._mirror is None or not hosts.is_first():
            return
        with contextlib.suppress(UserError):  # the bucket may be what failed
            if (self.run_dir / "config.json").exists():
                self._mirror.upload()
            else:
                self._mirror.remove()


def _steps(where: Path | str) -> list[int]:
    with Checkpoints(where) as checkpoints:
        return checkpoints.steps_here()


def require_shared(where: Path | str, patience_s: float = PATIENCE_S) -> None:
    """Raise UserError, with the hosts' names, unless every host reads what the first one writes.

    The folder is created where it is missing.
    """
    token = f"token.{uuid.uuid4().hex}"
    made = False
    if hosts.is_first():
        made = _write(where, token)
    token = hosts.broadcast(token, "token")
    reasons = hosts.all_gather(_unread(where, token, patience_s), "token read")
    blind = [f"{hosts.name_of(i)} ({why})" for i, why in enumerate(reasons) if why]
    if hosts.is_first():
        _remove(where, token, made and bool(blind))
    if blind:
        raise UserError(
            f"checkpoints in {where}: {hosts.name_of(0)} has written a file there that is not seen "
            f"by {', '.join(blind)}; give --checkpoints a folder that all hosts share, or "
            "gs://BUCKET/PATH"
        )


def _write(where: Path | str, token: str) -> bool:
    """Write the token into a folder; whether the folder is new."""
    if isinstance(where, str):
        buckets.write(f"{where}/{token}", token.encode())
        return False
    is_new = not where.exists()
    where.mkdir(parents=True, exist_ok=True)
    write_whole(where / token, token)
    return is_new


def _unread(where: Path | str, token: str, patience_s: float) -> str | None:
    """Why this host does not read the token; None if it does."""
    end = time.monotonic() + patience_s
    while True:
        try:
            if isinstance(where, str):
                content = buckets.read(f"{where}/{token}")
            else:
                content = (where / token).read_bytes()
            if content == token.encode():
                return None
            reason = "no such object" if content is None else "it has another content"
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        if time.monotonic() > end:
            return reason
        time.sleep(0.2)


def _remove(where: Path | str, token: str, folder_too: bool) -> None:
    if isinstance(where, str):
        buckets.remove(where, [token])
        return
    (where / token).unlink(missing_ok=True)
    if folder_too:
        where.rmdir()
