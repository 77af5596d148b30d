"""Grade many responses in worker processes, with a time limit per response.

Only a process can be stopped reliably: symbolic algebra may spend hours in one C call, during which
no signal handler runs. Workers are started with `python -m` and not by multiprocessing, because
forking a process with JAX's threads can deadlock and spawning runs the caller's script again.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading.verdict import BEGAN, FAILED, READY, Grader, Verdict, fault_in, judge
from jaxdistill.tasks.questions import Question

TOO_SLOW = "too slow"
# Time limit for starting a worker and its imports, which take seconds on an idle machine but much
# longer on a loaded one. It counts towards no response's limit. Chosen, not measured.
_START_S = 120.0
# A worker may be killed while it starts, by the system or by a person: its successor starts. After
# this many failed starts in a row the fault is the environment's. Chosen, not measured.
_MOST_FAILED_STARTS = 3
# A response is graded again if the process that graded it died, since something else may have
# killed it. The second death is the response's own fault, and gets a verdict.
_MOST_DEATHS = 2


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
    What the grader prints is discarded. Raises UserError if the grader cannot be loaded or misses a
    module.
    """
    if workers > 0:
        with GradingPool(grader, workers, timeout_s) as pool:
            return pool.grade(questions, responses)
    pairs = zip(questions, responses, strict=True)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        verdicts = [judge(grader, question, response) for question, response in pairs]
    for verdict in verdicts:
        if (fault := fault_in(verdict)) is not None:
            raise UserError(f"the grader cannot run: {fault}")
    return verdicts


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    output: IO[bytes]  # what it has printed before READY; later prints are discarded
    task: int | None = None  # the index of the response that it was given
    began: bool = False  # True once it has sent BEGAN, after receiving that response
    ready: bool = False  # True once it has sent READY, after its imports
    deadline: float = 0.0  # of the start, then of the current response; in time.monotonic seconds


@dataclass
class _Batch:
    """The responses of one call of `grade`."""

    tasks: list[tuple[Question, str]]
    waiting: deque[int]  # indices of tasks that no worker has
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)  # of processes that graded a task


class GradingPool:
    """Worker processes for one grader, which must be importable by name or a `TaskGrader`.

    A response whose grading takes longer than `timeout_s` seconds gets the verdict "too slow", and
    its worker is replaced. The default of 5 s is above `grading.math`'s own alarm of 4 s, which
    does not cost a worker. A worker that is killed from outside costs no verdict: another one takes
    its response over. What a grader prints is discarded. `grade` waits for the verdicts, `submit`
    does not; their responses are graded in the order of the calls. Use the pool as a context
    manager or call `close`.
    """

    def __init__(self, grader: Grader, workers: int = 2, timeout_s: float = 5.0):
        assert workers > 0, "a pool needs workers; grade_all(workers=0) grades in this process"
        self._grader = grader
        self._num_workers = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._failed_starts = 0  # in a row
        self._turn = threading.Lock()  # the workers belong to one call at a time
        self._thread: ThreadPoolExecutor | None = None  # of what was submitted
        # A message ends the call that has the workers; it may wait for them at that moment.
        self._stopped, self._stops = Pipe(duplex=False)

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, and what was submitted. Another call would start new ones."""
        if self._thread is not None:
            self._stops.send(None)
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None
            if self._stopped.poll():
                self._stopped.recv()
        self._stop_workers()

    def _stop_workers(self) -> None:
        for worker in self._workers:
            _stop(worker)
        self._workers = []

    def submit(
        self, questions: Sequence[Question], responses: Sequence[str]
    ) -> Callable[[], list[Verdict]]:
        """`grade` in a thread: returns at once; the result waits for the verdicts, or raises."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grading")
        return self._thread.submit(self.grade, list(questions), list(responses)).result

    def start(self) -> None:
        """Wait until a worker has loaded the grader and a library that it needs has been tried.

        Raises UserError as `grade` does.
        """
        batch = _Batch([], deque())
        with self._turn, self._stops_on_error():
            while not any(worker.ready for worker in self._workers):
                self._fill(1)
                self._collect(batch)

    def grade(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Grade `responses[i]` against `questions[i]` for each i; verdicts are in the same order.

        Raises UserError if the workers do not start, cannot load the grader or miss a library that
        it needs.
        """
        tasks = list(zip(questions, responses, strict=True))
        batch = _Batch(tasks, deque(range(len(tasks))))
        with self._turn, self._stops_on_error():
            while len(batch.verdicts) < len(tasks):
                # No more workers than responses left: a start costs seconds of imports.
                self._fill(min(self._num_workers, len(batch.waiting) + self._num_busy()))
                self._hand_out(batch)
                self._collect(batch)
        return [batch.verdicts[index] for index in range(len(tasks))]

    @contextlib.contextmanager
    def _stops_on_error(self) -> Iterator[None]:
        """Stop the workers of an interrupted call.

        It would leave verdicts in the pipes, and the next call would read them as its own.
        """
        try:
            yield
        except BaseException:
            self._stop_workers()
            raise

    def _fill(self, wanted: int) -> None:
        """Replace workers that died while idle, and start missing ones."""
        for worker in list(self._workers):
            if worker.ready and worker.task is None and worker.process.poll() is not None:
                self._remove(worker)
        while len(self._workers) < wanted:
            self._workers.append(_start(self._grader))

    def _remove(self, worker: _Worker) -> None:
        _stop(worker)
        self._workers.remove(worker)

    def _hand_out(self, batch: _Batch) -> None:
        """Send each idle worker a response."""
        for worker in list(self._workers):
            if not (batch.waiting and worker.ready and worker.task is None):
                continue
            try:
                worker.connection.send(batch.tasks[batch.waiting[0]])
            except OSError:  # it died a moment ago; another one grades the response
                self._remove(worker)
                continue
            worker.task, worker.began = batch.waiting.popleft(), False
            worker.deadline = time.monotonic() + self._timeout_s

    def _num_busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _collect(self, batch: _Batch) -> None:
        """Wait for a message or a deadline, receive messages, and drop late or dead workers."""
        pending = [
            worker for worker in self._workers if worker.task is not None or not worker.ready
        ]
        if not pending:  # the last ones died while idle
            return
        first_deadline = min(worker.deadline for worker in pending)
        connections = [worker.connection for worker in pending]
        patience = max(first_deadline - time.monotonic(), 0.0)
        readable = wait([*connections, self._stopped], patience)
        if self._stopped in readable:
            raise CancelledError
        for worker in pending:
            # Messages come before deadlines: a verdict that has arrived is not too late.
            if worker.connection in readable:
                self._receive(worker, batch)
            elif time.monotonic() >= worker.deadline:
                self._end(worker, TOO_SLOW, batch)

    def _receive(self, worker: _Worker, batch: _Batch) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            # For example when C code aborts because the memory limit refuses an allocation.
            self._bury(worker, batch)
            return
        if isinstance(message, Verdict):
            assert worker.task is not None, "a verdict from an idle worker"
            batch.verdicts[worker.task], worker.task = message, None
        elif message == BEGAN:
            worker.began = True
        elif message == READY:
            worker.ready, self._failed_starts = True, 0
        else:
            raise UserError(message)

    def _bury(self, worker: _Worker, batch: _Batch) -> None:
        """A process has died. Unless it died of its response, another one takes that over."""
        if worker.task is not None:
            batch.deaths[worker.task] += worker.began
            if batch.deaths[worker.task] < _MOST_DEATHS:
                batch.waiting.appendleft(worker.task)
                worker.task = None
        self._end(worker, f"{FAILED}: its process died", batch)

    def _end(self, worker: _Worker, reason: str, batch: _Batch) -> None:
        """Remove a late or dead worker; its response, if it has one, gets a verdict."""
        printed = "" if worker.ready else _last_line(worker.output)
        self._remove(worker)
        if worker.task is not None:
            batch.verdicts[worker.task] = Verdict(False, reason, None)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                code = worker.process.returncode
                ending = f"not ready after {_START_S:g} s" if reason == TOO_SLOW else f"exit {code}"
                raise UserError(
                    f"{_MOST_FAILED_STARTS} grading processes in a row did not start ({ending}; "
                    f"a negative code is a signal){printed and f'; the last one said {printed}'}"
                )


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    # 200 characters keep the error to one line of a terminal or two.
    return repr(lines[-1][:200]) if lines else ""


def _start(grader: Grader) -> _Worker:
    ours, theirs = Pipe()
    # The worker must find the same modules, including those on paths added to sys.path at run time,
    # and must not claim the accelerator if a recipe that it imports asks for JAX's devices.
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    # Neither stdout nor stderr: both are the command's. `_stop` closes it.
    output = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdistill.tasks.grading.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    theirs.close()
    worker = _Worker(process, ours, output, deadline=time.monotonic() + _START_S)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: `_receive`
            ours.send(grader)
    except BaseException:
        _stop(worker)
        raise
    return worker


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()
    worker.output.close()
