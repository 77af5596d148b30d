"""One process per folder: a run or study holds `FOLDER/lock.json` while it writes there."""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.files import naming, parse_json
from jaxdistill.run.stopping import Stopping

LOCK = "lock.json"
# A lock is created and filled in two calls. One that is still empty after this was left by a kill
# between them. Chosen, not measured.
EMPTY_S = 5.0


@contextlib.contextmanager
def locked(folder: Path, stopping: Stopping) -> Iterator[None]:
    """Hold the folder, creating it where it is missing; an empty one of ours is removed again.

    Raises UserError if another process holds it, or one on another machine may still do so.
    """
    lock = folder / LOCK
    with contextlib.ExitStack() as stack:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        stack.callback(remove_empty, new)
        folder.mkdir(parents=True, exist_ok=True)
        empty_since = None
        while not create(lock):
            empty_since = remove_stale(lock, empty_since)
        stack.enter_context(stopping.releases(lambda: lock.unlink(missing_ok=True)))
        yield


def remove_empty(folders: list[Path]) -> None:
    """Remove folders from the innermost on, as far as they are empty: a refusal leaves nothing."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def create(lock: Path) -> bool:
    """Create the lock, with what identifies this process; False if there is one already."""
    try:
        # O_EXCL is the one operation that is exclusive on network file systems too.
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with naming(lock), os.fdopen(descriptor, "w") as file:
            json.dump(identity(os.getpid()) | {"since": _now()}, file, indent=1)
    except OSError:
        # On a full disk: it would be empty, and seem to be held.
        lock.unlink(missing_ok=True)
        raise
    return True


def remove_stale(lock: Path, empty_since: float | None = None) -> float | None:
    """Remove a lock whose process has ended. Raises UserError for any other.

    Returns since when (`time.monotonic`) the lock has been seen without contents, the argument of
    the next call; None: it is not so. The file's own time is a server's on a network file system,
    whose clock may differ.
    """
    held, is_there = read(lock)
    if held is None:  # it has just been released, or is being filled
        time.sleep(0.1)
        if not is_there:
            return None
        now = time.monotonic()
        if empty_since is not None and now - empty_since > EMPTY_S:
            remove(lock, None)
        return now if empty_since is None else empty_since
    folder, who = lock.parent, "process {pid} on {host}, since {since}".format(**held)
    here = identity(held["pid"])
    if (held["host"], held["namespace"]) != (here["host"], here["namespace"]):
        raise UserError(
            f"{folder} is held by {who}, which cannot be checked from {here['host']}; if that "
            f"process has ended, delete {lock} and start again"
        )
    if held == here | {"since": held["since"]}:
        raise UserError(f"{folder} is in use by {who}; wait for it, stop it, or use another folder")
    remove(lock, held)
    return None


def remove(lock: Path, held: dict[str, Any] | None) -> None:
    """Remove a lock if it still has these contents.

    Of several processes that find it stale one removes it; another might otherwise remove the lock
    that the first has made by then. All of them are on this machine.
    """
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        with contextlib.suppress(OSError):  # a file system without it
            fcntl.flock(file, fcntl.LOCK_EX)
        is_same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        if is_same and read(lock)[0] == held:
            lock.unlink()


def read(lock: Path) -> tuple[dict[str, Any] | None, bool]:
    """(contents, whether it is there); it has no contents while it is being written."""
    try:
        text = lock.read_bytes()
    except FileNotFoundError:
        return None, False
    try:
        held = parse_json(text)
    except ValueError:
        return None, True
    wanted = {"host", "namespace", "boot", "pid", "started", "since"}
    return (held if isinstance(held, dict) and held.keys() == wanted else None), True


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from all others: host, boot, namespace of process ids, id, start.

    A reboot changes `boot`, and a process that got the id of an ended one started at another time.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": platform.node(),
        # Containers of one name may each have a process of this id.
        "namespace": os.readlink("/proc/self/ns/pid") if boot.exists() else None,
        "boot": boot.read_text().strip() if boot.exists() else None,
        "pid": pid,
        "started": started(pid),
    }


def started(pid: int) -> str | None:
    """When a process started, as the system counts; None if there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # a name may hold parentheses
        except OSError:
            return None
        # The third field is the state, the 22nd the start: "Z" has ended, and waits for its parent.
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)  # macOS: whether it exists
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
