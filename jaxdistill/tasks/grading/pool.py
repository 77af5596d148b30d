"""Grading many responses in worker processes, each response under a time limit.

A process is the only thing that can be stopped for certain: symbolic algebra may sit in one C call
for hours, where no signal handler runs. Workers are started with `python -m`, not through
multiprocessing: forking a process full of JAX threads can deadlock, and spawning runs the caller's
script a second time.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading.verdict import FAILED, READY, Grader, Verdict, judge
from jaxdistill.tasks.questions import Question

TOO_SLOW = "too slow"
# Imports on a loaded machine, not charged to any response: some seconds where nothing else runs.
_START_S = 120.0


def grade_all(
    grader: Grader,
    questions: Sequence[Question],
    responses: Sequence[str],
    timeout_s: float = 5.0,
    workers: int = 0,
) -> list[Verdict]:
    """Grade each response to the question beside it, in order.

    `workers=0` grades in this process without a time limit: for graders that are fast and safe.
    A caller who grades every step keeps a `GradingPool`, whose workers start once.
    """
    if workers == 0:
        pairs = zip(questions, responses, strict=True)
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no output of a command
            return [judge(grader, question, response) for question, response in pairs]
    with GradingPool(grader, workers, timeout_s) as pool:
        return pool.grade(questions, responses)


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    task: int | None = None  # the index of the response that it grades
    ready: bool = False  # it says so once, when its imports are done
    deadline: float = 0.0


class GradingPool:
    """Worker processes for one grader: importable by name (no lambda), or a `TaskGrader`.

    A response that takes longer than `timeout_s` is "too slow", and its worker is replaced. 5 s lie
    above `grading.math`'s own alarm, which costs no worker. Use it as a context manager or call
    `close`.
    """

    def __init__(self, grader: Grader, workers: int = 2, timeout_s: float = 5.0):
        assert workers > 0, "a pool has workers; grade_all(workers=0) grades in this process"
        self._grader = grader
        self._num_workers = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; the next `grade` would start new ones."""
        for worker in self._workers:
            _stop(worker)
        self._workers = []

    def grade(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Grade each response to the question beside it, in order."""
        tasks = list(zip(questions, responses, strict=True))
        waiting = deque(range(len(tasks)))
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(tasks):
                self._hand_out(tasks, waiting)
                self._collect(verdicts)
        except BaseException:
            self.close()  # an interrupted call must not leave verdicts in the pipes for the next
            raise
        return [verdicts[index] for index in range(len(tasks))]

    def _hand_out(self, tasks: list[tuple[Question, str]], waiting: deque[int]) -> None:
        wanted = min(self._num_workers, len(waiting) + self._num_busy())
        while len(self._workers) < wanted:
            self._workers.append(_start(self._grader))
        for worker in list(self._workers):
            if not (waiting and worker.ready and worker.task is None):
                continue
            try:
                worker.connection.send(tasks[waiting[0]])
            except OSError:  # it died while idle; its successor takes the response
                _stop(worker)
                self._workers.remove(worker)
                continue
            worker.task = waiting.popleft()
            worker.deadline = time.monotonic() + self._timeout_s

    def _num_busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _collect(self, verdicts: dict[int, Verdict]) -> None:
        """Wait for a message or a deadline; take what has come, replace who is late or dead."""
        pending = [
            worker for worker in self._workers if worker.task is not None or not worker.ready
        ]
        first_deadline = min(worker.deadline for worker in pending)
        connections = [worker.connection for worker in pending]
        came = wait(connections, max(first_deadline - time.monotonic(), 0.0))
        for worker in pending:
            if worker.connection in came:
                self._receive(worker, verdicts)
            elif time.monotonic() >= worker.deadline:
                self._drop(worker, TOO_SLOW, verdicts)

    def _receive(self, worker: _Worker, verdicts: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._drop(worker, f"{FAILED}: its process died", verdicts)
            return
        if isinstance(message, Verdict):
            assert worker.task is not None, "a verdict that nobody asked for"
            verdicts[worker.task], worker.task = message, None
        elif message == READY:
            worker.ready = True
        else:
            raise UserError(f"a grading process cannot load the grader: {message}")

    def _drop(self, worker: _Worker, reason: str, verdicts: dict[int, Verdict]) -> None:
        if not worker.ready:
            raise RuntimeError(f"a grading worker did not start; see its message above ({reason})")
        _stop(worker)
        self._workers.remove(worker)
        if worker.task is not None:
            verdicts[worker.task] = Verdict(False, reason, None)


def _start(grader: Grader) -> _Worker:
    ours, theirs = Pipe()
    # The worker must find the same modules, whatever was put on the path since this one started,
    # and leave the accelerator alone, should a recipe that it imports ask for JAX's devices.
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdistill.tasks.grading.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=2,  # what it prints is no output of a command
    )
    theirs.close()
    worker = _Worker(process, ours, deadline=time.monotonic() + _START_S)
    try:
        ours.send(grader)
    except BaseException:
        _stop(worker)
        raise
    return worker


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()
