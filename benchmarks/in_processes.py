"""Measurements as processes of their own, one after another, within a time limit, in one file.

A process that hangs, fails or does not fit into memory costs its own limit and no more, and what
was measured before it stands in the file. Used by the benchmarks that run unattended.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxdistill.files import write_whole

# Seconds below which no process is started: imports and the first programs take longer.
LEAST = 45
# Characters of the log of a failed process that are kept: a traceback through JAX or torch.
LOG = 3000


class Measurements:
    """Results by name, `found["measured"]`, which `file` holds after every one of them.

    `seconds`: from the start on; after them no process runs. `limit`: seconds of one process.
    `scratch`: folder for logs and caches, by default a new one.
    """

    def __init__(self, file: Path, *, seconds: float, limit: float, scratch: Path | None = None):
        self.file, self.seconds, self.limit = file, seconds, limit
        self.began = time.monotonic()
        self.scratch = scratch or Path(tempfile.mkdtemp(prefix="measurements_"))
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {"measured": {}}
        if file.exists():
            self.found = of_json(file)

    @property
    def measured(self) -> dict[str, Any]:
        return self.found["measured"]

    def has(self, name: str) -> bool:
        """Whether it was measured; one that failed is measured again."""
        return "failed" not in self.measured.get(name, {"failed": ""})

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(
        self,
        name: str,
        commands: Sequence[list[str]],
        *,
        out: Path,
        environments: Sequence[dict[str, str]] = ({},),
        read: Callable[[Path], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Run Python with each command at the same time; keep what they write to `out`.

        That is one JSON object, unless `read` makes one of it.

        The result has `wall_seconds`; `failed` says why there is nothing else, and `ended` why
        processes were ended that had written something. In both cases `log` has the end of each
        process's log, which the next measurement overwrites.
        """
        if self.has(name):
            return self.measured[name]
        limit = min(self.limit, self.left())
        if limit < LEAST:
            return self.keep(name, {"failed": "not run: no time left"})
        out.unlink(missing_ok=True)
        began = time.monotonic()
        logs = [self.scratch / f"log_{number}.txt" for number in range(len(commands))]
        processes = [
            start(command, environment, log)
            for command, environment, log in zip(commands, environments, logs, strict=True)
        ]
        failed = wait(processes, logs, limit)
        result = (read or of_json)(out) if out.exists() else {}
        if failed:
            result["ended" if result else "failed"] = failed
        elif not result:
            result["failed"] = f"no {out.name} was written"
        if failed or "failed" in result:
            result["log"] = [log.read_text(errors="replace")[-LOG:] for log in logs]
        return self.keep(name, result | {"wall_seconds": time.monotonic() - began})

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        self.measured[name] = result
        self.save()
        said = result.get("failed") or result.get("ended") or "done"
        wall = f"{result.get('wall_seconds', 0):.0f} s"
        print(f"{name}: {said}, {wall}; {self.left():.0f} s left", file=sys.stderr, flush=True)
        return result

    def save(self) -> None:
        write_whole(self.file, json.dumps(self.found, indent=1) + "\n")


def of_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def typed(script: str) -> str:
    """This process's command as one would type it, files without the folders of this machine."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *words])


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Python with this command in a session of its own, so that its children end with it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )


def wait(
    processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], limit: float
) -> str | None:
    """Wait for all, at most `limit` seconds; why they ended otherwise than well, if they did.

    If one fails, the others are ended too: they would wait for it.
    """
    deadline, why = time.monotonic() + limit, None
    # They have sessions of their own, and would outlive this process and keep the GPU.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            if time.monotonic() > deadline:
                why = f"ended after {limit:.0f} s"
                break
            time.sleep(0.1)  # a tenth of a second is below what any of these measures
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        signal.signal(signal.SIGTERM, before)
    for code, log in zip(codes, logs, strict=True):
        if code and why is None:
            why = message(log) or f"exit code {code}"
    return why


def message(log: Path) -> str:
    """The last line of a log that names an error, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # A child that was killed for its memory says nothing of an error.
    named = [line for line in lines if "Error" in line or "error" in line]
    return (named or lines or [""])[-1][:400]
