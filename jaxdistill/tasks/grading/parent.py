"""A process that ends with the one that started it, even if that one was killed."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int) -> None:
    """Have the system kill this process once `parent`, its parent's id, has ended.

    Only Linux can; elsewhere a process notices by itself, where its pipe to the parent is closed.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call, which then does nothing
        os._exit(1)
