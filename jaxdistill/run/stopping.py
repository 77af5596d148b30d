"""Ending a process well: on a signal or at a time limit its work is saved, then it ends.

A thread does this, because the main thread may spend minutes in one call of XLA, during which
Python runs no signal handler, and because an exception raised wherever the main thread happens to
be prints pages inside JAX and Orbax. C code writes a signal's number into a pipe at once
(`signal.set_wakeup_fd`), and the thread reads it. The process ends with `os._exit`: the handlers
that JAX and Orbax run at exit would wait for the very work that is being dropped.

Nothing here imports JAX, so that a signal is heeded from the first moment on.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxdistill import hosts

# For clean-up of commands that have no such setting; a Cloud TPU VM is given 30 s, and 5 are left
# for the process's end.
GRACE_S = 25.0
# About 30 years. A system's functions that wait refuse what does not fit into 64 bits, in ns.
MAX_S = 1e9
# `timeout` and some shells send one signal to the process and again to its group: within this time
# it is the same one. Chosen, not measured.
SAME_S = 0.05
# Written into the pipe beside the numbers of signals. ASKED: another host has got a signal.
DONE, ASKED, CLOSED = 0, 254, 255


@runtime_checkable
class Stoppable(Protocol):
    """Work that is not simply dropped when the process is asked to end."""

    @property
    def grace_s(self) -> float:
        """The seconds that it may take."""
        ...

    def stop(self, deadline: float) -> None:
        """Save what must not be lost, before `deadline` (`time.monotonic`).

        Called in a thread of its own, beside the main thread, and abandoned at the deadline.
        """
        ...

    def last_lines(self, failure: str) -> Iterator[str]:
        """What is said at the end. failure: what `stop` met with; "" if it came to its end."""
        ...


class Terminated(BaseException):
    """SIGTERM, raised like KeyboardInterrupt where a command has temporary files to remove."""


class Stopping:
    """Ends this process on SIGTERM, SIGINT or at the time limit, once its work has been stopped.

    Exit code 0 after SIGTERM or the limit, 130 after SIGINT. A command that is no run ends at once,
    with 143 or 130, or, if it `raises`, its main thread gets KeyboardInterrupt or `Terminated`. A
    second signal always ends the process at once.

    Of several hosts any may get the signal, and all of them stop; the time limit is the first's.
    The first signal to a host that another one has stopped is no second signal.
    """

    def __init__(
        self,
        begins: str | None = None,
        *,
        raises: bool = False,
        limit_s: float | None = None,
        quiet: bool = False,
    ) -> None:
        """Nothing is listened to yet.

        Args:
          begins: the last line of a run or study that has no folder yet; None: neither of them.
          raises: see above.
          limit_s: the time limit, counted from now.
          quiet: nothing is printed.
        """
        self._begins, self._raises, self._quiet = begins, raises, quiet
        self._limit = None if limit_s is None else time.monotonic() + limit_s
        self._works: list[Stoppable] = []  # a study, then the run in it
        self._releases: list[Callable[[], None]] = []
        self._handlers: dict[int, Any] = {}
        self._asked, self._code = False, None
        self.has_failed = False  # this process ends because another host has failed
        self._is_asked = False  # another host has got a signal
        # What another host was sent may come here too, seconds later: a slice is preempted whole.
        self._awaits_own = False
        self._repeats = 0  # how often `_raise_again` has sent the first signal again
        self._pipe: tuple[int, int] | None = None

    # ---------------------------------------------------------------- the main thread

    def listen(self) -> None:
        """Take over the signals, in the main thread; elsewhere Python does not allow it."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            # A shell's background job ignores Ctrl-C, and a worker of a study leaves it to its
            # parent.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._handle)
        self._hook = sys.unraisablehook
        if self._raises:
            sys.unraisablehook = self._raise_again
        self._thread = threading.Thread(target=self._guarded, daemon=True, name="stopping")
        self._thread.start()

    def close(self) -> None:
        """Give the signals back, unless a stop is under way, which ends the process."""
        if self._pipe is None:
            return
        self.settle()
        os.write(self._pipe[1], bytes([CLOSED]))
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        if sys.unraisablehook == self._raise_again:
            sys.unraisablehook = self._hook
        for descriptor in self._pipe:
            os.close(descriptor)
        self._pipe = None

    def finish(self, code: int) -> None:
        """The command is done: a signal that comes while Python shuts down ends with this code."""
        self.settle()
        self._code = code

    def asked(self, reason: str) -> None:
        """Stop, because another host has got a signal. Called in any thread, and repeatedly."""
        if self._pipe is not None and not self._is_asked and not self._asked:
            self._is_asked = True
            self._say(reason)
            os.write(self._pipe[1], bytes([ASKED]))

    def leave(self, code: int, line: str) -> None:
        """End this process, with what it has started, because a host has failed."""
        self.has_failed = True
        self._leave(code, line)

    def depart(self) -> None:
        """End this process, one of several hosts whose work is done.

        Python's own end would stop the thread that watches the other hosts within a call of C++,
        which aborts the process.
        """
        self._leave(0)

    def settle(self) -> None:
        """Wait for ever if work is being stopped: what the main thread met with is of no interest.

        A process of readers that has got the same Ctrl-C, for example, fails in the main thread.
        """
        if self._asked and not self._raises:
            self._thread.join()

    @contextlib.contextmanager
    def stops(self, work: Stoppable) -> Iterator[None]:
        """Within this context, a stop stops `work` first."""
        self._works.append(work)
        try:
            yield
        finally:
            self._works.remove(work)

    @contextlib.contextmanager
    def releases(self, release: Callable[[], None]) -> Iterator[None]:
        """Call `release` at the end of this context, or when the process ends within it."""
        self._releases.append(release)
        try:
            yield
        finally:
            self._releases.remove(release)
            release()

    def _handle(self, number: int, frame: Any) -> None:
        """Python's handler. The thread does the work, but for what has to be raised here."""
        if self._raises:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _raise_again(self, unraisable: Any) -> None:
        """Python's hook for what a destructor or a callback has met with, which it then ignores.

        The handler may run there as well; what it raises must reach the command.
        """
        numbers = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}
        number = numbers.get(unraisable.exc_type)
        if number is None:
            self._hook(unraisable)
        else:  # in a moment, outside of this function
            self._repeats += 1
            main = threading.main_thread().ident
            threading.Timer(SAME_S / 5, signal.pthread_kill, (main, number)).start()

    # ---------------------------------------------------------------- the watching thread

    def _guarded(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # without this thread nothing would end the process
            self._leave(1, f"jaxdistill: internal error, {type(error).__name__}: {error}")

    def _watch(self) -> None:
        first = self._next(self._limit)
        if first is None and not hosts.is_first():
            first = self._next(None)  # the first one's clock counts
        if first == CLOSED:
            return
        if self._code is not None:
            self._leave(self._code)
        self._asked, heard = True, time.monotonic()
        self._awaits_own = first == ASKED
        if hosts.count() > 1 and self._begins is not None and first != ASKED:
            hosts.ask_to_stop(_name(first))
        is_ctrl_c = first == signal.SIGINT
        if self._begins is not None:
            self._leave(130 if is_ctrl_c else 0, *self._stop(first, heard))
        elif self._raises and self._second(heard, heard + GRACE_S) == CLOSED:
            return  # the main thread has removed its temporary files and says the same
        line = "jaxdistill: interrupted" if is_ctrl_c else "jaxdistill: stopped by SIGTERM"
        self._leave(130 if is_ctrl_c else 143, line)

    def _stop(self, first: int | None, heard: float) -> list[str]:
        """Stop the work, in a thread that may be left behind; returns the last lines.

        A call of Orbax, or of a file system that does not answer, has no time limit of its own.
        """
        works = self._works[::-1]
        if not works:
            hosts.decided(None)
            return [str(self._begins)]
        grace_s = min(work.grace_s for work in works)
        self._say(f"{_name(first)}: ending within {grace_s:g} s; a second signal ends it at once")
        errors: list[BaseException] = []

        def stop() -> None:
            try:
                for work in works:
                    work.stop(heard + grace_s)
            except BaseException as error:
                errors.append(error)
            assert self._pipe is not None
            os.write(self._pipe[1], bytes([DONE]))

        threading.Thread(target=stop, daemon=True).start()
        # CLOSED: the main thread has met an error meanwhile, and waits.
        while (answer := self._second(heard, heard + grace_s)) == CLOSED:
            pass
        failure = ""
        if answer is None:
            failure = f"within {grace_s:g} s"
        elif answer != DONE:
            failure = "before the second signal"
        elif errors:
            reason = (str(errors[0]).strip().splitlines() or [""])[0][:160]
            failure = f"({type(errors[0]).__name__}: {reason})"
        return [line for work in works for line in work.last_lines(failure)]

    def _second(self, heard: float, deadline: float) -> int | None:
        """What comes after the first signal; None: nothing before the deadline."""
        while True:
            number = self._next(deadline)
            if number in (signal.SIGTERM, signal.SIGINT) and self._repeats:
                self._repeats -= 1
                continue
            if number in (signal.SIGTERM, signal.SIGINT) and self._awaits_own:
                self._awaits_own, heard = False, time.monotonic()
                continue
            if number == ASKED:  # this host has asked the others, or is being stopped already
                continue
            is_same = time.monotonic() - heard < SAME_S
            if number not in (signal.SIGTERM, signal.SIGINT) or not is_same:
                return number

    def _next(self, until: float | None) -> int | None:
        """The next number in the pipe; None: the time has come."""
        assert self._pipe is not None
        while True:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            if not select.select([self._pipe[0]], [], [], left)[0]:
                return None
            number = os.read(self._pipe[0], 1)[0]
            # A grader's own alarm, for example, is written here too.
            if number in (signal.SIGTERM, signal.SIGINT, DONE, ASKED, CLOSED):
                return number

    def _say(self, *lines: str) -> None:
        """Write lines on stderr, whatever lock the main thread may hold on Python's own stream."""
        if self._quiet or not lines:
            return
        above = "\n" if os.isatty(2) else ""  # a progress bar stands on the terminal's last line
        # A pipe that nobody reads would block for ever.
        if select.select([], [2], [], 0)[1]:
            with contextlib.suppress(OSError):
                os.write(2, (above + "".join(f"{line}\n" for line in lines)).encode())

    def _leave(self, code: int, *lines: str) -> None:
        try:
            kill_children()
            for release in self._releases:
                with contextlib.suppress(OSError):
                    release()
            self._say(*lines)
            hosts.part(code)
        finally:
            os._exit(code)


def _name(first: int | None) -> str:
    """What has stopped the process, in words."""
    if first is None:
        return "the time limit"
    return "another host" if first == ASKED else signal.Signals(first).name


# ------------------------------------------------------------------------------ processes


def kill_children() -> None:
    """Kill the processes that this one has started: graders, readers of data, workers."""
    numbers = {process.pid for process in multiprocessing.active_children()}
    for file in Path("/proc/self/task").glob("*/children"):  # Linux; it knows all of them
        with contextlib.suppress(OSError):
            numbers |= set(map(int, file.read_text().split()))
    for number in filter(None, numbers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def seconds_of(text: str) -> float:
    """The seconds of a duration such as 11h30m, 90m, 45s or 3600.

    Raises ValueError for what is none, or takes more than `MAX_S`.
    """
    import re

    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if not found or not any(found.groups()):
        raise ValueError(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    if (total := 3600 * hours + 60 * minutes + seconds) > MAX_S:
        raise ValueError(text)
    return float(total)
