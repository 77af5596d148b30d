"""A save's wait for other processes, and the refusals of a system that its user can help."""

import errno
import os
import time
from collections.abc import Callable

from etils import epath


def is_at(handle: int, folder: epath.Path) -> bool:
    """Whether an open folder still has this path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool], timeout_s: float = 1800) -> None:
    """Wait for files of other processes. Raises TimeoutError; the time is chosen, not measured."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("another process has not finished its part of the checkpoint")
        time.sleep(0.1)


# What a system says to a save that its user can help.
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)
