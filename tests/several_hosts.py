"""Real processes that are the hosts of one run: gloo, and simulated devices of each."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TRAIN = ("-m", "jaxdistill", "train")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Hosts:
    """The processes of one command; leaving the context ends those that are left."""

    def __init__(
        self,
        num: int,
        *arguments: object,
        devices: int,
        each: Any = None,
        before: Any = None,
        stderr: int | None = subprocess.STDOUT,
    ) -> None:
        """Of one host, `each(index)` are further arguments, and `before(index)` what runs it."""
        address = f"localhost:{free_port()}"
        self.processes = []
        for index in range(num):
            place = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
            if num > 1:
                place |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(num)}
                place |= {"JAX_PROCESS_ID": str(index)}
            further = () if each is None else each(index)
            first = () if before is None else before(index)
            self.processes.append(
                subprocess.Popen(
                    [*first, sys.executable, *map(str, (*arguments, *further))],
                    env=os.environ | place,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
            )

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def send(self, index: int, number: int = signal.SIGKILL) -> float:
        """Send a signal to one of them; returns when."""
        self.processes[index].send_signal(number)
        return time.monotonic()

    def ended(self, index: int, timeout_s: float = 500) -> tuple[int, str]:
        """(exit code, what it has printed) of one of them."""
        printed, _ = self.processes[index].communicate(timeout=timeout_s)
        return self.processes[index].returncode, printed

    def all_ended(self, timeout_s: float = 500) -> list[str]:
        """What each has printed; all must end with 0."""
        ends = [self.ended(index, timeout_s) for index in range(len(self.processes))]
        assert [code for code, _ in ends] == [0] * len(ends), "\n".join(text for _, text in ends)
        return [text for _, text in ends]

    def wait_for(self, file: Path, lines: int, timeout_s: float = 400) -> None:
        """Wait until a file has this many lines."""
        end = time.monotonic() + timeout_s
        while not file.exists() or file.read_bytes().count(b"\n") < lines:
            assert time.monotonic() < end, f"{file} has not {lines} lines"
            for index, process in enumerate(self.processes):
                assert process.poll() is None, self.ended(index)
            time.sleep(0.1)


def on_two_hosts(script: str, *arguments: object) -> list[tuple[int, str]]:
    """Run a script on two hosts, with an argument each: (exit code, last line on stdout)."""
    assert len(arguments) == 2
    each = {"each": lambda i: (arguments[i],), "stderr": None}
    with Hosts(2, "-c", script, devices=1, **each) as hosts:
        ends = [hosts.ended(i, 200) for i in (0, 1)]
    return [(code, (text.splitlines() or [""])[-1]) for code, text in ends]
