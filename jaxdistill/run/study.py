"""A study: a grid of runs, each in its own folder, then one table and one report.

The run folders are the only interface: workers write them, and progress and summary are read from
them. A study that was stopped can therefore be resumed by starting it again.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from jaxdistill import overrides
from jaxdistill.config import RunConfig, to_json, with_presets
from jaxdistill.errors import RunStopped, UserError
from jaxdistill.evaluation.measures import study_row
from jaxdistill.evaluation.saved import read_summary
from jaxdistill.files import is_file_name, write_whole
from jaxdistill.run.devices import study_line
from jaxdistill.run.folder import finished_step, names_beside
from jaxdistill.run.lock import locked
from jaxdistill.run.loop import run
from jaxdistill.run.provenance import current_provenance
from jaxdistill.run.stopping import GRACE_S, Stopping
from jaxdistill.storage import hf_files
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks.grading.parent import die_with_parent


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of the study, and the labels of its rows in the tables.

    `labels` are extra columns, such as coverage or context, of a study that varies more than the
    method.
    """

    world: str
    method: str
    config: RunConfig
    labels: tuple[tuple[str, str | int], ...] = ()

    @property
    def name(self) -> str:
        extra = "".join(f"-{key}{value}" for key, value in self.labels)
        # The runs of one recipe (`run.grid`) have no world.
        return f"{self.world}-{self.method}{extra}-s{self.config.seed}".removeprefix("-")

    @property
    def steps(self) -> int:
        """Raises UserError if only the epochs determine it: work is divided before it starts."""
        if self.config.steps is None:
            raise UserError(f"arm {self.name}: a study's runs need `steps`, got None")
        return self.config.steps


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named grid of runs. Raises UserError if two arms have the same name."""

    name: str
    profile: str
    arms: tuple[Arm, ...]
    workers: int  # processes on a CPU; an accelerator always has one
    command: str = ""  # for the page; "": that of the name and the profile alone

    def __post_init__(self):
        arms = self.arms if isinstance(self.arms, tuple) else ()
        if not arms or not all(isinstance(arm, Arm) for arm in arms):
            raise UserError(f"study {self.name}: `arms` must be a tuple of Arms, at least one")
        if not all(isinstance(arm.config, RunConfig) for arm in arms):
            raise UserError(f"study {self.name}: the `config` of an Arm must be a RunConfig")
        for name in (self.name, *(arm.name for arm in arms)):
            if not is_file_name(name):
                raise UserError(
                    f"study {self.name}: `name` must be usable as a folder's name, got {name!r:.80}"
                )
        if type(self.workers) is not int or self.workers < 1:
            raise UserError(
                f"study {self.name}: `workers` must be an integer of at least 1, got "
                f"{self.workers!r}"
            )
        names = [arm.name for arm in arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"study {self.name}: several arms have the same name, such as {min(twice)} "
                f"({len(twice)} in all); give the arms different seeds or labels"
            )


def run_study(
    study: Study, study_dir: Path, *, quiet: bool = False, stopping: Stopping | None = None
) -> Path:
    """Run every unfinished arm, then write summary.json, probe.json, study.json and the report.

    `stopping` ends this process and its workers on a signal, once each has saved its last step.
    Returns the report's path. Raises UserError if the folder belongs to another study, or another
    process holds it.
    """
    stopping = stopping or Stopping()
    with locked(study_dir, stopping):
        prepare(study, study_dir)
        work = StudyWork(study, study_dir)
        with stopping.stops(work):
            return run_arms_and_report(study, study_dir, quiet, work=work, stopping=stopping)


def run_arms_and_report(
    study: Study, study_dir: Path, quiet: bool, *, work: "StudyWork", stopping: Stopping
) -> Path:
    """`run_study` in a folder that is this study's."""
    began = time.monotonic()
    todo = [arm for arm in study.arms if not is_finished(arm, study_dir)]
    import jax  # imported here so that listing a study's arms does not load it

    is_cpu = jax.default_backend() == "cpu"
    workers = min(study.workers, max(len(todo), 1)) if is_cpu else 1
    if todo and not quiet:
        print(study_line([arm.config for arm in todo], workers), file=sys.stderr)
    try:
        if workers == 1:
            run_arms(todo, study_dir, quiet, stopping)
        elif todo:
            run_in_processes(todo, study_dir, workers, quiet, work)
    finally:
        # Also after an interruption, because study.json adds up the time of all attempts.
        add_facts(study, study_dir, time.monotonic() - began)
    began = time.monotonic()
    # One row per arm, evaluated step and split.
    rows = [row for arm in study.arms for row in arm_rows(arm, study_dir / "runs" / arm.name)]
    write_whole(study_dir / "summary.json", json.dumps(rows, indent=1))
    write_probes(study, study_dir)
    add_facts(study, study_dir, time.monotonic() - began)
    from jaxdistill.report import write_study_report

    return write_study_report(study_dir)


def prepare(study: Study, study_dir: Path) -> None:
    """Create the folder, or raise UserError if it does not belong to this study."""
    described = json.dumps([[arm.name, to_json(arm.config)] for arm in study.arms])
    file = study_dir / "arms.json"
    if file.exists() and file.read_bytes() != described.encode(errors="backslashreplace"):
        raise UserError(
            f"{study_dir} holds another study (see arms.json); choose another --run-dir"
        )
    if not file.exists() and names_beside(study_dir, file.name):
        raise UserError(f"{study_dir} is not empty and holds no study; choose another --run-dir")
    earlier_seconds(study_dir / "study.json")  # broken: now, and not after the runs
    study_dir.mkdir(parents=True, exist_ok=True)
    write_whole(file, described)


def is_finished(arm: Arm, study_dir: Path) -> bool:
    return finished_step(study_dir / "runs" / arm.name) == arm.steps


# ------------------------------------------------------------------------------------- the runs


def run_arms(arms: list[Arm], study_dir: Path, quiet: bool, stopping: Stopping) -> None:
    """Run the arms one by one in this process; arms with equal settings share compiled programs."""
    from tqdm import tqdm

    for arm in tqdm(arms, desc=study_dir.name, disable=quiet):
        run_dir = study_dir / "runs" / arm.name
        run(
            arm.config,
            run_dir,
            resume=run_dir.exists(),
            quiet=True,
            stopping=stopping,
            study=study_dir.name,
        )


def run_in_processes(
    arms: list[Arm], study_dir: Path, num_workers: int, quiet: bool, work: "StudyWork"
) -> None:
    """Distribute the arms over processes of one core each: small matrices do not profit from two.

    Arms with the same objective and teacher go to the same process, which compiles them once.
    Raises the first worker's failure, after stopping the others.
    """
    shares = share_out(arms, num_workers)
    context = multiprocessing.get_context("spawn")
    # SimpleQueue writes within `put`; a Queue's feeder thread is lost if its process is terminated.
    failures = context.SimpleQueue()
    processes = [
        context.Process(target=worker, args=(share, study_dir, core, failures))
        for core, share in enumerate(shares)
    ]
    try:
        with one_core_each():
            for process in processes:
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

    def __init__(self, study: Study, study_dir: Path) -> None:
        self.grace_s = max((arm.config.grace_seconds for arm in study.arms), default=GRACE_S)
        self.processes: list[Any] = []
        self._study, self._study_dir = study, study_dir
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
        add_facts(self._study, self._study_dir, time.monotonic() - self._began)

    def last_lines(self, failure: str) -> Iterator[str]:
        arms = self._study.arms
        finished = sum(is_finished(arm, self._study_dir) for arm in arms)
        if failure and self.processes:
            yield f"not every run could save its last step {failure}"
        yield f"stopped with {finished} of {len(arms)} runs finished; the same command continues it"


def stop(processes: list[Any]) -> None:
    """Terminate the processes, so that they can save their runs, and kill any that remain."""
    for process in processes:
        process.terminate()
    for process in processes:
        # Long enough for an asynchronous checkpoint of the toy model. Chosen, not measured.
        process.join(timeout=10.0)
        process.kill()
        process.join()


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Within this context, processes start with an XLA that has one thread."""
    before = os.environ.get("XLA_FLAGS")
    one_core = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{before or ''} {one_core}".strip()
    try:
        yield
    finally:
        del os.environ["XLA_FLAGS"]
        if before is not None:
            os.environ["XLA_FLAGS"] = before


def share_out(arms: list[Arm], workers: int) -> list[list[Arm]]:
    """Assign groups of equal objective and teacher, largest first, to the least loaded worker.

    Of fewer groups than workers, as of one recipe with several seeds, the largest are divided.
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
    return [share for share in shares if share]


def work(arms: list[Arm]) -> int:
    """Estimated work in units of a training step: steps, evaluations and compilations.

    An evaluation and a compilation are each assumed to cost as much as 10 steps. The estimate only
    balances the arms over processes.
    """
    compilations = len({(arm.config.objective, arm.config.teacher) for arm in arms})
    return sum(arm.steps + 10 for arm in arms) + 10 * compilations


def worker(arms: list[Arm], study_dir: Path, core: int, failures: Any) -> None:
    """Body of a worker process: pin it to a core, run its arms, report a failure on the queue."""
    # If the parent was killed, the next start of the study must find its runs free.
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    die_with_parent(parent.pid)
    # The terminal sends Ctrl-C to every process; the parent handles it and terminates the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping = Stopping("", quiet=True)
    stopping.listen()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, {cores[core % len(cores)]})
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


def watch(processes: list[Any], arms: list[Arm], study_dir: Path, quiet: bool) -> None:
    """Show progress, read from the run folders, until all workers end or one fails."""
    from tqdm import tqdm

    with tqdm(total=sum(arm.steps for arm in arms), desc="steps", disable=quiet) as bar:
        while alive := [process for process in processes if process.is_alive()]:
            if any(process.exitcode for process in processes):
                break
            wait([process.sentinel for process in alive], timeout=1.0)
            files = [study_dir / "runs" / arm.name / "metrics.jsonl" for arm in arms]
            done = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
            bar.update(done - bar.n)


# ---------------------------------------------------------------------------------- results


def arm_rows(arm: Arm, run_dir: Path) -> Iterator[dict[str, Any]]:
    """One row of summary.json per evaluated step and split of the arm's run."""
    for folder in sorted((run_dir / "evals").glob("step_*")):
        for split, values in read_summary(folder).items():
            yield {
                "world": arm.world,
                "method": arm.method,
                "seed": arm.config.seed,
                "step": int(folder.name.removeprefix("step_")),
                "split": split,
                **study_row(values),
                **dict(arm.labels),
            }


def write_probes(study: Study, study_dir: Path) -> None:
    """Write probe.json: how each world's base model acts at each fork, by context.

    It measures whether the base model behaves as the toy world assumes.
    """
    from jaxdistill.evaluation.toy_probe import probe_base

    worlds = {arm.world: arm.config.model for arm in study.arms if arm.method == "base"}
    tables = {
        world: probe_base(model) for world, model in worlds.items() if isinstance(model, ToyBase)
    }
    write_whole(study_dir / "probe.json", json.dumps(tables, indent=1))


def add_facts(study: Study, study_dir: Path, seconds: float) -> None:
    """Write study.json; `seconds` are added to those of earlier attempts."""
    file = study_dir / "study.json"
    before = earlier_seconds(file)
    facts = current_provenance()
    described = {
        "name": study.name,
        "profile": study.profile,
        "command": study.command or f"jaxdistill study {study.name} --profile {study.profile}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(before + seconds, 1),
        "versions": {"python": facts["python"], **facts["packages"]},
        "device": "{count} x {kind}".format(**facts["devices"]),
        "git": facts["git"],
    }
    write_whole(file, json.dumps(described, indent=1))


def earlier_seconds(file: Path) -> float:
    """The seconds that study.json has counted so far. Raises UserError if the file is broken."""
    if not file.exists():
        return 0.0
    seconds: Any = hf_files.read_json(file).get("seconds")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not (is_number and 0 <= seconds < 1e12):
        raise UserError(f"{file}: `seconds` must be a number of at least 0, got {seconds!r:.80}")
    return seconds


def with_overrides(study: Study, texts: list[str]) -> Study:
    """Apply overrides to every trained arm; a base arm takes those of `evaluation` and `mesh`."""
    arms = []
    for arm in study.arms:
        shared = [text for text in texts if text.startswith(("evaluation.", "mesh"))]
        fitting = shared if arm.method == "base" else texts
        config = overrides.apply_overrides(arm.config, with_presets(fitting))
        arms.append(dataclasses.replace(arm, config=config))
    return dataclasses.replace(study, arms=tuple(arms))
