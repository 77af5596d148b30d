"""A process that has imported everything and forks one command per order, which it stops.

Orders come as lines of JSON on stdin, answers go to stdout. No order makes this process use JAX, so
that its forks are as safe as processes of their own, without their seconds of imports.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command, and when it is stopped: `delay` seconds after a phase begins the `nth` time."""

    arguments: list[str]
    err: str  # file of its stderr
    phase: str
    nth: int = 1
    delay: float = 0.0
    signals: tuple[str, ...] = ()  # KILL, TERM, INT; a second one follows at once
    blocks: float = 0.0  # seconds that the phase takes longer


@dataclass(frozen=True)
class Answer:
    code: int  # negative: of a signal
    is_signalled: bool  # whether the phase has begun
    seconds: float  # from the first signal to the end; of the whole command if there was none


class Server:
    """The process, from outside. Use it as a context manager."""

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": "8",
                # Every process compiles the same programs, the many small ones included.
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, order: Order) -> Answer:
        print(json.dumps(asdict(order)), file=self._process.stdin, flush=True)
        assert self._process.stdout is not None
        return Answer(**json.loads(self._process.stdout.readline()))


def is_alive(number: int) -> bool:
    """Whether a process runs; one that waits for its parent has ended."""
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def serve() -> None:
    # All that a run imports, early or late. TensorBoard's writer imports torch where that is
    # installed, which takes as long as everything else.
    import jaxdistill.run.study  # noqa: F401
    from jaxdistill import cli

    with contextlib.suppress(ImportError):
        import tensorboardX  # noqa: F401
        from transformers import PreTrainedTokenizerFast  # noqa: F401

    for line in sys.stdin:
        order = Order(**json.loads(line))
        began = time.time()
        child = os.fork()
        if child == 0:
            become(order)
            cli.entry()
        status = os.waitpid(child, 0)[1]
        ended = time.time()
        noted = order.err + ".signalled"
        is_signalled = os.path.exists(noted)
        if is_signalled:
            began = os.stat(noted).st_mtime
        code = os.waitstatus_to_exitcode(status)
        answer = Answer(code=code, is_signalled=is_signalled, seconds=ended - began)
        print(json.dumps(asdict(answer)), flush=True)


def become(order: Order) -> None:
    """In the forked child: its arguments, its output, and the stop in its phase."""
    sys.argv = ["jaxdistill", *order.arguments]
    null = os.open(os.devnull, os.O_RDWR)
    err = os.open(order.err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target, source in ((0, null), (1, null), (2, err)):
        os.dup2(source, target)
    # A shell's background job ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count = 0

    def fire() -> None:
        nonlocal count
        count += 1
        if count != order.nth or not order.signals:
            return
        threading.Thread(target=send, daemon=True).start()
        time.sleep(order.blocks)

    def send() -> None:
        with open(order.err + ".signalled", "w"):
            pass
        time.sleep(order.delay)
        os.utime(order.err + ".signalled")
        for index, name in enumerate(order.signals):
            time.sleep(0.1 * (index > 0))
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))

    install(order.phase, fire)


def install(phase: str, fire: Any) -> None:
    """Have `fire` called whenever the phase begins."""
    import orbax.checkpoint as ocp

    from jaxdistill.run import loop
    from jaxdistill.storage import checkpoint, loading
    from jaxdistill.training.timing import Clock

    places = {
        "load": (loading, "load"),
        "before a save": (checkpoint.Checkpoints, "save"),
        "copy": (ocp.AsyncCheckpointer, "save"),
        "write": (ocp.AsyncCheckpointer, "wait_until_finished"),
        "hashing": (checkpoint, "write_listing"),
        "naming": (checkpoint.Checkpoints, "_give_name"),
        "export": (loop, "export"),
        "end": (loop, "last_lines"),
    }
    if phase in places:
        owner, name = places[phase]
        function = getattr(owner, name)

        def before(*args: Any, **kwargs: Any) -> Any:
            fire()
            return function(*args, **kwargs)

        setattr(owner, name, before)
    elif phase == "after a save":
        save = checkpoint.Checkpoints.save

        def after(*args: Any) -> None:
            save(*args)
            fire()

        setattr(checkpoint.Checkpoints, "save", after)  # noqa: B010
    else:
        part = Clock.part

        @contextlib.contextmanager
        def noted(clock: Clock, name: str) -> Any:
            with part(clock, name):
                if name == phase:
                    fire()
                yield
                if f"end of {name}" == phase:  # of an update: the old state's buffers are reused
                    fire()

        setattr(Clock, "part", noted)  # noqa: B010


if __name__ == "__main__":
    serve()
