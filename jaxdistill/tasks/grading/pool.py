"""Grade many responses in worker processes, with a time limit per response.

Only a process can be stopped reliably: symbolic algebra may spend hours in one C call, during which
no signal handler runs. Workers are started with `python -m` and not by multiprocessing, because
forking a process with JAX's threads can deadlock and spawning runs the caller's script again.
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
# Time limit for starting a worker and its imports, which take seconds on an idle machine but much
# longer on a loaded one. It counts towards no response's limit. Chosen, not measured.
_START_S = 120.0


def grade_all(
    grader: Grader,
    questions: Sequence[Question],
    responses: Sequence[str],
    timeout_s: float = 5.0,
    workers: int = 0,
) -> list[Verdict]:
    """Grade `responses[i]` against `questions[i]` for each i; verdicts are in the same order.

    `workers=0` grades in this process without a time limit, for graders that are fast and safe.
    A caller that grades repeatedly should keep a `GradingPool`, whose workers start only once.
    Raises UserError if a worker cannot load the grader.
    """
    if workers == 0:
        pairs = zip(questions, responses, strict=True)
        # A grader's prints must not mix with a command's output, which may be JSON.
        with contextlib.redirect_stdout(sys.stderr):
            return [judge(grader, question, response) for question, response in pairs]
    with GradingPool(grader, workers, timeout_s) as pool:
        return pool.grade(questions, responses)


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    task: int | None = None  # the index of the response being graded
    ready: bool = False  # True once it has sent READY, after its imports
    deadline: float = 0.0  # of the start, then of the current response; in time.monotonic seconds


class GradingPool:
    """Worker processes for one grader, which must be importable by name or a `TaskGrader`.

    A response whose grading takes longer than `timeout_s` seconds gets the verdict "too slow", and
    its worker is replaced. The default of 5 s is above `grading.math`'s own alarm of 4 s, which
    does not cost a worker. Use the pool as a context manager or call `close`.
    """

    def __init__(self, grader: Grader, workers: int = 2, timeout_s: float = 5.0):
        assert workers > 0, "a pool needs workers; grade_all(workers=0) grades in this process"
        self._grader = grader
        self._num_workers = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers. Another call of `grade` would start new ones."""
        for worker in self._workers:
            _stop(worker)
        self._workers = []

    def grade(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Grade `responses[i]` against `questions[i]` for each i; verdicts are in the same order.

        Raises UserError if a worker cannot load the grader.
        """
        tasks = list(zip(questions, responses, strict=True))
        waiting = deque(range(len(tasks)))
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(tasks):
                self._hand_out(tasks, waiting)
                self._collect(verdicts)
        except BaseException:
            # An interrupted call would leave verdicts in the pipes, and the next call would read
            # them as its own.
            self.close()
            raise
        return [verdicts[index] for index in range(len(tasks))]

    def _hand_out(self, tasks: list[tuple[Question, str]], waiting: deque[int]) -> None:
        """Start missing workers and send each idle one a response."""
        # No more workers than responses left: a start costs seconds of imports.
        wanted = min(self._num_workers, len(waiting) + self._num_busy())
        while len(self._workers) < wanted:
            self._workers.append(_start(self._grader))
        for worker in list(self._workers):
            if not (waiting and worker.ready and worker.task is None):
                continue
            try:
                worker.connection.send(tasks[waiting[0]])
            except OSError:  # the worker died while idle; another one grades the response
                _stop(worker)
                self._workers.remove(worker)
                continue
            worker.task = waiting.popleft()
            worker.deadline = time.monotonic() + self._timeout_s

    def _num_busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _collect(self, verdicts: dict[int, Verdict]) -> None:
        """Wait for a message or a deadline, receive messages, and drop late or dead workers."""
        pending = [
            worker for worker in self._workers if worker.task is not None or not worker.ready
        ]
        first_deadline = min(worker.deadline for worker in pending)
        connections = [worker.connection for worker in pending]
        readable = wait(connections, max(first_deadline - time.monotonic(), 0.0))
        for worker in pending:
            # Messages come before deadlines: a verdict that has arrived is not too late.
            if worker.connection in readable:
                self._receive(worker, verdicts)
            elif time.monotonic() >= worker.deadline:
                self._drop(worker, TOO_SLOW, verdicts)

    def _receive(self, worker: _Worker, verdicts: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            # For example when C code aborts because the memory limit refuses an allocation.
            self._drop(worker, f"{FAILED}: its process died", verdicts)
            return
        if isinstance(message, Verdict):
            assert worker.task is not None, "a verdict from an idle worker"
            verdicts[worker.task], worker.task = message, None
        elif message == READY:
            worker.ready = True
        else:
            raise UserError(f"a grading process cannot load the grader: {message}")

    def _drop(self, worker: _Worker, reason: str, verdicts: dict[int, Verdict]) -> None:
        if not worker.ready:  # a replacement would fail in the same way
            raise RuntimeError(f"a grading worker did not start; see its message above ({reason})")
        _stop(worker)
        self._workers.remove(worker)
        if worker.task is not None:
            verdicts[worker.task] = Verdict(False, reason, None)


def _start(grader: Grader) -> _Worker:
    ours, theirs = Pipe()
    # The worker must find the same modules, including those on paths added to sys.path at run time,
    # and must not claim the accelerator if a recipe that it imports asks for JAX's devices.
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdistill.tasks.grading.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=2,  # stderr: its prints must not mix with a command's output
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
