"""The runs of a study: one by one in this process, or spread over worker processes.

On a CPU a worker has one core: small matrices do not profit from two. On NVIDIA GPUs a worker sees
those that it is given (CUDA_VISIBLE_DEVICES), so that independent runs fill all devices. A run
computes the same wherever it runs: what it draws depends on its own settings alone.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import RunStopped, UserError
from jaxdistill.run.arms import Arm, folder_of, is_finished, note_stopped
from jaxdistill.run.loop import run
from jaxdistill.run.stopping import GRACE_S, Stopping
from jaxdistill.tasks.grading.parent import die_with_parent

# Processes of one study: more than any host's GPUs and cores gain from. Chosen.
MOST_WORKERS = 256
# Of a GPU's memory, for all of the workers that share it. A CUDA context, which is not counted in
# it, takes about half a GiB. Chosen, not measured.
SHARED_FRACTION = 0.9
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Place(NamedTuple):
    """Where a worker runs: the cores that it may use, and variables of its environment."""

    cores: tuple[int, ...]  # (): any
    environment: dict[str, str]


# ------------------------------------------------------------------------------------ the devices


def find_gpus(variables: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The NVIDIA GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them; () without any.

    Another process asks: in this one JAX would take most of their memory, which workers need.
    """
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not (Path("/dev/nvidiactl").exists() or any(map(importlib.util.find_spec, plugins))):
        return ()
    code = "import jax; print(jax.local_device_count() if jax.default_backend() == 'gpu' else 0)"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, _PREALLOCATE: "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = asked.stdout.split()
    count = int(said[-1]) if asked.returncode == 0 and said else 0
    named = [name.strip() for name in variables.get(_VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def check_workers(number: int | None) -> None:
    """Raises UserError for a number of processes that no study can have."""
    if number is not None and not 1 <= number <= MOST_WORKERS:
        raise UserError(f"--workers must be 1 to {MOST_WORKERS}, got {number}")


def count_workers(
    asked: int | None, *, usual: int, one_device: bool, gpus: Sequence[str], backend: str
) -> int:
    """How many processes a study has. Raises UserError if several cannot share them.

    asked: `--workers`. usual: of the study on a CPU. one_device: each of its runs fits on one
    device; on several GPUs every GPU then has a worker.
    """
    if backend == "cpu":
        return usual if asked is None else asked
    if backend == "gpu":
        if not gpus and (asked or 1) > 1:
            raise UserError(f"--workers {asked}: the GPUs could not be counted; use one process")
        return asked or (max(len(gpus), 1) if one_device else 1)
    if asked is not None and asked > 1:
        raise UserError(f"--workers {asked}: several processes cannot share a {backend.upper()}")
    return 1


def places(num_workers: int, gpus: Sequence[str], cores: Sequence[int]) -> list[Place]:
    """The place of each worker.

    With more GPUs than workers each has several, with fewer GPUs several workers share one and its
    memory.

    >>> [p.environment["CUDA_VISIBLE_DEVICES"] for p in places(2, ("0", "1", "2", "3"), ())]
    ['0,1', '2,3']
    """
    found = []
    for index in range(num_workers):
        if not gpus:
            own = (cores[index % len(cores)],) if cores else ()
            found.append(Place(own, one_core(os.environ)))
            continue
        if num_workers <= len(gpus):
            ends = [part * len(gpus) // num_workers for part in (index, index + 1)]
            seen, sharing = gpus[ends[0] : ends[1]], 1
        else:
            at = index % len(gpus)
            seen, sharing = gpus[at : at + 1], len(range(at, num_workers, len(gpus)))
        own = tuple(cores[index::num_workers])
        found.append(Place(own, on_gpus(seen, sharing, os.environ)))
    return found


def one_core(variables: Mapping[str, str]) -> dict[str, str]:
    """For an XLA that has one thread."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {"XLA_FLAGS": f"{variables.get('XLA_FLAGS', '')} {flags}".strip()}


def on_gpus(seen: Sequence[str], sharing: int, variables: Mapping[str, str]) -> dict[str, str]:
    """For a worker that sees these GPUs, each of which `sharing` workers share."""
    found = {_VISIBLE: ",".join(seen)}
    if sharing > 1:
        # Set by the user, it is meant for all of this study.
        whole = float(variables.get(_FRACTION, SHARED_FRACTION))
        found[_FRACTION] = f"{whole / sharing:.3f}"
    return found


def without_triton_products(variables: Mapping[str, str]) -> dict[str, str]:
    """For programs of tiny matrices on GPUs, which XLA would spend minutes on timing kernels for.

    Flags that the user has set follow, and so win. `docs/log.md` has what it saves.
    """
    flags = f"--xla_gpu_enable_triton_gemm=false {variables.get('XLA_FLAGS', '')}"
    return {"XLA_FLAGS": flags.strip()}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within this context, processes start with these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def leaving_the_memory() -> Iterator[None]:
    """Within this context JAX takes no more of a GPU's memory than it uses, in this process."""
    with environment({_PREALLOCATE: "false"}):
        yield


# --------------------------------------------------------------------------------------- the runs


def run_arms(arms: list[Arm], study_dir: Path, quiet: bool, stopping: Stopping) -> None:
    """Run the arms one by one in this process; arms with equal settings share compiled programs."""
    from tqdm import tqdm

    for arm in tqdm(arms, desc=study_dir.name, disable=quiet):
        run_dir = folder_of(arm, study_dir)
        try:
            run(
                arm.config,
                run_dir,
                resume=run_dir.exists(),
                quiet=True,
                stopping=stopping,
                study=study_dir.name,
            )
        except RunStopped as error:
            if not arm.may_stop:
                raise
            note_stopped(arm, study_dir, str(error))


def run_in_processes(
    arms: list[Arm],
    study_dir: Path,
    found: Sequence[Place],
    *,
    quiet: bool,
    work: "StudyWork",
) -> None:
    """Distribute the arms over a process at each of these places.

    Arms with the same objective and teacher go to the same process, which compiles them once.
    Raises the first worker's failure, after stopping the others.
    """
    shares = share_out(arms, len(found))
    context = multiprocessing.get_context("spawn")
    # SimpleQueue writes within `put`; a Queue's feeder thread is lost if its process is terminated.
    failures = context.SimpleQueue()
    processes = [
        context.Process(target=worker, args=(share, study_dir, place.cores, failures))
        for place, share in zip(found, shares)
    ]
    try:
        for place, process in zip(found, processes):
            with environment(place.environment):
                process.start()
            work.processes.append(process)
        watch(processes, arms, study_dir, quiet)
        work.end()
        codes = [process.exitcode for process in processes if process.exitcode]
    finally:
        stop([process for process in processes if process.pid is not None])
    if not failures.empty():
        raise failures.get()
    if codes:
        raise RuntimeError(
            f"a worker of the study ended with exit code {codes[0]} (negative: killed by a signal)"
        )


class StudyWork:
    """What a stop of a study stops (a `Stoppable`): its workers, which save their own runs."""

    def __init__(
        self, arms: Sequence[Arm], study_dir: Path, count_time: Callable[[float], None]
    ) -> None:
        """count_time: adds the seconds of this attempt to the study's."""
        self.grace_s = max((arm.config.grace_seconds for arm in arms), default=GRACE_S)
        self.processes: list[Any] = []
        self._arms, self._study_dir, self._count_time = arms, study_dir, count_time
        self._began = time.monotonic()
        self._ended = threading.Lock()

    def end(self) -> None:
        """All workers have ended. If a stop made them do so, wait for the end of this process."""
        self._ended.acquire()

    def stop(self, deadline: float) -> None:
        if not self._ended.acquire(blocking=False):
            return  # they had ended, and the study is about to write its report
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            # Not `join`: the main thread may be waiting for the same process.
            wait([process.sentinel], timeout=max(deadline - time.monotonic(), 0.0))
        self._count_time(time.monotonic() - self._began)

    def last_lines(self, failure: str) -> Iterator[str]:
        finished = sum(is_finished(arm, self._study_dir) for arm in self._arms)
        if failure and self.processes:
            yield f"not every run could save its last step {failure}"
        yield (
            f"stopped with {finished} of {len(self._arms)} runs finished; the same command "
            "continues it"
        )


def stop(processes: list[Any]) -> None:
    """Terminate the processes, so that they can save their runs, and kill any that remain."""
    for process in processes:
        process.terminate()
    for process in processes:
        # Long enough for an asynchronous checkpoint of the toy model. Chosen, not measured.
        process.join(timeout=10.0)
        process.kill()
        process.join()


def share_out(arms: list[Arm], workers: int) -> list[list[Arm]]:
    """Assign groups of equal objective and teacher, largest first, to the least loaded worker.

    Of fewer groups than workers, as of one recipe with several seeds, the largest are divided. A
    worker begins with its shortest runs: where the base is only evaluated, its worker compiles the
    sampler of evaluations while others compile that of training and a step, and each finds the
    other's program in the compilation cache. Starting alike, all of them would compile both.
    """
    of_programs: dict[Any, list[Arm]] = {}
    for arm in arms:
        of_programs.setdefault((arm.config.objective, arm.config.teacher), []).append(arm)
    groups = list(of_programs.values())
    while len(groups) < min(workers, len(arms)):
        largest = max((group for group in groups if len(group) > 1), key=work)
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
    shares: list[list[Arm]] = [[] for _ in range(workers)]
    for group in sorted(groups, key=work, reverse=True):
        min(shares, key=work).extend(group)
    return [sorted(share, key=lambda arm: arm.steps) for share in shares if share]


def work(arms: list[Arm]) -> int:
    """Estimated work in units of a training step: steps, evaluations and compilations.

    An evaluation and a compilation are each assumed to cost as much as 10 steps. The estimate only
    balances the arms over processes.
    """
    compilations = len({(arm.config.objective, arm.config.teacher) for arm in arms})
    return sum(arm.steps + 10 for arm in arms) + 10 * compilations


def worker(arms: list[Arm], study_dir: Path, cores: tuple[int, ...], failures: Any) -> None:
    """Body of a worker process: pin it to its cores, run its arms, report a failure."""
    # If the parent was killed, the next start of the study must find its runs free.
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    die_with_parent(parent.pid)
    # The terminal sends Ctrl-C to every process; the parent handles it and terminates the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping = Stopping("", quiet=True)
    stopping.listen()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        run_arms(arms, study_dir, quiet=True, stopping=stopping)
        stopping.finish(0)
    except Exception as error:
        stopping.settle()
        # Not every exception can be pickled, and none keeps its traceback: send the text instead.
        # The command line reports a full disk, and a run that stopped itself, by other exit codes.
        is_mistake = isinstance(error, UserError | OSError)
        kind = RunStopped if isinstance(error, RunStopped) else RuntimeError
        kind = UserError if is_mistake else kind
        sent = f"{type(error).__name__}: {error}" if kind is RuntimeError else error
        failure = kind(f"a worker of the study failed: {sent}")
        failure.add_note(traceback.format_exc())
        failures.put(failure)
        sys.exit(1)


def own_cores() -> list[int]:
    """The cores that this process may use; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def watch(processes: list[Any], arms: list[Arm], study_dir: Path, quiet: bool) -> None:
    """Show progress, read from the run folders, until all workers end or one fails."""
    from tqdm import tqdm

    with tqdm(total=sum(arm.steps for arm in arms), desc="steps", disable=quiet) as bar:
        while alive := [process for process in processes if process.is_alive()]:
            if any(process.exitcode for process in processes):
                break
            wait([process.sentinel for process in alive], timeout=1.0)
            files = [folder_of(arm, study_dir) / "metrics.jsonl" for arm in arms]
            done = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
            bar.update(done - bar.n)
