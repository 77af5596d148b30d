"""Around Orbax's calls: nothing printed by its threads, and no interrupt in the middle of one."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Quiet:
    """Keeps what Orbax's threads print off the terminal: log lines, and late results of a failure.

    Blocks in several threads overlap: the first one silences, and the last one restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._levels: dict[str, int] = {}
        # Set by a failed save or restore, of which threads may print long after it was reported.
        self.is_kept = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            if self._depth == 1 and not self.is_kept:
                self._silence()
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and not self.is_kept:
                    for name, level in self._levels.items():
                        logging.getLogger(name).setLevel(level)

    def _silence(self) -> None:
        for name in ("absl", "asyncio"):
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(logging.CRITICAL)
        if not isinstance(sys.unraisablehook, WithoutLateResults):
            sys.unraisablehook = WithoutLateResults(sys.unraisablehook)


class WithoutLateResults:
    """A `sys.unraisablehook` without the results of reads and writes whose event loop is closed.

    When one of them fails, Orbax closes the loop; TensorStore's threads then report each of the
    others, of which there may be hundreds.
    """

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._hook(unraisable)


quiet = Quiet()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block is done; a second Ctrl-C interrupts the block at once.

    An exception inside Orbax's asyncio calls leaves threads that fail later on a closed event loop.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Python sets signal handlers in the main thread only, and SIG_IGN or a handler that was not
    # installed from Python cannot be called.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):
        yield
        return
    held: list[Any] = []

    def hold(number: int, frame: Any) -> None:
        held.append((number, frame))
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0])
