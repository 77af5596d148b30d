"""A study: a grid of runs, each in its own folder, then one table and one report.

The run folders are the only interface: workers write them, and progress and summary are read from
them. A study that was stopped can therefore be resumed by starting it again. A study that searches
adds runs of its own to those it began with (`search`).
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxdistill import overrides
from jaxdistill.config import RunConfig, to_json, with_presets
from jaxdistill.errors import UserError
from jaxdistill.evaluation.measures import study_row
from jaxdistill.evaluation.saved import read_summary
from jaxdistill.files import is_file_name, write_whole
from jaxdistill.run.arms import STOPPED, Arm, folder_of, has_stopped, is_finished
from jaxdistill.run.devices import study_line
from jaxdistill.run.folder import names_beside
from jaxdistill.run.lock import locked
from jaxdistill.run.provenance import current_provenance
from jaxdistill.run.search import Search
from jaxdistill.run.stopping import Stopping
from jaxdistill.run.workers import (
    StudyWork,
    check_workers,
    count_workers,
    environment,
    find_gpus,
    leaving_the_memory,
    own_cores,
    places,
    run_arms,
    run_in_processes,
    without_triton_products,
)
from jaxdistill.storage import hf_files
from jaxdistill.storage.loading import ToyBase

SO_FAR = "tuned_so_far.json"  # of a search that is not finished


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named grid of runs. Raises UserError if two arms have the same name.

    With a `search` the arms are those that it begins with, and perhaps a base.
    """

    name: str
    profile: str
    arms: tuple[Arm, ...]
    workers: int  # processes on a CPU
    command: str = ""  # for the page; "": that of the name and the profile alone
    one_device: bool = False  # every run fits on one: each of several GPUs then has a process
    search: Search | None = None
    over: Literal["steps", "rollouts"] = "steps"  # the horizontal axis of its curves

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
    study: Study,
    study_dir: Path,
    *,
    workers: int | None = None,
    quiet: bool = False,
    stopping: Stopping | None = None,
) -> Path:
    """Run every unfinished arm, then write summary.json, study.json, and what the study is for.

    That is probe.json and the report, or tuned.json of a study that searches. `workers` is the
    number of processes (None: the study's on a CPU, else one per device or one in all). `stopping`
    ends this process and its workers on a signal, once each has saved its last step. Returns the
    path of the report or of tuned.json. Raises UserError if the folder belongs to another study,
    another process holds it, or several processes cannot share the devices.
    """
    check_workers(workers)
    stopping = stopping or Stopping()
    with locked(study_dir, stopping):
        prepare(study, study_dir)
        gpus = find_gpus() if study.one_device or (workers or 1) > 1 else ()
        # Before the first use of JAX, which reads the flags once.
        flags = without_triton_products(os.environ) if gpus and is_toy(study) else {}
        arms = known_so_far(study.search, study.arms, study_dir)
        with environment(flags):
            while True:
                work = StudyWork(arms, study_dir, lambda s: add_facts(study, study_dir, s))
                with stopping.stops(work):
                    chosen = ToRun(arms, workers, gpus)
                    if study.search is not None:
                        write_so_far(study, study.search, study_dir, arms)
                    rows = run_round(study, study_dir, chosen, quiet, work=work, stopping=stopping)
                    more = known_so_far(study.search, arms, study_dir)
                    if len(more) == len(arms):
                        return conclude(study, study_dir, rows)
                arms = more


def is_toy(study: Study) -> bool:
    """Whether all runs are of the toy worlds' models."""
    return all(isinstance(arm.config.model, ToyBase) for arm in study.arms)


def known_so_far(search: Search | None, arms: tuple[Arm, ...], study_dir: Path) -> tuple[Arm, ...]:
    """The arms, and those that a search needs given all runs that are finished, of each method.

    So a search that is resumed begins where it was, and does not go through its rounds again.
    """
    while search is not None:
        finished = [arm for arm in arms if is_finished(arm, study_dir)]
        rows = [row for arm in finished for row in arm_rows(arm, study_dir)]
        known = {arm.name for arm in arms}
        more = tuple(arm for arm in search.next_arms(rows) if arm.name not in known)
        arms += more
        if not any(is_finished(arm, study_dir) for arm in more):
            return arms
    return arms


@dataclass(frozen=True)
class ToRun:
    """The arms of a study so far, the processes asked for, and the GPUs of this host."""

    arms: tuple[Arm, ...]
    workers: int | None
    gpus: tuple[str, ...]


def run_round(
    study: Study,
    study_dir: Path,
    chosen: ToRun,
    quiet: bool,
    *,
    work: StudyWork,
    stopping: Stopping,
) -> list[dict[str, Any]]:
    """Run the arms that are not finished; return the rows of all of them, as in summary.json."""
    began = time.monotonic()
    todo = [arm for arm in chosen.arms if not is_finished(arm, study_dir)]
    count = workers_of(study, chosen)
    workers = min(count, max(len(todo), 1))
    if todo and not quiet:
        count_all = len(chosen.arms)
        if len(todo) < count_all:
            finished = count_all - len(todo)
            print(f"{finished} of {count_all} runs are finished, {len(todo)} are missing",
                  file=sys.stderr)  # fmt: skip
        print(study_line([arm.config for arm in todo], workers, chosen.gpus), file=sys.stderr)
    try:
        if workers == 1:
            run_arms(todo, study_dir, quiet, stopping)
        elif todo:
            found = places(workers, chosen.gpus, own_cores())
            run_in_processes(todo, study_dir, found, quiet=quiet, work=work)
    finally:
        # Also after an interruption, because study.json adds up the time of all attempts.
        add_facts(study, study_dir, time.monotonic() - began)
    # One row per arm, evaluated step and split.
    return [row for arm in chosen.arms for row in arm_rows(arm, study_dir)]


def workers_of(study: Study, chosen: ToRun) -> int:
    """How many processes; the first use of JAX, which then leaves the GPUs to several of them."""
    import jax  # imported here so that listing a study's arms does not load it

    if len(chosen.gpus) > 1 or (chosen.gpus and (chosen.workers or 1) > 1):
        with leaving_the_memory():
            backend = jax.default_backend()
    else:
        backend = jax.default_backend()
    return count_workers(
        chosen.workers,
        usual=study.workers,
        one_device=study.one_device,
        gpus=chosen.gpus,
        backend=backend,
    )


def conclude(study: Study, study_dir: Path, rows: list[dict[str, Any]]) -> Path:
    """Write what all runs show."""
    began = time.monotonic()
    write_whole(study_dir / "summary.json", json.dumps(rows, indent=1))
    if study.search is not None:
        return write_tuned(study, study.search, study_dir, rows)
    write_probes(study, study_dir)
    add_facts(study, study_dir, time.monotonic() - began)
    from jaxdistill.report import write_study_report

    return write_study_report(study_dir)


def write_tuned(
    study: Study, search: Search, study_dir: Path, rows: Sequence[dict[str, Any]]
) -> Path:
    """Write tuned.json: what the search has chosen, and where that comes from."""
    described = searched(study, search, study_dir, rows) | {"methods": search.outcome(rows)}
    path = study_dir / "tuned.json"
    write_whole(path, json.dumps(described, indent=1) + "\n")
    (study_dir / SO_FAR).unlink(missing_ok=True)
    return path


def write_so_far(study: Study, search: Search, study_dir: Path, arms: Sequence[Arm]) -> None:
    """Write what the finished runs say, for a search that may not come to its end."""
    finished = [arm for arm in arms if is_finished(arm, study_dir)]
    rows = [row for arm in finished for row in arm_rows(arm, study_dir)]
    if found := search.so_far(rows):
        described = searched(study, search, study_dir, rows) | {"methods": found}
        write_whole(study_dir / SO_FAR, json.dumps(described, indent=1) + "\n")


def searched(
    study: Study, search: Search, study_dir: Path, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What tuned.json says of the search itself."""
    facts = hf_files.read_json(study_dir / "study.json")
    base = [row for row in rows if row["method"] == "base" and row["world"] == search.world]
    return {
        "source": study.name,
        **{key: facts[key] for key in ("profile", "date", "command", "device", "seconds")},
        "jax": facts["versions"].get("jax"),
        "steps": max((arm.steps for arm in study.arms), default=0),
        "seeds": list(search.seeds),
        "splits": list(search.splits),
        "extensions_at_most": search.extensions,
        "base": {row["split"]: row["accuracy"] for row in base if row["split"] in search.splits},
    }


def prepare(study: Study, study_dir: Path, *, joins: bool = False) -> None:
    """Create the folder, or raise UserError if it does not belong to this study.

    A study that has got more arms since continues in its folder, and runs those alone; so does a
    search that has got more methods. `joins`: runs that were copied into it may be there already.
    """
    parts: list[Any] = [[arm.name, to_json(arm.config)] for arm in study.arms]
    if study.search is not None:
        parts.append(["search", study.search.described()])
    described = json.dumps(parts)
    file = study_dir / "arms.json"
    if file.exists() and not is_part_of(file.read_bytes(), described):
        raise UserError(
            f"{study_dir} holds another study (see arms.json); choose another --run-dir"
        )
    beside = set(names_beside(study_dir, file.name)) - ({"runs"} if joins else set())
    if not file.exists() and beside:
        raise UserError(f"{study_dir} is not empty and holds no study; choose another --run-dir")
    earlier_seconds(study_dir / "study.json")  # broken: now, and not after the runs
    study_dir.mkdir(parents=True, exist_ok=True)
    write_whole(file, described)


def is_part_of(held: bytes, described: str) -> bool:
    """Whether the text of an arms.json has arms, and each of them is an arm of this study."""
    if held == described.encode(errors="backslashreplace"):
        return True
    try:
        parts = json.loads(held)
    except ValueError:
        return False
    now = json.loads(described)
    if not isinstance(parts, list) or not parts:
        return False
    return all(part in now or is_search_within(part, now[-1]) for part in parts)


def is_search_within(held: Any, known: Any) -> bool:
    """Whether both are searches, the same but for methods that the second one has in addition."""
    match held, known:
        case ["search", {"knobs": dict(had), **rest}], ["search", {"knobs": dict(has), **same}]:
            return rest == same and had.items() <= has.items()
    return False


# ---------------------------------------------------------------------------------- results


def arm_rows(arm: Arm, study_dir: Path) -> Iterator[dict[str, Any]]:
    """One row of summary.json per evaluated step and split of the arm's run."""
    labels = {"world": arm.world, "method": arm.method, "seed": arm.config.seed}
    if has_stopped(arm, study_dir):
        why = hf_files.read_json(folder_of(arm, study_dir) / STOPPED).get("reason", "")
        nothing = dict.fromkeys(("accuracy", "length", "epistemic_per_response"), 0.0)
        for split in arm.config.evaluation.splits:
            place = {"step": arm.steps, "split": split.name, "n": 0, "stopped": why}
            yield labels | place | nothing | dict(arm.labels)
        return
    for folder in sorted((folder_of(arm, study_dir) / "evals").glob("step_*")):
        for split, values in read_summary(folder).items():
            yield {
                **labels,
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
        "over": study.over,
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
    search = study.search
    if search is not None:
        search = dataclasses.replace(search, changes=(*search.changes, *texts))
    return dataclasses.replace(study, arms=tuple(arms), search=search)
