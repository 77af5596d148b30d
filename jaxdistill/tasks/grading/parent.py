"""A process that ends with the one that started it, even if that one was killed."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent(parent: int) -> None:
    """End this process within a second after `parent`, the id of the process that started it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def die_with_parent(parent: int) -> None:
    """As `end_with_parent`, and on Linux at once, whatever this process is doing.

    Only for processes that the main thread starts: the system goes by the thread, not the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    end_with_parent(parent)
